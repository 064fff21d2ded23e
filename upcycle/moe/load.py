"""Runs a stock transformers model whose layers stay on disk: each is read, in float32, only while it runs.

The module tree is transformers' own, built on the meta device; only the weights come and go. So the forward pass
that is measured is the one that users get, whatever its class does to embeddings and logits, in the memory of one
layer. Buffers are small and stay in memory: their class computes them, and those on disk are read with their module.

Shapes: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from upcycle.checkpoint.reader import Checkpoint
from upcycle.errors import CheckpointError
from upcycle.families.dense.dense import Spine
from upcycle.message import listed
from upcycle.plan.values import Floats, read_blocks

VOCABULARY_ROWS = 4096
"""Rows of the output head that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a layer was called with."""

    hidden_BTD: Tensor
    further: tuple[Any, ...]  # positional arguments after the hidden states
    named: dict[str, Any]

    def run(self, layer: nn.Module, hidden_BTD: Tensor | None = None) -> Tensor:
        """Return the output `(B, T, D)` of `layer`, called like this; `hidden_BTD` may stand for the hidden states."""
        output: Tensor = layer(self.hidden_BTD if hidden_BTD is None else hidden_BTD, *self.further, **self.named)
        return output


class StreamedModel:
    """A causal language model that is read layer by layer."""

    def __init__(self, checkpoint: Checkpoint, spine: Spine) -> None:
        """Build the stock module tree of the checkpoint's config, without weights."""
        config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False).get_text_config(decoder=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager")
        self.directory = checkpoint.directory
        self.tensors = checkpoint.tensors
        self.spine = spine
        self.vocabulary: int = config.get_text_config().vocab_size
        self.model: Any = model.eval().requires_grad_(False)
        self.base: Any = model.get_decoder()
        self.layers: Sequence[nn.Module] = self.base.layers
        self._on_disk = spine.layer.removesuffix("layers.{layer}")  # what the base model is called there
        self._in_memory = next(f"{name}." for name, module in model.named_modules() if module is self.base)
        self._memory: dict[tuple[str, torch.Size], Tensor] = {}
        _compute_buffers(self.model, self.base)

    def run(self, ids_BT: Tensor, before: Callable[[int, LayerCall], None]) -> Tensor:
        """Run embeddings, all layers and the final norm; return hidden states `(B, T, D)`.

        `before(layer, call)` sees what each layer is called with.
        """
        with self._reading(before), torch.no_grad():
            hidden_BTD: Tensor = self.base(input_ids=ids_BT, use_cache=False, return_dict=True).last_hidden_state
        return hidden_BTD

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return logits `(T, V)`, float32."""
        logits_TV = torch.empty(len(hidden_TD), self.vocabulary)
        with torch.no_grad():
            for columns, block_TV in self.logit_blocks(hidden_TD):
                logits_TV[:, columns] = block_TV
        return logits_TV

    def logit_blocks(self, hidden_TD: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield logits of final hidden states as (columns, block), with gradient where that is enabled.

        The class's own forward makes them of some rows of its head at a time: scaling and softcapping treat each alone.
        """
        head, given = self.model.get_output_embeddings(), self.spine.head
        weight = given if given in self.tensors else self.spine.embeddings
        stock = getattr(self.model, self.model.base_model_prefix)
        setattr(self.model, self.model.base_model_prefix, _Given())
        meta = dict(head.named_parameters())
        try:
            for start in range(0, self.vocabulary, VOCABULARY_ROWS):
                count = min(VOCABULARY_ROWS, self.vocabulary - start)
                head.weight = _frozen(self._rows(weight, start, count))
                if head.bias is not None:
                    head.bias = _frozen(self._rows(given.removesuffix("weight") + "bias", start, count))
                logits_BTV = self.model(inputs_embeds=hidden_TD[None], use_cache=False, return_dict=True).logits
                yield slice(start, start + count), logits_BTV[0]
        finally:
            setattr(self.model, self.model.base_model_prefix, stock)
            for name, parameter in meta.items():
                setattr(head, name, parameter)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Hold one layer in memory, in float32."""
        with self._held(self.layers[index], f"layers.{index}"):
            yield self.layers[index]

    @contextmanager
    def final_norm(self) -> Iterator[nn.Module]:
        """Hold the norm after the last layer in memory."""
        path = self.spine.norm.removeprefix(self._on_disk)
        with self._held(self.base.get_submodule(path), path):
            yield self.base.get_submodule(path)

    @contextmanager
    def _held(self, module: nn.Module, path: str) -> Iterator[None]:
        self._load(module, path)
        try:
            yield
        finally:
            _forget(module)

    def _load(self, module: nn.Module, path: str, *, recurse: bool = True) -> None:
        """Give the module at `path` of the base model its weights from disk, and its buffers that are there."""
        for name, parameter in list(module.named_parameters(recurse=recurse)):
            values = self._memory_for(name, parameter.shape)
            self._read_into(values, self._parts(path, name, parameter.shape))
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, _frozen(values))
        for name, buffer in module.named_buffers(recurse=recurse):
            owner, _, leaf = name.rpartition(".")
            if leaf in module.get_submodule(owner)._non_persistent_buffers_set:
                continue
            parts = self._parts(path, name, buffer.shape)
            if all(part in self.tensors for part in parts):  # else it is as its class makes it
                self._read_into(buffer, parts)

    def _memory_for(self, path: str, shape: torch.Size) -> Tensor:
        """Return the memory that holds this parameter of whichever layer is read: allocated once, so it cannot grow."""
        return self._memory.setdefault((path, shape), torch.empty(0)).resize_(shape)

    def _parts(self, path: str, name: str, shape: torch.Size) -> list[str]:
        """Return the tensors on disk that make up `name` of the module at `path`, in the order of its memory."""
        plain = ".".join(part for part in (path, name) if part)
        if self._on_disk + plain in self.tensors:
            return [self._on_disk + plain]
        return self._stock_parts(plain, shape)

    def _stock_parts(self, path: str, shape: torch.Size) -> list[str]:
        """Return under which names the stock class saves a parameter, in the order of its memory.

        Found by saving a small one whose values are their own positions. Each of its experts has two rows: stacked gate
        and up projections are a half each.
        """
        small = shape[:1] + (2, 1)[: len(shape) - 1]
        positions = torch.arange(small.numel()).view(small)
        saved = revert_weight_conversion(self.model, {self._in_memory + path: positions})
        ordered = sorted(saved, key=lambda name: int(saved[name].min()))
        return [self._on_disk + name.removeprefix(self._in_memory) for name in ordered]

    def _read_into(self, values: Tensor, parts: Sequence[str]) -> None:
        """Fill `values` with tensors on disk, one after the other."""
        lacking = [name for name in parts if name not in self.tensors]
        if lacking:
            raise CheckpointError("lacks tensors of its class", where=self.directory, expected=listed(lacking, 3))
        found = sum(self.tensors[name].elements for name in parts)
        if found != values.numel():
            raise CheckpointError(
                "does not fit its class", where=self.directory, found=f"{found} values in {listed(parts, 3)}",
                expected=f"{values.numel()}",
            )  # fmt: skip
        flat, position = values.view(-1), 0
        for block in (block for name in parts for block in read_blocks(self.tensors[name])):
            flat[position : position + block.size] = _tensor(block)
            position += block.size

    def _rows(self, name: str, start: int, count: int) -> Tensor:
        """Return `count` rows of a tensor on disk, float32."""
        spec = self.tensors[name]
        row_bytes = spec.nbytes // spec.shape[0]
        rows = replace(
            spec,
            shape=(count, *spec.shape[1:]),
            offset=spec.offset + start * row_bytes,
            nbytes=count * row_bytes,
        )
        return torch.cat([_tensor(block) for block in read_blocks(rows)]).view(rows.shape)

    @contextmanager
    def _reading(self, before: Callable[[int, LayerCall], None]) -> Iterator[None]:
        """Hook the base model so that each layer, and each module outside them, is read while it is called."""
        handles = []
        for index, layer in enumerate(self.layers):

            def load_layer(module: nn.Module, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
                before(index, LayerCall(args[0], args[1:], kwargs))
                self._load(module, f"layers.{index}")

            handles.append(layer.register_forward_pre_hook(load_layer, with_kwargs=True))
            handles.append(layer.register_forward_hook(lambda module, _args, _output: _forget(module)))
        for path, module in self.base.named_modules():
            if path.startswith("layers.") or not (module._parameters or module._buffers):
                continue

            def load(module: nn.Module, args: Any, path: str = path) -> Any:
                if isinstance(module, nn.Embedding):
                    return self._load_rows(module, path, *args)
                self._load(module, path, recurse=False)
                return None

            handles.append(module.register_forward_pre_hook(load))
            handles.append(module.register_forward_hook(lambda module, _args, _output: _forget(module, recurse=False)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _load_rows(self, module: nn.Embedding, path: str, ids_BT: Tensor) -> Any:
        """Give an embedding the rows that are needed; return where each token's is among them."""
        wanted, places_BT = ids_BT.unique(return_inverse=True)
        name = f"{self._on_disk}{path}.weight"
        module.padding_idx = None  # it matters to gradients only, and need not be among these rows
        module.weight = _frozen(torch.cat([self._rows(name, int(row), 1) for row in wanted]))
        return places_BT


class _Given(nn.Module):
    """Stands for a base model that has run: its hidden states are those that it is given."""

    def forward(self, *_args: Any, inputs_embeds: Tensor, **_named: Any) -> "_Output":
        return _Output(inputs_embeds)


@dataclass(frozen=True)
class _Output:
    """What a base model returns when nothing but its hidden states is asked for."""

    last_hidden_state: Tensor

    def __getattr__(self, _name: str) -> None:
        return None


@torch.no_grad()
def _compute_buffers(model: Any, base: nn.Module) -> None:
    """Give the base model's buffers the values that their class computes, as `from_pretrained` does."""
    for module in base.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
        if module._buffers:
            model._init_weights(module)


def _forget(module: nn.Module, *, recurse: bool = True) -> None:
    """Take the weights of `module` away."""
    for owner in module.modules() if recurse else (module,):
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = _frozen(torch.empty_like(parameter, device="meta"))


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _tensor(block: Floats) -> Tensor:
    return torch.from_numpy(block.astype(np.float32))  # a copy: the block may be read-only
