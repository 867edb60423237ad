"""The lease has one holder at a time, across processes, and a process that died holds it no longer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.errors import Interrupted, RunFailed
from runtime.lease import Lease

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from runtime.lease import Lease
with Lease(Path(sys.argv[1]), int(sys.argv[2])).hold("sampler-0 for step 3", 5):
    print("held", flush=True)
    time.sleep(60)
"""
COUNTER = """
import sys, time
from pathlib import Path
from runtime.lease import Lease
lease, file = Lease(Path(sys.argv[1]), 1), Path(sys.argv[2])
for _ in range(20):
    with lease.hold("counter", 30):
        value = int(file.read_text())
        time.sleep(0.002)
        file.write_text(str(value + 1))
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def holder(tmp_path):
    process = start(HOLDER, tmp_path / "gpu", 1)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_two_processes_never_hold_it_together(tmp_path):
    file = tmp_path / "count"
    file.write_text("0")
    processes = [start(COUNTER, tmp_path / "gpu", file) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert file.read_text() == "40"  # an interleaved read and write would have lost some


def test_a_waiter_gives_up_at_its_deadline_and_names_the_holder(tmp_path, holder):
    began = time.monotonic()
    with (
        pytest.raises(RunFailed) as caught,
        Lease(tmp_path / "gpu", 1).hold("learner-0 for step 4", 0.3),
    ):
        pytest.fail("it was held by another process")
    assert 0.3 <= time.monotonic() - began < 5
    assert str(caught.value) == (
        "learner-0 for step 4 waited 0.3 s for the GPU, "
        f"held by sampler-0 for step 3 (pid {holder.pid})"
    )


def test_a_killed_holder_releases_it(tmp_path, holder):
    lease = Lease(tmp_path / "gpu", 1)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lease.hold("learner-0", 5) as waited_s:
        assert waited_s < 5
        assert lease.holders() == [f"learner-0 (pid {os.getpid()})"]


def test_it_is_released_when_the_block_raises(tmp_path):
    lease = Lease(tmp_path / "gpu", 1)
    with pytest.raises(ZeroDivisionError), lease.hold("a", 1):
        raise ZeroDivisionError
    assert lease.holders() == []
    with lease.hold("b", 0.1):
        pass


def test_as_many_hold_it_as_there_are_places(tmp_path, holder):
    two = Lease(tmp_path / "gpu", 2)
    with (
        two.hold("b", 1),
        pytest.raises(RunFailed, match=r"held by sampler-0.*, b"),
        two.hold("c", 0.1),
    ):
        pytest.fail("both places were taken")


def test_a_wait_ends_at_a_request_to_pause(tmp_path, holder):
    lease = Lease(tmp_path / "gpu", 1)
    with (
        pytest.raises(Interrupted, match="learner-0 waited"),
        lease.hold("learner-0", 60, lambda: True),
    ):
        pytest.fail("the place was taken")


def test_the_seconds_waited_are_given(tmp_path):
    process = start(HOLDER.replace("60", "0.5"), tmp_path / "gpu", 1)
    assert process.stdout and process.stdout.readline() == "held\n"
    with Lease(tmp_path / "gpu", 1).hold("next", 10) as waited_s:
        assert 0.1 < waited_s < 5
    assert process.wait(5) == 0
