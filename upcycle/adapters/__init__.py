"""Adapter experts as a method of peft: importing this registers it.

    import upcycle.adapters
    from peft import get_peft_model

    model = get_peft_model(model, upcycle.adapters.ExpertsConfig(num_experts=8, top_k=2, rank=16))

From then on `PeftModel.from_pretrained`, `AutoPeftModelForCausalLM`, `AutoModelForCausalLM.from_pretrained(adapter)`,
`load_adapter`, `set_adapter` and `disable_adapter` know adapters of the type UPCYCLE.
"""

from peft.utils import PeftType, register_peft_method

from upcycle.adapters.config import PEFT_TYPE, ExpertsConfig
from upcycle.adapters.tuner import PREFIX, ExpertsModel

__all__ = ["ExpertsConfig", "ExpertsModel"]


def _register() -> None:
    """Add the method to peft, whose list of methods is an enumeration."""
    if PEFT_TYPE in PeftType.__members__:
        return
    member = str.__new__(PeftType, PEFT_TYPE)
    member._name_, member._value_ = PEFT_TYPE, PEFT_TYPE
    type.__setattr__(PeftType, PEFT_TYPE, member)
    PeftType._member_names_.append(PEFT_TYPE)
    PeftType._member_map_[PEFT_TYPE] = PeftType._value2member_map_[PEFT_TYPE] = member
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=ExpertsConfig, model_cls=ExpertsModel, prefix=PREFIX)


_register()
