"""`pippin logs`: prints the last lines of each actor's log, and new lines as they come.

A log holds what a user's code printed, so each line is made printable; only the end of a file is read.
"""

import os
import time
from pathlib import Path

from ops.terminal import say
from runtime.errors import BadInput
from runtime.file_tail import tail
from runtime.plain_text import printable
from runtime.rundir import RunDirectory

POLL_S = 0.3
READ_BYTES = 1 << 20
LONGEST_LINE = 10_000


def print_logs(run: RunDirectory, actor: str | None, count: int, follow: bool) -> None:
    """Prints the last `count` lines of each log, or of one actor's. `follow` keeps it printing.

    Raises BadInput for an actor that has no log.
    """
    files = sorted(run.logs.glob("*.log"))
    if actor is not None:
        names = [file.stem for file in files]
        if actor not in names:
            raise BadInput(
                f"--actor: {run.name} has logs of {', '.join(names) or 'no actor'}, not {actor!r}"
            )
        files = [run.logs / f"{actor}.log"]
    positions: dict[Path, int] = {}
    for file in files:
        content = tail(file, limit_bytes=READ_BYTES)
        positions[file] = file.stat().st_size
        _print(file, b"".join(content.splitlines(keepends=True)[-count:] if count > 0 else []))
    while follow:
        for file in sorted(run.logs.glob("*.log")) if actor is None else files:
            positions[file] = _print_since(file, positions.get(file, 0))
        if not run.locked():
            return
        time.sleep(POLL_S)


def _print_since(file: Path, position: int) -> int:
    """Prints what was added after `position`. Returns the new position."""
    try:
        with file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            if size < position:  # it was rotated
                position = 0
            log.seek(max(position, size - READ_BYTES))
            fresh = log.read(READ_BYTES)
            position = log.tell()
    except FileNotFoundError:  # it is being rotated
        return 0
    _print(file, fresh)
    return position


def _print(file: Path, content: bytes) -> None:
    lines = content.decode(errors="replace").removesuffix("\n").split("\n") if content else []
    for line in lines:
        shown = printable(line.removesuffix("\r").replace("\t", "    "), LONGEST_LINE)
        say(f"{file.stem}: {shown}")
