"""Outputs of every kind, really made, and their cards."""

import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from tests.merging import run_merge
from tests.training import run_train
from upcycle.card import BEGIN, END, Facts, card
from upcycle.pipeline import stages
from upcycle.pipeline.history import recipe_of
from upcycle.pipeline.locate import BUILT_IN
from upcycle.requests import Attach, Convert, Verify

REPO = "someone/tiny-4x"
BASE, REVISION = "someone/tiny", "a" * 40
BASE_CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\n- no\ntags: [a-tag]\ndatasets: [x/y]\n---\n# Tiny\n"
SHORT: dict[str, Any] = {"max_steps": 4, "eval_split": 0.2, "eval_sequences": 4}

ADAPTERS = ("lora", "bottleneck", "pesc", "ia3")


class Makes:
    """Outputs of every kind, each made once, when it is first asked for; no test changes one."""

    def __init__(self, place: Path, text: Path) -> None:
        self.place, self.text = place, text
        # as the Hub's client keeps it
        self.base = place / f"models--{BASE.replace('/', '--')}" / "snapshots" / REVISION
        self.base.parent.mkdir(parents=True)
        shutil.copytree(BUILT_IN["demo:tiny"], self.base)

    def __call__(self, kind: str) -> Path:
        out = self.place / kind
        if not out.exists():
            getattr(self, f"make_{kind.partition('-')[0]}")(out, kind.partition("-")[2])
        return out

    def make_moe(self, out: Path, _: str) -> None:
        stages.convert(Convert(model=str(self.base), out=str(out), experts=4))
        stages.verify(Verify(dense=str(self.base), moe=str(out), tokens=32, record=True))

    def make_unverified(self, out: Path, _: str) -> None:
        stages.convert(Convert(model="demo:tiny", out=str(out), experts=4, router="zeros"))

    def make_noisy(self, out: Path, _: str) -> None:
        stages.convert(Convert(model=str(self.base), out=str(out), experts=3, noise=0.25))
        stages.verify(Verify(dense=str(self.base), moe=str(out), tokens=32, record=True))

    def make_trained(self, out: Path, _: str) -> None:
        run_train(self("moe"), out, self.text, **SHORT)

    def make_twice(self, out: Path, _: str) -> None:
        run_train(self("trained"), out, self.text, **SHORT | {"eval_split": 0.0})

    def make_past(self, out: Path, _: str) -> None:
        stages.convert(Convert(model=str(self("control")), out=str(out), experts=4))

    def make_later(self, out: Path, _: str) -> None:
        run_train(self("past"), out, self.text, **SHORT)

    def make_router(self, out: Path, _: str) -> None:
        run_train(self("moe"), out, self.text, train="router", **SHORT)

    def make_control(self, out: Path, _: str) -> None:
        run_train(self.base, out, self.text, **SHORT)

    def make_kept(self, out: Path, _: str) -> None:
        run_train(self("moe"), out, self.text, train="lora", lora_keep=True, lora_rank=2, **SHORT)

    def make_adapter(self, out: Path, expert_type: str) -> None:
        rank = None if expert_type == "ia3" else 8
        kind: Any = expert_type
        stages.attach(Attach(model=str(self.base), out=str(out), experts=(2,), expert_type=kind, rank=rank))

    def make_tuned(self, out: Path, expert_type: str) -> None:
        run_train(self(f"adapter-{expert_type}"), out, self.text, base=str(self.base), **SHORT | {"lr": 1e-2})

    def make_single(self, out: Path, _: str) -> None:
        stages.attach(Attach(model=str(self.base), out=str(out), experts=(2,), rank=8, baseline="single-lora"))

    def make_merged(self, out: Path, form: str) -> None:
        to, _, target = form.partition("-")
        run_merge(self("tuned-bottleneck"), self.base, out, to=to, target=target or None)

    def make_wide(self, out: Path, form: str) -> None:
        adapter, tuned = self.place / "wide", self.place / "wide-tuned"
        if not tuned.exists():
            stages.attach(
                Attach(model=str(self.base), out=str(adapter), experts=(4,), expert_type="bottleneck", rank=8)
            )
            run_train(adapter, tuned, self.text, base=str(self.base), **SHORT | {"lr": 1e-2})
        to, _, target = form.partition("-")
        run_merge(tuned, self.base, out, to=to, target=target or None)

    def make_foreign(self, out: Path, _: str) -> None:
        shutil.copytree(self("moe"), out, ignore=shutil.ignore_patterns("upcycle.json", "verify.json"))


EVERY = (
    "moe", "unverified", "noisy", "trained", "twice", "router", "control", "past", "later", "kept",
    *(f"adapter-{a}" for a in ADAPTERS),
    "tuned-bottleneck", "single", "merged-full", "merged-compact", "merged-compact-qwen2_moe", "foreign",
)  # fmt: skip


@cache
def made_once(place: Path, text: Path) -> Makes:
    """Return the outputs of this session, whose temporary directory is `place`."""
    return Makes(place / "cards", text)


def told(facts: Facts, before: str | None = None) -> str:
    return card(facts, REPO, before, recipe_of(facts, "tiny-4x"))


def data_of(text: str) -> Any:
    """The metadata as the Hub's client reads it."""
    return ModelCard(text).data


def block_of(text: str) -> str:
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    return text[text.index(BEGIN) : text.index(END)]


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
