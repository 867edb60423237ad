"""The lock of a run directory: one process at a time writes there; the system releases it if that dies.

    lock = RunLock(folder)
    lock.take()       # raises BadInput while another process holds it
    lock.is_held()    # any process may look; it blocks a writer for an instant only
    lock.release()    # the end of the process releases it too

The folder itself is locked, so removing a file in it does not remove the lock. The file `lock` in it holds
the writer's process id, for the error that a second writer gets; earlier versions lock that file.
"""

import fcntl
import os
import stat
import time
from pathlib import Path

from runtime.durable import is_alive
from runtime.errors import BadInput

PROBE_S = 0.2
"""Seconds for which a writer keeps trying, since a process that looks at the lock holds it for an instant."""
NAMED_S = 2.0
"""Seconds that a new writer may take, on a busy machine, to write its process id."""


class RunLock:
    """The lock of one run directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "lock"
        self._descriptors: tuple[int, int] | None = None

    def take(self) -> None:
        """Makes this process the run's one writer until it ends. Raises BadInput if another is."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        file = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600)
        if not (_locked_within(folder, PROBE_S) and _locked_within(file, PROBE_S)):
            os.close(file)
            os.close(folder)
            raise BadInput(f"{self._folder}: another process is running it (pid {self._named()})")
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        self._descriptors = folder, file

    def is_held(self) -> bool:
        """Returns whether a process, this one or another, is the writer now."""
        if self._descriptors is not None:
            return True
        return any(_is_locked(path) for path in (self._folder, self._file))

    def holder(self) -> int | None:
        """Returns the id of the writer's process, or of the last writer's; None if it is not known."""
        try:
            return int(self._file.read_text())
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Lets another process be the writer."""
        for descriptor in self._descriptors or ():
            os.close(descriptor)
        self._descriptors = None

    def _named(self) -> int | str:
        """Waits until the holder has written its id and returns it; an earlier id is a dead process's."""
        until = time.monotonic() + NAMED_S
        while (pid := self.holder()) is None or not is_alive(pid):
            if time.monotonic() > until:
                return "?"
            time.sleep(0.01)
        return pid


def _is_locked(path: Path) -> bool:
    """Returns whether another process holds a lock on a file or folder, if it is there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:  # a shared lock, so that two processes that look at once do not see each other as the writer
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:  # a network volume that locks no folders has a lock on the file
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)


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
        except OSError:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise
            return True  # a network volume locks no folders, so the lock on the file must suffice
