"""Key-value memory of the decoder: fixed slots, columns in the order of the tokens.

All rows write their newest token into the same column, so a step is one slice update; a row's tokens
are the columns from its start to the newest, in order, so that sums run in the same order as in a
whole forward pass (exact mode rests on that). Columns that no row needs any more are cut off in front.

Shapes: S slots, H key-value heads, C columns, L visible columns, D head width, P prompts, T tokens.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from msgspec import Struct

Mask = Callable[[int, int | None], Any]
COLUMNS_STEP = 64
"""Capacity is a multiple of this: few shapes."""


class PromptCache:
    """One layer's keys and values of prompts [P, H, T, D], from position 0, right-padded."""

    def __init__(self, mask: Mask) -> None:
        self.offset = 0
        self.keys: mx.array
        self.values: mx.array
        self._mask = mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keep what a layer computed; it attends to just that."""
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """Causal, within the layer's window."""
        return self._mask(length, window_size)


class Prefilled(Struct):
    """A prompt that waits for free slots: its row in the prefill pass, and what comes next."""

    caches: list[PromptCache]
    source: int
    length: int
    logits_V: mx.array


class Slots:
    """What the layers share: which column is next and where each row starts. Host state."""

    def __init__(self, slots: int, layers: int) -> None:
        self.starts_S = np.zeros(slots, np.int32)
        self.column = 0
        self.first = 0
        """The first visible column."""
        self.layers = [SlotCache(self) for _ in range(layers)]
        self.offset_S = mx.zeros(slots, mx.int32)
        self._masks: dict[int | None, Any] = {}

    def place(self, prompt: "Prefilled", row: int, count: int) -> None:
        """Put a prompt into `count` rows from `row` on, ending at the next free column."""
        start = self.column - prompt.length
        for layer, cache in zip(self.layers, prompt.caches):
            layer.place(cache, row, count, prompt.source, start, prompt.length)
        self.starts_S[row : row + count] = start
        self.first = min(self.first, start)

    def release(self, rows: list[int]) -> None:
        """These rows are empty: what only they could see is not to be moved along."""
        self.starts_S[rows] = self.column
        self.first = int(self.starts_S.min())

    def begin(self, active_S: np.ndarray) -> None:
        """Prepare a step: rows that are not active see only their own new column."""
        self.starts_S[~active_S] = self.column
        self.first = int(self.starts_S.min())
        self.offset_S = mx.array(self.column - self.starts_S)
        self._masks.clear()

    def end(self) -> None:
        """The step has written its column."""
        self.column += 1

    def make_room(self, before: int, ahead: int) -> None:
        """Move what is still visible, so that the next column has `before` ones in front of it and
        `ahead` free ones from it on.
        """
        visible = self.column - self.first
        column = max(visible, before)
        for layer in self.layers:
            layer.move(slice(self.first, self.column), column - visible, column + ahead)
            mx.eval(layer.keys, layer.values)  # one layer at a time is there twice
        self.starts_S += column - self.column
        self.first = column - visible
        self.column = column

    def select(self, rows: np.ndarray) -> None:
        """Keep only these rows, in this order: a smaller batch for the last long sequences."""
        index = mx.array(rows.astype(np.int32))
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        self.starts_S = self.starts_S[rows]

    def mask(self, window: int | None) -> Any:
        """[S, 1, 1, L] True where a row may look; None if all rows see all visible columns."""
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
        """Give the memory back now: slots and layers know each other, so a collector would find it late."""
        self.layers.clear()

    @property
    def capacity(self) -> int:
        """Columns allocated."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]


class SlotCache:
    """One layer's keys and values [S, H, C, D], in the form that mlx-lm's attention asks for."""

    def __init__(self, slots: Slots) -> None:
        self.keys: Any = None
        self.values: Any = None
        self._slots = slots

    @property
    def offset(self) -> mx.array:
        """[S] position of each row's new token, for the rotary embedding."""
        return self._slots.offset_S

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the new column, see from the first visible one to it."""
        first, column = self._slots.first, self._slots.column
        self.keys[:, :, column : column + 1] = keys
        self.values[:, :, column : column + 1] = values
        return self.keys[:, :, first : column + 1], self.values[:, :, first : column + 1]

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """The mask of one step, shared by the layers that have the same window."""
        return self._slots.mask(window_size)

    def place(
        self, prompt: PromptCache, row: int, count: int, source: int, start: int, length: int
    ) -> None:
        """Copy a prompt's columns into `count` rows."""
        rows, columns = slice(row, row + count), slice(start, start + length)
        self.keys[rows, :, columns] = prompt.keys[source : source + 1, :, :length]
        self.values[rows, :, columns] = prompt.values[source : source + 1, :, :length]

    def allocate(self, like: PromptCache, slots: int) -> None:
        """Empty memory in the shape and precision of a prompt's."""
        for name in ("keys", "values"):
            _, heads, _, width = getattr(like, name).shape
            setattr(self, name, mx.zeros((slots, heads, 0, width), getattr(like, name).dtype))

    def move(self, columns: slice, start: int, capacity: int) -> None:
        """The given columns, from `start` on, in memory of at least `capacity` columns."""
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
