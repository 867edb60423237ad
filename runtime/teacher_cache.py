"""The cache of a frozen teacher's outputs, stored once for every epoch and every run on this machine.

    cache = TeacherCache(limit_bytes=8 << 30)
    key = entry_key(model_digest, tokens, {"top_k": 64, "temperature": 1.0})
    if (batch := cache.get(key)) is None:
        cache.put(key, batch := ask_the_teacher(tokens))

It is content-addressed: one file for each key, checked by its own SHA-256 when it is read, so nothing needs
to be synced. A torn or changed file is counted, deleted, and treated as a miss. Reading takes no lock.
Writing locks the folder and keeps the bound on its size: the entries that were used longest ago are deleted
first. A lost entry or a failed write only makes a run slower, and never ends it.
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
"""Share of the limit that is kept when room is made, so that not every put has to list all files."""

Setting = str | int | float | bool | None


class Counts(Struct):
    """Counts of one cache object."""

    hits: int = 0
    misses: int = 0
    """Look-ups without a usable entry; damaged entries are among them."""
    damaged: int = 0
    stored: int = 0
    evicted: int = 0
    refused: int = 0
    """Batches that were not stored, because they exceed the whole cache or the write failed."""


def entry_key(model_digest: str, tokens: ArrayLike, settings: Mapping[str, Setting]) -> str:
    """Returns the SHA-256 of the teacher, the token ids and the settings of the request, in any order."""
    fields = (
        model_digest.encode(),
        np.asarray(tokens, "<i8").tobytes(),
        msgspec.json.encode(dict(settings), order="sorted"),
    )
    out = hashlib.sha256(FORMAT)
    for field in fields:
        out.update(len(field).to_bytes(8, "little") + field)
    return out.hexdigest()


class TeacherCache:
    """A folder of entries, shared by any number of threads and processes; `counts` is for this object."""

    def __init__(self, *, limit_bytes: int, folder: Path | None = None) -> None:
        """Opens the cache in `folder`, by default in Pippin's home.

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
        """Returns the batch that was put under the key and marks it as used now; None if there is none."""
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
        """Stores the batch unless the key is there already; returns whether it is there now."""
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
                # The size is written first: if the process dies in between, it is too large, not too small.
                self._write_size(size)
                path.parent.mkdir(mode=0o700, exist_ok=True)
                write_file(path, content, durable=False)
        except (OSError, RunFailed):  # most likely a full disk
            self._count("refused")
            return False
        self._count("stored")
        return True

    @property
    def bytes(self) -> int:
        """Returns the size of all entries, from all processes, in bytes."""
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
        """Excludes all other writers to the folder for a `with` block.

        It excludes threads of this process too, because each call opens the lock's file anew.
        """
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
        """Deletes the entries used longest ago until the rest fit; writes and returns the size of the rest.

        It runs under the lock, so a half-written file was left by a process that died.
        """
        entries = []
        for path in self._folder.glob("??/*"):
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(FileNotFoundError):  # a reader has deleted it as damaged
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
    """Returns the entry's batch; None if it is another key's or a bit has changed since it was written."""
    header, payload = content[:HEADER_BYTES], memoryview(content)[HEADER_BYTES:]
    if header != FORMAT + bytes.fromhex(key) + hashlib.sha256(payload).digest():
        return None
    with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
        return reader.read_next_batch()
