"""A part's own log: JSON lines in the run directory, with its name, and its stack if it crashes."""

import faulthandler
from pathlib import Path
from typing import Any

import structlog


def open_log(folder: Path, name: str) -> Any:
    """A logger that appends to `folder`/`name`.log; native crashes leave their stacks there too."""
    file = (folder / f"{name}.log").open("a", buffering=1)
    faulthandler.enable(file)
    return structlog.wrap_logger(
        structlog.WriteLogger(file),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        part=name,
    )
