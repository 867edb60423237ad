"""`pippin resume --detach`, five times at once: one process has the run, and the others say so."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ops import launch
from runtime.errors import BadInput, PippinError
from runtime.rundir import RunDirectory

RUNNER = """
import sys, time
from pathlib import Path
from ops.outcome import exit_code
from runtime.rundir import RunDirectory
run = RunDirectory(Path(sys.argv[1]).parent, Path(sys.argv[1]).name)
def body():
    run.lock()
    while not (run.path / "enough").exists():
        time.sleep(0.02)
    return 0
sys.exit(exit_code(body))
"""


def test_of_five_one_wins_and_four_say_that_another_has(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "runs", "run")
    run.create("", {})
    command = [sys.executable, "-c", RUNNER, str(run.path)]
    monkeypatch.setattr(launch, "command", lambda run, where: command)
    monkeypatch.setenv("PYTHONPATH", str(launch.Path(launch.__file__).parents[1]))

    def resume(_: int) -> int | PippinError:
        try:
            return launch.detach(RunDirectory(run.path.parent, run.name))
        except PippinError as error:
            return error

    with ThreadPoolExecutor(5) as pool:
        said = list(pool.map(resume, range(5)))
    try:
        won = [each for each in said if isinstance(each, int)]
        assert won == [run.holder()]
        lost = [each for each in said if isinstance(each, PippinError)]
        assert {type(each) for each in lost} == {BadInput}
        assert {str(each) for each in lost} == {
            f"{run.path}: another process is running it (pid {won[0]})"
        }
    finally:
        (run.path / "enough").touch()


def test_a_process_that_cannot_run_says_why(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "runs", "run")
    run.create("", {})
    dies = [sys.executable, "-c", "import sys; sys.exit('no more memory')"]
    monkeypatch.setattr(launch, "command", lambda run, where: dies)
    with pytest.raises(PippinError, match="the run did not start: no more memory"):
        launch.detach(run)
