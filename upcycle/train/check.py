"""Runs a model on a few tokens before the training begins: does it train here, and does it keep documents apart?"""

import logging

import torch

from upcycle.errors import InputError
from upcycle.moe.auto import text_config
from upcycle.moe.routing import Recorder
from upcycle.train.model import Trainee

logger = logging.getLogger("upcycle")

LENGTH = 16
"""Tokens of the sequence that is run: two documents of eight."""


def check_model(trainee: Trainee) -> None:
    """Run a sequence of two documents forwards and backwards; warn when the second one sees the first.

    Most models of transformers keep documents apart by their positions; some (GPT-OSS) do not, and a recurrent state
    (Jamba) cannot. Raises InputError when what was asked for does not run here, UnsupportedError for routers that
    cannot be read.
    """
    model = trainee.model
    device, recorder = model.get_input_embeddings().weight.device, Recorder(trainee.routers)
    ids_BS = (torch.arange(LENGTH, device=device) % text_config(model).vocab_size)[None]
    positions_BS = (torch.arange(LENGTH, device=device) % (LENGTH // 2))[None]
    seen: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: _watch(seen, output))
    try:
        with recorder.recording():
            logits_BSV = model(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).logits
        logits_BSV[:, LENGTH // 2 :].float().square().sum().backward()
    except (ImportError, NotImplementedError) as error:
        hint = "another --attn-implementation or --experts-implementation"
        raise InputError(
            f"cannot be trained here ({str(error).splitlines()[0]})", where=trainee.source, hint=hint
        ) from error
    finally:
        hook.remove()
        recorder.remove()
        model.zero_grad(set_to_none=True)
    gradient_BSD = seen[0].grad
    if gradient_BSD is not None and bool(gradient_BSD[:, : LENGTH // 2].any()):
        logger.warning("this model does not keep the documents of a sequence apart: they see one another")


def _watch(seen: list[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """Cut the graph at the output of the embeddings, so that its gradient is kept."""
    seen.append(output.detach().requires_grad_())
    return seen[0]
