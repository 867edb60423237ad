"""A run whose disk is full at its n-th write stops with one sentence, leaves a status that can be read, and
ends as the undisturbed run does once there is room.

`make test` tries every third n, `make soak` the rest.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.fault_injection.facts import differences
from ops.fault_injection.kills import FaultRuns, untoward
from ops.fault_injection.programs import PROGRAMS
from ops.host import DONE, FAILED
from runtime.durable import GO_ON

ROOT = Path(__file__).parents[2]
SENTENCE = re.compile(
    r"\S+: the disk is full \(\d+\.\d\d GB free\): free at least \d+\.\d\d GB, "
    rf"then go on: {GO_ON}"
)


@pytest.mark.parametrize("first", [1, *(pytest.param(n, marks=pytest.mark.soak) for n in (2, 3))])
@pytest.mark.parametrize(
    ("program", "action"),
    [("grpo", "full for good"), pytest.param("sft", "full", marks=pytest.mark.soak)],
)
def test_a_full_disk_at_any_write_loses_nothing(servers, program, action, first):
    changes = {"algorithm": {**PROGRAMS[program]["algorithm"], "steps": 2}}
    alone = servers.first.undisturbed(program, **changes)
    writes = alone.reached["disk.write"]
    assert writes > 30

    def filled(fault_runs: FaultRuns, nth: int) -> list[str]:
        run = fault_runs.new(program, **changes)
        full = fault_runs.start(run, plans=[("disk.write", nth, action)])
        assert full.code == FAILED, full
        sentence, status = full.result.sentence, run.read_status()
        # Where nothing can be written, the status of before is still there, and its process is dead.
        assert status.state == ("died" if action == "full for good" else "failed")
        assert SENTENCE.fullmatch(sentence), sentence
        assert action == "full for good" or status.message == sentence
        again = fault_runs.start(run)
        assert again.code == DONE, again
        facts = fault_runs.examine(run)
        different = differences(facts, alone.facts)
        shutil.rmtree(run.path)
        return untoward(full) + untoward(again) + facts.problems + different

    found = servers.map(filled, range(first, writes + 1, 3))
    assert {nth: problems for nth, problems in found.items() if problems} == {}


def can_mount() -> bool:
    tried = ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        bool(shutil.which("unshare")) and not subprocess.run(tried, capture_output=True).returncode
    )


@pytest.mark.skipif(not can_mount(), reason="needs a user namespace that may mount a tmpfs")
def test_a_disk_that_really_is_full_stops_the_run_and_lets_it_go_on(servers, tmp_path):
    """Nothing can be written there, the logs included."""
    (disk := tmp_path / "disk").mkdir()
    shutil.copytree(servers.first.model, tmp_path / "model")
    script = [sys.executable, "-m", "tests.durability.small_disk", str(tmp_path)]
    done = subprocess.run(
        ["unshare", "-Urm", *script], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *stops, end = map(json.loads, done.stdout.splitlines())
    assert len(stops) >= 3 and disk.exists()
    for stop in stops:
        assert SENTENCE.fullmatch(stop["sentence"]), stop
        assert (stop["code"], stop["printed"]) == (FAILED, "")
        assert stop["state"] in ("failed", "died")
    expected = servers.first.undisturbed("grpo").facts
    for name in ("weights", "optimizer", "trajectories"):
        assert end[name] == getattr(expected, name)
    assert (end["ledger"], end["problems"]) == (expected.ledger, [])
