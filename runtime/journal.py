"""An append-only file of framed records that survives a torn write.

Each record is `PIPN`, its length, two links and the payload. A record's own link is the CRC-32 of its length
and payload, seeded with the link of the previous record; both links are written. So one pass detects records
that are damaged, lost, repeated or out of place. A half-written record at the end, left by a crash, is cut
off when the file is opened for writing; damage anywhere else is reported, never skipped.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from runtime import failpoints
from runtime.durable import PRIVATE_FILE, full_disk_explained, sync
from runtime.errors import Damaged

MAGIC = b"PIPN"
HEADER = struct.Struct("<4sIII")
BLOCK_BYTES = 1 << 20
"""Number of bytes that are read at a time in the search for a record behind a damaged one."""


class Journal:
    """Appends records to a file; `size` is the offset behind the last one."""

    def __init__(self, path: Path, keep: int | None = None, beginning: bytes = b"") -> None:
        """Opens the file for appending and cuts off a torn tail. Raises Damaged for damage before the tail.

        With `keep`, the first `keep` bytes must be whole records, of which the last begins with `beginning`.
        All bytes behind them are dropped unread: they were never acknowledged, and a power cut may have left
        anything there.
        """
        self.path = path
        if not keep:
            with full_disk_explained(path):
                failpoints.hit("disk.write")
                path.touch(PRIVATE_FILE)
        self.size, self._link = verify(path, keep, beginning)
        self._has_lasting_name = False
        self._file = path.open("r+b", buffering=0)
        self._back()

    def append(self, payload: bytes) -> int:
        """Writes one record and returns the offset behind it; the record is durable only after `sync`."""
        link = _link(payload, self._link)
        record = memoryview(HEADER.pack(MAGIC, len(payload), self._link, link) + payload)
        half = len(record) // 2
        with full_disk_explained(self.path, len(record)):
            try:
                self._write(record[:half])
                failpoints.hit("log.mid_record")
                self._write(record[half:])
            except BaseException:
                self._back()  # a half record before a whole one would read as damage
                raise
        self._link = link
        self.size += len(record)
        return self.size

    def sync(self) -> None:
        """Makes everything appended so far survive a power cut."""
        with full_disk_explained(self.path):
            sync(self.path)
            if (
                not self._has_lasting_name
            ):  # the process that made the file may have died before this
                sync(self.path.parent)
                self._has_lasting_name = True

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _back(self) -> None:
        """Drops all bytes behind the last whole record."""
        self._file.truncate(self.size)
        self._file.seek(self.size)

    def _write(self, left: memoryview) -> None:
        while left:
            failpoints.hit("disk.write")
            left = left[self._file.write(left) :]


def records(path: Path) -> Iterator[bytes]:
    """Yields the payloads in order, up to a torn tail.

    Raises Damaged if a broken record has another one behind it, or if a record's link does not match the
    previous record: no crash of a single writer leaves that.
    """
    if path.exists():
        yield from (record.payload for record in _chained(path))


def verify(path: Path, keep: int | None = None, beginning: bytes = b"") -> tuple[int, int]:
    """Returns the offset behind the last whole record, and its link, at which `Journal` would continue.

    Raises Damaged as `Journal` does; changes nothing.
    """
    size, link, start = 0, 0, b""
    for record in _chained(path, keep):
        size, link, start = record.end, record.link, record.payload[: len(beginning)]
    if start != beginning:
        raise Damaged(f"{path}: the record before byte {size} is of another history")
    return size, link


class _Record(NamedTuple):
    before: int
    link: int
    payload: bytes
    end: int


def _chained(path: Path, keep: int | None = None) -> Iterator[_Record]:
    """Yields the whole records in order; the first `keep` bytes must consist of whole records."""
    try:
        with path.open("rb") as file:
            yield from _chained_in(file, path, keep)
    except OSError as error:
        raise Damaged(f"{path}: cannot be read: {error.strerror}") from None


def _chained_in(file: BinaryIO, path: Path, keep: int | None) -> Iterator[_Record]:
    size = os.fstat(file.fileno()).st_size
    if keep is not None and not 0 <= keep <= size:
        raise Damaged(f"{path}: needs at least {keep} bytes, has {size}")
    end = size if keep is None else keep
    position = link = 0
    while position < end:
        record = _record_at(file, position, end)
        if record is None:
            if keep is None and not _any_record_after(file, position + 1, end):
                return
            raise Damaged(f"{path}: the record at byte {position} is damaged")
        if record.before != link:
            raise Damaged(
                f"{path}: the record at byte {position} does not follow the one before it"
            )
        yield record
        position, link = record.end, record.link


def _record_at(file: BinaryIO, position: int, end: int) -> _Record | None:
    start = position + HEADER.size
    file.seek(position)
    header = file.read(HEADER.size)
    if start > end or len(header) < HEADER.size:
        return None
    magic, length, before, link = HEADER.unpack(header)
    if magic != MAGIC or start + length > end:
        return None
    payload = file.read(length)
    whole = _link(payload, before) == link
    return _Record(before, link, payload, start + length) if whole else None


def _any_record_after(file: BinaryIO, position: int, end: int) -> bool:
    while position < end:
        file.seek(position)
        block = file.read(BLOCK_BYTES)
        found = block.find(MAGIC)
        while found >= 0:
            if _record_at(file, position + found, end) is not None:
                return True
            found = block.find(MAGIC, found + 1)
        position += max(len(block) - len(MAGIC) + 1, 1)
    return False


def _link(payload: bytes, before: int) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<I", len(payload)), before))
