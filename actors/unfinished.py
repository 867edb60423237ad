"""Answers that a pause interrupted, beside a checkpoint: tokens as sampled, to be continued.

One Arrow stream for each step or evaluation under way, named in the checkpoint's manifest like its other
files. They hold what was sampled and no verdicts: verdicts are asked for again.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.messages import Unfinished
from runtime import failpoints
from runtime.trajectory import merge, upgraded
from runtime.trajectory_log import refuse_newer

Rows = dict[tuple[str, int], pa.RecordBatch]
"""The rows of each purpose ("sample" or "eval") and step."""
PREFIX = "unfinished-"


def gather(named: Sequence[Unfinished], batches: Sequence[pa.RecordBatch]) -> Rows:
    """Returns one batch for each piece of work. If an answer is there twice, because it was continued,
    the longer one counts.
    """
    rows, rest = {}, list(batches)
    for work in named:
        mine, rest = rest[: work.batches], rest[work.batches :]
        if any(batch.num_rows for batch in mine):
            rows[work.purpose, work.step] = merge([longest(mine)])
    return rows


def longest(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns the rows of all batches, each answer once."""
    metadata = batches[0].schema.metadata
    table = pa.Table.from_batches([b.replace_schema_metadata(metadata) for b in batches])
    best: dict[tuple[int, int], int] = {}
    lengths = np.diff(table["tokens"].combine_chunks().offsets.to_numpy())
    where = zip(table["prompt_index"].to_pylist(), table["sample"].to_pylist())
    for i, identity in enumerate(where):
        if identity not in best or lengths[i] > lengths[best[identity]]:
            best[identity] = i
    return table.take(sorted(best.values())).combine_chunks().to_batches()[0]


def put(folder: Path, rows: Rows) -> None:
    """Puts the rows into a checkpoint's folder that is being written."""
    for (purpose, step), batch in rows.items():
        failpoints.hit("disk.write")
        path = folder / f"{PREFIX}{purpose}-{step:06d}.arrow"
        with path.open("wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)


def take(folder: Path) -> Rows:
    """Returns the rows of a published checkpoint, whose files have been verified. Raises BadInput if a
    newer Pippin wrote them.
    """
    rows = {}
    for path in sorted(folder.glob(f"{PREFIX}*.arrow")):
        purpose, _, step = path.stem.removeprefix(PREFIX).rpartition("-")
        with pa.ipc.open_stream(path.read_bytes()) as reader:
            refuse_newer(path, reader.schema)
            rows[purpose, int(step)] = upgraded(next(iter(reader)))
    return rows
