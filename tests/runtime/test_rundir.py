"""One writer, one name, and a status that tells the truth about a process that is gone."""

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from runtime.errors import BadInput
from runtime.journal import Journal
from runtime.rundir import EvalResult, Machine, PauseRequest, RunDirectory, Status, free_name, runs

ROOT = Path(__file__).parents[2]
WRITER = """
import sys, time
from pathlib import Path
from runtime.rundir import RunDirectory, Status
run = RunDirectory(Path(sys.argv[1]), sys.argv[2])
run.lock()
run.write_status(Status(name=run.name, state="running", doing="learning step 3", step=2, steps=9))
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs", "demo")
    run.create("seed = 1\n", {"argv": ["launch"]})
    return run


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


def complaint(work, *arguments) -> str:
    with pytest.raises(BadInput) as caught:
        work(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_run_has_its_folders_its_recipe_and_what_it_was_made_with(run):
    assert all(folder.is_dir() for folder in (run.weights, run.checkpoints, run.logs))
    assert run.recipe.read_text() == "seed = 1\n"
    made = json.loads((run.path / "run.json").read_bytes())
    assert (made["schema_version"], made["name"], made["argv"]) == (1, "demo", ["launch"])
    run.require()


def test_a_name_in_use_is_refused_and_left_alone(run):
    before = sorted(p.name for p in run.path.iterdir())
    sentence = complaint(RunDirectory(run.path.parent, "demo").create, "other", {})
    assert sentence.startswith("--name: a run 'demo' is there already (")
    assert run.recipe.read_text() == "seed = 1\n"
    assert sorted(p.name for p in run.path.iterdir()) == before


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../a", "a b", "ä", "a\n", "a\0", "x" * 101, "x" * 300],
)
def test_a_name_is_a_plain_file_name(tmp_path, name):
    sentence = complaint(RunDirectory(tmp_path, name).create, "", {})
    assert sentence.startswith("--name: needs letters, digits, '-', '_' and '.'")
    assert len(sentence) < 300
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_is_not_a_name_in_use(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        sentence = complaint(RunDirectory(root, "demo").create, "", {})
        assert sentence.startswith(f"--root: {root} cannot be written: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_root_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    sentence = complaint(RunDirectory(tmp_path / "runs", "demo").create, "", {})
    assert sentence == f"--root: {tmp_path / 'runs'} cannot be written: Permission denied"


def test_what_is_no_run_is_answered_with_the_runs_there_are(run, tmp_path):
    sentence = complaint(RunDirectory(run.path.parent, "dmeo").require)
    assert sentence == f"no run 'dmeo' in {run.path.parent}; there are demo"
    assert complaint(RunDirectory(tmp_path / "none", "x").read_status).startswith("no run 'x'")


def test_a_newer_schema_is_refused_by_its_number(run):
    path = run.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "schema_version": 2}))
    assert complaint(run.require) == (
        f"{path}: schema version 2 is newer than this Pippin knows (1)"
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": null}'])
def test_a_damaged_run_json_is_named(run, content):
    (run.path / "run.json").write_text(content)
    assert complaint(run.read_status).startswith(f"{run.path / 'run.json'}: is damaged")


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


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_a_run_that_ended_with_a_word_has_not_died(run, state):
    run.write_status(Status(name="demo", state=state, message="why"))
    assert (run.read_status().state, run.read_status().message) == (state, "why")


def test_the_lock_can_be_given_up(run):
    run.lock()
    other = RunDirectory(run.path.parent, "demo")
    assert other.locked()
    run.unlock()
    assert not other.locked()
    other.lock()
    other.unlock()


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


def test_a_run_is_its_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        run = RunDirectory(tmp_path / "runs", "demo")
        run.create("seed = 1\n", {})
        run.ask_to_pause(PauseRequest(by="user", reason="x"))
        run.write_status(Status(name="demo"))
        run.write_machine(Machine())
        run.append_line("metrics.jsonl", {"step": 1})
        Journal(run.trajectories)
        run.lock()
        run.unlock()
    finally:
        os.umask(before)
    open_to_others = [p.name for p in (run.path, *run.path.rglob("*")) if p.stat().st_mode & 0o077]
    assert open_to_others == []


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


def test_a_status_comes_back_as_it_was(run):
    score = {"task": "addition", "metric": "pass@1", "stderr": 0.0, "mean_tokens": 1.5}
    status = Status(
        name="demo", state="finished", step=3, steps=3, metrics={"loss": -0.5}, pids={"learner": 7},
        evals=[
            EvalResult(step=0, score=0.25, n=4, truncated=0.5, **score),
            EvalResult(step=3, score=None, n=0, truncated=0.0, failed=4, **score),
        ],
    )  # fmt: skip
    run.write_status(status)
    assert run.read_status() == status


def test_a_damaged_status_is_named(run):
    (run.path / "status.json").write_text('{"name": "demo", "step": "x"}')
    assert complaint(run.read_status).startswith(f"{run.path / 'status.json'}: is damaged: ")


def test_a_run_without_a_status_has_not_begun_or_has_died(run):
    assert run.read_status().state == "died"
    run.lock()
    assert run.read_status().state == "starting"
    run.unlock()


def test_lines_are_kept_up_to_a_step_and_a_torn_one_is_left_out(run):
    for step in range(1, 6):
        run.append_line("metrics.jsonl", {"step": step, "loss": step / 2})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')
    assert [line["step"] for line in run.read_lines("metrics.jsonl")] == [1, 2, 3, 4, 5]
    run.keep_lines("metrics.jsonl", 3)
    run.append_line("metrics.jsonl", {"step": 4, "loss": 9.0})
    assert run.read_lines("metrics.jsonl") == [
        {"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 1.5},
        {"step": 4, "loss": 9.0},
    ]  # fmt: skip
    assert all(msgspec.json.decode(x) for x in (run.path / "metrics.jsonl").open("rb"))
    run.keep_lines("none.jsonl", 3)
    assert run.read_lines("none.jsonl") == []


def test_runs_are_listed_and_free_names_are_free(run, tmp_path):
    root = run.path.parent
    RunDirectory(root, "grpo-1").create("", {})
    (root / "no-run").mkdir()
    assert {path.name for path in runs(root)} == {"demo", "grpo-1"}
    assert runs(tmp_path / "none") == []
    assert free_name(root, "grpo") == "grpo-2"
    assert free_name(root, "sft") == "sft-1"


def test_a_person_and_the_machine_ask_apart(tmp_path):
    run = RunDirectory(tmp_path, "run")
    run.create("", {})
    machine = PauseRequest(by="machine", reason="on battery")
    person = PauseRequest(by="user", reason="pippin stop", end=True)
    run.ask_to_pause(machine)
    assert run.pause_asked() and run.pause_request() == machine
    run.ask_to_pause(person)
    run.ask_to_pause(machine)  # it says so again, with other figures
    assert run.pause_request() == person
    run.withdraw_pause(of_machine=True)
    assert run.pause_asked() and run.pause_request() == person
    run.ask_to_pause(machine)
    run.withdraw_pause()
    assert not run.pause_asked() and run.pause_request() is None
