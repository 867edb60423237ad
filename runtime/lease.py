"""The GPU lease: one process of the whole machine computes at a time, for one phase.

Two MLX processes on one Mac's GPU can panic its kernel. So every GPU phase runs under an `flock`, which
works between runs too, and which the kernel releases when the holding process dies. MLX's CPU backend needs
no such protection, so one process for each core may compute.

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
    """A lease that `places` processes may hold at once: 1 on a GPU."""

    def __init__(self, folder: Path, places: int) -> None:
        private_folder(folder)
        self._paths = [folder / f"gpu-{i}.lock" for i in range(places)]

    @contextlib.contextmanager
    def hold(
        self, holder: str, deadline_s: float, pause_asked: Callable[[], bool] = lambda: False
    ) -> Iterator[float]:
        """Waits for a place and holds it for a `with` block, which gets the seconds waited.

        Raises RunFailed, naming the present holders, if no place was free by the deadline; Interrupted if a
        pause is asked for meanwhile. Time asleep does not count, because the holders slept too.
        """
        began = time.monotonic()
        descriptor = self._acquire(holder, deadline_s, pause_asked)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{holder} (pid {os.getpid()})".encode(), 0)
            yield time.monotonic() - began
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _acquire(self, holder: str, deadline_s: float, pause_asked: Callable[[], bool]) -> int:
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
                raise Interrupted(f"paused while {holder} waited for the GPU")
            if deadline.expired():
                holders = ", ".join(self.holders()) or "an unknown process"
                raise RunFailed(f"{holder} waited {deadline_s:g} s for the GPU, held by {holders}")
            time.sleep(POLL_S)

    def holders(self) -> list[str]:
        """Returns the names that the present holders wrote."""
        names = (path.read_text(errors="replace") for path in self._paths if path.exists())
        return [name for name in names if name]
