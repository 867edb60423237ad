"""Named arrays on disk: written aside, checked when read."""

import os
from pathlib import Path

import mlx.core as mx
import numpy as np

from policies.model import Arrays
from runtime.digest import canonical
from runtime.durable import full_disk_explained
from runtime.errors import Damaged


def digest(arrays: Arrays) -> str:
    """Canonical SHA-256 of the values. Evaluates them."""
    mx.eval(list(arrays.values()))
    return canonical((name, str(a.dtype), tuple(a.shape), _bytes(a)) for name, a in arrays.items())


def save(path: Path, arrays: Arrays) -> str:
    """Write a safetensors file in one step and return the digest of what is in it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.safetensors")
    with full_disk_explained(path):
        try:
            mx.save_safetensors(str(aside), dict(sorted(arrays.items())), {"format": "mlx"})
        except RuntimeError as error:  # mlx says "unable to write" for every reason
            raise OSError(28 if "write" in str(error).lower() else 5, str(error)) from None
        os.replace(aside, path)
    return digest(arrays)


def load(path: Path, expected: str) -> Arrays:
    """The arrays of a file, evaluated. Raises Damaged unless they have the expected digest."""
    try:
        loaded = mx.load(str(path))
        arrays: Arrays = dict(loaded)  # type: ignore[arg-type]
        found = digest(arrays)
    except (RuntimeError, ValueError, OSError) as error:
        raise Damaged(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if found != expected:
        raise Damaged(f"{path}: needs digest {expected[:12]}…, has {found[:12]}…")
    return arrays


def _bytes(array: mx.array) -> memoryview:
    if array.dtype == mx.bfloat16:  # no buffer format of its own
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False)).data.cast("B")
