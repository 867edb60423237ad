"""Trajectories as padded arrays: sorted by length, in a few sizes, cut by tokens.

Right-padded under plain causal attention, which is what MLX's fused backward wants. Lengths are
rounded up to one of 16 sizes: freed buffers fit the next micro-batch, and rows of about one length
share one.

Shapes: B rows of a micro-batch, T padded tokens, R tokens that a loss looks at, K kept ids of each.
"""

import mlx.core as mx
import numpy as np
from msgspec import Struct

BUCKETS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
"""Padded sizes; beyond the last, its multiples."""


class Row(Struct, frozen=True):
    """One trajectory's share of a step, as numpy. All but `tokens` have one item per target.

    Target j is tokens[positions[j]], predicted from the position before it.
    """

    tokens: np.ndarray
    positions: np.ndarray
    """Of the tokens that a loss looks at: sampled ones, or an answer's in data."""
    columns: dict[str, np.ndarray]
    """Per target [R], or [R, K] of a teacher's ids: log-probabilities, advantages, weights; float32,
    or int32 for ids."""
    unit: int | None = None
    """The pair or group that it belongs to: rows of one unit share a micro-batch. None: the row alone."""
    preference: int = 0
    """1 if it is the preferred row of its unit, -1 if it is a rejected one."""


class MicroBatch(Struct):
    """Rows padded together. [B, R, …] arrays are padded with zeros, `sampled_BR` says what is real."""

    tokens_BT: mx.array
    sources_BR: mx.array
    """Position whose hidden state predicts the target."""
    targets_BR: mx.array
    sampled_BR: mx.array
    columns: dict[str, mx.array]
    rows: list[int]
    """Which rows of the step these are."""
    unit_B: mx.array
    """Number of the unit of each row, counted within the micro-batch."""
    preference_B: mx.array
    teacher: str = ""
    """The teacher that is asked about all of them; "" for none."""


def pack(rows: list[Row], micro_batch_tokens: int) -> list[MicroBatch]:
    """Cuts a step into micro-batches of at most so many padded tokens (at least one unit of rows each)."""
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
    return [_pad([rows[i] for i in part], part) for part in cut]


def bucket(length: int) -> int:
    """The padded size of a length."""
    for size in BUCKETS:
        if size >= length:
            return size
    return -(-length // BUCKETS[-1]) * BUCKETS[-1]


def _pad(rows: list[Row], which: list[int]) -> MicroBatch:
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
        rows=which,
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
