"""A run on real processes: started by the command line, observed through its folder, ended by signals.

    run = RealRun(home, tiny_settings, name="run")
    run.launch()
    status = run.wait(lambda s: s.step >= 3)
    run.kill("raylet")
    run.pippin("pause")
    assert run.left_within(10, but=["supervisor"]) == []

The processes of a run are found in four ways, as any one of them may miss some: by the session of the run's
host, by the run's folders in the command line, by `PIPPIN_HOME` in the environment, which no two runs here
share, and as children of such a process, now or at an earlier look.
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
"""How long a test waits; a loaded machine may need it."""
DAEMONS = {
    "host": r"-m ops\.host ",
    "raylet": r"/raylet/raylet ",
    "gcs_server": r"/gcs/gcs_server ",
    "dashboard": r"/dashboard/dashboard\.py",
    "agent": r"/dashboard/agent\.py|DashboardAgent",
    "watchdog": r"-m ops\.watchdog ",
}
"""Processes that are not in the status, and their command lines."""
UNDISTURBED = """
import sys, msgspec; from runtime.blas import load_blas; load_blas(True)
from pathlib import Path; from configs.schema import Settings
from tests.actors.tiny import digests, go, new_run
wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)
print(*digests(go(wanted, new_run(Path(sys.argv[1]), 'undisturbed'))))
"""


def undisturbed(settings: Settings, folder: Path) -> list[str]:
    """Returns the digests of an undisturbed run, done without Ray by a process in exact mode."""
    done = subprocess.run(
        [sys.executable, "-c", UNDISTURBED, str(folder)],
        input=msgspec.json.encode(settings), cwd=ROOT, capture_output=True, timeout=LIMIT_S,
        env={**os.environ, "PIPPIN_EXACT": "1", "PIPPIN_HOME": str(folder / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


class RealRun:
    """One run with a PIPPIN_HOME of its own. The path of `home` must be short, for Ray's sockets."""

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
        """Process ids with their start times, as the system uses a process id again."""
        self._host_line = f"{DAEMONS['host']}{re.escape(str(self.run.path))} "

    # ── commands ──────────────────────────────────────────────────────────────────────────────────

    def command(self, verb: str, *options: str) -> list[str]:
        """Returns the command line of `pippin VERB` for this run."""
        what = [str(self.recipe), "--name"] if verb == "launch" else []
        root = ["--root", str(self.run.path.parent)]
        return [sys.executable, "-m", "ops.cli", verb, *what, self.run.name, *root, *options]

    def pippin(
        self, verb: str, *options: str, under: Iterable[str] = ()
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `pippin VERB` to its end; `under` is a command that runs it, such as `unshare`."""
        return subprocess.run(
            [*under, *self.command(verb, *options)], env=self.environment, cwd=ROOT,
            capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip

    def launch(self, verb: str = "launch", under: Iterable[str] = ()) -> None:
        """Starts or resumes the run in the background."""
        done = self.pippin(verb, "--detach", under=under)
        assert done.returncode == 0, done.stderr

    def at_terminal(self, verb: str) -> "Terminal":
        """Starts or resumes the run in the foreground of a terminal of its own."""
        return Terminal(self.command(verb), self.environment)

    # ── status and logs ───────────────────────────────────────────────────────────────────────────

    def status(self) -> Status:
        """Returns the status on disk; an empty one as long as the run does not exist."""
        there = (self.run.path / "run.json").exists()
        return self.run.read_status() if there else Status(name=self.run.name)

    def wait(self, wanted: Callable[[Status], Any], limit_s: float = LIMIT_S) -> Status:
        """Returns the first status for which `wanted` is true. Raises AssertionError after `limit_s`."""
        until = time.monotonic() + limit_s
        while not wanted(status := self.status()):
            self._note_ports()
            if time.monotonic() > until or status.state in ("failed", "finished"):
                raise AssertionError(f"it did not come: {status}\n{self.logs()}")
            time.sleep(0.01)
        self._note_ports()
        return status

    def running(self, step: int) -> Status:
        """Returns the status once step `step` is done and every actor runs."""
        return self.wait(lambda s: s.state == "running" and s.step >= step and len(s.pids) > 4)

    def ended(self, state: str) -> Status:
        """Returns the status once the run's process has ended, in this state."""
        until = time.monotonic() + LIMIT_S
        while (status := self.status()).alive and time.monotonic() < until:
            time.sleep(0.05)
        assert (status.state, status.alive) == (state, False), (status, self.logs())
        return status

    def memory_bytes(self, pid: int) -> int:
        """Returns the resident memory of one process."""
        return next(p.memory_bytes for p in processes.listing() if p.pid == pid)

    def logs(self) -> str:
        """Returns the last lines of all logs."""
        files = sorted(self.run.logs.glob("*.log"))
        ends = {f.name: f.read_text(errors="replace").splitlines()[-8:] for f in files}
        return "\n".join(f"{name}: {line}" for name, lines in ends.items() for line in lines)

    # ── processes ─────────────────────────────────────────────────────────────────────────────────

    def pid(self, name: str) -> int:
        """Returns the process id of the supervisor, an actor or one of DAEMONS; 0 if there is none."""
        if name not in DAEMONS:
            return self.status().pids.get(name, 0)
        mine = (p for p in self.processes() if re.search(DAEMONS[name], p.command))
        return next((process.pid for process in mine), 0)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Sends a signal to one process and returns its pid. After SIGKILL it waits until that is dead."""
        pid = self.pid(name)
        assert pid, f"there is no {name}\n{self.logs()}"
        os.kill(pid, number)
        if number == signal.SIGKILL:
            until = time.monotonic() + 5
            while pid in {process.pid for process in processes.listing()}:
                assert time.monotonic() < until, f"{name} does not die"
                time.sleep(0.01)
        return pid

    def processes(self) -> list[processes.Process]:
        """Returns the run's processes that are alive."""
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
        """Stops all processes for so many seconds, as closing a laptop's lid does."""
        frozen: set[int] = set()
        while (
            fresh := {p.pid for p in self.processes()} - frozen
        ):  # until no new one was started meanwhile
            _signal_all(fresh, signal.SIGSTOP)
            frozen |= fresh
        time.sleep(seconds)
        _signal_all(frozen, signal.SIGCONT)

    def end(self) -> None:
        """Kills all processes, again and again until none is left."""
        while found := self.processes():
            _signal_all([p.pid for p in found], signal.SIGKILL)
            time.sleep(0.1)

    # ── leftovers ─────────────────────────────────────────────────────────────────────────────────

    def left_within(self, seconds: float, but: Iterable[str] = ()) -> list[str]:
        """Returns what is left of a run that has ended or paused: waits until nothing is, so many seconds at
        most. The processes in `but` are not counted.
        """
        spared = {self.pid(name) for name in but}
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
            command, env={**environment, "TERM": "xterm"}, cwd=ROOT, stdin=theirs, stdout=theirs,
            stderr=theirs, start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def type(self, key: bytes) -> None:
        """Presses a key."""
        os.write(self._ours, key)

    def close(self) -> None:
        """Closes the terminal."""
        os.close(self._ours)

    def signal(self, number: int) -> None:
        """Sends a signal to the command alone."""
        self._process.send_signal(number)

    def wait_for(self, text: str) -> None:
        """Waits until the text is on the terminal."""
        until = time.monotonic() + LIMIT_S
        while text not in self.text:
            assert time.monotonic() < until and self._process.poll() is None, self.text
            time.sleep(0.01)

    def end(self) -> int:
        """Waits for the command's end and returns its exit code."""
        return self._process.wait(LIMIT_S)

    def last_line(self) -> str:
        """Returns the last line on the terminal."""
        time.sleep(0.2)  # the reader may be behind
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text)
        return re.split(r"[\r\n]+", plain.strip())[-1]

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is closed
            while chunk := os.read(self._ours, 4096):
                self.text += chunk.decode(errors="replace")


class StatusWatcher:
    """Reads the status all the time, and notes each one that names a dead process or a time to come."""

    def __init__(self, run: RunDirectory, slow_s: float) -> None:
        self._run = run
        self._slow_s = slow_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.mistakes: list[str] = []
        self.states: list[str] = []
        """Each state that the run was in, in order."""

    def __enter__(self) -> "StatusWatcher":
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
                self.mistakes.append(f"since {status.since}, which is in the future")
            if status.state not in ALIVE:
                continue
            for name in ("supervisor", "conductor"):
                pid = status.pids.get(name)
                if pid is None or _lives(pid):
                    continue
                began = dead_since.setdefault(pid, time.monotonic())
                if time.monotonic() - began > (self._slow_s if name == "conductor" else 0.5):
                    self.mistakes.append(f"{status.state}, but its {name} {pid} is dead")
                    dead_since[pid] = float("inf")  # noted once


# ── inside ────────────────────────────────────────────────────────────────────────────────────────


def _take_terminal() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored where the tests run in the background
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _lives(pid: int) -> bool:
    return fields[0] != "Z" if (fields := _fields(pid)) else session_of(pid) != -1


def _birth(pid: int) -> tuple[int, str]:
    """Returns a process's id and start time, which no other process ever has; (0, "") if it is not known."""
    return (pid, fields[19]) if (fields := _fields(pid)) else (0, "")


def _parent(pid: int) -> int:
    return int(fields[1]) if (fields := _fields(pid)) else 0


def _fields(pid: int) -> list[str]:
    """Returns the fields behind the name in Linux's /proc/PID/stat; none elsewhere."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _environment(pid: int) -> str:
    """Returns a process's first environment, each variable ended by a zero byte; "" if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def _signal_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _shared() -> set[str]:
    """Returns shared memory that outlives its processes: files, and System V's segments."""
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
