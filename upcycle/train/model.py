"""Loads the model that is trained by stock transformers, sorts its parameters into groups, and saves it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from upcycle.adapters.load import attached
from upcycle.checkpoint.reader import (
    CHAT_TEMPLATE_FILES,
    CONFIG_FILE,
    GENERATION_FILE,
    TOKENIZER_FILES,
    present_files,
)
from upcycle.errors import InputError
from upcycle.families.wrappers import TEXT
from upcycle.moe.auto import auto_class, is_text, text_config
from upcycle.moe.routing import Router, find_routers
from upcycle.moe.widths import run_any_width
from upcycle.requests.train import Train, TrainDtype, TrainedPart
from upcycle.text.encode import token_id
from upcycle.train.adapter import save_adapter, with_adapter
from upcycle.train.lora import DIRECTORY, is_adapted, plain_name, restore, wrapped
from upcycle.train.precision import keep_routers_fp32, state_for_saving
from upcycle.train.stops import add_stop, stops_of

GROUPS = ("router", "experts", "rest")
"""Groups of parameters: each has its own learning rate and gradient norm."""

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
FOUR_BIT_LINEAR = "Linear4bit"
"""Name of bitsandbytes' linear layer with weights in 4 bits, a subclass of torch's."""

SIDE_FILES = (GENERATION_FILE, *TOKENIZER_FILES, *CHAT_TEMPLATE_FILES)
"""Files that are copied from the model to its checkpoints unchanged."""


@dataclass(frozen=True)
class Trainee:
    """A model in training, and which of its parameters are trained."""

    source: Path
    model: Any  # a causal language model of transformers, or peft's wrapper of one
    tokenizer: Any
    routers: list[Router]
    groups: dict[str, dict[str, nn.Parameter]]  # router, experts, rest -> name -> trained parameter
    dtype: torch.dtype
    four_bits: bool = False  # frozen linear layers are held so
    base: Path | None = None  # of the frozen model, where the source is an adapter
    stop: int | None = None  # the token of --eos, at which the successor stops too

    def active_parameters(self, shares: Sequence[float]) -> int:
        """Return the parameters that multiply for one token, when it uses such shares of the layers' experts.

        The table of embeddings is none of them, unless it is also the head.
        """
        experts = [sum(p.numel() for p in router.experts.parameters()) for router in self.routers]
        idle = sum((1 - share) * count for share, count in zip(shares, experts, strict=True))
        table, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        looked_up = 0 if head is not None and head.weight is table.weight else table.weight.numel()
        total = sum(parameter.numel() for parameter in self.model.parameters())
        return int(total - idle - looked_up)

    def state(self) -> dict[str, Tensor]:
        """Return the weights by name, in the data types of checkpoints; of adapters peft saves what it needs."""
        return {} if is_adapted(self.model) else state_for_saving(self.model)

    def save(self, directory: Path, weights: Mapping[str, Tensor], *, merged: bool) -> None:
        """Write the model as stock transformers reads it, with the `weights` that `state` has, whole.

        They have the names and the layout of a checkpoint, whatever they have in memory; config, tokenizer and
        chat template are those of the model it began as, but for the data type. With LoRA it is the adapter, or with
        `merged`, which ends the training, the model that it makes, and the adapter in the directory `lora.DIRECTORY`.
        An adapter that was trained stays one.
        """
        if self.base is not None:
            save_adapter(self.model, directory, self.source, self.base)
        else:
            self._save_model(directory, weights, merged=merged)
        for page in directory.rglob("README.md"):  # peft's, with everything still to be filled in
            page.unlink()
        for name in SIDE_FILES:
            (directory / name).unlink(missing_ok=True)
            if (self.home / name).is_file():
                shutil.copyfile(self.home / name, directory / name)
        if self.stop is not None:
            add_stop(directory, stops_of(self.model), self.stop)

    @property
    def home(self) -> Path:
        """The directory that the tokenizer and the other SIDE_FILES are copied from."""
        return _home(self.source, self.base)

    def _save_model(self, directory: Path, weights: Mapping[str, Tensor], *, merged: bool) -> None:
        model = self.model
        if is_adapted(model):
            place = directory / DIRECTORY if merged else directory
            model.save_pretrained(place, save_embedding_layers=False)  # else peft looks for the base's config
            if merged:
                model = self._merged(directory / DIRECTORY)
                weights = state_for_saving(model)
        if not is_adapted(model):
            model.save_pretrained(directory, state_dict=dict(weights), max_shard_size="5GB")
        if (directory / CONFIG_FILE).exists():
            config = json.loads((self.source / CONFIG_FILE).read_bytes())
            named = [field for field in ("dtype", "torch_dtype") if field in config] or ["torch_dtype"]
            config.update(dict.fromkeys(named, word := str(self.dtype).removeprefix("torch.")))
            if isinstance(config.get(TEXT), dict):
                config[TEXT].update({field: word for field in named if field in config[TEXT]})
            (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _merged(self, adapter: Path) -> Any:
        """Return the model with its LoRA updates added; those of a model in 4 bits to the weights before rounding."""
        if not self.four_bits:
            return self.model.merge_and_unload()
        loader = auto_class(AutoConfig.from_pretrained(self.source, trust_remote_code=False))
        whole = loader.from_pretrained(self.source, dtype=self.dtype, trust_remote_code=False)
        return attached(whole, adapter).merge_and_unload()


def load(
    source: Path, request: Train, device: torch.device, checkpoint: Path | None = None, base: Path | None = None
) -> Trainee:
    """Return the model in `source` on `device`, its parameters chosen and sorted, as it is in `checkpoint` if given.

    Where there is a `base`, that is the model, which stays as it is, and `source` the adapter that is trained. Raises
    InputError when transformers cannot load it, or when weights are missing or superfluous.
    """
    dtype, lora = _dtype(request.dtype, device), request.train == "lora"
    model = _stock_model(base or (source if lora or checkpoint is None else checkpoint), request, dtype)
    routers = find_routers(model)
    _prepare(model)
    if dtype != torch.float32:
        keep_routers_fp32(router.module for router in routers)
    stock = model
    if base is not None:
        model = with_adapter(model, checkpoint or source)
        routers = routers or find_routers(model.get_base_model())
    if request.train in ("experts", "router") and not routers:
        raise InputError("has no experts", where=source, hint="--train all trains a dense model or a LoRA")
    if lora:
        model = wrapped(model, routers, request)
        if checkpoint is not None:
            restore(model, checkpoint)
    if request.gradient_checkpointing:  # now: before, peft would have the embeddings ask for gradients
        old_name = stock.gradient_checkpointing_enable  # the only one in transformers 5.17
        getattr(stock, "activation_checkpointing_enable", old_name)({"use_reentrant": False})
    groups = _groups(model if request.load_in_4bit else model.to(device), routers, request.train)
    tokenizer = _tokenizer(_home(source, base), text_config(model).vocab_size)
    return Trainee(
        source,
        model,
        tokenizer,
        routers,
        groups,
        dtype,
        request.load_in_4bit,
        base,
        None if request.eos is None else token_id(tokenizer, request.eos),
    )


def check_trained(request: Train, source: Path, base: Path | None) -> None:
    """Raise InputError for a --train or --load-in-4bit that this model or adapter does not allow."""
    if base is not None and request.train == "lora":
        raise InputError("is an adapter already", where=source, found="--train lora", expected="all, experts or router")
    if request.load_in_4bit and base is None and request.train != "lora":
        raise InputError(
            "weights that are trained cannot be held in 4 bits", where=source, found=f"--train {request.train}",
            expected="--train lora, or an adapter to train", hint="leave --load-in-4bit out",
        )  # fmt: skip


def _home(source: Path, base: Path | None) -> Path:
    """Return the directory of the tokenizer: that of an adapter, if it has one, else that of its base."""
    return source if base is None or present_files(source, TOKENIZER_FILES) else base


def _dtype(asked: TrainDtype, device: torch.device) -> torch.dtype:
    if asked != "auto":
        return DTYPES[asked]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _stock_model(source: Path, request: Train, dtype: torch.dtype) -> Any:
    disable_progress_bar()
    given = {
        "attn_implementation": request.attn_implementation,
        "experts_implementation": request.experts_implementation,
    }
    try:
        model, told = auto_class(AutoConfig.from_pretrained(source, trust_remote_code=False)).from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **{name: value for name, value in given.items() if value is not None},
            **(_four_bits(dtype) if request.load_in_4bit else {}),
        )
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"transformers cannot load this model ({error})", where=source) from error
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[trouble]:
            name = sorted(told[trouble], key=str)[0]
            raise InputError(
                "the weights do not fit the config", where=source, found=f"{trouble.replace('_', ' ')}, such as {name}"
            )
    if request.load_in_4bit:
        check_four_bits(model, source)
    if request.experts_implementation is None:
        run_any_width(model)
    return model


def _prepare(model: Any) -> None:
    """Let a model compute for training on text: it keeps no cache, and what no text passes through is frozen."""
    text = text_config(model)
    model.config.use_cache = text.use_cache = False
    if hasattr(text, "output_router_logits"):
        text.output_router_logits = False  # transformers' own loss pools the layers
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and is_text(model, name))


def check_four_bits(model: Any, source: Path) -> None:
    """Raise InputError unless all linear layers but the head are held in 4 bits: what was left out would need the
    memory that was to be saved.
    """
    head = model.get_output_embeddings()
    linear = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not head}
    left = [name for name, one in linear.items() if type(one).__name__ != FOUR_BIT_LINEAR]
    if left or not linear:
        raise InputError(
            "not all linear layers could be held in 4 bits", where=source,
            found=f"{len(linear) - len(left)}, without {', '.join(left[:4])}" if left else "none",
            expected=f"{len(linear)}, all but the head", hint="leave --load-in-4bit out",
        )  # fmt: skip


def _four_bits(dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that hold linear layers in 4 bits (NF4, 2305.14314)."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError("--load-in-4bit needs bitsandbytes", hint="pip install bitsandbytes") from None
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config}


def _tokenizer(source: Path, vocabulary: int) -> Any:
    if not present_files(source, TOKENIZER_FILES):
        raise InputError(
            "holds no tokenizer", where=source, hint="`upcycle convert --tokenizer DIR` takes one from elsewhere"
        )
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer) > vocabulary:
        raise InputError(
            "the tokenizer does not fit the model", where=source, found=f"{len(tokenizer)} tokens",
            expected=f"at most the vocabulary's {vocabulary}",
        )  # fmt: skip
    return tokenizer


def _groups(model: nn.Module, routers: list[Router], trained: TrainedPart) -> dict[str, dict[str, nn.Parameter]]:
    """Sort the parameters that are trained, and freeze the others; with adapters peft has frozen the model."""
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in GROUPS}
    for name, parameter in model.named_parameters():
        kind = _kind(plain_name(name), routers)
        if trained != "lora":
            parameter.requires_grad_(parameter.requires_grad and trained in ("all", kind))
        if parameter.requires_grad:
            groups[kind][name] = parameter
    return groups


def _kind(name: str, routers: list[Router]) -> str:
    for router in routers:
        if name.startswith(f"{router.name}."):
            return "router"
        if name.startswith(f"{router.experts_name}."):
            return "experts"
    return "rest"
