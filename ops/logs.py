"""`pippin logs`: the last lines of each part's log, and what comes after."""

import time
from pathlib import Path

from ops.terminal import say
from runtime.errors import BadInput
from runtime.rundir import RunDirectory

POLL_S = 0.3


def print_logs(run: RunDirectory, part: str | None, count: int, follow: bool) -> None:
    """Print the last `count` lines of each log, or of one part's; with `follow` go on until the run ends.

    Raises BadInput for a part that has no log.
    """
    files = sorted(run.logs.glob("*.log"))
    if part is not None:
        names = [file.stem for file in files]
        if part not in names:
            raise BadInput(
                f"--part: {run.name} has logs of {', '.join(names) or 'nobody'}, not {part!r}"
            )
        files = [run.logs / f"{part}.log"]
    positions: dict[Path, int] = {}
    for file in files:
        lines = file.read_bytes().splitlines(keepends=True)
        positions[file] = sum(map(len, lines))
        _print(file, b"".join(lines[-count:]))
    while follow:
        for file in sorted(run.logs.glob("*.log")) if part is None else files:
            with file.open("rb") as log:
                log.seek(positions.get(file, 0))
                fresh = log.read()
            positions[file] = positions.get(file, 0) + len(fresh)
            _print(file, fresh)
        if not run.locked():
            return
        time.sleep(POLL_S)


def _print(file: Path, content: bytes) -> None:
    for line in content.decode(errors="replace").splitlines():
        say(f"{file.stem}: {line}")
