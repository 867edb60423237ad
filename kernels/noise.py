"""Noise from a key and a counter: the same bits in every process, on every backend, in every version.

It is SplitMix64 (Steele, Lea & Flood 2014; the streams of `runtime.keys`) in MLX's integer arithmetic,
which is exact everywhere, unlike the logarithms and cosines of a library's normal generator. Nothing is
rounded before the last step, a product that rounds at most once. A word gives 64 signs, so "rademacher" is
the cheapest kind: measured on one core, 800 million numbers a second against 100 million (uniform) and
60 million (normal).

Shapes: P keys, N values of each stream, W words of 64 bits.
"""

from typing import Literal

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Kind = Literal["rademacher", "uniform", "normal"]
"""±1; uniform in ±√3; or the sum of four bytes, bell-shaped within ±3.5. All have mean 0 and variance 1."""

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SIGN_BIT, ONE = 0x80000000, 0x3F800000
"""The sign bit of a float32, and the bits of 1.0."""
UNIFORM_SCALE = float(np.float32(3**0.5 * 2.0**-23))
FOUR_BYTES_MEAN = 510
NORMAL_SCALE = float(np.float32((4 * (256**2 - 1) / 12) ** -0.5))


def noise(keys_P: NDArray[np.uint64], count: int, kind: Kind) -> mx.array:
    """Returns the first `count` values of each key's stream: float32 [P, `count`]."""
    if kind == "rademacher":
        words_PW = _words(keys_P, -(-count // 64)).view(mx.uint32)
        shift = mx.arange(32, dtype=mx.uint32)
        signs = (words_PW[..., None] << shift) & mx.array(SIGN_BIT, mx.uint32)
        values = (signs | mx.array(ONE, mx.uint32)).view(mx.float32)
        return values.reshape(len(keys_P), -1)[:, :count]
    bits_PN = _words(keys_P, -(-count // 2)).view(mx.uint32)[:, :count]
    if kind == "uniform":  # odd numbers: symmetric, and 24 bits hold them
        odd_PN = (bits_PN >> 9).astype(mx.int32) * 2 + (1 - 2**23)
        return odd_PN.astype(mx.float32) * UNIFORM_SCALE
    low = mx.array(0x00FF00FF, mx.uint32)
    pairs_PN = (bits_PN & low) + ((bits_PN >> 8) & low)
    sums_PN = (pairs_PN + (pairs_PN >> 16)) & 0xFFFF
    return (sums_PN.astype(mx.float32) - FOUR_BYTES_MEAN) * NORMAL_SCALE


def noise_plain(key: int, count: int, kind: Kind) -> NDArray[np.float32]:
    """Computes one stream of `noise` value by value in Python integers, as a reference for tests."""
    values = []
    for n in range(count):
        if kind == "rademacher":
            word = _word_plain(key, n // 64)
            negative = word >> (32 * (n // 32 % 2) + 31 - n % 32) & 1
            values.append(-1.0 if negative else 1.0)
            continue
        bits = _word_plain(key, n // 2) >> (32 * (n % 2)) & 0xFFFFFFFF
        if kind == "uniform":
            values.append(np.float32(2 * (bits >> 9) + 1 - 2**23) * np.float32(UNIFORM_SCALE))
        else:
            total = sum(bits.to_bytes(4, "little"))
            values.append(np.float32(total - FOUR_BYTES_MEAN) * np.float32(NORMAL_SCALE))
    return np.array(values, np.float32)


def _words(keys_P: NDArray[np.uint64], count: int) -> mx.array:
    """Returns the words of each key's stream: uint64 [P, W].

    Viewed as uint32 the low half comes first, since all supported machines are little-endian.
    """
    counter_W = mx.arange(1, count + 1, dtype=mx.uint64) * _constant(GOLDEN)
    z = mx.array(keys_P)[:, None] + counter_W
    z = (z ^ (z >> 30)) * _constant(FIRST)
    z = (z ^ (z >> 27)) * _constant(SECOND)
    return z ^ (z >> 31)


def _constant(value: int) -> mx.array:
    return mx.array(np.array(value, np.uint64))  # MLX takes no Python integer above 2⁶³


def _word_plain(key: int, position: int) -> int:
    z = (key + (position + 1) * GOLDEN) % 2**64
    z = (z ^ z >> 30) * FIRST % 2**64
    z = (z ^ z >> 27) * SECOND % 2**64
    return z ^ z >> 31
