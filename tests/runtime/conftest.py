"""A new run directory."""

from pathlib import Path

import pytest

from runtime.rundir import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs", "demo")
    run.create("seed = 1\n", {"argv": ["launch"]})
    return run
