"""Run in the environment of another transformers: load the models that are asked for and say what they compute.

Reads `request.json` of the directory it is given, writes `answer.json` and an array of logits per model there.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


def logits(directory: Path, job: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load a model in float32 and write the logits of `NAME.ids.npy`; return it and what the loading reported."""
    model, info = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, output_loading_info=True)
    ids = torch.from_numpy(np.load(directory / f"{job['name']}.ids.npy"))
    with torch.no_grad():
        values = model.eval()(ids[None]).logits[0]
    np.save(directory / f"{job['name']}.logits.npy", values.numpy())
    return model, {name: sorted(map(str, keys)) for name, keys in info.items() if keys}


def written(model: Any, tokenizer: Any, prompt: str, count: int) -> dict[str, Any]:
    """Return the ids of a prompt and what follows it, greedily."""
    batch = tokenizer(prompt, return_tensors="pt")
    start = batch["input_ids"].shape[1]
    accepted = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    out = model.generate(**accepted, do_sample=False, max_new_tokens=count)[0, start:]
    text = tokenizer.decode(out)
    return {"ids": accepted["input_ids"][0].tolist(), "tokens": out.tolist(), "text": text, "refused": list(batch)}


def main(directory: Path) -> None:
    """Answer the request."""
    disable_progress_bar()
    request = json.loads((directory / "request.json").read_text())
    answer: dict[str, Any] = {"version": transformers.__version__, "models": {}}
    for job in request["jobs"]:
        model, info = logits(directory, job)
        told: dict[str, Any] = {"loading": info}
        if job["prompts"]:
            tokenizer = AutoTokenizer.from_pretrained(job["model"])
            chat = [{"role": "user", "content": job["question"]}]
            told["chat"] = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            told["written"] = [written(model, tokenizer, prompt, job["count"]) for prompt in job["prompts"]]
        answer["models"][job["name"]] = told
    (directory / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
