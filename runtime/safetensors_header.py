"""The header of a safetensors file: 8 bytes of length, then JSON with each tensor's offsets.

It is read by hand, so that a file is checked in milliseconds without MLX. The bytes behind the header must be
exactly those of the tensors: no two tensors overlap, and no byte is unused.
"""

import math
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from runtime.checkpoint_copy import opened
from runtime.errors import BadInput

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
MAX_HEADER_BYTES = 100_000_000
"""Largest size of a header by the safetensors format."""
MAX_DIMENSIONS = 8
LFS_POINTER = b"version https://git-lfs"


class Tensor(Struct, frozen=True):
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        """Returns the tensor's size in the file, in bytes."""
        return self.data_offsets[1] - self.data_offsets[0]


def read_header(path: Path) -> dict[str, Tensor]:
    """Returns the tensors that a safetensors file lists, after checking that it holds all their bytes.

    Raises BadInput with one sentence for a file that is damaged or is no safetensors file.
    """
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == LFS_POINTER[:8]:
                raise BadInput(f"{path}: a git-lfs pointer, not the weights: run git lfs pull")
            if len(start) < 8 or (8 + length > size and length <= MAX_HEADER_BYTES):
                needed = 8 + length if len(start) == 8 else 8
                raise BadInput(f"{path}: file ends early: needs {needed} bytes, has {size}")
            if length > MAX_HEADER_BYTES:
                raise BadInput(f"{path}: no safetensors file: its header would be {length} bytes")
            raw = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        tensors = {
            name: msgspec.json.decode(entry, type=Tensor) for name, entry in sorted(raw.items())
        }
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: no safetensors file, its header is damaged: {error}") from None
    _check_extent(path, tensors, 8 + length, size)
    return tensors


def _check_extent(path: Path, tensors: dict[str, Tensor], data_start: int, size: int) -> None:
    if not tensors:
        raise BadInput(f"{path}: needs weights, it lists no tensor")
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor)
    needed = data_start + max(tensor.data_offsets[1] for tensor in tensors.values())
    if size < needed:
        raise BadInput(f"{path}: file ends early: needs {needed} bytes, has {size}")
    if size > needed:
        raise BadInput(f"{path}: needs {needed} bytes, has {size}: the file is damaged")
    at, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda entry: entry[1].data_offsets):
        start, end = tensor.data_offsets
        if start < at:
            raise BadInput(
                f"{path}: {_shown(name)} and {_shown(before)} share bytes: the file is damaged"
            )
        if start > at:
            raise BadInput(
                f"{path}: {start - at} bytes before {_shown(name)} belong to no tensor: the file is damaged"
            )
        at, before = end, name


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    item = ITEM_BYTES.get(tensor.dtype)
    if item is None:
        raise BadInput(
            f"{path}: {_shown(name)} has dtype {_shown(tensor.dtype)}, needs one of {', '.join(ITEM_BYTES)}"
        )
    if len(tensor.shape) > MAX_DIMENSIONS or any(not 0 <= n < 2**31 for n in tensor.shape):
        raise BadInput(
            f"{path}: {_shown(name)} has a shape that no tensor has: the file is damaged"
        )
    expected = item * math.prod(tensor.shape)
    if tensor.data_offsets[0] < 0 or expected != tensor.size_bytes:
        raise BadInput(
            f"{path}: {_shown(name)} needs {expected} bytes for its shape, the header gives it "
            f"{tensor.size_bytes}: the file is damaged"
        )


def _shown(name: str) -> str:
    """Returns untrusted text as one line of bounded length."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return line if len(line) <= 100 else f"{line[:99]}…"
