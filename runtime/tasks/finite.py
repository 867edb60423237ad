"""The order of prompts from a finite set of rows.

Prompt n of a run is a pure function of the seed: the permutation of pass ``n // rows`` is a sort by
keyed hashes, so any process can get any prompt at any time, without a cursor.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runtime.keys import GOLDEN, derive, mix
from runtime.tasks.prompt import Split


def row_of(split: Split, index: int, rows: int, seed: int, task: str) -> int:
    """Returns the row of prompt `index`: reshuffled at each pass of "train", in file order for "eval".

    Raises IndexError beyond the rows of "eval", so that no held-out row is counted twice.
    """
    if split == "train":
        return int(permutation(seed, task, index // rows, rows)[index % rows])
    if not 0 <= index < rows:
        raise IndexError(f"task {task}: needed a held-out prompt below {rows}, got {index}")
    return index


@lru_cache(maxsize=4)  # samplers that run ahead alternate between one pass and the next
def permutation(seed: int, task: str, epoch: int, rows: int) -> NDArray[np.int64]:
    """Returns the order of the rows in pass `epoch`."""
    key = np.uint64(derive(seed, task, "epoch", epoch))
    counters = np.arange(1, rows + 1, dtype=np.uint64)
    return np.argsort(mix(key + counters * GOLDEN), kind="stable")
