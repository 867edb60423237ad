"""Of several processes that start one run, one wins and the others are refused; a dead one holds no lock."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.rundir import RunDirectory

ROOT = Path(__file__).parents[2]
ROUNDS = 10
"""How many races each run directory sees, one after another."""


@pytest.mark.parametrize("races", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_of_two_starters_exactly_one_wins_each_time(tmp_path, races):
    runs = [RunDirectory(tmp_path / "runs", f"run-{i}") for i in range(races)]
    for run in runs:
        run.create("", {})
    script = [sys.executable, "-m", "tests.durability.starters"]
    started = [
        subprocess.Popen([*script, str(run.path), str(ROUNDS)], cwd=ROOT, stdout=subprocess.PIPE)
        for run in runs
    ]
    rounds = [json.loads(line) for race in started for line in race.communicate()[0].splitlines()]
    assert [race.returncode for race in started] == [0] * races and len(rounds) == races * ROUNDS
    for said in rounds:
        (won,) = (line for line in said if line.startswith("won "))
        (lost,) = (line for line in said if line != won)
        winner = won.removeprefix("won ")
        assert re.fullmatch(rf"\S+: another process is running it \(pid {winner}\)", lost), said


def test_the_lock_of_a_killed_process_is_no_obstacle(tmp_path):
    run = RunDirectory(tmp_path / "runs", "run")
    run.create("", {})
    code = (
        "import sys, time; from pathlib import Path; from runtime.rundir import RunDirectory\n"
        "RunDirectory(Path(sys.argv[1]), 'run').lock(); print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run.path.parent)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline()
        assert run.locked()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    began = time.monotonic()
    assert (run.path / "lock").read_text() == str(holder.pid) and not run.locked()
    run.lock()
    assert time.monotonic() - began < 0.1
    assert (run.path / "lock").read_text() == str(os.getpid())
    run.unlock()
