"""Who may compute on the GPU now: a lease of the whole machine, held for one phase at a time.

Two MLX processes on one Mac's GPU can panic its kernel. So every GPU phase runs under an `flock`, which
holds between runs as well and which the kernel releases when its holder dies. On MLX's CPU backend
there is nothing to protect, and as many may compute as there are cores.

    with lease.hold("sampler-0 of run demo", deadline_s=600):
        ...
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.clock import Deadline
from runtime.errors import Interrupted, RunFailed
from runtime.home import private_folder

POLL_S = 0.02


class Lease:
    """`places` may hold it at once: 1 on a GPU."""

    def __init__(self, folder: Path, places: int) -> None:
        private_folder(folder)
        self._paths = [folder / f"gpu-{i}.lock" for i in range(places)]

    @contextlib.contextmanager
    def hold(
        self, who: str, deadline_s: float, pause_asked: Callable[[], bool] = lambda: False
    ) -> Iterator[float]:
        """Wait for a place, hold it for the block; gives the seconds waited.

        Raises RunFailed, naming the holder, if none was free by the deadline, Interrupted if somebody
        asks to pause meanwhile. Time asleep does not count: the holder slept as well.
        """
        began = time.monotonic()
        descriptor = self._acquire(who, deadline_s, pause_asked)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{who} (pid {os.getpid()})".encode(), 0)
            yield time.monotonic() - began
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _acquire(self, who: str, deadline_s: float, pause_asked: Callable[[], bool]) -> int:
        deadline = Deadline(deadline_s)
        while True:
            for path in self._paths:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return descriptor
                except BlockingIOError:
                    os.close(descriptor)
            if pause_asked():
                raise Interrupted(f"paused while {who} waited for the GPU")
            if deadline.expired():
                holders = ", ".join(self.holders()) or "somebody unknown"
                raise RunFailed(f"{who} waited {deadline_s:g} s for the GPU, held by {holders}")
            time.sleep(POLL_S)

    def holders(self) -> list[str]:
        """Who holds a place now, as they wrote it."""
        names = (path.read_text(errors="replace") for path in self._paths if path.exists())
        return [name for name in names if name]
