"""Values drawn at random, the same for a key on every machine. NumPy only.

They come from Philox, keyed by the SHA-256 of the source's key. NumPy promises the bits of Philox across releases but
not the normal deviates made from them; the receipt therefore keeps the hash of every drawn tensor.
"""

import hashlib

import numpy as np

from upcycle.plan.values import Floats


def keyed_generator(key: str) -> np.random.Generator:
    """Return the generator of the random stream named `key`."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def drawn(generator: np.random.Generator, count: int, std: float) -> Floats:
    """Return `count` values of `N(0, std^2)`, float32; those beyond its range are infinite, which `encode` refuses."""
    with np.errstate(over="ignore", invalid="ignore"):
        return generator.standard_normal(count, dtype=np.float32) * np.float32(std)
