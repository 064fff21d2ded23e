"""Model cards of everything that upcycle makes: what they say, and that it is so."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cards import (
    ADAPTERS,
    BASE,
    BASE_CARD,
    EVERY,
    REPO,
    REVISION,
    Makes,
    block_of,
    data_of,
    fences,
    made_once,
    told,
)
from tests.conftest import edit_json
from upcycle.card import facts_of
from upcycle.card.facts import counted
from upcycle.pipeline import stages
from upcycle.pipeline.steps import read_recipe

GOLDEN = Path(__file__).parent / "card.md"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Makes:
    return made_once(tmp_path_factory.getbasetemp(), text)


def test_a_whole_card(made: Makes) -> None:
    facts = facts_of(made("moe"), base_card=BASE_CARD)
    # what differs from machine to machine, and between versions
    parity = {
        "tokens": 32,
        "difference": 1.9e-6,
        "relative": 1.5e-7,
        "agreement": 1.0,
        "dense_loss": 3.0,
        "moe_loss": 3.0,
    }
    fixed: dict[str, dict[str, Any]] = {
        "conversion": {"versions": {"upcycle": "0.1.0", "numpy": "2.4.6"}, "plan": "0123abcd" * 8},
        "verification": {"parity": parity},
    }
    facts = replace(facts, lineage=tuple({**entry, **fixed[entry["made"]]} for entry in facts.lineage))
    assert told(facts) == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_has_a_card(kind: str, made: Makes) -> None:
    text = told(facts_of(made(kind)))
    data = data_of(text)
    assert data.pipeline_tag == "text-generation"
    adapter = kind.startswith(("adapter", "tuned", "single", "kept"))
    assert data.library_name == ("peft" if adapter else "transformers")
    on_hub = kind not in ("unverified", "kept", "foreign")  # what was made from a directory, or is an adapter of one
    assert data.base_model == (BASE if on_hub else None)
    assert data.get("base_model_relation") == (("adapter" if adapter else "finetune") if on_hub else None)
    assert ("moe" in data.tags) == (kind not in ("control", "single", "kept"))
    assert ("upcycle" in data.tags) == (kind != "foreign")
    assert data.license is None
    assert str(made.place) not in text
    assert "/snapshots" not in text
    assert told(facts_of(made(kind)), text) == text  # a second push changes nothing


STEPS = {
    "moe": ["Convert", "Verify"],
    "unverified": ["Convert"],
    "noisy": ["Convert", "Verify"],
    "trained": ["Convert", "Verify", "Train"],
    "twice": ["Convert", "Verify", "Train", "Train"],
    "router": ["Convert", "Verify", "Train"],
    "control": ["Train"],
    "kept": ["Convert", "Verify", "Train"],
    **{f"adapter-{kind}": ["Attach"] for kind in ADAPTERS},
    "tuned-bottleneck": ["Attach", "Train"],
    "single": ["Attach"],
    "merged-full": ["Attach", "Train", "Merge"],
    "merged-compact": ["Attach", "Train", "Merge"],
    "merged-compact-qwen2_moe": ["Attach", "Train", "Merge"],
    "past": ["Train", "Convert"],
    "later": ["Train", "Convert", "Train"],
}


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind != "foreign"])
def test_the_recipe_is_one(kind: str, made: Makes, tmp_path: Path) -> None:
    (written,) = fences(told(facts_of(made(kind))), "yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(written, encoding="utf-8")
    steps = read_recipe(path).steps
    assert [type(step).__name__ for step in steps] == STEPS[kind]
    assert steps[0].model == ("DENSE" if kind == "unverified" else f"{BASE}@{REVISION}")
    for step in steps:
        if type(step).__name__ == "Train":
            assert (step.max_steps, step.seq_len, step.data) == (4, 64, (made.text.name,))


def test_the_recipe_makes_the_same(made: Makes, tmp_path: Path) -> None:
    (written,) = fences(told(facts_of(made("noisy"))), "yaml")
    (tmp_path / "recipe.yaml").write_text(written, encoding="utf-8")
    step = replace(read_recipe(tmp_path / "recipe.yaml").steps[0], model=str(made.base), out=str(tmp_path / "again"))
    stages.convert(step)
    assert (tmp_path / "again/upcycle.json").read_bytes() == (made("noisy") / "upcycle.json").read_bytes()


SENTENCES = {
    "moe": (
        "A Mixtral of 4 experts in each layer, 2 for each token, made from",
        "Yes, by construction",
        "it **passed**",
        "100.00%",
        "the files here are those that were verified",
        "upcycle (`pip install upcycle`) turns dense language models into mixtures of experts.",
    ),
    "unverified": (
        "made from the dense model tiny",
        "routers start at zero",
        "**That was not verified**",
        "To check it yourself, with the directory of the dense model tiny in the place of `DENSE`:",
        "With the directory of the model tiny in the place of `DENSE`, this is what `upcycle run tiny-4x.yaml` takes:",
    ),
    "past": (
        "made from a dense model that was trained from [someone/tiny](https://huggingface.co/someone/tiny) at `aaaa",
        "is carried over. Before that, the dense model was trained for 4 steps, 1,024 tokens.",
        "Yes, by construction",
        "Its experts are the same until training makes them differ",
        "Nothing was evaluated here",
        "|  | of the dense model |",
        "upcycle verify DENSE tiny-4x",
    ),
    "later": (
        "Then all of it was trained for 4 steps",
        "No: it was trained, and no longer computes what the dense",
        "|  | of the dense model | of this |",
        "The held-out loss is all that was measured here",
    ),
    "noisy": ("normal noise of 0.25", "No: noise on the experts", "the dense one with noise"),
    "trained": (
        "Then all of it was trained for 4 steps",
        "no longer computes what the dense",
        "| loss on held-out text |",
    ),
    "twice": ("| training 1 | training 2 |", "Then all of it was trained again for 4 steps", "not recorded"),
    "router": ("Then its routers alone were trained", "Yes, up to rounding", "Its experts are the same until"),
    "control": ("A Llama made from", "trained further. All of it was trained for 4 steps"),
    "kept": (
        "A LoRA of rank 2, for the following mixture of experts.",
        "upcycle is not needed",
        "the LoRA was trained",
    ),
    "adapter-lora": ("low-rank updates", "Yes, until it is trained", "if a mixture of experts can be made of"),
    "adapter-bottleneck": ("narrow feed-forward networks", "--to compact"),
    "adapter-pesc": ("No stock model computes them",),
    "adapter-ia3": ("vectors that scale", "import upcycle.adapters"),
    "tuned-bottleneck": ("Then the adapter was trained for 4 steps", "No: the adapter was trained."),
    "single": ("A LoRA of rank", "the control of adapter experts", "upcycle is not needed"),
    "merged-full": ("Then both were merged into this model, a Mixtral of 2 experts", "vllm serve", "llama-cli"),
    "merged-compact-qwen2_moe": ("Qwen2-MoE", "the shared expert is the dense"),
    "merged-compact": (
        "GraniteMoeShared",
        "the shared expert is the dense",
        "mlx-lm has no granitemoeshared",
        "llama-cli",
    ),
    "foreign": ("how it was made is not recorded", "nothing is claimed"),
}


def test_figures_are_not_told_better_than_they_are(made: Makes) -> None:
    facts = facts_of(made("moe"))
    *before, found = facts.lineage
    for agreement, shown in ((1.0, "100.00%"), (0.99996, "99.99%"), (0.5, "50.00%")):
        parity = {**found["parity"], "agreement": agreement}
        assert f"at {shown} of positions" in told(replace(facts, lineage=(*before, {**found, "parity": parity})))
    assert "publishes no others" not in told(replace(facts, lineage=(*before, {**found, "weights": None})))
    assert "publishes no others" not in told(facts_of(made("trained")))  # of its start


def test_every_learning_rate_is_told(made: Makes) -> None:
    facts = facts_of(made("trained"))
    *before, training = facts.lineage
    recipe = {**training["recipe"], "lr": 1e-4, "router_lr": 2e-3, "expert_lr": 0.0}
    text = told(replace(facts, lineage=(*before, {**training, "recipe": recipe})))
    assert "| largest learning rate | 0.0001, 0.002 for routers and 0 for experts |" in text


def test_a_dense_model_that_was_trained_is_told_apart_from_what_became_of_it(made: Makes) -> None:
    facts = facts_of(made("past"), base_card=BASE_CARD)
    text = told(facts)
    assert (data_of(text).base_model, data_of(text).license) == (BASE, "apache-2.0")
    assert "was trained, and no longer" not in text
    assert "held-out loss is all" not in text
    public = told(facts_of(made("past"), base="someone/control"))  # the one that was converted, now on the Hub
    assert "made from [someone/control]" in public
    assert "upcycle verify someone/control tiny-4x" in public
    training, conversion = facts.lineage
    of_a_directory = {**training, "recipe": {**training["recipe"], "model": "own"}, "source": {}}
    (written,) = fences(told(replace(facts, lineage=(of_a_directory, conversion), base="someone/control")), "yaml")
    assert "    model: DENSE\n" in written
    trained_on = {**training, "recipe": {**training["recipe"], "data": ["org/set"]}}
    assert data_of(told(replace(facts, lineage=(trained_on, conversion)))).datasets == ["org/set"]


@pytest.mark.parametrize("kind", EVERY)
def test_a_card_says_what_was_done(kind: str, made: Makes) -> None:
    text = block_of(told(facts_of(made(kind))))
    for sentence in SENTENCES[kind]:
        assert sentence in text


@pytest.mark.parametrize("kind", ["unverified", "foreign", "adapter-lora", "control"])
def test_a_card_does_not_say_what_was_not_shown(kind: str, made: Makes) -> None:
    text = told(facts_of(made(kind)))
    assert "passed" not in text
    assert ("vllm serve" in text) == (kind != "adapter-lora")
    assert ("## Training" in text) == (kind == "control")


def test_the_balance_at_the_end_and_pictures(made: Makes) -> None:
    facts = facts_of(made("trained"), pictures=["plots/losses.png", "plots/a b](x)_c.png"])
    assert [load["layer"] for load in facts.loads] == [0, 1, 2, 3]
    text = told(facts)
    busiest = max(facts.loads, key=lambda load: load["max_over_mean"])
    assert f"{busiest['max_over_mean']:.2f} times an even share (layer {busiest['layer']})" in text
    assert f"{sum(load['dead'] for load in facts.loads)} of 16 experts" in text
    assert "![losses](plots/losses.png)" in text
    assert "![a b&#93;(x) c](plots/a%20b%5D%28x%29_c.png)" in text


def test_metrics_that_are_cut_off_or_nonsense(made: Makes, tmp_path: Path) -> None:
    shutil.copytree(made("trained"), tmp_path / "copy")
    with (tmp_path / "copy/metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 5, "layers": [{"layer": "0", "load": 3}]}\n{"step": 6, "layers": [{"la')
    assert facts_of(tmp_path / "copy").loads == facts_of(made("trained")).loads
    (tmp_path / "copy/metrics.jsonl").write_bytes(b"\xff\x00\n[]\n{}\n")
    assert facts_of(tmp_path / "copy").loads == ()


def test_a_training_without_its_record_is_shown(made: Makes, tmp_path: Path) -> None:
    shutil.copytree(made("trained"), tmp_path / "copy", ignore=shutil.ignore_patterns("lineage.json"))
    text = told(facts_of(tmp_path / "copy", pictures=["plots/losses.png"]))
    assert "In the last step the busiest expert" in text
    assert "![losses](plots/losses.png)" in text
    assert "nothing is claimed" in text


def test_where_the_weights_are_elsewhere(made: Makes, tmp_path: Path) -> None:
    shutil.copytree(made("foreign"), tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    assert facts_of(tmp_path / "copy").parameters is None
    assert "| parameters |" not in told(facts_of(tmp_path / "copy"))
    elsewhere = replace(facts_of(tmp_path / "copy"), parameters=(1234, 56))
    assert "| parameters | 1,234 |\n| of which a token uses | 56 |" in told(elsewhere)
    # counted: the dense model's 1,000,576, 3 x 540,672 of more experts, 4 x 4 x 128 of routers
    # two of the four experts are not used: 2 x 540,672 less
    assert facts_of(made("foreign")).parameters == (2_624_640, 1_543_296)


@pytest.mark.parametrize(
    ("kind", "active"),
    [
        ("moe", 1_543_296),
        ("trained", 1_543_296),
        # of the dense model's 1,000,576, with 4 x 4 x 128 of routers and, in 4 layers, 2 experts of 3 x 8 x 128
        ("wide-compact", 1_027_200),
        # and in each layer biases of q, k and v, and the gate of the shared expert
        ("wide-compact-qwen2_moe", 1_028_736),
        ("wide-full", 1_567_872),
    ],
)
def test_the_parameters_on_record_are_those_of_the_weights(kind: str, active: int, made: Makes) -> None:
    facts = facts_of(made(kind))
    assert facts.parameters == counted(made(kind), facts.experts, 2)
    assert facts.parameters
    assert facts.parameters[1] == active


def test_the_parameters_of_a_model_without_a_record(made: Makes, tmp_path: Path) -> None:
    dense = facts_of(made.base)
    assert dense.parameters == (1_000_576, None)
    names = shutil.ignore_patterns("upcycle.json", "lineage.json")
    shutil.copytree(made("merged-compact"), tmp_path / "fused", ignore=names)
    assert facts_of(tmp_path / "fused").parameters == facts_of(made("merged-compact")).parameters
    edit_json(tmp_path / "fused/config.json", num_experts_per_tok=1)
    total, active = facts_of(tmp_path / "fused").parameters or (0, 0)
    # 4 layers, in each one expert of width 8 that is not used: gate, up and down of 8 x 128
    assert total - (active or 0) == 4 * 3 * 8 * 128
    edit_json(tmp_path / "fused/config.json", num_experts_per_tok=3)
    assert facts_of(tmp_path / "fused").parameters == (total, None)


def test_the_dense_model_may_be_named(made: Makes) -> None:
    text = told(facts_of(made("unverified"), base=f"{BASE}@{REVISION}", base_card=BASE_CARD))
    assert data_of(text).base_model == BASE
    assert f"upcycle verify {BASE}@{REVISION} tiny-4x" in text
    assert "model: someone/tiny@" in text


def test_a_model_that_chats_is_asked(made: Makes, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    shutil.copytree(made("moe"), tmp_path / REPO)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    edit_json(tmp_path / REPO / "tokenizer_config.json", chat_template=template)
    (code,) = fences(told(facts_of(tmp_path / REPO)), "python")
    assert "apply_chat_template" in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.startswith("What is the capital of France?")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by a name that it is giving up
@pytest.mark.parametrize("kind", ["moe", "tuned-bottleneck", "single", "merged-compact"])
def test_the_code_of_a_card_runs(kind: str, made: Makes, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (code,) = fences(told(facts_of(made(kind))), "python")
    (tmp_path / "someone").mkdir()
    (tmp_path / REPO).symlink_to(made(kind))  # names of repositories are those of directories here
    (tmp_path / BASE).symlink_to(made.base)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.startswith("The capital of France is")


def test_what_other_programs_do_not_compute(made: Makes) -> None:
    facts = facts_of(made("moe"))
    gelu = told(replace(facts, config={**facts.config, "hidden_act": "gelu"}))
    assert "vllm serve" not in gelu
    assert "llama-cli" not in gelu
    assert "- llama.cpp, mlx-lm and vLLM compute SiLU whatever hidden_act says." in gelu
    dynamic = told(replace(facts, config={**facts.config, "rope_parameters": {"rope_type": "dynamic"}}))
    assert "vllm serve" in dynamic
    assert "llama-cli" not in dynamic
    windowed = told(replace(facts, config={**facts.config, "sliding_window": 5}))
    assert "llama.cpp and mlx-lm ignore sliding_window" in windowed
