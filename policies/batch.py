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
    """Per target [R], or [R, K] of a teacher's ids: behaviour_logprobs, advantages, weights; float32,
    or int32 for ids."""


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
    teacher: str = ""
    """Who is asked about all of them."""


def pack(rows: list[Row], micro_batch_tokens: int) -> list[MicroBatch]:
    """Cut a step into micro-batches of at most so many padded tokens (at least one row each)."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].tokens), i))
    cut: list[list[int]] = []
    for i in order:
        size = bucket(len(rows[i].tokens))
        if cut and size * (len(cut[-1]) + 1) <= micro_batch_tokens:
            cut[-1].append(i)
        else:
            cut.append([i])
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
    )


def _dtype(values: np.ndarray) -> type[np.int32 | np.float32]:
    return np.int32 if np.issubdtype(values.dtype, np.integer) else np.float32
