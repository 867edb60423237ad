"""Log-probabilities under the reference policy, computed once for each row of data and kept.

The reference never changes, so a second epoch and every evaluation of the same rows would compute the same
numbers again. A row is known by its tokens up to the last target and by its targets, not by its place in a
micro-batch. Once the memory is full, no more rows are kept: replacing the oldest would lose every row of a
long epoch before it is asked for again.

Shapes: B rows of a micro-batch, T padded tokens, R padded targets.
"""

import hashlib
from collections.abc import Callable

import mlx.core as mx
import msgspec
import numpy as np

from policies.batch import MicroBatch

LIMIT_BYTES = 256 << 20
ENTRY_BYTES = 200
"""What a row takes beside its numbers: the key, and what Python needs for both."""


class ReferenceLogprobs:
    """Scores micro-batches under the reference, each row once."""

    def __init__(
        self, score: Callable[[MicroBatch], mx.array], limit_bytes: int = LIMIT_BYTES
    ) -> None:
        """`score` returns the log-probabilities [B, R] of a micro-batch, evaluated."""
        self._score = score
        self._room_bytes = limit_bytes
        self._kept: dict[bytes, np.ndarray] = {}

    def of(self, micro: MicroBatch) -> mx.array:
        """Returns the log-probabilities [B, R] of the targets; 0 on padding."""
        keys, counts = _identities(micro)
        found: dict[int, np.ndarray] = {}
        missing = []
        for b, key in enumerate(keys):
            if (row := self._kept.get(key)) is not None:
                found[b] = row
            else:
                missing.append(b)
        if missing:
            fresh_MR = np.array(self._score(_rows(micro, missing)).astype(mx.float32))
            for b, row_R in zip(missing, fresh_MR):
                found[b] = row_R[: counts[b]].copy()
                self._keep(keys[b], found[b])
        logprobs_BR = np.zeros(micro.targets_BR.shape, np.float32)
        for b, row in found.items():
            logprobs_BR[b, : counts[b]] = row
        return mx.array(logprobs_BR)

    def _keep(self, key: bytes, row: np.ndarray) -> None:
        size_bytes = row.nbytes + ENTRY_BYTES
        if key not in self._kept and size_bytes <= self._room_bytes:
            self._kept[key] = row
            self._room_bytes -= size_bytes


def _identities(micro: MicroBatch) -> tuple[list[bytes], list[int]]:
    """Returns a key for each row, which no padding changes, and its number of targets."""
    tokens_BT, sources_BR = np.array(micro.tokens_BT), np.array(micro.sources_BR)
    counts = (np.array(micro.sampled_BR) > 0).sum(axis=1).tolist()
    keys = []
    for tokens, sources, count in zip(tokens_BT, sources_BR, counts):
        sources = sources[:count]
        read = tokens[: int(sources.max(initial=-1)) + 2]
        content = len(read).to_bytes(8) + read.tobytes() + sources.tobytes()
        keys.append(hashlib.blake2b(content, digest_size=16).digest())
    return keys, counts


def _rows(micro: MicroBatch, which: list[int]) -> MicroBatch:
    """Returns a micro-batch of these rows alone, padded as before."""
    if len(which) == len(micro.rows):
        return micro
    rows = mx.array(which)
    return msgspec.structs.replace(
        micro,
        tokens_BT=micro.tokens_BT[rows],
        sources_BR=micro.sources_BR[rows],
        targets_BR=micro.targets_BR[rows],
        sampled_BR=micro.sampled_BR[rows],
        columns={name: values[rows] for name, values in micro.columns.items()},
        rows=[micro.rows[b] for b in which],
        unit_B=micro.unit_B[rows],
        preference_B=micro.preference_B[rows],
    )
