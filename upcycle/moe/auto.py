"""Finds the class by which transformers loads a whole checkpoint: a language model, or one with images around it."""

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText


def auto_class(config: Any) -> Any:
    """Return the class whose `from_pretrained` loads a model of this config with everything that is in it.

    Of some multimodal models AutoModelForCausalLM would make the language model alone.
    """
    whole = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if whole else AutoModelForCausalLM


def text_config(model: Any) -> Any:
    """Return the config of a model's language model: its own, if it is nothing else."""
    return model.config.get_text_config(decoder=True)


def is_text(model: Any, name: str) -> bool:
    """Whether a parameter or module of that name is of the language model, so that text passes through it."""
    return text_config(model) is model.config or "language_model." in name or name.startswith("lm_head")
