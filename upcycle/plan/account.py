"""What a plan amounts to: parameters, bytes and memory, without doing any of it.

Memory figures are estimates from the sizes alone; for running and training, activations and the framework's own
memory are left out:

    convert      the interpreter, and the blocks that each worker computes on (checked by `make bench`)
    run          the weights, and the key/value cache of one sequence
    train, full  16 bytes a parameter: bf16 weights and gradients (2 + 2), fp32 master weights (4), AdamW's moments (8)
    train, LoRA  the weights, and 16 bytes for every parameter of rank-16 adapters on attention and experts
"""

from dataclasses import dataclass
from math import comb, log10
from typing import Any

from upcycle.checkpoint.header import DTYPE_BITS
from upcycle.families.parts import ROLES
from upcycle.plan.plan import Plan, Write
from upcycle.plan.sources import BLOCK_ELEMENTS

LORA_RANK = 16
CACHE_TOKENS = 4096
"""Length of the sequence whose key/value cache is counted, or the model's own limit if that is less."""
TRAIN_BYTES = 16

BASE_BYTES = 40_000_000
"""Resident size of a conversion that copies, and draws its routers."""
BLOCKS_HELD = 10
"""Blocks of float32 that a worker holds at once: values, their noise, the sum, its bits, its bytes, temporaries."""


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the table: the tensors of a role."""

    role: str
    tensors: int
    parameters: int
    active: int  # parameters that one token uses
    nbytes: int


@dataclass(frozen=True, slots=True)
class Account:
    """The figures of a plan; bytes everywhere."""

    parts: tuple[Part, ...]
    files: int
    disk: int
    computed: int  # bytes drawn or computed; the rest is copied
    convert_memory: int
    run_memory: int
    cache_tokens: int  # length of the sequence whose key/value cache `run_memory` counts
    train_full_memory: int
    train_lora_memory: int
    paths: tuple[int, int]  # (choices per layer, layers): a token takes one of choices ** layers ways
    exact: bool
    plan_hash: str
    reader_limits: tuple[str, ...]  # what other programs do not compute of this model

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def active(self) -> int:
        """Parameters that one token uses."""
        return sum(part.active for part in self.parts)

    @property
    def paths_log10(self) -> float:
        """Decimal logarithm of the number of expert paths."""
        return self.paths[1] * log10(self.paths[0])

    def as_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return {
            "parts": [
                {
                    "role": p.role,
                    "tensors": p.tensors,
                    "parameters": p.parameters,
                    "active": p.active,
                    "bytes": p.nbytes,
                }
                for p in self.parts
            ],
            "parameters": {"total": self.total, "active": self.active},
            "files": self.files,
            "disk_bytes": self.disk,
            "computed_bytes": self.computed,
            "memory_bytes": {
                "convert": self.convert_memory,
                "run": self.run_memory,
                "train_full": self.train_full_memory,
                "train_lora": self.train_lora_memory,
            },
            "expert_paths": {
                "per_layer": self.paths[0] if self.paths[0] < 2**53 else None,  # what every JSON reader holds exactly
                "layers": self.paths[1],
                "log10": round(self.paths_log10, 3),
            },
            "exact": self.exact,
            "plan": self.plan_hash,
            "reader_limits": list(self.reader_limits),
        }


def account(plan: Plan, workers: int) -> Account:
    """Count `plan`; `workers` is the number of threads that would carry it out."""
    parts = _parts(plan)
    weights = sum(part.nbytes for part in parts)
    computed = [write for write in plan.writes if not write.copied and write.pieces is None]
    return Account(
        parts=parts,
        files=len(plan.shards),
        disk=plan.bytes_written,
        computed=sum(write.nbytes for write in computed),
        convert_memory=_convert_memory(computed, workers),
        run_memory=weights + _cache_bytes(plan),
        cache_tokens=_cache_tokens(plan),
        train_full_memory=sum(part.parameters for part in parts) * TRAIN_BYTES,
        train_lora_memory=weights + _lora_parameters(plan) * TRAIN_BYTES,
        paths=(comb(plan.total_experts, plan.active_experts), plan.sparse_layers),
        exact=plan.exact,
        plan_hash=plan.hash,
        reader_limits=plan.reader_limits,
    )


def parameters(plan: Plan) -> tuple[int, int]:
    """Return the number of parameters of the output, and of those that one token uses."""
    parts = _parts(plan)
    return sum(part.parameters for part in parts), sum(part.active for part in parts)


def _parts(plan: Plan) -> tuple[Part, ...]:
    return tuple(_part(plan, role) for role in ROLES if any(write.role == role for write in plan.writes))


def _part(plan: Plan, role: str) -> Part:
    writes = [write for write in plan.writes if write.role == role]
    parameters = sum(write.elements for write in writes)
    active = parameters * plan.active_experts // plan.total_experts if role == "experts" else parameters
    return Part(role, len(writes), parameters, active, sum(write.nbytes for write in writes))


def _convert_memory(computed: list[Write], workers: int) -> int:
    """Bytes that a conversion holds: copies hold none, computed tensors a few blocks per worker."""
    block = min(max((write.elements for write in computed), default=0), BLOCK_ELEMENTS) * 4
    return BASE_BYTES + min(workers, len(computed)) * block * BLOCKS_HELD


def _cache_bytes(plan: Plan) -> int:
    """Keys and values of one sequence, in the dtype of the attention weights."""
    dtype = next(write.dtype for write in plan.writes if write.role == "attention")
    return int(_cache_tokens(plan) * plan.cache_width * DTYPE_BITS[dtype] // 8)


def _cache_tokens(plan: Plan) -> int:
    return min(CACHE_TOKENS, plan.longest or CACHE_TOKENS)


def _lora_parameters(plan: Plan) -> int:
    """A rank-r adapter on a matrix `(out, in)` has r * (out + in) parameters."""
    adapted = [write for write in plan.writes if write.role in ("attention", "experts")]
    return sum(LORA_RANK * sum(write.shape) for write in adapted)
