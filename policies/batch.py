"""Trajectories as padded micro-batches, sorted by length and bounded in tokens.

Rows are right-padded under plain causal attention, which MLX's fused backward pass needs. Lengths are
rounded up to one of 16 sizes, so that freed buffers fit the next micro-batch and rows of similar length
share a micro-batch.

Shapes: B rows of a micro-batch, T padded tokens, R target tokens of the loss, K kept ids of each.
"""

import mlx.core as mx
import numpy as np
from msgspec import Struct

BUCKETS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
"""Padded sizes in tokens; longer rows are padded to multiples of the last one."""


class Row(Struct, frozen=True):
    """One trajectory of a step as numpy arrays. All but `tokens` have one item for each target.

    Target j is tokens[positions[j]], predicted from the position before it.
    """

    tokens: np.ndarray
    positions: np.ndarray
    """Positions [R] of the targets: the sampled tokens, or the tokens of an answer from data."""
    columns: dict[str, np.ndarray]
    """Log-probabilities, advantages and weights of the targets, float32 [R], or a teacher's ids, int32
    [R, K], and their log-probabilities, float32 [R, K]."""
    unit: int | None = None
    """Number of the row's pair or group; rows of one unit share a micro-batch. None: the row is a unit."""
    preference: int = 0
    """1 if the row is the preferred one of its unit, -1 if it is a rejected one."""


class MicroBatch(Struct):
    """Rows that are padded together. Arrays [B, R, …] are padded with zeros; `sampled_BR` is 1 on targets."""

    tokens_BT: mx.array
    sources_BR: mx.array
    """Positions whose hidden states predict the targets."""
    targets_BR: mx.array
    sampled_BR: mx.array
    columns: dict[str, mx.array]
    rows: list[int]
    """Numbers of these rows within the step."""
    unit_B: mx.array
    """Number of each row's unit, counted within the micro-batch."""
    preference_B: mx.array
    teacher: str = ""
    """Name of the teacher that scores all these rows; "" for none."""


def pack(rows: list[Row], micro_batch_tokens: int) -> list[MicroBatch]:
    """Returns the micro-batches of a step, each of at most `micro_batch_tokens` padded tokens.

    A micro-batch has at least one unit of rows, even if the unit has more tokens than that.
    """
    units: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(rows):
        key = ("row", i) if row.unit is None else ("unit", row.unit)
        units.setdefault(key, []).append(i)
    longest = {key: max(len(rows[i].tokens) for i in unit) for key, unit in units.items()}
    cut: list[list[int]] = []
    for key in sorted(units, key=lambda key: (longest[key], units[key][0])):
        unit = units[key]
        if cut and bucket(longest[key]) * (len(cut[-1]) + len(unit)) <= micro_batch_tokens:
            cut[-1].extend(unit)
        else:
            cut.append(list(unit))
    return [_pad([rows[i] for i in numbers], numbers) for numbers in cut]


def bucket(length: int) -> int:
    """Returns the padded size of a length, in tokens."""
    for size in BUCKETS:
        if size >= length:
            return size
    return -(-length // BUCKETS[-1]) * BUCKETS[-1]


def _pad(rows: list[Row], numbers: list[int]) -> MicroBatch:
    length = bucket(max(len(row.tokens) for row in rows))
    targets = bucket(max(len(row.positions) for row in rows))
    tokens_BT = np.zeros((len(rows), length), np.int32)
    shape = (len(rows), targets)
    sources_BR, targets_BR = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    sampled_BR = np.zeros(shape, np.float32)
    columns = {
        name: np.zeros(shape + values.shape[1:], _dtype(values))
        for name, values in rows[0].columns.items()
    }
    for b, row in enumerate(rows):
        count = len(row.positions)
        tokens_BT[b, : len(row.tokens)] = row.tokens
        sources_BR[b, :count] = row.positions - 1
        targets_BR[b, :count] = row.tokens[row.positions]
        sampled_BR[b, :count] = 1.0
        for name, values in row.columns.items():
            columns[name][b, :count] = values
    return MicroBatch(
        tokens_BT=mx.array(tokens_BT),
        sources_BR=mx.array(sources_BR),
        targets_BR=mx.array(targets_BR),
        sampled_BR=mx.array(sampled_BR),
        columns={name: mx.array(values) for name, values in columns.items()},
        rows=numbers,
        unit_B=mx.array(_numbered(rows)),
        preference_B=mx.array(np.array([row.preference for row in rows], np.int32)),
    )


def _numbered(rows: list[Row]) -> np.ndarray:
    """Returns the unit of each row [B], counted from 0 within these rows."""
    keys = [("row", i) if row.unit is None else ("unit", row.unit) for i, row in enumerate(rows)]
    numbers = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int32)


def _dtype(values: np.ndarray) -> type[np.int32 | np.float32]:
    return np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32
