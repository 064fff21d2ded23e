"""Which other programs read a model beside transformers, as far as it was tried or compared."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Readers:
    """What reads an architecture; `make interop` measures, and docs/interop.md has the figures."""

    vllm: Literal["run", "compared"] | None = None  # compared: its loader's names, shapes and config, without a run
    llama_cpp_ropes: tuple[str, ...] = ()  # types of rope scaling with which llama.cpp agreed; none: it was not tried
    llama_cpp_any_head: bool = True  # llama.cpp reads heads of another width than hidden size / heads

    @property
    def names(self) -> tuple[str, ...]:
        """The programs that were tried or compared, transformers first: it runs whatever is made here."""
        llama_cpp = ("llama.cpp",) if self.llama_cpp_ropes else ()
        return ("transformers", *llama_cpp, *(("vLLM",) if self.vllm else ()))
