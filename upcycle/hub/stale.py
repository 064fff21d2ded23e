"""Finds files of an earlier model in a repository: those that programs would mix into the new one, and weights."""

import re
from collections.abc import Iterable, Iterator, Set

from upcycle.hub.contents import MODEL_FILES, PICTURES, RECORD_FILES

_READ_BY = (
    (r"(model|adapter_model|pytorch_model)([-.][^/]*)?\.(safetensors|bin)", "transformers, peft: a part of weights"),
    (r"(model|adapter_model|pytorch_model)\.(safetensors|bin)\.index([-.][^/]*)?\.json", "the same: where parts are"),
    (r"consolidated[^/]*\.(safetensors|pth|json)|params\.json", "vLLM, mistral-inference: before everything else"),
    (r"(tf_model[^/]*\.h5|flax_model[^/]*\.msgpack)(\.index\.json)?", "transformers before 5: the weights"),
    (r"([^/]*_)?(pre)?processor_config\.json", "AutoProcessor, vLLM: that it sees or hears"),
    (r"tokenizer\.model\.v[^/]*", "mistral-common: the tokenizer"),
    (r"additional_chat_templates/[^/]*\.jinja", "AutoTokenizer: how it chats"),
    (PICTURES + r"/(losses|router-losses|optimizer|speed|layers|load(-over-steps)?)(-\d+)?\.(png|svg)",
     "people: what `upcycle plot` drew of a training"),
)  # fmt: skip
"""Names of files of a model, and who would take them for a part of another."""

_OBEYED = re.compile("|".join(pattern for pattern, _ in _READ_BY))
_BESIDE = re.compile(
    r"(original|onnx|openvino)/.*|.*\.(gguf|llamafile|onnx|safetensors|bin|pt|pth|h5|msgpack)", re.IGNORECASE
)
"""Weights that nobody loads who asks for the model: in other formats, or in directories."""


def is_of_a_model(name: str) -> bool:
    """Whether a file of a repository is of the model that is there, so that it must go when another takes its place.

    A reader would take it for a part of the new one: a single file of weights for all of them, a chat template.
    """
    return bool(_OBEYED.fullmatch(name)) or name in (*MODEL_FILES, *RECORD_FILES)


def beside(there: Iterable[str], published: Set[str]) -> Iterator[str]:
    """Yield the files in a repository that stay there, but are weights of a model that is not the published one."""
    return (name for name in there if name not in published and not is_of_a_model(name) and _BESIDE.fullmatch(name))
