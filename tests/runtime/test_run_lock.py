"""One writer at a time, and a status that tells the truth about one that is gone."""

import errno
import fcntl
import os
import signal
import stat
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


def test_the_lock_holds_although_its_file_is_deleted(run, writer):
    (run.path / "lock").unlink()
    assert run.locked()
    assert complaint(run.lock).startswith(f"{run.path}: another process is running it (pid ")
    writer.kill()
    writer.wait()
    assert not run.locked()
    run.lock()
    run.unlock()


def test_so_does_that_of_an_earlier_version_which_locks_the_file_alone(run):
    with (run.path / "lock").open("w") as earlier:
        fcntl.flock(earlier, fcntl.LOCK_EX)
        assert run.locked()
        assert "another process is running it" in complaint(run.lock)
    assert not run.locked()


def test_on_a_volume_that_locks_no_folders_the_file_is_locked(run, monkeypatch):
    def flock(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        locks(descriptor, operation)

    locks = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    other = RunDirectory(run.path.parent, run.name)
    run.lock()
    assert other.locked() and "another process is running it" in complaint(other.lock)
    run.unlock()
    assert not other.locked()
