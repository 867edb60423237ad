"""An actor's own log: JSON lines in the run directory, with the actor's name, and its stack if it crashes."""

import contextlib
import faulthandler
import io
import sys
from pathlib import Path
from typing import Any, TextIO, cast

import ray
import structlog

from actors.postmortem import DUMP_SIGNAL


def open_log(folder: Path, name: str) -> Any:
    """Returns a logger that appends to `folder`/`name`.log. Native crashes leave their stacks there
    too.
    """
    file = (folder / f"{name}.log").open("a", buffering=1)
    faulthandler.enable(file)
    if ray.is_initialized():  # a process of its own: a signal makes it write its stack
        stack = (folder / f"{name}.stack").open("a")
        faulthandler.register(DUMP_SIGNAL, stack, all_threads=True)
    return structlog.wrap_logger(
        structlog.WriteLogger(cast(TextIO, _LogFile(file, shown=ray.is_initialized()))),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        actor=name,
    )


class _LogFile(io.TextIOBase):
    """Writes to the log and, where it is shown in Ray's dashboard, to the process's output.

    A line for which a full disk has no room is dropped: a log that cannot be written stops nothing.
    """

    def __init__(self, file: TextIO, *, shown: bool) -> None:
        self._files = (sys.stdout, file) if shown else (file,)

    def write(self, text: str) -> int:
        for file in self._files:
            with contextlib.suppress(OSError):
                file.write(text)
        return len(text)

    def flush(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):
                file.flush()
