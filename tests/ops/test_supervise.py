"""One run on real processes, to which everything happens that can: it ends as if nothing had.

The tests share the run, since to start Ray takes seconds. Each finds it wherever it is and leaves it there,
so each can be run alone; the last sees it to its end.
`make test` runs the kills and what a person does most; all of it is a soak (`make soak`).
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
from runtime.rundir import Status
from tests.actors.tiny import digests
from tests.ops.intruder import asked_of_the_network, ports_of, sync_without_a_header
from tests.ops.life import CALLERS_TOKEN, DUTY_CYCLE, LIMIT_S, Life
from tests.ops.real_run import Terminal, Witness, undisturbed

GONE_S = 10.0
POLL_S = 0.25
"""How often a host looks whether one of Ray's daemons has died."""
SMALL_BYTES, FROZEN_S = 80 << 20, 100
SLOW_S = 8.0
"""How long a status may name a dead conductor, on a machine that is busy starting another."""


@pytest.fixture(scope="module")
def home():
    """A folder whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="pip", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def shared(home, tmp_path_factory):
    life = Life(home, tmp_path_factory.mktemp("life"))
    with Witness(life.run, SLOW_S) as witness:
        yield life, witness
    life.end()


@pytest.fixture
def life(shared):
    """The run; what its status said during the test was so."""
    life, witness = shared
    yield life
    assert witness.lies == []


# ── kills ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "victim", ["sampler-0", "verifier-0", "evaluator-0", "learner-0", "conductor"]
)
def test_a_part_that_is_killed_is_replaced(life, victim):
    before = life.going()
    time.sleep(moment(victim))
    dead = life.kill(victim)
    life.wait(lambda status: life.pid(victim) not in (0, dead))
    after = life.gone_on(before)
    assert after.pids["supervisor"] == before.pids["supervisor"]


@pytest.mark.parametrize("victim", ["host", "raylet", "gcs_server", "agent"])
def test_a_host_one_of_whose_processes_is_killed_is_replaced_as_a_whole(life, victim):
    before = life.going()
    session = session_of(life.pid("host"))
    time.sleep(moment(victim))
    life.kill(victim)
    life.wait(lambda status: life.pid("host") not in (0, session))
    assert [p for p in life.processes() if session_of(p.pid) == session] == []
    assert len(list((life.home / "r").iterdir())) == 1
    after = life.gone_on(life.status())
    assert not set(after.pids.values()) & set(before.pids.values()) - {after.pids["supervisor"]}


def moment(what: str) -> float:
    """Up to a tenth of a second: a run does two or three things in it."""
    return derive("moment", what) % 100 / 1000


# ── others on the machine ────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, to find the ports of a process")
def test_a_stream_that_shows_no_certificate_kills_none_of_rays_daemons(life):
    before = life.going()
    daemons = {who: life.pid(who) for who in ("gcs_server", "raylet", "host")}
    for who, pid in daemons.items():
        ports = ports_of(pid)
        assert ports, who
        for port in ports:
            assert sync_without_a_header(port) == grpc.StatusCode.UNAVAILABLE, (who, port)
    time.sleep(2 * POLL_S)
    assert {who: life.pid(who) for who in daemons} == daemons, life.logs()
    assert life.gone_on(before).pids == before.pids


def test_its_files_and_sockets_are_its_owners_alone(life):
    life.going()
    folders = [life.run.path, life.home / "r", life.home / "gpu"]
    assert (life.run.path / "ray.token").exists() and list((life.home / "r").glob("*/session_*"))
    for path in (path for folder in folders for path in (folder, *folder.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # replaced or retired meanwhile
            found = path.lstat()
            shared = stat.S_IMODE(found.st_mode) & 0o077 and not stat.S_ISLNK(found.st_mode)
            assert not shared or is_below_a_private_one(path, life.home / "r"), path


def is_below_a_private_one(path: Path, sessions: Path) -> bool:
    """Ray itself opens its sockets and its log folders to all: nobody can reach them there."""
    return sessions in path.parents and is_private(sessions)


def test_it_asks_nobody_outside_the_machine(life):
    life.going()
    outside, inside = asked_of_the_network(life.network)
    assert outside == []
    assert inside  # the witness has seen something


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, to see a process's environment")
def test_what_its_caller_has_set_for_ray_does_not_reach_it(life):
    life.going()
    for who in ("gcs_server", "raylet", "sampler-0"):
        said = Path(f"/proc/{life.pid(who)}/environ").read_text()
        assert CALLERS_TOKEN not in said and "RAY_AUTH_MODE=token\0" in said, who
        assert f"RAY_AUTH_TOKEN_PATH={life.run.path / 'ray.token'}\0" in said, who


# ── the laptop ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.soak
def test_a_lid_that_closes_for_longer_than_every_deadline_is_not_even_noticed(life):
    before = life.going()
    life.freeze(FROZEN_S)
    after = life.gone_on(before)
    assert after.pids == before.pids, life.logs()


@pytest.mark.soak
def test_a_part_that_hangs_is_noticed_and_says_where_it_was(life):
    before = life.going()
    hung = life.kill("sampler-0", signal.SIGSTOP)
    life.wait(lambda status: status.pids.get("sampler-0", hung) != hung)
    life.gone_on(before)
    cause = f"waited {LIMIT_S / DUTY_CYCLE:g} s for sampler-0 to answer"
    assert cause in (life.run.logs / "conductor.log").read_text()
    stack = (life.run.logs / "sampler-0.stack").read_text()
    assert "default_worker.py" in stack  # below it is what it did, or that it waited to be asked


@pytest.mark.soak
def test_it_pauses_on_battery_and_before_the_disk_is_full_and_goes_on_by_itself(life):
    before = life.going()
    life.weather(on_battery=True)
    life.wait(lambda status: status.state == "paused")
    assert life.left_within(GONE_S, but=["supervisor"]) == []
    shown = life.pippin("status").stdout
    assert shown.startswith("life: paused, step ")
    assert "\n  on battery (power.on_battery)\n" in shown
    assert "\n  machine: no memory held" in shown and f"duty cycle {DUTY_CYCLE}" in shown
    reason = "on battery (power.on_battery)"
    assert life.refused("resume") == f"goes on by itself; it waits: {reason}"

    life.weather(on_battery=False, free_disk_bytes=10_000_000)
    status = life.wait(lambda status: "disk" in status.message)
    assert (status.state, status.message) == (
        "paused", "the disk has 0.01 GB left, the next checkpoints need 0.07 GB: free 0.06 GB",
    )  # fmt: skip
    life.weather(on_battery=False)
    life.gone_on(before)


@pytest.mark.soak
def test_a_clock_that_is_a_day_ahead_is_none_of_its_business(life):
    ahead = ["unshare", "--time", "--monotonic", "86400", "--boottime", "86400"]
    if subprocess.run([*ahead, "true"], capture_output=True).returncode:
        pytest.skip("this machine gives us no clock of our own (unshare --time)")
    before = life.going()
    life.pippin("stop")
    life.launch("resume", under=ahead)
    assert life.gone_on(before).seconds < 3600


def test_a_clock_that_was_set_back_makes_no_negative_durations():
    for state in ("running", "paused"):
        status = Status(name="x", state=state, doing="waiting", since=time.time() + 86400)
        assert "for 0 s" in status_text(status) and not re.search(r"-\d", status_text(status))


# ── a person ─────────────────────────────────────────────────────────────────────────────────────


def test_a_person_pauses_it_and_goes_on(life):
    before = life.going()
    supervisor = before.pids["supervisor"]
    done = life.pippin("pause")
    assert (done.returncode, done.stdout.startswith("paused (")) == (0, True), done.stderr
    status = life.status()
    assert (status.state, status.pids) == ("paused", {"supervisor": supervisor})
    assert life.left_within(GONE_S, but=["supervisor"]) == []
    assert life.memory_bytes(supervisor) < SMALL_BYTES
    assert_adds_up(status)

    done = life.pippin("pause")  # there is nothing more to do
    assert (done.returncode, done.stdout.startswith("paused (0.")) == (0, True), done.stderr
    done = life.pippin("resume")
    said = "going on in its own process; pippin watch life"
    assert (done.returncode, done.stdout) == (0, f"starting: {said}\n")
    assert life.gone_on(before).pids["supervisor"] == supervisor
    assert life.refused("resume") == "is running already"


def test_a_person_stops_it(life):
    life.going()
    done = life.pippin("stop")
    assert (done.returncode, done.stdout.startswith("stopped (")) == (0, True), done.stderr
    assert life.left_within(GONE_S) == []
    assert_adds_up(life.status())
    assert life.refused("pause") == life.refused("stop") == "is not running: it is stopped"


def assert_adds_up(status: Status) -> None:
    ledger = status.ledger
    gone = sum(ledger["dropped"].values()) + sum(ledger["failed"].values())
    assert ledger["pulled"] == ledger["trained"] + gone + ledger["in_flight"]


# ── a terminal ───────────────────────────────────────────────────────────────────────────────────


def at_terminal(life: Life, ready: Callable[[Status], bool] | str) -> Terminal:
    """The run in the foreground of a terminal, once its status is as it should be, or it says so."""
    if life.status().alive:
        life.pippin("stop")
    terminal = life.at_terminal("resume" if life.run.path.exists() else "launch")
    if isinstance(ready, str):
        terminal.wait_for(ready)
    else:
        life.wait(lambda status: status.alive and ready(status))
    return terminal


def computes(status: Status) -> bool:
    return status.state == "running" and status.doing.startswith("collecting")


def test_ctrl_c_is_a_pause(life):
    terminal = at_terminal(life, computes)
    terminal.type(b"\x03")
    assert terminal.end() == 130
    status = life.status()
    assert (status.state, status.alive) == ("paused", False)
    said = f"paused after step {status.step}; go on with: pippin resume life"
    assert terminal.last_line() == f"pippin: {said}"
    assert life.left_within(GONE_S) == []
    assert life.refused("pause") == "is not running: it is paused"


@pytest.mark.soak
def test_so_is_one_before_anything_has_started(life):
    terminal = at_terminal(life, "run life in ")
    terminal.type(b"\x03")
    assert (terminal.end(), life.status().state) == (130, "paused")
    assert "Traceback" not in terminal.text


@pytest.mark.soak
def test_so_is_sigterm_while_it_starts(life):
    terminal = at_terminal(life, lambda status: status.doing == "starting the actors")
    terminal.signal(signal.SIGTERM)
    assert (terminal.end(), life.status().state) == (130, "paused")
    assert life.left_within(GONE_S) == []


@pytest.mark.soak
def test_so_is_a_terminal_that_is_closed_while_it_waits(life):
    life.weather(on_battery=True)
    terminal = at_terminal(life, lambda status: "on battery" in status.message)
    terminal.close()
    assert (terminal.end(), life.status().state) == (130, "paused")
    life.weather(on_battery=False)


@pytest.mark.soak
def test_ctrl_c_twice_leaves_at_once(life):
    terminal = at_terminal(life, computes)
    terminal.type(b"\x03")
    terminal.wait_for("once more leaves at once")
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert terminal.last_line() == "left; go on with: pippin resume life"
    assert life.left_within(GONE_S) == []
    assert life.status().state == "died"


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_a_supervisor_that_is_killed_takes_everything_along(life):
    life.going()
    life.kill("supervisor")
    assert (life.status().state, life.status().alive) == ("died", False)
    assert life.left_within(GONE_S) == []


def test_after_all_that_it_ends_as_the_run_that_nobody_disturbed(life, tmp_path):
    life.slow.unlink()
    if life.status().alive:
        life.pippin("stop")
    done = life.pippin("resume" if life.run.path.exists() else "launch")
    assert done.returncode == 0, done.stderr
    assert life.status().state == "finished"
    assert life.left_within(GONE_S) == []
    assert life.refused("pause") == life.refused("stop") == "is not running: it is finished"
    assert life.refused("resume") == "has finished; there is nothing to go on with"
    awake = [line.split() for line in Path(f"{life.machine}.awake").read_text().splitlines()]
    released = [pid for what, pid in awake if what == "release"]
    assert len(set(released)) == len(released) and awake[-1][0] == "release"
    assert digests(life.status()) == undisturbed(life.wanted, tmp_path)
