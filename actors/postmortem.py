"""Facts about an actor that died or hangs: the end of its log, and where each of its threads was."""

import contextlib
import os
import signal
import time
from pathlib import Path

from runtime.file_tail import last_lines
from runtime.plain_text import printable

DUMP_S = 0.5
"""The seconds that a hanging process gets to write its stack: a signal handler in C does it."""
TAIL_LINES = 4
TAIL_BYTES = 4096
DUMP_SIGNAL = signal.SIGUSR2


def dump_stack(pid: int | None, logs: Path, name: str) -> str:
    """Makes a process write its stack to `logs`/NAME.stack. Returns the end of a sentence that says so."""
    path = logs / f"{name}.stack"
    size = path.stat().st_size if path.exists() else 0
    if pid is None:
        return ""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, DUMP_SIGNAL)
        os.kill(pid, signal.SIGCONT)  # a stopped process takes signals only after SIGCONT
    until = time.monotonic() + DUMP_S
    while time.monotonic() < until:
        if path.exists() and path.stat().st_size > size:
            return f" (its stack is in logs/{path.name})"
        time.sleep(0.02)
    return " (it left no stack)"


def tail(logs: Path, name: str) -> str:
    """Returns the last lines of an actor's log, as lines of their own below a sentence; "" without any."""
    path = logs / f"{name}.log"
    try:
        lines = last_lines(path, TAIL_LINES, TAIL_BYTES)
    except OSError:
        return ""
    return "".join(f"\n  {path.name}: {printable(line)}" for line in lines)
