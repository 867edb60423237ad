"""The lock of a run directory: one process at a time writes there, and the system lets go if it dies.

    lock = RunLock(folder)
    lock.take()       # raises BadInput while another process holds it
    lock.is_held()    # anyone may look, and never keeps a writer out for longer than an instant
    lock.release()    # or the end of the process, however it comes

The file holds the writer's process id, for the sentence that a second writer gets.
"""

import fcntl
import os
import time
from pathlib import Path

from runtime.errors import BadInput

PROBE_S = 0.2
"""How long a writer keeps trying: a process that looks at the lock holds it for an instant."""


class RunLock:
    """The file `lock` of one run directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "lock"
        self._descriptor: int | None = None

    def take(self) -> None:
        """Makes this process the run's one writer until it ends. Raises BadInput if another is."""
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        if not _locked_within(descriptor, PROBE_S):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
            os.close(descriptor)
            raise BadInput(f"{self._folder}: another process is running it (pid {holder})")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def is_held(self) -> bool:
        """Returns whether a process, this one or another, is the writer now."""
        if self._descriptor is not None:
            return True
        if not self._file.exists():
            return False
        descriptor = os.open(self._file, os.O_RDONLY)
        try:  # shared: two who look at once do not take each other for the writer
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Lets another process be the writer."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked_within(descriptor: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
