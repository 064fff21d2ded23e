"""Runs a stock transformers model whose layers stay on disk: each is read, in float32, only while it runs.

The module tree is transformers' own, built on the meta device; only the weights come and go. So the forward pass
that is measured is the one that users get, in the memory of one layer.

Shapes: B batch, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from upcycle.checkpoint.reader import Checkpoint
from upcycle.families.dense.dense import Spine
from upcycle.families.targets.target import Target
from upcycle.plan.values import Floats, read_blocks

VOCABULARY_ROWS = 4096
"""Rows of the output head that are in memory at a time."""

LayerCall = tuple[Tensor, dict[str, Any]]
"""What a layer was called with: hidden states `(B, T, D)` and the keyword arguments."""


class StreamedModel:
    """A causal language model that is read layer by layer."""

    def __init__(self, checkpoint: Checkpoint, spine: Spine, target: Target | None = None) -> None:
        """Build the stock module tree of the checkpoint's config, without weights; `target` is given for a mixture."""
        config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="eager"
            )
        self.tensors = checkpoint.tensors
        self.spine = spine
        self._target = target
        self.config = config
        self.base: Any = model.eval().requires_grad_(False).model
        self.layers: Sequence[nn.Module] = self.base.layers
        self._layer_of = {self._name(index): index for index in range(len(self.layers))}
        self._memory: dict[tuple[str, torch.Size], Tensor] = {}
        self.base.rotary_emb = type(self.base.rotary_emb)(config=config)  # its buffers are computed, not stored

    def run(self, embeddings_BTD: Tensor, before: "Callable[[int, LayerCall], None]") -> Tensor:
        """Run all layers and the final norm; return hidden states `(B, T, D)`.

        `before(layer, call)` sees what each layer is called with.
        """
        with self._reading_layers(before), self.reading(self.base.norm, self.spine.norm), torch.no_grad():
            hidden_BTD: Tensor = self.base(
                inputs_embeds=embeddings_BTD, use_cache=False, return_dict=True
            ).last_hidden_state
        return hidden_BTD

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return the embeddings `(B, T, D)`, float32; only the rows that are needed are read."""
        wanted, places = ids_BT.unique(return_inverse=True)
        rows = [self._rows(self.spine.embeddings, int(row), 1) for row in wanted]
        return torch.cat(rows)[places]

    def head_blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the output head as (first row, weights `(rows, D)`)."""
        head = self.spine.head if self.spine.head in self.tensors else self.spine.embeddings
        for start in range(0, self.config.vocab_size, VOCABULARY_ROWS):
            yield start, self._rows(head, start, min(VOCABULARY_ROWS, self.config.vocab_size - start))

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return logits `(T, V)`, float32."""
        logits_TV = torch.empty(len(hidden_TD), self.config.vocab_size)
        for start, block_VD in self.head_blocks():
            logits_TV[:, start : start + len(block_VD)] = hidden_TD @ block_VD.T
        return logits_TV

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Hold one layer in memory, in float32."""
        with self.reading(self.layers[index], self._name(index)):
            yield self.layers[index]

    @contextmanager
    def reading(self, module: nn.Module, prefix: str) -> Iterator[None]:
        """Give `module` its weights from disk, and take them away again."""
        self._load(module, prefix)
        try:
            yield
        finally:
            module.to("meta")

    def _name(self, layer: int) -> str:
        return self.spine.layer.format(layer=layer)

    def _load(self, module: nn.Module, prefix: str) -> None:
        for path, parameter in list(module.named_parameters()):
            values = self._memory_for(path, parameter.shape)
            parts = self._parts(f"{prefix}.{path}", path, len(values))
            size = values.numel() // len(parts)
            for number, name in enumerate(parts):
                self._read_into(values.view(-1)[number * size : (number + 1) * size], name)
            owner, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=False))

    def _memory_for(self, path: str, shape: torch.Size) -> Tensor:
        """Return the memory that holds this parameter of whichever layer is read: allocated once, so it cannot grow."""
        return self._memory.setdefault((path, shape), torch.empty(0)).resize_(shape)

    def _parts(self, name: str, path: str, experts: int) -> list[str]:
        """The tensors on disk that make up a parameter, in the order of its memory."""
        stacked = self._target.stacked if self._target else {}
        if self._target is None or path not in stacked:
            return [name]
        layer = self._layer_of[name.removesuffix(f".{path}")]
        return self._target.names_of(stacked[path], layer, experts)

    def _read_into(self, values: Tensor, name: str) -> None:
        position = 0
        for block in read_blocks(self.tensors[name]):
            values[position : position + block.size] = _tensor(block)
            position += block.size

    def _rows(self, name: str, start: int, count: int) -> Tensor:
        """Return `count` rows of a matrix on disk, float32."""
        spec = self.tensors[name]
        row_bytes = spec.nbytes // spec.shape[0]
        rows = replace(
            spec,
            shape=(count, spec.shape[1]),
            offset=spec.offset + start * row_bytes,
            nbytes=count * row_bytes,
        )
        return torch.cat([_tensor(block) for block in read_blocks(rows)]).view(rows.shape)

    @contextmanager
    def _reading_layers(self, before: "Callable[[int, LayerCall], None]") -> Iterator[None]:
        """Hook every layer so that it is read when it is called and forgotten when it returns."""
        handles = []
        for index, layer in enumerate(self.layers):

            def load(module: nn.Module, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
                before(index, (args[0], kwargs))
                self._load(module, self._name(index))

            def unload(module: nn.Module, _args: Any, _output: Any) -> None:
                module.to("meta")

            handles += [layer.register_forward_pre_hook(load, with_kwargs=True), layer.register_forward_hook(unload)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _tensor(block: Floats) -> Tensor:
    return torch.from_numpy(block.astype(np.float32))  # a copy: the block may be read-only
