"""Random keys from (seed, step, prompt, sample, position), with no state anywhere.

A trajectory's stream is SplitMix64 (Steele, Lea & Flood 2014) started at a hash of its identity
and read by position: `uniform(key, n)` is draw n in every process and in any order. So a trajectory does not
depend on its neighbours, and an interrupted one continues with the same draws. Nothing here uses a library's
generator: MLX's is per thread and differs between Apple GPUs.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive(*identity: int | str) -> int:
    """Returns the 64-bit key of an identity, such as ``derive(seed, "sample", step, prompt, sample)``."""
    digest = hashlib.blake2b(digest_size=8)
    for item in identity:
        if isinstance(item, str):
            encoded = item.encode()
            digest.update(b"s" + struct.pack("<q", len(encoded)) + encoded)
        else:
            digest.update(b"i" + struct.pack("<Q", item & 0xFFFFFFFFFFFFFFFF))
    return int.from_bytes(digest.digest(), "little")


def uniform(keys_N: NDArray[np.uint64], positions_N: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Returns draw number `positions_N` of each key's stream, float32 in [0, 1) on a grid of 2⁻²⁴."""
    bits = mix(keys_N + (positions_N + np.uint64(1)) * GOLDEN)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def mix(state_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns SplitMix64's output function of `state_N`, a bijection in which all bits depend on all bits."""
    z = state_N
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Stream:
    """The draws of one key in order, for procedural data: integers, choices, shuffles."""

    def __init__(self, *identity: int | str) -> None:
        self._key = np.uint64(derive(*identity))
        self._position = 0

    def integer(self, low: int, high: int) -> int:
        """Returns an integer in [low, high], both included."""
        span = high - low + 1
        with np.errstate(over="ignore"):
            bits = int(mix(np.array([self._key + np.uint64(self._position + 1) * GOLDEN]))[0])
        self._position += 1
        return low + bits * span // 2**64

    def choice(self, items: Sequence[T]) -> T:
        """Returns one of `items`, each equally likely."""
        return items[self.integer(0, len(items) - 1)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Returns a random permutation of `items` (Fisher–Yates)."""
        out = list(items)
        for last in range(len(out) - 1, 0, -1):
            other = self.integer(0, last)
            out[last], out[other] = out[other], out[last]
        return out
