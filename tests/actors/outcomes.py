"""Whole runs in exact mode, in a process of their own: the tests' process has already chosen its BLAS.

    with outcomes("tests.actors.exact_runs", folder, timeout_s=120) as runs:
        assert runs("stopped twice")["digests"] == runs("plain")["digests"]

The program runs a scenario when a test asks for it, so that the tests that are selected decide what is run.
"""

import functools
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.blas import EXACT_VARIABLE

ROOT = Path(__file__).parents[2]


@contextmanager
def outcomes(program: str, folder: Path, timeout_s: float) -> Iterator[Callable[[str], dict]]:
    """Yields a function that runs a scenario of `program`, once, and returns the finished run's outcome."""
    said = folder / "stderr"
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", program, str(folder)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, EXACT_VARIABLE: "1"},
        ) as process,
    ):  # fmt: skip
        assert process.stdin and process.stdout
        asked, answers = process.stdin, process.stdout

        @functools.cache
        def ask(name: str) -> dict:
            deadline = threading.Timer(timeout_s, process.kill)
            deadline.start()
            print(name, file=asked, flush=True)
            line = answers.readline()
            deadline.cancel()
            assert line, (
                f"{program} ended, or took over {timeout_s} s for {name}: {said.read_text()}"
            )
            return json.loads(line)

        def run(name: str) -> dict:
            result = ask(name)
            assert "error" not in result, result["error"]
            assert result["state"] == "finished"
            return result

        yield run
        asked.close()


def answer(outcome_of: Callable[[str], dict[str, Any]]) -> None:
    """Prints, in the program, a JSON object for each scenario whose name comes on stdin, until stdin ends."""
    for line in sys.stdin:
        try:
            result = outcome_of(line.rstrip("\n"))
        except Exception:
            result = {"error": traceback.format_exc()}
        print(json.dumps(result), flush=True)
