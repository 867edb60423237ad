"""Whole runs in exact mode, by a program in a process of its own: the tests' has chosen its BLAS."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from runtime.blas import EXACT_VARIABLE

ROOT = Path(__file__).parents[2]


def outcomes(program: str, folder: Path, timeout_s: float) -> Callable[[str], dict]:
    """Runs every scenario of `program`; gives what looks one up by name, which must have finished."""
    done = subprocess.run(
        [sys.executable, "-m", program, str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
        env={**os.environ, EXACT_VARIABLE: "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)

    def run(name: str) -> dict:
        assert "error" not in results[name], results[name]["error"]
        assert results[name]["state"] == "finished"
        return results[name]

    return run
