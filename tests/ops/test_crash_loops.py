"""A run that cannot work ends after a few tries with its first cause, and leaves no process behind."""

import os
import time
from pathlib import Path

import pytest

from runtime.keys import derive
from tests.ops import test_supervise
from tests.ops.disturbed_run import GONE_S, wanted
from tests.ops.real_run import RealRun

pytestmark = pytest.mark.soak
home = test_supervise.home


@pytest.fixture
def crash(home, tmp_path):
    """Returns a function that launches a run that cannot work and gives the run, its error, its seconds."""
    made: list[RealRun] = []

    def launch(reward: str = "", **variables: str) -> tuple[RealRun, str, float]:
        changes = {"reward": reward} if reward else {}
        made.append(
            RealRun(
                home, wanted(tmp_path, **changes), f"crash-{derive(str(tmp_path))}", **variables
            )
        )
        began = time.monotonic()
        done = made[-1].pippin("launch")
        assert (done.returncode, made[-1].status().state) == (1, "failed"), done.stderr
        return made[-1], done.stderr.strip().split("pippin: ")[-1], time.monotonic() - began

    yield launch
    for run in made:
        run.end()


def test_an_actor_that_dies_at_every_start_ends_the_run_with_the_first_cause(crash, tmp_path):
    run, said, _ = crash(**hook(tmp_path, "/logs/sampler-0.stack", "os.abort()"))
    first, *tail = said.splitlines()
    assert first.startswith("sampler-0 died while we waited for sampler-0 to start (")
    assert first.endswith("; 4 tries without a step done")
    assert tail and all(line.startswith("  sampler-0.log: ") for line in tail)
    assert run.status().message == said
    assert run.left_within(GONE_S) == []


def test_a_host_that_cannot_start_is_tried_four_times(crash, tmp_path):
    dies = "print('no more memory for you', flush=True); os._exit(1)"
    run, said, seconds = crash(**hook(tmp_path, "/logs/host.stack", dies))
    cause = "first at step 1, starting Ray: no more memory for you"
    assert said == f"died 4 times without a step done; {cause}"
    assert seconds < 60
    assert run.left_within(GONE_S) == []


def hook(folder: Path, file: str, action: str) -> dict[str, str]:
    """Returns the environment in which a process that opens `file` does `action` first."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        f"    if event == 'open' and str(arguments[0]).endswith({file!r}):\n"
        f"        {action}\n"
        "sys.addaudithook(hook)\n"
    )
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def test_a_reward_that_always_fails_ends_the_run_and_leaves_no_process(crash):
    reward = "def reward(prompt, completion, row):\n    raise ValueError('not today')\n"
    run, said, _ = crash(reward)
    assert said.startswith("the reward failed 20 times in a row (verifier.max_failures); ")
    assert "ValueError: not today" in said and said == run.status().message
    assert run.left_within(GONE_S) == []
