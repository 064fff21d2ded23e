"""The Hub as a source of models; the only module that talks to the network."""

from pathlib import Path

from upcycle.errors import InputError, UpcycleError

WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tekken.json")
"""The files of a checkpoint: weights as safetensors, config, tokenizer, chat template."""


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form of a Hub id, `name`, `org/name` or either with `@revision`."""
    name = model.partition("@")[0]
    return 1 <= len(name.split("/")) <= 2 and all(part and part[0] not in ".~" for part in name.split("/"))


def download(model: str) -> Path:
    """Return the local snapshot of a Hub id, downloaded if need be (interrupted downloads go on where they stopped).

    Raises InputError when the Hub has no such model or refuses it, UpcycleError when it cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED)))
    except GatedRepoError:
        raise InputError(
            f"{model}: access to this model must be asked for on the Hub", hint="then `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        reason = "no such revision" if isinstance(error, RevisionNotFoundError) else "no such directory or Hub model"
        raise InputError(f"{model}: {reason}", hint="private models need `hf auth login`") from None
    except LocalEntryNotFoundError:
        raise InputError(
            f"{model}: no such directory, not in the Hub cache, and the Hub cannot be reached",
            expected="a directory, a .gguf file or a Hub id",
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UpcycleError(f"{model}: download failed ({error})") from error
