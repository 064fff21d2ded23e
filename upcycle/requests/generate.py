"""The options of `upcycle generate`: the model, the prompt and how tokens are chosen."""

from dataclasses import dataclass
from typing import Literal

from upcycle.option import argument, option
from upcycle.requests.checks import check_kinds, require
from upcycle.requests.request import Request

RunDtype = Literal["auto", "f32", "f16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Generate(Request[str]):
    """Let a model continue a text or answer a question."""

    model: str = argument("A model directory, an adapter's, or a Hub id; dense or not.")
    prompt: str = argument("Beginning of a text that the model continues, or a question if it has a chat template.")
    base: str | None = option(None, "The model of an adapter, if it has moved.", metavar="MODEL")
    max_new_tokens: int = option(64, "Most tokens to write.")
    temperature: float = option(0.0, "0 takes the likeliest token; above it tokens are sampled.")
    seed: int = option(0, "Seed of the sampling.")
    chat: bool | None = option(None, "Use the chat template; by default where the tokenizer has one.")
    device: str = option("auto", "Where to run: cpu, cuda, cuda:1, mps; auto takes the first that is there.")
    dtype: RunDtype = option("auto", "Data type to run in; auto is as stored.")

    def __post_init__(self) -> None:
        """Raise RequestError for lengths and temperatures that make no sense."""
        check_kinds(self)
        require(1 <= self.max_new_tokens <= 10**6, "max_new_tokens", self.max_new_tokens, "1 to a million")
        usable = self.temperature == 0 or 1e-3 <= self.temperature <= 1e3
        require(usable, "temperature", self.temperature, "0, or 0.001 to 1000")
        require(-(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit integer")
