"""Finds the config fields that transformers' classes read, by their source code; writes `families/fields_read.json`.

`python -m tests.families.read_fields` writes it anew. A class reads a field if its config class declares it, or if code
of its files takes it from a config: `config.NAME`, `getattr(config, "NAME")`, `config.get("NAME")`, `"NAME" in config`.
What all classes share (the base config, rotary positions, masks, caches, generation) is read the same way, once.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import transformers
from transformers import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

from upcycle.families.unread import FIELDS_READ

ROOT = Path(transformers.__file__).parent

SHARED = (
    "configuration_utils.py", "modeling_utils.py", "modeling_rope_utils.py", "modeling_layers.py", "masking_utils.py",
    "modeling_attn_mask_utils.py", "modeling_flash_attention_utils.py", "cache_utils.py", "core_model_loading.py",
    "conversion_mapping.py", "initialization.py", "loss/loss_utils.py", "generation/utils.py", "integrations/moe.py",
    "integrations/sdpa_attention.py", "integrations/flash_attention.py", "integrations/flex_attention.py",
    "utils/generic.py", "utils/output_capturing.py", "models/auto/configuration_auto.py",
    "models/auto/auto_factory.py",
)  # fmt: skip
"""Files of transformers that any decoder runs."""

OF_CONFIGS = ("modeling_rope_utils.py",)
"""Files whose `self` is a config, beside those of the config classes."""

MODELS = (
    # dense
    "apertus", "arcee", "bloom", "codegen", "cohere", "cohere2", "cwm", "ernie4_5", "exaone4", "falcon", "gemma",
    "gemma2", "gemma3_text", "gemma4_text", "glm", "glm4", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite",
    "granite_swa", "helium", "hunyuan_v1_dense", "internlm3", "iquestcoder", "jais2", "lfm2", "llama", "ministral",
    "ministral3", "mistral", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3",
    "qwen2", "qwen3", "qwen3_5_text", "seed_oss", "smollm3", "stablelm", "starcoder2", "t5", "vaultgemma", "youtu",
    # mixtures of experts
    "afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo",
    "glm4_moe", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "laguna",
    "lfm2_moe", "mellum", "minimax", "minimax_m2", "mistral4", "mixtral", "olmoe", "phimoe", "qwen2_moe",
    "qwen3_5_moe_text", "qwen3_moe", "solar_open", "switch_transformers",
    # text and more
    "gemma3", "gemma4", "mistral3", "qwen3_5", "qwen3_5_moe",
)  # fmt: skip
"""Model types that are looked at, where the installed transformers has them."""

_LOOKUPS = ("getattr", "hasattr", "setattr", "delattr")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_by(model_type: str) -> set[str]:
    """Return the fields that the classes of a model type read, beside those that all classes do."""
    directory = ROOT / "models" / model_type_to_module_name(model_type)
    files = [*sorted(directory.glob("configuration_*.py")), *sorted(directory.glob("modeling_*.py"))]
    return _read_in(_with_imported(files)) - read_by_all()


@cache
def read_by_all() -> frozenset[str]:
    """Return the fields that code reads which every model runs."""
    by_code = _read_in(ROOT / name for name in SHARED if (ROOT / name).is_file())
    return frozenset(by_code | set(GenerationConfig().to_dict()))  # generation takes its settings from the config, too


def document() -> dict[str, object]:
    """Return what the data file holds for the installed transformers."""
    known = [name for name in MODELS if name in CONFIG_MAPPING_NAMES]
    return {
        "transformers": transformers.__version__,
        "all": sorted(read_by_all()),
        "models": {name: sorted(read_by(name)) for name in known},
    }


def _with_imported(files: Iterable[Path]) -> list[Path]:
    """Add the files of other models that some model's files import from."""
    found: list[Path] = []
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.append(path)
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module and node.level in (1, 2):
                other = path.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")
                if other.name.startswith(("configuration_", "modeling_")) and other.is_file():
                    waiting.append(other)
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _read_in(paths: Iterable[Path]) -> set[str]:
    found = {name for path in paths for name in _read_in_file(path)}
    return {name for name in found if _NAME.fullmatch(name) and not name.startswith("__")}


@cache
def _read_in_file(path: Path) -> frozenset[str]:
    of_config = path.name.startswith("configuration_") or path.name in OF_CONFIGS
    nodes = list(ast.walk(_tree(path)))
    methods = {node.func for node in nodes if isinstance(node, ast.Call)}
    return frozenset(name for node in nodes if node not in methods for name in _read_at(node, of_config))


def _read_at(node: ast.AST, of_config: bool) -> Iterator[str]:
    """Yield the fields that one node of the code declares or reads; `of_config`: `self` is a config there."""
    if isinstance(node, ast.Attribute) and _is_config(node.value, of_config):
        yield node.attr
    elif isinstance(node, ast.Call):
        yield from _read_by_call(node, of_config)
    elif isinstance(node, ast.Compare) and any(_is_config(one, of_config) for one in node.comparators):
        yield from _strings([node.left])
    elif isinstance(node, ast.Subscript) and _is_config(node.value, of_config):
        yield from _strings([node.slice])
    elif isinstance(node, ast.ClassDef) and of_config:
        yield from _declared(node)
    elif isinstance(node, ast.FunctionDef):
        yield from _looked_up(node, of_config)


def _read_by_call(node: ast.Call, of_config: bool) -> Iterator[str]:
    called = node.func
    if _is_lookup(node, of_config):
        yield from _strings(node.args[1:2])
    elif isinstance(called, ast.Attribute) and called.attr in ("get", "pop") and _is_config(called.value, of_config):
        yield from _strings(node.args[:1])


def _looked_up(node: ast.FunctionDef, of_config: bool) -> Iterator[str]:
    """Yield what a config class takes when it is made, and the names among which a function chooses one to look up."""
    if of_config and node.name == "__init__":
        yield from (one.arg for one in (*node.args.args, *node.args.kwonlyargs))
    within = list(ast.walk(node))
    if any(_is_lookup(one, of_config) and not list(_strings(one.args[1:2])) for one in within):
        yield from (name for one in within if isinstance(one, ast.Tuple | ast.List) for name in _strings(one.elts))


def _is_lookup(node: ast.AST, of_config: bool) -> TypeGuard[ast.Call]:
    """Whether a node is `getattr(config, ...)` or the like."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _LOOKUPS):
        return False
    return bool(node.args) and _is_config(node.args[0], of_config)


def _declared(node: ast.ClassDef) -> Iterator[str]:
    """Yield the fields of a config class, and other names by which it takes them."""
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            yield one.target.id
            if one.target.id == "attribute_map":
                yield from _strings(ast.walk(one))
        elif isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
            yield one.targets[0].id
            if one.targets[0].id == "attribute_map":
                yield from _strings(ast.walk(one))


def _is_config(node: ast.AST, of_config: bool) -> bool:
    """Whether an expression is a config by its name, such as `self.config`, `text_config` and `config_dict`."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return "config" in name.lower() or name == "cfg" or (of_config and name in ("self", "kwargs"))


def _strings(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


if __name__ == "__main__":
    text = json.dumps(document(), indent=1)
    flat = re.sub(r"\[\n\s+([^\]]*?)\n\s*\]", lambda one: "[" + re.sub(r"\n\s*", " ", one[1]) + "]", text)
    FIELDS_READ.write_text(flat + "\n", encoding="utf-8")
