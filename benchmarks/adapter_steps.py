"""One training of an adapter in a process of its own: the time of its steps, and the memory above that at the start.

python -m benchmarks.adapter_steps BASE ADAPTER TEXT ... prints JSON. Both kinds of adapters run in the same plain loop,
which is all there is around a model in most trainings: forward, backward, AdamW. The start is when model and adapter
are loaded, so that what is counted are activations, gradients and the optimizer's state.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from upcycle.adapters.load import attached


def resident(field: str) -> int:
    """Return `VmRSS` or `VmHWM`, its peak, of this process in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) * 1024


def main() -> None:
    """Train and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "adapter", "text"):
        parser.add_argument(name, type=Path)
    for name in ("steps", "batch-size", "seq-len"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--device", required=True)
    chosen = parser.parse_args()
    cuda = chosen.device == "cuda"
    base = AutoModelForCausalLM.from_pretrained(chosen.base, dtype=torch.float32)
    base.config.use_cache = False
    model = attached(base, chosen.adapter, trainable=True).to(chosen.device).train()
    tokenizer = AutoTokenizer.from_pretrained(chosen.base)
    ids = tokenizer(chosen.text.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    size = chosen.batch_size * chosen.seq_len
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, fused=True)
    ends, losses, start = [], [], resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again (proc(5))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    for step in range(chosen.steps):
        batch = ids[step * size : (step + 1) * size].view(chosen.batch_size, chosen.seq_len).to(chosen.device)
        logits = model(input_ids=batch).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        ends.append(time.perf_counter())
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    print(json.dumps({
        "ends": ends, "losses": losses, "above_start": peak - start,
        "parameters": sum(parameter.numel() for parameter in trained),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
