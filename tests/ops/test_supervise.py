"""A run on real processes that is killed, frozen, paused and stopped ends as the undisturbed run does.

The tests share one run, since starting Ray takes seconds. A test takes the run in whatever state it is and
starts it if need be, so each test can be run alone; the last one lets the run finish. `make test` has the
commands and most kills, `make soak` has everything.
"""

import contextlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from ops.processes import session_of
from ops.show import status_text
from runtime.home import is_private
from runtime.keys import derive
from runtime.status import Status
from tests.actors.tiny import digests
from tests.ops.disturbed_run import CALLERS_TOKEN, DUTY_CYCLE, GONE_S, LIMIT_S, DisturbedRun
from tests.ops.intruder import asked_of_the_network, ports_of, sync_without_a_header
from tests.ops.real_run import StatusWatcher, Terminal, undisturbed

SMALL_BYTES = 80 << 20
FROZEN_S = 100
POLL_S = 0.25
"""How often a host looks whether one of Ray's daemons has died."""
SLOW_S = 8.0
"""How long a status may name a dead conductor, while a busy machine starts another."""
soak = pytest.mark.soak


@pytest.fixture(scope="module")
def home():
    """A folder whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="pip", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared(home, tmp_path_factory):
    run = DisturbedRun(home, tmp_path_factory.mktemp("disturbed"))
    with StatusWatcher(run.run, SLOW_S) as watcher:
        yield run, watcher
    run.end()


@pytest.fixture
def disturbed(shared):
    """The shared run. After the test: no status that was read meanwhile named a dead process."""
    run, watcher = shared
    yield run
    assert watcher.mistakes == []


# ── kills ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "victim",
    [
        "sampler-0", "verifier-0", pytest.param("evaluator-0", marks=soak), "learner-0",
        "conductor",
    ],
)  # fmt: skip
def test_an_actor_that_is_killed_is_replaced(disturbed, victim):
    before = disturbed.computing()
    time.sleep(moment(victim))
    dead = disturbed.kill(victim)
    disturbed.wait(lambda status: disturbed.pid(victim) not in (0, dead))
    after = disturbed.two_steps_after(before)
    assert after.pids["supervisor"] == before.pids["supervisor"]


@pytest.mark.parametrize(
    "victim",
    ["raylet", *(pytest.param(victim, marks=soak) for victim in ("host", "gcs_server", "agent"))],
)
def test_when_a_process_of_the_host_is_killed_the_whole_host_is_replaced(disturbed, victim):
    before = disturbed.computing()
    session = session_of(disturbed.pid("host"))
    time.sleep(moment(victim))
    disturbed.kill(victim)
    disturbed.wait(lambda status: disturbed.pid("host") not in (0, session))
    assert [p for p in disturbed.processes() if session_of(p.pid) == session] == []
    assert len(list((disturbed.home / "r").iterdir())) == 1
    after = disturbed.two_steps_after(disturbed.status())
    assert not set(after.pids.values()) & set(before.pids.values()) - {after.pids["supervisor"]}


def moment(what: str) -> float:
    """Returns up to a tenth of a second, a time in which a run does two or three things."""
    return derive("moment", what) % 100 / 1000


# ── others on the machine ────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, to find the ports of a process")
def test_a_stream_that_shows_no_certificate_kills_none_of_rays_daemons(disturbed):
    before = disturbed.computing()
    daemons = {who: disturbed.pid(who) for who in ("gcs_server", "raylet", "host")}
    for who, pid in daemons.items():
        ports = ports_of(pid)
        assert ports, who
        for port in ports:
            assert sync_without_a_header(port) == grpc.StatusCode.UNAVAILABLE, (who, port)
    time.sleep(2 * POLL_S)
    assert {who: disturbed.pid(who) for who in daemons} == daemons, disturbed.logs()
    assert disturbed.two_steps_after(before).pids == before.pids


def test_its_files_and_sockets_are_its_owners_alone(disturbed):
    disturbed.computing()
    folders = [disturbed.run.path, disturbed.home / "r", disturbed.home / "gpu"]
    assert (disturbed.run.path / "ray.token").exists() and list(
        (disturbed.home / "r").glob("*/session_*")
    )
    for path in (path for folder in folders for path in (folder, *folder.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # replaced or retired meanwhile
            found = path.lstat()
            shared = stat.S_IMODE(found.st_mode) & 0o077 and not stat.S_ISLNK(found.st_mode)
            assert not shared or is_below_a_private_one(path, disturbed.home / "r"), path


def is_below_a_private_one(path: Path, sessions: Path) -> bool:
    """Ray itself opens its sockets and its log folders to all: nobody can reach them there."""
    return sessions in path.parents and is_private(sessions)


def test_it_asks_nobody_outside_the_machine(disturbed):
    disturbed.computing()
    outside, inside = asked_of_the_network(disturbed.network)
    assert outside == []
    assert inside  # the witness has seen something


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, to see a process's environment")
def test_what_its_caller_has_set_for_ray_does_not_reach_it(disturbed):
    disturbed.computing()
    for who in ("gcs_server", "raylet", "sampler-0"):
        said = Path(f"/proc/{disturbed.pid(who)}/environ").read_text()
        assert CALLERS_TOKEN not in said and "RAY_AUTH_MODE=token\0" in said, who
        assert f"RAY_AUTH_TOKEN_PATH={disturbed.run.path / 'ray.token'}\0" in said, who


# ── the laptop ────────────────────────────────────────────────────────────────────────────────────


@soak
def test_a_freeze_longer_than_every_deadline_replaces_no_process(disturbed):
    before = disturbed.computing()
    disturbed.freeze(FROZEN_S)
    after = disturbed.two_steps_after(before)
    assert after.pids == before.pids, disturbed.logs()


@soak
def test_an_actor_that_hangs_is_replaced_and_its_stack_is_kept(disturbed):
    before = disturbed.computing()
    hung = disturbed.kill("sampler-0", signal.SIGSTOP)
    disturbed.wait(lambda status: status.pids.get("sampler-0", hung) != hung)
    disturbed.two_steps_after(before)
    cause = f"waited {LIMIT_S / DUTY_CYCLE:g} s for sampler-0 to answer"
    assert cause in (disturbed.run.logs / "conductor.log").read_text()
    stack = (disturbed.run.logs / "sampler-0.stack").read_text()
    assert "default_worker.py" in stack  # the frames below are a call, or the wait for one


@soak
def test_the_run_pauses_on_battery_and_before_the_disk_is_full_and_goes_on_by_itself(disturbed):
    before = disturbed.computing()
    disturbed.set_machine(on_battery=True)
    disturbed.wait(lambda status: status.state == "paused")
    assert disturbed.left_within(GONE_S, but=["supervisor"]) == []
    shown = disturbed.pippin("status").stdout
    assert shown.startswith("disturbed: paused, step ")
    assert "\n  on battery (power.on_battery)\n" in shown
    assert "\n  machine: no memory held" in shown and f"duty cycle {DUTY_CYCLE}" in shown
    reason = "on battery (power.on_battery)"
    assert disturbed.refused("resume") == f"goes on by itself; it waits: {reason}"

    disturbed.set_machine(on_battery=False, free_disk_bytes=10_000_000)
    status = disturbed.wait(lambda status: "disk" in status.message)
    assert (status.state, status.message) == (
        "paused", "the disk has 0.01 GB left, the next checkpoints need 0.07 GB: free 0.06 GB",
    )  # fmt: skip
    disturbed.set_machine(on_battery=False)
    disturbed.two_steps_after(before)


@soak
def test_a_monotonic_clock_that_is_a_day_ahead_changes_nothing(disturbed):
    ahead = ["unshare", "--time", "--monotonic", "86400", "--boottime", "86400"]
    if subprocess.run([*ahead, "true"], capture_output=True).returncode:
        pytest.skip("needs a time namespace (unshare --time)")
    before = disturbed.computing()
    disturbed.pippin("stop")
    disturbed.launch("resume", under=ahead)
    assert disturbed.two_steps_after(before).seconds < 3600


def test_a_clock_that_was_set_back_gives_no_negative_durations():
    for state in ("running", "paused"):
        status = Status(name="x", state=state, doing="waiting", since=time.time() + 86400)
        assert "for 0 s" in status_text(status) and not re.search(r"-\d", status_text(status))


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def test_pause_leaves_only_the_supervisor_and_resume_goes_on(disturbed):
    before = disturbed.computing()
    supervisor = before.pids["supervisor"]
    done = disturbed.pippin("pause")
    assert (done.returncode, done.stdout.startswith("paused (")) == (0, True), done.stderr
    status = disturbed.status()
    assert (status.state, status.pids) == ("paused", {"supervisor": supervisor})
    assert disturbed.left_within(GONE_S, but=["supervisor"]) == []
    assert disturbed.memory_bytes(supervisor) < SMALL_BYTES
    assert_adds_up(status)

    done = disturbed.pippin("pause")  # it is paused already
    assert (done.returncode, done.stdout.startswith("paused (0.")) == (0, True), done.stderr
    done = disturbed.pippin("resume")
    said = "going on in its own process; pippin watch disturbed"
    assert (done.returncode, done.stdout) == (0, f"starting: {said}\n")
    assert disturbed.two_steps_after(before).pids["supervisor"] == supervisor
    assert disturbed.refused("resume") == "is running already"


def test_stop_leaves_no_process(disturbed):
    disturbed.computing()
    done = disturbed.pippin("stop")
    assert (done.returncode, done.stdout.startswith("stopped (")) == (0, True), done.stderr
    assert disturbed.left_within(GONE_S) == []
    assert_adds_up(disturbed.status())
    assert (
        disturbed.refused("pause") == disturbed.refused("stop") == "is not running: it is stopped"
    )


def assert_adds_up(status: Status) -> None:
    ledger = status.ledger
    gone = sum(ledger["dropped"].values()) + sum(ledger["failed"].values())
    assert ledger["pulled"] == ledger["trained"] + gone + ledger["in_flight"]


# ── a terminal ────────────────────────────────────────────────────────────────────────────────────


def at_terminal(disturbed: DisturbedRun, ready: Callable[[Status], bool] | str) -> Terminal:
    """Starts the run in the foreground of a terminal; waits for a status, or for a text on the terminal."""
    if disturbed.status().alive:
        disturbed.pippin("stop")
    terminal = disturbed.at_terminal("resume" if disturbed.run.path.exists() else "launch")
    if isinstance(ready, str):
        terminal.wait_for(ready)
    else:
        disturbed.wait(lambda status: status.alive and ready(status))
    return terminal


def computes(status: Status) -> bool:
    return status.state == "running" and status.doing.startswith("collecting")


def test_ctrl_c_is_a_pause(disturbed):
    terminal = at_terminal(disturbed, computes)
    terminal.type(b"\x03")
    assert terminal.end() == 130
    status = disturbed.status()
    assert (status.state, status.alive) == ("paused", False)
    said = f"paused after step {status.step}; go on with: pippin resume disturbed"
    assert terminal.last_line() == f"pippin: {said}"
    assert disturbed.left_within(GONE_S) == []
    assert disturbed.refused("pause") == "is not running: it is paused"


@soak
def test_ctrl_c_before_anything_has_started_is_a_pause(disturbed):
    terminal = at_terminal(disturbed, "run disturbed in ")
    terminal.type(b"\x03")
    assert (terminal.end(), disturbed.status().state) == (130, "paused")
    assert "Traceback" not in terminal.text


@soak
def test_sigterm_while_the_actors_start_is_a_pause(disturbed):
    terminal = at_terminal(disturbed, lambda status: status.doing == "starting the actors")
    terminal.signal(signal.SIGTERM)
    assert (terminal.end(), disturbed.status().state) == (130, "paused")
    assert disturbed.left_within(GONE_S) == []


@soak
def test_closing_the_terminal_while_the_run_waits_is_a_pause(disturbed):
    disturbed.set_machine(on_battery=True)
    terminal = at_terminal(disturbed, lambda status: "on battery" in status.message)
    terminal.close()
    assert (terminal.end(), disturbed.status().state) == (130, "paused")
    disturbed.set_machine(on_battery=False)


@soak
def test_a_second_ctrl_c_ends_the_command_at_once(disturbed):
    terminal = at_terminal(disturbed, computes)
    terminal.type(b"\x03")
    terminal.wait_for("once more leaves at once")
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert terminal.last_line() == "left; go on with: pippin resume disturbed"
    assert disturbed.left_within(GONE_S) == []
    assert disturbed.status().state == "died"


# ── the end ───────────────────────────────────────────────────────────────────────────────────────


def test_no_process_outlives_a_killed_supervisor(disturbed):
    disturbed.computing()
    disturbed.kill("supervisor")
    assert (disturbed.status().state, disturbed.status().alive) == ("died", False)
    assert disturbed.left_within(GONE_S) == []


def test_the_disturbed_run_ends_as_the_undisturbed_one(disturbed, tmp_path):
    disturbed.slow.unlink()
    if disturbed.status().alive:
        disturbed.pippin("stop")
    done = disturbed.pippin("resume" if disturbed.run.path.exists() else "launch")
    assert done.returncode == 0, done.stderr
    assert disturbed.status().state == "finished"
    assert disturbed.left_within(GONE_S) == []
    assert (
        disturbed.refused("pause") == disturbed.refused("stop") == "is not running: it is finished"
    )
    assert disturbed.refused("resume") == "has finished; there is nothing to go on with"
    awake = [line.split() for line in Path(f"{disturbed.machine}.awake").read_text().splitlines()]
    released = [pid for what, pid in awake if what == "release"]
    assert len(set(released)) == len(released) and awake[-1][0] == "release"
    assert digests(disturbed.status()) == undisturbed(disturbed.wanted, tmp_path)
