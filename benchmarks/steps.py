"""One training in a process of its own, with the time at which each step ended.

python -m benchmarks.steps {upcycle,trainer} MODEL TRAINEE ... prints JSON. A step lasts from the end of the one before
to its own, so that everything counts that is done in a step: reading, logging, alerts, metrics. Both sides stop after
the last step, before a model would be saved, and write what they have to say to a file beside OUT.
"""

import argparse
import json
import os
import sys
import time
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.trainees import BLOCKS, TEXT

LR, WARMUP, WEIGHT_DECAY, BETAS, CLIP = 3e-4, 4, 0.1, (0.9, 0.95), 1.0
AUX_COEF, TOP_K = 0.01, 2
"""Coefficient of transformers' balance loss. It counts every choice of a token, and the mean over layers."""


@dataclass
class Measured:
    """What is known of a training."""

    ends: list[float] = field(default_factory=list)  # of steps, seconds
    losses: list[float] = field(default_factory=list)  # language modelling and balance, as they were added
    reported: list[float] = field(default_factory=list)  # tokens a second, as the trainer itself has them


class _EnoughError(Exception):
    """The last step that is measured is over."""


def with_upcycle(chosen: argparse.Namespace) -> Measured:
    """Train with `upcycle train`, its panel and all its losses on."""
    from upcycle.cli.panel import Panel
    from upcycle.pipeline.stages import train
    from upcycle.requests import Train

    measured = Measured()
    layers = json.loads((chosen.model / "config.json").read_bytes())["num_hidden_layers"]

    class Watcher(Panel):
        def step(self, metrics: dict[str, Any]) -> None:
            super().step(metrics)
            measured.ends.append(time.perf_counter())
            balance = metrics["balance_loss"] or 0.0
            measured.losses.append(metrics["loss"] + TOP_K * AUX_COEF * balance)
            measured.reported.append(metrics["tokens_per_second"])
            if metrics["step"] == chosen.steps:
                raise _EnoughError

    request = Train(
        model=str(chosen.model), out=str(chosen.out), data=(str(chosen.trainee / TEXT),), seq_len=chosen.seq_len,
        shuffle=0, batch_size=chosen.batch_size, max_steps=chosen.steps, lr=LR, warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY, beta1=BETAS[0], beta2=BETAS[1], clip=CLIP, balance_coef=TOP_K * AUX_COEF / layers,
        z_coef=0.001, importance_coef=0.001, dtype=chosen.dtype, compile=chosen.compile, device=chosen.device,
        experts_implementation=chosen.experts_implementation, overwrite=True,
    )  # fmt: skip
    try:
        with Watcher() as watcher:
            train(request, watcher)
    except _EnoughError:
        pass
    return measured


def with_trainer(chosen: argparse.Namespace) -> Measured:
    """Train with transformers' Trainer; `dtype` autocast has float32 weights and computes in bfloat16."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

    measured = Measured()

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_args: Any, **_more: Any) -> None:
            measured.ends.append(time.perf_counter())

        def on_log(self, *_args: Any, logs: dict[str, float], **_more: Any) -> None:
            measured.losses += [logs["loss"]] if "loss" in logs else []

    aux = {"output_router_logits": True, "router_aux_loss_coef": AUX_COEF}
    model = AutoModelForCausalLM.from_pretrained(
        chosen.model, dtype=torch.bfloat16 if chosen.dtype == "bf16" else torch.float32,
        experts_implementation=chosen.experts_implementation, **aux,
    )  # fmt: skip
    rows = np.load(chosen.trainee / BLOCKS)[: chosen.steps * chosen.batch_size].astype(np.int64)
    data = [{"input_ids": row, "labels": row} for row in torch.from_numpy(rows)]
    Trainer(model, _arguments(chosen), train_dataset=data, callbacks=[Watcher()]).train()
    return measured


def _arguments(chosen: argparse.Namespace) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        str(chosen.out), max_steps=chosen.steps, per_device_train_batch_size=chosen.batch_size, learning_rate=LR,
        warmup_steps=WARMUP, lr_scheduler_type="cosine", weight_decay=WEIGHT_DECAY, adam_beta1=BETAS[0],
        adam_beta2=BETAS[1], max_grad_norm=CLIP, optim="adamw_torch_fused", logging_steps=1, report_to="none",
        save_strategy="no", train_sampling_strategy="sequential", use_cpu=chosen.device == "cpu",
        bf16=chosen.dtype == "autocast", torch_compile=chosen.compile, seed=0,
        dataloader_pin_memory=chosen.device != "cpu",
    )  # fmt: skip


def main() -> None:
    """Train and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("upcycle", "trainer"))
    for name in ("model", "trainee", "out"):
        parser.add_argument(name, type=Path)
    for name in ("steps", "batch-size", "seq-len"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16", "autocast"), required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--experts-implementation")
    parser.add_argument("--compile", action="store_true")
    chosen = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[
        0
    ]  # one process, one GPU
    chosen.out.mkdir(parents=True, exist_ok=True)
    train = {"upcycle": with_upcycle, "trainer": with_trainer}[chosen.side]
    with chosen.out.with_suffix(".log").open("w", encoding="utf-8") as log, redirect_stderr(log):
        measured = train(chosen)
    import torch

    device_peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(json.dumps({**vars(measured), "device_peak_bytes": device_peak}), file=sys.stdout)


if __name__ == "__main__":
    main()
