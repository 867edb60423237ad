"""Named arrays on disk, written under a temporary name and checked when read."""

import os
from pathlib import Path

import mlx.core as mx
import numpy as np

from policies.arrays import Arrays
from runtime import failpoints
from runtime.digest import canonical
from runtime.durable import full_disk_explained
from runtime.errors import Damaged

UNABLE = "Unable to write"
"""The text in MLX's error for a full disk, after the file was opened."""


def digest(arrays: Arrays) -> str:
    """Returns the canonical SHA-256 of the values, which it evaluates."""
    mx.eval(list(arrays.values()))
    return canonical((name, str(a.dtype), tuple(a.shape), _bytes(a)) for name, a in arrays.items())


def save(path: Path, arrays: Arrays, *, need_bytes: int = 0) -> str:
    """Writes a safetensors file in one step and returns the digest of its arrays.

    Raises RunFailed if the disk is full, with the space to free: this file's size, or `need_bytes` if that
    is more.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.safetensors")
    own_bytes = sum(array.nbytes for array in arrays.values())
    try:
        with full_disk_explained(path, max(own_bytes, need_bytes)):
            failpoints.hit("disk.write")
            try:
                mx.save_safetensors(str(aside), dict(sorted(arrays.items())), {"format": "mlx"})
            except RuntimeError as error:  # mlx gives no number
                raise OSError(28 if UNABLE in str(error) else 5, str(error)) from None
            failpoints.hit("weights.before_rename")
            os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    failpoints.hit("weights.after_rename")
    return digest(arrays)


def load(path: Path, expected: str) -> Arrays:
    """Returns the arrays of a file, evaluated. Raises Damaged unless they have the expected digest."""
    try:
        loaded = mx.load(str(path))
        arrays: Arrays = dict(loaded)  # type: ignore[arg-type]
        found = digest(arrays)
    except (RuntimeError, ValueError, OSError) as error:
        raise Damaged(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if found != expected:
        raise Damaged(f"{path}: needs digest {expected[:12]}…, got {found[:12]}…")
    return arrays


def _bytes(array: mx.array) -> memoryview:
    if array.dtype == mx.bfloat16:  # no buffer format of its own
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array, copy=False)).data.cast("B")
