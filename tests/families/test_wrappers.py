"""Multimodal models: their language model becomes a mixture, the rest stays byte for byte, images count as before."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from tests.conftest import edit_json, run_convert
from tests.convert.test_convert import raw, tensors
from tests.families.models.gemma4 import LARGE_ONE, SMALL_ONE
from tests.families.models.odd import LINEAR
from tests.models import SMALL, draw_weights
from upcycle.build.conversion import plan_conversion
from upcycle.checkpoint.reader import open_checkpoint
from upcycle.errors import CheckpointError, UnsupportedError
from upcycle.families.pairs import Change, pair_of
from upcycle.families.wrappers import unwrap
from upcycle.pipeline.stages import attach, verify
from upcycle.requests import Attach, Conversion, Verify

VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {**VISION, "image_size": 28, "patch_size": 14}
IMAGE = 5
"""The token that stands for a piece of an image."""


@dataclass(frozen=True)
class Whole:
    """A multimodal model with random weights."""

    model_type: str
    text: str  # model_type of its language model
    becomes: str
    vision: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)
    text_fields: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)  # shapes of what it is called with, beside tokens
    pieces: int = 4  # that an image becomes
    spread: float = 0.15
    moved: str | None = None  # model_type of the whole with the mixture, if that is another


SQUARE = {"pixel_values": (1, 3, 28, 28)}
PATCHES = {"pixel_values": (1, 36, 768)}  # 6 x 6 patches of 16 x 16 pixels

WHOLES = {
    "mistral3": Whole(
        "mistral3", "mistral", "mixtral", {"model_type": "pixtral", **PICTURE},
        {"spatial_merge_size": 1, "image_token_index": IMAGE, "tie_word_embeddings": False},
        {"sliding_window": 6}, {**SQUARE, "image_sizes": [[28, 28]]},
    ),
    "mistral3_tied": Whole(
        "mistral3", "mistral", "mixtral", {"model_type": "pixtral", **PICTURE},
        {"spatial_merge_size": 1, "image_token_index": IMAGE}, {"sliding_window": None, "head_dim": 12},
        {**SQUARE, "image_sizes": [[28, 28]]},
    ),
    "llava": Whole(
        "llava", "llama", "mixtral", {"model_type": "clip_vision_model", **PICTURE}, {"image_token_index": IMAGE},
        {}, SQUARE,
    ),
    "vipllava": Whole(
        "vipllava", "llama", "mixtral", {"model_type": "clip_vision_model", **PICTURE},
        {"image_token_index": IMAGE, "vision_feature_layers": [-1, -2]}, {"tie_word_embeddings": True}, SQUARE,
    ),
    "internvl": Whole(
        "internvl", "qwen3", "qwen3_moe", {**PICTURE, "image_size": [28, 28], "patch_size": [14, 14]},
        {"image_token_id": IMAGE, "downsample_ratio": 0.5}, {"head_dim": 12}, SQUARE, pieces=1,
    ),
    "llava_next": Whole(
        "llava_next", "llama", "granitemoe", {"model_type": "clip_vision_model", **PICTURE},
        {"image_token_index": IMAGE, "image_grid_pinpoints": [[28, 28]]}, {"attention_bias": True},
        {"pixel_values": (1, 2, 3, 28, 28), "image_sizes": [[28, 28]]}, pieces=10,
    ),
    "qwen3_5": Whole(
        "qwen3_5", "qwen3_5_text", "qwen3_5_moe_text",
        {
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 4, "num_position_embeddings": 16,
        },
        {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8},
        {
            **LINEAR, "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 1],
                "mrope_interleaved": True,
            },
        },
        {"pixel_values": (16, 96), "image_grid_thw": [[1, 4, 4]]},  # 4 x 4 patches of 2 x 3 x 4 x 4 values
        moved="qwen3_5_moe",
    ),
    "gemma4_small": Whole(
        "gemma4", "gemma4_text", "gemma4_text",
        {**VISION, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64},
        {"image_token_id": IMAGE, "audio_token_id": 6, "video_token_id": 7}, SMALL_ONE, PATCHES, spread=0.3,
    ),
    "gemma4_large": Whole(
        "gemma4", "gemma4_text", "gemma4_text",
        {**VISION, "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64},
        {"image_token_id": IMAGE, "audio_token_id": 6, "video_token_id": 7, "tie_word_embeddings": False}, LARGE_ONE,
        PATCHES, spread=0.3,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: name of a model -> its directory."""
    found: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in found:
            found[name] = save_whole(name, WHOLES[name], tmp_path_factory.mktemp(name) / name)
        return found[name]

    return get


def save_whole(name: str, whole: Whole, directory: Path) -> Path:
    """Save a random multimodal model; return its directory."""
    text = {**SMALL, **whole.text_fields, "model_type": whole.text}
    text = {key: value for key, value in text.items() if value is not ...}
    torch.manual_seed(sum(name.encode()))
    config = CONFIG_MAPPING[whole.model_type](vision_config=whole.vision, text_config=text, **whole.fields)
    draw_weights(AutoModelForImageTextToText.from_config(config), whole.spread).save_pretrained(directory)
    return directory


def load(directory: Path) -> Any:
    """The model; nothing may be missing, left over or newly made."""
    model, info = AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert {name: keys for name, keys in info.items() if keys} == {}
    return model.eval()


def seen(whole: Whole, model: Any, image: int = 0) -> torch.Tensor:
    """Logits on a text with an image in it, drawn from the seed `image`."""
    draw = torch.Generator().manual_seed(image)
    ids_BT = torch.arange(20, 40)[None]
    ids_BT[:, 2 : 2 + whole.pieces] = IMAGE
    images = {
        name: torch.rand(shape, generator=draw) if isinstance(shape, tuple) else torch.tensor(shape)
        for name, shape in whole.images.items()
    }
    if whole.model_type == "gemma4":
        images["image_position_ids"] = torch.cartesian_prod(torch.arange(6), torch.arange(6)).flip(1)[None]
    if whole.model_type in ("gemma4", "qwen3_5"):
        kinds_BT = (ids_BT == IMAGE).long()
        images |= {"mm_token_type_ids": kinds_BT}
    with torch.no_grad():
        found_BTV: torch.Tensor = model(input_ids=ids_BT, **images).logits
    return found_BTV


@pytest.mark.parametrize("name", WHOLES)
@pytest.mark.usefixtures("no_second_process")
def test_the_whole_computes_the_same(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    whole, dense = WHOLES[name], made(name)
    out = run_convert(dense, tmp_path / "moe", experts=3)
    ours, theirs = load(out), load(dense)
    assert (ours.config.model_type, ours.config.text_config.model_type) == (
        whole.moved or whole.model_type, whole.becomes,
    )  # fmt: skip
    ours_BTV, theirs_BTV = seen(whole, ours), seen(whole, theirs)
    largest = theirs_BTV.abs().max()
    assert largest > 1
    assert (seen(whole, theirs, 1) - theirs_BTV).abs().max() > 1e-2 * largest, "the image is not looked at"
    assert (ours_BTV - theirs_BTV).abs().max() <= 1e-5 * largest
    report = verify(Verify(dense=str(dense), moe=str(out)))
    assert report.passed, report.lines
    # what stock transformers would have saved
    ours.save_pretrained(tmp_path / "saved")
    before, after, saved = tensors(dense), tensors(out), tensors(tmp_path / "saved")
    assert after.keys() == saved.keys()
    others = {name for name in before if "language_model" not in name and not name.startswith("lm_head")}
    assert len(others) > 10
    assert all(raw(after[name]) == raw(before[name]) for name in others)


def planned(directory: Path) -> Any:
    return plan_conversion(open_checkpoint(directory), Conversion(model=str(directory)))


def test_files_that_describe_images_come_along(
    made: Callable[[str], Path], copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    directory = copy_of(made("llava"))
    (directory / "preprocessor_config.json").write_text('{"size": 28}')
    assert (run_convert(directory, tmp_path / "moe") / "preprocessor_config.json").read_text() == '{"size": 28}'


def test_the_config_around_stays(made: Callable[[str], Path], tmp_path: Path) -> None:
    dense = json.loads((made("internvl") / "config.json").read_bytes())
    moe = json.loads((run_convert(made("internvl"), tmp_path / "moe") / "config.json").read_bytes())
    assert moe.pop("torch_dtype") == "float32"
    assert {name for name in dense if moe.get(name) != dense[name]} == {"text_config", "transformers_version"}
    assert moe["text_config"]["model_type"] == "qwen3_moe"


def test_rounding_leaves_the_rest_alone(made: Callable[[str], Path], tmp_path: Path) -> None:
    after = tensors(run_convert(made("llava"), tmp_path / "moe", dtype="bf16"))
    kinds = {"language_model" in name: tensor.dtype for name, tensor in after.items()}
    assert kinds == {True: torch.bfloat16, False: torch.float32}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "wrapper": (
        {"model_type": "emu3"},
        "multimodal, and no mixture of experts is known for it as a whole; found model_type 'emu3', whose language "
        "model is a 'llama'; the language model saved by itself, a llama, can be taken",
    ),
    "language model": ({"text_config": {"model_type": "gpt2"}}, "no mixture of experts is known for this model"),
    "language model of a stranger": (
        {"model_type": "emu3", "text_config": {"model_type": "gpt2"}}, "'gpt2', expected a language model of the type",
    ),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "quantised weights cannot be copied into experts"),
    "own code": ({"auto_map": {"AutoModel": "own.Model"}}, "auto_map: the model needs code of its own"),
    "other class": ({"architectures": ["LlavaForTokens"]}, "another kind of model; found .*, expected LlavaForCo"),
    "a mixture": (
        {"text_config": {"model_type": "mixtral", "num_local_experts": 8}},
        "a mixture of experts already; found num_local_experts = 8, mixtral",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(made: Callable[[str], Path], copy_of: Callable[[Path], Path], name: str) -> None:
    fields, why = REFUSED[name]
    directory = copy_of(made("llava"))
    edit_json(directory / "config.json", **fields)
    with pytest.raises(UnsupportedError, match=why):
        planned(directory)


def test_a_vision_tower_alone(tiny: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(tiny)
    edit_json(directory / "config.json", model_type="llava", architectures=None, text_config={"model_type": "llama"})
    with pytest.raises(CheckpointError, match=r"the multimodal model has no language model.*language_model\.model\."):
        planned(directory)


def test_attach_says_that_it_wants_the_language_model(made: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError, match="multimodal, and adapters are attached to language models by themselves alone"
    ):
        attach(Attach(model=str(made("llava")), out=str(tmp_path / "adapter"), experts=(2,)))


def test_images_do_not_pass_through_embeddings_that_are_scaled(made: Callable[[str], Path]) -> None:
    _, frame = unwrap(open_checkpoint(made("llava")))
    assert frame is not None
    frame.check(pair_of("llama"))
    with pytest.raises(UnsupportedError, match="takes embeddings that are scaled, and those of images are not"):
        frame.check(replace(pair_of("llama"), changes={"embeddings": Change(root="D")}))


def test_what_the_class_passes_over_is_left_out(made: Callable[[str], Path], copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(made("qwen3_5"))
    weights = load_file(directory / "model.safetensors")
    save_file({**weights, "mtp.fc.weight": torch.ones(2, 2)}, directory / "model.safetensors")
    names = {write.name for write in planned(directory).writes}
    assert "model.visual.pos_embed.weight" in names
    assert "mtp.fc.weight" not in names
