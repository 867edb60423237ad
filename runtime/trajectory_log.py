"""The run's log of trajectories: every batch that reached the learner, in order, with a hash chain.

A record is the chain up to its batch (32 bytes) and the batch as an Arrow stream. So a run that returns to a
checkpoint can check, without reading a batch, that the log belongs to the checkpoint.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from runtime import failpoints
from runtime.errors import BadInput, Damaged
from runtime.journal import Journal, records, verify
from runtime.trajectory import SCHEMA_VERSION, digest, upgraded

EMPTY_CHAIN = hashlib.sha256(b"pippin trajectories").hexdigest()
CHAIN_BYTES = 32


class TrajectoryLog:
    """Appends batches. `chain` is the digest of all batches in order; equal logs have equal chains."""

    def __init__(self, path: Path) -> None:
        """Sets the path; the first use opens the file and checks its records."""
        self._path = path
        self._opened: Journal | None = None
        self.chain = EMPTY_CHAIN

    @property
    def _journal(self) -> Journal:
        self._opened = self._opened or Journal(self._path)
        return self._opened

    @property
    def size(self) -> int:
        """Returns the size of the whole records in bytes."""
        return self._journal.size

    def append(self, batch: pa.RecordBatch) -> None:
        """Appends one batch, which is durable only after `sync`."""
        failpoints.hit("log.before_append")
        chain = extend(self.chain, batch)
        sink = pa.BufferOutputStream()
        sink.write(bytes.fromhex(chain))
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self._journal.append(sink.getvalue().to_pybytes())
        self.chain = chain
        failpoints.hit("log.after_append")

    def sync(self) -> None:
        """Makes all appended batches survive a power cut."""
        self._journal.sync()
        failpoints.hit("log.after_sync")

    def restore(self, size: int, chain: str) -> None:
        """Goes back to a checkpoint's length: later batches are dropped unread and sampled again.

        Raises Damaged, and drops nothing, unless the first `size` bytes are whole and end with `chain`.
        """
        self.close()
        self._opened = Journal(self._path, size, _beginning(chain))
        self.chain = chain

    def verify(self, size: int, chain: str) -> None:
        """Raises Damaged if `restore` would; changes nothing."""
        if size or self._path.exists():
            verify(self._path, size, _beginning(chain))

    def close(self) -> None:
        """Closes the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def extend(chain: str, batch: pa.RecordBatch) -> str:
    """Returns the chain after one more batch."""
    return hashlib.sha256((chain + digest(batch)).encode()).hexdigest()


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yields the batches of a log in order, up to a torn tail.

    Raises Damaged as `journal.records` does, BadInput for a schema newer than this version knows.
    """
    for payload in records(path):
        try:
            read = _batches_of(path, payload)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise Damaged(f"{path}: holds a record that is no batch: {error}") from None
        yield from read


def _beginning(chain: str) -> bytes:
    return b"" if chain == EMPTY_CHAIN else bytes.fromhex(chain)


def _batches_of(path: Path, payload: bytes) -> list[pa.RecordBatch]:
    with pa.ipc.open_stream(pa.py_buffer(payload).slice(CHAIN_BYTES)) as reader:
        refuse_newer(path, reader.schema)
        return [upgraded(batch) for batch in reader]


def refuse_newer(path: Path, schema: pa.Schema) -> None:
    """Raises BadInput for trajectories of a schema newer than this version knows."""
    version = int((schema.metadata or {}).get(b"pippin.schema", b"0"))
    if version > SCHEMA_VERSION:
        raise BadInput(
            f"{path}: trajectories of schema {version}, this Pippin knows {SCHEMA_VERSION}"
        )
