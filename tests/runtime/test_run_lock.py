"""One writer at a time, and a status that tells the truth about one that is gone."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.rundir import RunDirectory
from tests.runtime.complaints import complaint

ROOT = Path(__file__).parents[2]


WRITER = """
import sys, time
from pathlib import Path
from runtime.rundir import RunDirectory
from runtime.status import Status
run = RunDirectory(Path(sys.argv[1]), sys.argv[2])
run.lock()
run.write_status(Status(name=run.name, state="running", doing="learning step 3", step=2, steps=9))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def writer(run):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(run.path.parent), run.name],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_locked_out_by_name(run, writer):
    assert complaint(run.lock) == f"{run.path}: another process is running it (pid {writer.pid})"
    assert run.locked()


def test_a_killed_writer_leaves_the_lock_and_its_run_died(run, writer):
    status = run.read_status()
    assert (status.state, status.doing, status.step) == ("running", "learning step 3", 2)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    status = run.read_status()
    assert (status.state, status.step) == ("died", 2)
    assert status.message == "its process is gone; see the logs"
    run.lock()
    assert run.read_status().state == "running"  # somebody goes on with it
    run.unlock()


def test_the_lock_can_be_given_up(run):
    run.lock()
    other = RunDirectory(run.path.parent, "demo")
    assert other.locked()
    run.unlock()
    assert not other.locked()
    other.lock()
    other.unlock()


def test_looking_at_a_run_never_keeps_its_writer_out(run):
    watched, stop = RunDirectory(run.path.parent, "demo"), threading.Event()
    run.lock()
    run.unlock()

    def look() -> None:
        while not stop.is_set():
            watched.locked()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            run.lock()
            run.unlock()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
