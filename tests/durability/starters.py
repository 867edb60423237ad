"""A program in which two processes race for one run directory: argv[1] is the run, argv[2] the rounds.

It prints a JSON array for each round: what each of the two reported. The winner ends without unlocking, so
that its lock file is still there in the next round.
"""

import json
import os
import sys
import time
from pathlib import Path

from runtime.errors import BadInput
from runtime.rundir import RunDirectory

TOGETHER_S = 0.02


def start(run: RunDirectory, at_s: float, told: int, hold: int) -> None:
    """Tries to lock the run, reports the result and ends the process. A winner waits until both reported."""
    while time.monotonic() < at_s:
        pass
    try:
        run.lock()
        os.write(told, f"won {os.getpid()}\n".encode())
        os.read(hold, 1)
    except BadInput as error:
        os.write(told, f"{error}\n".encode())
    finally:
        os._exit(0)


def race(run: RunDirectory) -> list[str]:
    """Returns what the two processes reported."""
    ours, told = os.pipe()
    hold, let_go = os.pipe()
    at_s = time.monotonic() + TOGETHER_S
    children = []
    for _ in range(2):
        children.append(pid := os.fork())
        if not pid:
            os.close(let_go)
            start(run, at_s, told, hold)
    os.close(told)
    os.close(hold)
    with os.fdopen(ours) as pipe:
        said = [pipe.readline().strip() for _ in range(2)]
    os.close(let_go)
    for pid in children:
        os.waitpid(pid, 0)
    return said


if __name__ == "__main__":
    path = Path(sys.argv[1])
    for _ in range(int(sys.argv[2])):
        print(json.dumps(race(RunDirectory(path.parent, path.name))))
