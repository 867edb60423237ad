"""What a frozen teacher said about a text, stored once for every epoch and every run on this machine.

    cache = TeacherCache(limit_bytes=8 << 30)
    key = entry_key(model_digest, tokens, {"top_k": 64, "temperature": 1.0})
    if (batch := cache.get(key)) is None:
        cache.put(key, batch := ask_the_teacher(tokens))

Content-addressed: one file per key, checked by its own SHA-256 when it is read, so nothing needs to be
synced. A file that was torn or tampered with is a miss, is counted, and goes. Reading takes no
lock; writing takes one for the folder, under which the bound is kept: what was used longest ago goes
first. The cache can lose, and a run is then only slower: no failure to write ends one.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import ArrayLike

from runtime.durable import write_file
from runtime.errors import BadInput, RunFailed
from runtime.home import home, private_folder

FORMAT = b"pippin.teacher.1"
HEADER_BYTES = len(FORMAT) + 32 + 32
KEPT_SHARE = 0.9
"""Of the limit, after making room: so that not every put has to look at all files."""

Setting = str | int | float | bool | None


class Counts(Struct):
    """What this cache object has seen."""

    hits: int = 0
    misses: int = 0
    """Damaged ones included."""
    damaged: int = 0
    stored: int = 0
    evicted: int = 0
    refused: int = 0
    """Not stored: larger than the whole cache, or the disk would not take it."""


def entry_key(model_digest: str, tokens: ArrayLike, settings: Mapping[str, Setting]) -> str:
    """SHA-256 of which teacher, which token ids and how it was asked, in whatever order of settings."""
    parts = (
        model_digest.encode(),
        np.asarray(tokens, "<i8").tobytes(),
        msgspec.json.encode(dict(settings), order="sorted"),
    )
    out = hashlib.sha256(FORMAT)
    for part in parts:
        out.update(len(part).to_bytes(8, "little") + part)
    return out.hexdigest()


class TeacherCache:
    """A folder of entries, shared by any number of threads and processes; `counts` are this object's."""

    def __init__(self, *, limit_bytes: int, folder: Path | None = None) -> None:
        """In `folder`, else in Pippin's home.

        Raises ValueError for a limit that is not above 0, BadInput for a folder that cannot be written.
        """
        if limit_bytes <= 0:
            raise ValueError(f"limit_bytes: needed a number above 0, got {limit_bytes}")
        self._folder = folder or home() / "teacher-cache"
        self._limit_bytes = limit_bytes
        self._counting = threading.Lock()
        self.counts = Counts()
        try:
            private_folder(self._folder)
            with self._writing():
                self._make_room(limit_bytes)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise BadInput(
                f"{self._folder}: needed a folder for the teacher cache, could not write it: {reason}"
            ) from None

    def get(self, key: str) -> pa.RecordBatch | None:
        """The batch that was put under the key, marked as used now; None if there is none."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            self._count("misses")
            return None
        batch = _decoded(key, content)
        if batch is None:
            self._count("misses", "damaged")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        self._count("hits")
        with contextlib.suppress(OSError):  # evicted meanwhile
            os.utime(path)
        return batch

    def put(self, key: str, batch: pa.RecordBatch) -> bool:
        """Store the batch unless the key is there already; whether it is there now."""
        content = _encoded(key, batch)
        if len(content) > self._limit_bytes * KEPT_SHARE:
            self._count("refused")
            return False
        path = self._path(key)
        try:
            with self._writing():
                if path.exists():
                    return True
                size = self._size() + len(content)
                if size > self._limit_bytes:
                    room = int(self._limit_bytes * KEPT_SHARE) - len(content)
                    size = self._make_room(room) + len(content)
                # Counted before it is there: a death in between makes the cache smaller, not larger.
                self._write_size(size)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                write_file(path, content, durable=False)
        except (OSError, RunFailed):  # a full disk, most likely
            self._count("refused")
            return False
        self._count("stored")
        return True

    @property
    def bytes(self) -> int:
        """What all entries take, by whoever they were put."""
        with self._writing():
            return self._size()

    def _count(self, *names: str) -> None:
        with self._counting:
            for name in names:
                setattr(self.counts, name, getattr(self.counts, name) + 1)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone among all that write to the folder, threads included: each opens the lock anew."""
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _size(self) -> int:
        try:
            return int((self._folder / "size").read_bytes())
        except (OSError, ValueError):
            return self._make_room(self._limit_bytes)

    def _write_size(self, size: int) -> None:
        (self._folder / "size").write_bytes(b"%d" % size)

    def _make_room(self, limit_bytes: int) -> int:
        """Delete what was used longest ago until the entries fit; gives and notes what they take then.

        Under the lock: what looks half-written was left by a process that died.
        """
        entries = []
        for path in self._folder.glob("??/*"):
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(FileNotFoundError):  # a reader found it damaged meanwhile
                status = path.stat()
                entries.append((status.st_mtime_ns, path.name, status.st_size, path))
        size = sum(entry[2] for entry in entries)
        for _, _, taken, path in sorted(entries):
            if size <= limit_bytes:
                break
            path.unlink(missing_ok=True)
            size -= taken
            self._count("evicted")
        self._write_size(size)
        return size


def _encoded(key: str, batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    payload = sink.getvalue().to_pybytes()
    return FORMAT + bytes.fromhex(key) + hashlib.sha256(payload).digest() + payload


def _decoded(key: str, content: bytes) -> pa.RecordBatch | None:
    """None unless it is this key's entry, every bit as it was written."""
    header, payload = content[:HEADER_BYTES], memoryview(content)[HEADER_BYTES:]
    if header != FORMAT + bytes.fromhex(key) + hashlib.sha256(payload).digest():
        return None
    with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
        return reader.read_next_batch()
