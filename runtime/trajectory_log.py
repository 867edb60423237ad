"""The run's log of trajectories: every batch that reached the learner, in order, with a hash chain."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from runtime.journal import Journal, records
from runtime.trajectory import digest

EMPTY_CHAIN = hashlib.sha256(b"pippin trajectories").hexdigest()


class TrajectoryLog:
    """Appends batches. `chain` is the digest of all batches so far, in order: equal logs, equal chain."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self.chain = EMPTY_CHAIN

    @property
    def size(self) -> int:
        """Bytes of whole records."""
        return self._journal.size

    def append(self, batch: pa.RecordBatch) -> None:
        """Append one batch. Durable only after `sync`."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self._journal.append(sink.getvalue().to_pybytes())
        self.chain = extend(self.chain, batch)

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        self._journal.sync()

    def restore(self, size: int, chain: str) -> None:
        """Go back to what a checkpoint knew: later batches are sampled anew."""
        self._journal.cut(size)
        self.chain = chain

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


def extend(chain: str, batch: pa.RecordBatch) -> str:
    """The chain's next link."""
    return hashlib.sha256((chain + digest(batch)).encode()).hexdigest()


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a log in order, up to a torn tail. Raises Damaged as `journal.records` does."""
    for payload in records(path):
        with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
            yield from reader
