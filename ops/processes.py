"""The processes of one run: found by the session they were started in, ended without ceremony.

Nothing in Ray is durable, so nothing needs to be told to stop: what belongs to a run's session is killed.
Ray puts workers into groups of their own, but all stay in the session of the process that started it; its
daemons name the session's folder in their command line.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

LIMIT_S = 8.0
LOOK_S = 0.05


class Process(NamedTuple):
    """Holds one line of `ps`."""

    pid: int
    memory_bytes: int
    """The bytes of resident memory."""
    command: str


def belonging(session: int, marker: str) -> list[Process]:
    """Returns the living processes of a session, or with `marker` in their command line; never the
    present one.
    """
    return [
        process
        for process in listing()
        if process.pid != os.getpid()
        and (session_of(process.pid) == session or (marker and marker in process.command))
    ]


def end(session: int, marker: str = "") -> bool:
    """Kills the processes, and those that they start meanwhile. Returns False if some are left after a
    while.
    """
    until = time.monotonic() + LIMIT_S
    while found := belonging(session, marker):
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)
    return True


def listing() -> Iterator[Process]:
    """Yields this user's processes, without dead ones that are not yet reaped."""
    lines = subprocess.run(
        ["ps", "-xww", "-o", "pid=,stat=,rss=,command="],
        capture_output=True, text=True, errors="replace", check=False,
    ).stdout.splitlines()  # fmt: skip
    for line in lines:
        pid, state, kilobytes, command = [*line.split(None, 3), ""][:4]
        if not state.startswith("Z") and not command.startswith("ps -xww"):
            yield Process(int(pid), int(kilobytes) << 10, command)


def session_of(pid: int) -> int:
    """Returns the session of a process; -1 if it has just ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return -1
