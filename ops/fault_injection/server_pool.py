"""Several fork servers at work side by side, one for each core."""

import os
import queue
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from ops.fault_injection.fork_server import ForkServer
from ops.fault_injection.kills import FaultRuns

A = TypeVar("A")
R = TypeVar("R")


class ForkServerPool:
    """Runs jobs on several fork servers at once, each with fault runs of its own in one folder."""

    def __init__(self, folder: Path, size: int = 0) -> None:
        self._stack = ExitStack()
        self._size = size or os.cpu_count() or 1
        servers = [self._stack.enter_context(ForkServer()) for _ in range(self._size)]
        fault_runs = [FaultRuns(server, folder) for server in servers]
        self.first = fault_runs[0]
        self._free: queue.Queue[FaultRuns] = queue.Queue()
        for one in fault_runs:
            self._free.put(one)

    def map(self, work: Callable[[FaultRuns, A], R], items: Iterable[A]) -> dict[A, R]:
        """Returns the result of `work` for each item. A few threads wait for processes, which do the
        work.
        """
        items = list(items)
        with ThreadPoolExecutor(self._size) as pool:
            return dict(zip(items, pool.map(lambda item: self._do(work, item), items)))

    def _do(self, work: Callable[[FaultRuns, A], R], item: A) -> R:
        fault_runs = self._free.get()
        try:
            return work(fault_runs, item)
        finally:
            self._free.put(fault_runs)

    def __enter__(self) -> "ForkServerPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
