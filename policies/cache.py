"""Key-value memory of the decoder: fixed slots, columns in the order of the tokens.

All rows write their newest token into the same column, so a step is one slice update. A row's tokens
are the columns from its start to the newest, in order, so that sums run in the same order as in a
whole forward pass; exact mode relies on that. Columns that no row needs any more are cut off at the front.

Shapes: S slots, H key-value heads, C columns, L visible columns, D head width, P prompts, T tokens.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from msgspec import Struct

Mask = Callable[[int, int | None], Any]
COLUMNS_STEP = 64
"""The number of columns is a multiple of this, so that there are few shapes."""


class PromptCache:
    """One layer's keys and values of prompts [P, H, T, D], from position 0, right-padded."""

    def __init__(self, mask: Mask) -> None:
        self.offset = 0
        self.keys: mx.array
        self.values: mx.array
        self._mask = mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keeps a layer's keys and values, and returns them for its attention."""
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """Returns the causal mask, within the layer's window."""
        return self._mask(length, window_size)


class Prefilled(Struct):
    """A prefilled prompt that waits for free slots: its row in the prefill pass, and its next logits."""

    caches: list[PromptCache]
    source: int
    length: int
    logits_V: mx.array


class Slots:
    """The state that the layers share on the host: the next column, and where each row starts."""

    def __init__(self, slots: int, layers: int) -> None:
        self.starts_S = np.zeros(slots, np.int32)
        self.column = 0
        self.first = 0
        """The first visible column."""
        self.layers = [SlotCache(self) for _ in range(layers)]
        self.offset_S = mx.zeros(slots, mx.int32)
        self._masks: dict[int | None, Any] = {}

    def place(self, prompt: "Prefilled", row: int, count: int) -> None:
        """Puts a prompt into `count` rows from `row` on, so that it ends before the next column."""
        start = self.column - prompt.length
        for layer, cache in zip(self.layers, prompt.caches):
            layer.place(cache, row, count, prompt.source, start, prompt.length)
        self.starts_S[row : row + count] = start
        self.first = min(self.first, start)

    def release(self, rows: list[int]) -> None:
        """Marks rows as empty, so that columns which only they could see are not moved along."""
        self.starts_S[rows] = self.column
        self.first = int(self.starts_S.min())

    def begin(self, active_S: np.ndarray) -> None:
        """Prepares a step, in which rows that are not active see only their own new column."""
        self.starts_S[~active_S] = self.column
        self.first = int(self.starts_S.min())
        self.offset_S = mx.array(self.column - self.starts_S)
        self._masks.clear()

    def end(self) -> None:
        """Moves on to the next column once the step has written its own."""
        self.column += 1

    def make_room(self, before: int, ahead: int) -> None:
        """Moves the visible columns, so that the next column has at least `before` columns in front of it
        and `ahead` free columns from it on.
        """
        visible = self.column - self.first
        column = max(visible, before)
        for layer in self.layers:
            layer.move(slice(self.first, self.column), column - visible, column + ahead)
            mx.eval(layer.keys, layer.values)  # only one layer at a time is in memory twice
        self.starts_S += column - self.column
        self.first = column - visible
        self.column = column

    def select(self, rows: np.ndarray) -> None:
        """Keeps only these rows, in this order, as a smaller batch for the last long sequences."""
        index = mx.array(rows.astype(np.int32))
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        self.starts_S = self.starts_S[rows]

    def mask(self, window: int | None) -> Any:
        """Returns bool [S, 1, 1, L], True for the columns that a row sees; None if all rows see all."""
        if window not in self._masks:
            visible = self.column + 1 - self.first
            if (self.starts_S == self.first).all() and (window is None or visible <= window):
                self._masks[window] = None
            else:
                low_S = self.starts_S
                if window is not None:
                    low_S = np.maximum(low_S, self.column + 1 - window)
                columns_L = np.arange(self.first, self.column + 1)
                looks_SL = columns_L >= low_S[:, None]
                self._masks[window] = mx.array(looks_SL[:, None, None, :])  # type: ignore[arg-type]
        return self._masks[window]

    def free(self) -> None:
        """Frees the memory now; slots and layers refer to each other, so the collector would be late."""
        self.layers.clear()

    @property
    def capacity(self) -> int:
        """Returns the number of allocated columns."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]


class SlotCache:
    """One layer's keys and values [S, H, C, D], with the interface of mlx-lm's caches."""

    def __init__(self, slots: Slots) -> None:
        self.keys: Any = None
        self.values: Any = None
        self._slots = slots

    @property
    def offset(self) -> mx.array:
        """Returns the position [S] of each row's new token, for the rotary embedding."""
        return self._slots.offset_S

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Writes the new column, and returns the visible columns up to it."""
        first, column = self._slots.first, self._slots.column
        self.keys[:, :, column : column + 1] = keys
        self.values[:, :, column : column + 1] = values
        return self.keys[:, :, first : column + 1], self.values[:, :, first : column + 1]

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """Returns the mask of one step, which layers with the same window share."""
        return self._slots.mask(window_size)

    def place(
        self, prompt: PromptCache, row: int, count: int, source: int, start: int, length: int
    ) -> None:
        """Copies a prompt's columns into `count` rows."""
        rows, columns = slice(row, row + count), slice(start, start + length)
        self.keys[rows, :, columns] = prompt.keys[source : source + 1, :, :length]
        self.values[rows, :, columns] = prompt.values[source : source + 1, :, :length]

    def allocate(self, like: PromptCache, slots: int) -> None:
        """Makes empty arrays of `slots` rows in a prompt's shape and precision."""
        for name in ("keys", "values"):
            _, heads, _, width = getattr(like, name).shape
            setattr(self, name, mx.zeros((slots, heads, 0, width), getattr(like, name).dtype))

    def move(self, columns: slice, start: int, capacity: int) -> None:
        """Moves the given columns to `start` in new arrays of at least `capacity` columns."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            slots, heads, before, width = old.shape
            size = max(before, -(-capacity // COLUMNS_STEP) * COLUMNS_STEP)
            fresh = mx.zeros((slots, heads, size, width), old.dtype)
            count = columns.stop - columns.start
            if count:
                fresh[:, :, start : start + count] = old[:, :, columns]
            setattr(self, name, fresh)


def runs(slots: list[int]) -> list[tuple[int, int]]:
    """Returns neighbouring slots as (first, count): `Slots.place` makes one copy for each of these."""
    found: list[tuple[int, int]] = []
    for slot in slots:
        if found and slot == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((slot, 1))
    return found
