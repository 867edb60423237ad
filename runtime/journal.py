"""An append-only file of framed records that survives a torn write.

Each record is `PIPN`, its length, its CRC-32 and the payload. What a crash left half-written at the
end is cut off when the file is opened for writing; damage anywhere else is reported, never skipped.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from runtime.durable import full_disk_explained, sync
from runtime.errors import Damaged

MAGIC = b"PIPN"
HEADER = struct.Struct("<4sII")


class Journal:
    """Appends records; `size` is the offset behind the last one."""

    def __init__(self, path: Path, keep: int | None = None) -> None:
        """Open for appending; a torn tail is cut off. Raises Damaged for damage before the tail.

        With `keep`, what is behind so many bytes is dropped unread: it was never acknowledged, and
        a power cut may have left anything there.
        """
        self.path = path
        path.touch()
        if keep is not None:
            if path.stat().st_size < keep:
                raise Damaged(f"{path}: needs at least {keep} bytes, has {path.stat().st_size}")
            os.truncate(path, keep)
        self.size = sum(HEADER.size + len(record) for record in records(path))
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(self.size)
        self._file.seek(self.size)

    def append(self, payload: bytes) -> int:
        """Write one record and return the offset behind it. Durable only after `sync`."""
        with full_disk_explained(self.path):
            try:
                self._write(HEADER.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload)
            except OSError:
                self.cut(self.size)  # a half record before a whole one would read as damage
                raise
        self.size += HEADER.size + len(payload)
        return self.size

    def sync(self) -> None:
        """Make everything appended so far survive a power cut."""
        with full_disk_explained(self.path):
            sync(self.path)

    def cut(self, size: int) -> None:
        """Drop what was appended behind `size`: work that is done anew."""
        if not 0 <= size <= self.size:
            raise Damaged(f"{self.path}: needs at least {size} bytes, has {self.size}")
        self._file.truncate(size)
        self._file.seek(size)
        self.size = size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]


def records(path: Path) -> Iterator[bytes]:
    """The payloads in order, up to a torn tail.

    Raises Damaged if a record is broken and another follows it: no crash of a single writer leaves that.
    """
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = 0
        while position < len(content):
            payload = _record_at(content, position)
            if payload is None:
                if _any_record_after(content, position + 1):
                    raise Damaged(f"{path}: the record at byte {position} is damaged")
                return
            yield payload
            position += HEADER.size + len(payload)


def _record_at(content: mmap.mmap, position: int) -> bytes | None:
    if position + HEADER.size > len(content):
        return None
    magic, length, checksum = HEADER.unpack_from(content, position)
    payload = content[position + HEADER.size : position + HEADER.size + length]
    whole = magic == MAGIC and len(payload) == length and zlib.crc32(payload) == checksum
    return payload if whole else None


def _any_record_after(content: mmap.mmap, position: int) -> bool:
    while (position := content.find(MAGIC, position)) >= 0:
        if _record_at(content, position) is not None:
            return True
        position += 1
    return False
