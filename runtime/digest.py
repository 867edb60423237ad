"""Canonical digests of named arrays: equal values have equal digests, whatever file they come from.

A safetensors file of the same arrays can differ in its bytes, because their order is not fixed.
"""

import hashlib
from collections.abc import Iterable


def canonical(arrays: Iterable[tuple[str, str, tuple[int, ...], memoryview | bytes]]) -> str:
    """Returns the SHA-256 over (name, dtype, shape, bytes) of all arrays, in the order of their names."""
    out = hashlib.sha256()
    for name, dtype, shape, data in sorted(arrays, key=lambda entry: entry[0]):
        out.update(f"{name}\0{dtype}\0{shape}\0".encode())
        out.update(data)
    return out.hexdigest()
