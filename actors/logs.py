"""A part's own log: JSON lines in the run directory, with its name, and its stack if it crashes."""

import faulthandler
import io
import sys
from pathlib import Path
from typing import Any, TextIO, cast

import ray
import structlog

from actors.postmortem import DUMP_SIGNAL


def open_log(folder: Path, name: str) -> Any:
    """A logger that appends to `folder`/`name`.log; native crashes leave their stacks there too."""
    file = (folder / f"{name}.log").open("a", buffering=1)
    faulthandler.enable(file)
    if ray.is_initialized():  # a process of its own: whoever finds it hanging asks where it is
        stack = (folder / f"{name}.stack").open("a")
        faulthandler.register(DUMP_SIGNAL, stack, all_threads=True)
    return structlog.wrap_logger(
        structlog.WriteLogger(cast(TextIO, _Tee(file)) if ray.is_initialized() else file),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        part=name,
    )


class _Tee(io.TextIOBase):
    """Writes to the log and to the process's output, which Ray's dashboard shows."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        sys.stdout.write(text)
        return self._file.write(text)

    def flush(self) -> None:
        sys.stdout.flush()
        self._file.flush()
