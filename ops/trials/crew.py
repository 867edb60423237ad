"""Several zygotes at work side by side, one for each core."""

import os
import queue
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ops.trials.kills import Trials
from ops.trials.zygote import Zygote

A = TypeVar("A")
R = TypeVar("R")


class Crew:
    """Has pieces of work done, each with trials of its own, in one folder."""

    def __init__(self, folder: Path, size: int = 0) -> None:
        self._stack = ExitStack()
        self._size = size or os.cpu_count() or 1
        zygotes = [self._stack.enter_context(Zygote()) for _ in range(self._size)]
        trials = [Trials(zygote, folder) for zygote in zygotes]
        self.first = trials[0]
        self._free: queue.Queue[Trials] = queue.Queue()
        for one in trials:
            self._free.put(one)

    def map(self, work: Callable[[Trials, A], R], items: Iterable[A]) -> dict[A, R]:
        """What `work` gives for each item; a few threads wait for processes, which do the work."""
        items = list(items)
        with ThreadPoolExecutor(self._size) as pool:
            return dict(zip(items, pool.map(lambda item: self._do(work, item), items)))

    def _do(self, work: Callable[[Trials, A], R], item: A) -> R:
        trials = self._free.get()
        try:
            return work(trials, item)
        finally:
            self._free.put(trials)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
