"""Computes a model's fingerprint from samples of its weights: an adapter fits that model, not its fine-tunes."""

import hashlib
import json

from upcycle.checkpoint.header import TensorSpec
from upcycle.checkpoint.reader import Checkpoint

SAMPLES, SAMPLE_BYTES = 8, 64
"""Pieces read of each tensor, evenly spread, and their size: enough, because training changes all of a tensor."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a SHA-256 over names, data types, shapes and samples of the values of all tensors.

    It does not depend on how the tensors are spread over files, nor on the config.
    """
    digest = hashlib.sha256()
    for name, spec in sorted(checkpoint.tensors.items()):
        digest.update(json.dumps([name, spec.dtype, spec.shape]).encode())
        digest.update(_samples(spec))
    return digest.hexdigest()


def _samples(spec: TensorSpec) -> bytes:
    if spec.nbytes <= SAMPLES * SAMPLE_BYTES:
        places, size = [0], spec.nbytes
    else:
        places, size = [(spec.nbytes - SAMPLE_BYTES) * n // (SAMPLES - 1) for n in range(SAMPLES)], SAMPLE_BYTES
    with spec.path.open("rb", buffering=0) as file:
        pieces = []
        for place in places:
            file.seek(spec.offset + place)
            pieces.append(file.read(size))
    return b"".join(pieces)
