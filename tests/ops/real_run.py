"""A run as its owner has it: started by the command line, seen through its folder, ended by signals.

    living = RealRun(home, tiny_settings, name="run")
    living.launch()
    status = living.wait(lambda s: s.step >= 3)
    living.kill("raylet")
    living.pippin("pause")
    assert living.left_within(10, but=["supervisor"]) == []

What belongs to a run is found four ways, as any one may miss something: by the session of its host, by the
folders in the command line, by `PIPPIN_HOME` in the environment, which every run here has to itself, and as
a child of one of these, now or when it was looked before.
"""

import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from configs.dump import to_toml
from configs.schema import Settings
from ops import processes
from ops.processes import session_of
from runtime.rundir import RunDirectory
from runtime.status import ALIVE, Status

ROOT = Path(__file__).parents[2]
LIMIT_S = 180.0
"""How long a test waits for what a loaded machine may take long for."""
DAEMONS = {
    "host": r"-m ops\.host ",
    "raylet": r"/raylet/raylet ",
    "gcs_server": r"/gcs/gcs_server ",
    "dashboard": r"/dashboard/dashboard\.py",
    "agent": r"/dashboard/agent\.py|DashboardAgent",
    "watchdog": r"-m ops\.watchdog ",
}
"""Processes that no status names, by their command lines."""
UNDISTURBED = """
import sys, msgspec; from runtime.blas import load_blas; load_blas(True)
from pathlib import Path; from configs.schema import Settings
from tests.actors.tiny import digests, go, new_run
wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)
print(*digests(go(wanted, new_run(Path(sys.argv[1]), 'undisturbed'))))
"""


def undisturbed(settings: Settings, folder: Path) -> list[str]:
    """The digests of a run that nobody disturbs, without Ray, in a process in exact mode."""
    done = subprocess.run(
        [sys.executable, "-c", UNDISTURBED, str(folder)],
        input=msgspec.json.encode(settings), cwd=ROOT, capture_output=True, timeout=LIMIT_S,
        env={**os.environ, "PIPPIN_EXACT": "1", "PIPPIN_HOME": str(folder / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


class RealRun:
    """One run with a home of its own; `home` must have a short path, for Ray's sockets."""

    def __init__(self, home: Path, settings: Settings, name: str = "run", **variables: str) -> None:
        self.home = home
        self.run = RunDirectory(home / "runs", name)
        self.recipe = home / f"{name}.toml"
        self.recipe.write_text(to_toml(settings))
        (home / "tmp").mkdir(exist_ok=True)
        ours = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
        places = {"PIPPIN_HOME": str(home), "TMPDIR": str(home / "tmp")}
        self.environment = {**ours, **places, **variables}
        self._shared_before = _shared()
        self._ports: set[int] = set()
        self._seen: set[tuple[int, str]] = set()
        """Process ids with the moment of birth: alone, a number may be another's by now."""
        self._host_line = f"{DAEMONS['host']}{re.escape(str(self.run.path))} "

    # ── what its owner does ──────────────────────────────────────────────────────────────────────

    def command(self, verb: str, *options: str) -> list[str]:
        """`pippin VERB` for this run."""
        what = [str(self.recipe), "--name"] if verb == "launch" else []
        root = ["--root", str(self.run.path.parent)]
        return [sys.executable, "-m", "ops.cli", verb, *what, self.run.name, *root, *options]

    def pippin(
        self, verb: str, *options: str, under: Iterable[str] = ()
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end; `under` another one."""
        return subprocess.run(
            [*under, *self.command(verb, *options)], env=self.environment, cwd=ROOT,
            capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip

    def launch(self, verb: str = "launch", under: Iterable[str] = ()) -> None:
        """Start it, or go on, in the background."""
        done = self.pippin(verb, "--detach", under=under)
        assert done.returncode == 0, done.stderr

    def at_terminal(self, verb: str) -> "Terminal":
        """Start it, or go on, in the foreground of a terminal of its own."""
        return Terminal(self.command(verb), self.environment)

    # ── what can be seen of it ───────────────────────────────────────────────────────────────────

    def status(self) -> Status:
        """As anybody reads it; an empty one while the run is not there yet."""
        there = (self.run.path / "run.json").exists()
        return self.run.read_status() if there else Status(name=self.run.name)

    def wait(self, wanted: Callable[[Status], Any], limit_s: float = LIMIT_S) -> Status:
        """The first status that is as wanted; fails with the last one if none comes."""
        until = time.monotonic() + limit_s
        while not wanted(status := self.status()):
            self._note_ports()
            if time.monotonic() > until or status.state in ("failed", "finished"):
                raise AssertionError(f"it did not come: {status}\n{self.logs()}")
            time.sleep(0.01)
        self._note_ports()
        return status

    def running(self, step: int) -> Status:
        """The status once step `step` is done and every part is there."""
        return self.wait(lambda s: s.state == "running" and s.step >= step and len(s.pids) > 4)

    def ended(self, state: str) -> Status:
        """The status once its process has come to an end, which must be this one."""
        until = time.monotonic() + LIMIT_S
        while (status := self.status()).alive and time.monotonic() < until:
            time.sleep(0.05)
        assert (status.state, status.alive) == (state, False), (status, self.logs())
        return status

    def memory_bytes(self, pid: int) -> int:
        """Resident memory of one process."""
        return next(p.memory_bytes for p in processes.listing() if p.pid == pid)

    def logs(self) -> str:
        """The ends of all its logs."""
        files = sorted(self.run.logs.glob("*.log"))
        ends = {f.name: f.read_text(errors="replace").splitlines()[-8:] for f in files}
        return "\n".join(f"{name}: {line}" for name, lines in ends.items() for line in lines)

    # ── its processes ────────────────────────────────────────────────────────────────────────────

    def pid(self, who: str) -> int:
        """Of the supervisor, a part, or one of DAEMONS; 0 if there is none."""
        if who not in DAEMONS:
            return self.status().pids.get(who, 0)
        mine = (p for p in self.processes() if re.search(DAEMONS[who], p.command))
        return next((process.pid for process in mine), 0)

    def kill(self, who: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to one process; gives its pid. After SIGKILL it is surely dead."""
        pid = self.pid(who)
        assert pid, f"there is no {who}\n{self.logs()}"
        os.kill(pid, number)
        if number == signal.SIGKILL:
            until = time.monotonic() + 5
            while pid in {process.pid for process in processes.listing()}:
                assert time.monotonic() < until, f"{who} does not die"
                time.sleep(0.01)
        return pid

    def processes(self) -> list[processes.Process]:
        """All of it that lives."""
        everything = {p.pid: p for p in processes.listing() if p.pid != os.getpid()}
        births = {pid: _birth(pid) for pid in everything}
        hosts = {pid for pid, p in everything.items() if re.search(self._host_line, p.command)}
        found = {pid for pid, birth in births.items() if birth in self._seen}
        for pid, process in everything.items():
            marked = f"PIPPIN_HOME={self.home}\0" in _environment(pid)
            if marked or str(self.home) in process.command or session_of(pid) in hosts:
                found.add(pid)
        while more := {pid for pid in everything if _parent(pid) in found} - found:
            found |= more
        self._seen |= {births[pid] for pid in found if all(births[pid])}
        return [everything[pid] for pid in found]

    def freeze(self, seconds: float) -> None:
        """Stop everything for so long, as a closed lid does."""
        frozen: set[int] = set()
        while fresh := {p.pid for p in self.processes()} - frozen:  # until nobody starts another
            _signal_all(fresh, signal.SIGSTOP)
            frozen |= fresh
        time.sleep(seconds)
        _signal_all(frozen, signal.SIGCONT)

    def end(self) -> None:
        """Kill everything, its supervisor first."""
        while found := self.processes():
            _signal_all([p.pid for p in found], signal.SIGKILL)
            time.sleep(0.1)

    # ── what is left of it ───────────────────────────────────────────────────────────────────────

    def left_within(self, seconds: float, but: Iterable[str] = ()) -> list[str]:
        """What is still there of a run that has no host, after so many seconds at most; `but` may be."""
        spared = {self.pid(who) for who in but}
        until = time.monotonic() + seconds
        while (found := self._left(spared)) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _left(self, spared: set[int]) -> list[str]:
        found = [f"process {p.pid}: {p.command}" for p in self.processes() if p.pid not in spared]
        for folder in (self.home / "r", self.home / "tmp"):
            found += [f"file {path}" for path in folder.glob("**/*")]
        found += [f"shared memory {name}" for name in sorted(_shared() - self._shared_before)]
        found += [f"socket {line}" for line in _sockets() if str(self.home) in line]
        found += [f"port {port}" for port in sorted(self._ports) if _listening(port)]
        names = ("ray.json", "ray.token")
        return found + [f"file {name}" for name in names if (self.run.path / name).exists()]

    def _note_ports(self) -> None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            session = msgspec.json.decode((self.run.path / "ray.json").read_bytes())
            text = " ".join(session.values())
            self._ports |= {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text)}


class Terminal:
    """A command in the foreground of a terminal of its own: keys become signals as they do there."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def type(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._ours, key)

    def close(self) -> None:
        """Close the window."""
        os.close(self._ours)

    def signal(self, number: int) -> None:
        """Send a signal to the command alone."""
        self._process.send_signal(number)

    def wait_for(self, text: str) -> None:
        """Until it has said so."""
        until = time.monotonic() + LIMIT_S
        while text not in self.text:
            assert time.monotonic() < until and self._process.poll() is None, self.text
            time.sleep(0.01)

    def end(self) -> int:
        """Its exit code."""
        return self._process.wait(LIMIT_S)

    def last_line(self) -> str:
        """What it said last."""
        time.sleep(0.2)  # the reader may be behind
        return re.split(r"[\r\n]+", self.text.strip())[-1]

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is closed
            while chunk := os.read(self._ours, 4096):
                self.text += chunk.decode(errors="replace")


class Witness:
    """Reads the status all the time, and notes when it says what is not so."""

    def __init__(self, run: RunDirectory, slow_s: float) -> None:
        self._run = run
        self._slow_s = slow_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.lies: list[str] = []
        self.states: list[str] = []
        """Each state once in a row."""

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        dead_since: dict[int, float] = {}
        while not self._over.wait(0.02):
            if not (self._run.path / "run.json").exists():  # it is being launched
                continue
            status = self._run.read_status()
            if not self.states or self.states[-1] != status.state:
                self.states.append(status.state)
            if status.since > time.time() + 1:
                self.lies.append(f"since {status.since}, which is to come")
            if status.state not in ALIVE:
                continue
            for who in ("supervisor", "conductor"):
                pid = status.pids.get(who)
                if pid is None or _lives(pid):
                    continue
                began = dead_since.setdefault(pid, time.monotonic())
                if time.monotonic() - began > (self._slow_s if who == "conductor" else 0.5):
                    self.lies.append(f"{status.state}, but its {who} {pid} is dead")
                    dead_since[pid] = float("inf")  # said once


# ── inside ───────────────────────────────────────────────────────────────────────────────────────


def _take_terminal() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored where the tests run in the background
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _lives(pid: int) -> bool:
    return fields[0] != "Z" if (fields := _fields(pid)) else session_of(pid) != -1


def _birth(pid: int) -> tuple[int, str]:
    """The process's id and when it began; the same for nobody else, ever. Empty where nobody knows."""
    return (pid, fields[19]) if (fields := _fields(pid)) else (0, "")


def _parent(pid: int) -> int:
    return int(fields[1]) if (fields := _fields(pid)) else 0


def _fields(pid: int) -> list[str]:
    """What Linux says of a process behind its name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _environment(pid: int) -> str:
    """As it was when the process began, each variable ended by a zero byte; "" if nobody may know."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _shared() -> set[str]:
    """Shared memory that outlives its processes: files, and System V's segments."""
    files = {str(path) for path in Path("/dev/shm").glob("*") if not path.is_dir()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        files |= {f"segment {line.split()[1]}" for line in lines}
    return files


def _sockets() -> list[str]:
    try:
        return Path("/proc/net/unix").read_text().splitlines()
    except OSError:
        return []


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
