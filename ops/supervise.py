"""The supervisor of a run: a small process that holds the run's lock and starts, watches and clears away its
host, the process tree that computes.

    supervisor ── starts, ends ──▶ host (Ray, conductor, actors)      one after another, from pause to pause
        │ reads pause.json, the machine's state; writes machine.json
        └── holds ──▶ watchdog, which ends the host when the supervisor is gone

Ctrl-C, SIGTERM and a closed terminal are a pause, and then this process ends; a second signal leaves at
once. `pippin pause` makes it wait, without a host and so without memory, until `pippin resume`. A host that
ended otherwise was killed: it is started again, from the newest checkpoint, until that happens too often.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from actors import postmortem
from configs import load
from configs.schema import Settings
from ops import host, processes, watchdog
from ops.conditions import Conditions
from ops.kept_logs import keep_logs
from ops.machine import Machine as Port
from ops.machine import this_machine
from ops.preflight import check_same_run
from ops.signals import Signals
from ops.temp_folder import HOST, temp_folder
from ops.terminal import say
from runtime import checkpoint
from runtime.clock import Deadline
from runtime.errors import BadInput, Interrupted, PippinError, RunFailed
from runtime.file_tail import tail
from runtime.home import home
from runtime.pause_request import PauseRequest
from runtime.plain_text import printable, printable_lines
from runtime.rundir import RunDirectory
from runtime.status import Machine, Status

POLL_S = 0.1
WATCH_S = 2.0
"""The seconds between two looks at the machine and at the processes' memory."""
HOST_RESTARTS = 3
PAUSE_S = 9.0
"""The seconds from the request until the host is killed, unless it is saving by then."""
SAVE_S = 120.0
SPARE_BYTES = 64 << 20
CHECKPOINTS_AHEAD = 2
"""The number of checkpoints of the newest's size for which there must be room, or the run pauses."""
Show = Callable[[Status], None]


def supervise(run: RunDirectory, show: Show | None = None, port: Port | None = None) -> Status:
    """Runs to the end; `show` is called a few times a second with the status.

    Raises RunFailed with the first cause, Interrupted when it paused and this process is to end, BadInput
    if another process has the run.
    """
    run.lock()
    signals = Signals(run)
    try:
        _say(run, "starting", "")  # the status is of a process that is gone
        settings = load(run.recipe)
        check_same_run(run, settings)
        supervisor = Supervisor(run, settings, signals, show or (lambda status: None), port)
        supervisor.run()
        run.withdraw_pause()  # the run has ended, so the pause came too late
        return run.read_status()
    except Interrupted:
        request = run.pause_request()
        stopped = request is not None and request.by == "user" and request.end
        run.settle("stopped" if stopped else "paused")
        run.withdraw_pause()
        raise
    except Exception as error:
        what = str(error) if isinstance(error, PippinError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(PippinError, OSError):  # the disk is full, and the error says so
            run.settle("failed", printable_lines(what))
        raise
    finally:
        signals.end()
        run.unlock()


class Supervisor:
    """Runs one host after another, with pauses between them."""

    def __init__(
        self,
        run: RunDirectory,
        settings: Settings,
        signals: Signals,
        show: Show,
        port: Port | None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._signals = signals
        self._show = show
        self._port = port or this_machine()
        self._temp = home()
        self._conditions = Conditions(
            settings.power, self._port, run.path, self._need_bytes, lambda: (home(), self._temp)
        )
        self._looked = -WATCH_S
        self._deaths, self._last_step, self._first, self._note = 0, -1, "", ""

    def run(self) -> None:
        """Runs until the run is done. Raises as `supervise` does."""
        while True:
            self._wait_until_wanted()
            code = self._host()
            if code == host.DONE:
                return
            if code in (host.FAILED, host.BAD_INPUT):
                message = self._run.read_status().message
                raise (BadInput if code == host.BAD_INPUT else RunFailed)(message)
            if code != host.PAUSED:
                self._count_death(code)

    # ── between two hosts ────────────────────────────────────────────────────────────────────────

    def _wait_until_wanted(self) -> None:
        """Waits while a pause is asked for, or the machine gives a reason for one."""
        while (request := self._asked()) is not None:
            where = (
                "" if request.by == "machine" else f"; go on with: pippin resume {self._run.name}"
            )
            _say(self._run, "paused", f"{request.reason}{where}")
            self._look_at_machine(None)
            if request.end:
                raise Interrupted(request.reason)
            self._show(self._run.read_status())
            time.sleep(POLL_S)

    def _asked(self) -> PauseRequest | None:
        """Returns the present request. The machine's own request is made and withdrawn here."""
        request = self._signals.request or self._run.pause_request()
        if request is not None and request.by != "machine":
            return request
        reason = self._conditions.reason()  # asks the machine, which takes a moment
        if reason is None:
            if request is not None:
                self._run.withdraw_pause(of_machine=True)
        elif request is None or request.reason != reason:
            self._run.ask_to_pause(PauseRequest(by="machine", reason=reason))
        return self._signals.request or self._run.pause_request()

    def _count_death(self, code: int) -> None:
        """Counts a death of the host. Raises RunFailed with the first cause when that happens too
        often.
        """
        status = self._run.read_status()
        self._deaths = 1 if status.step > self._last_step else self._deaths + 1
        cause = f"at step {status.step + 1}, {status.doing or 'starting'}: {self._cause(code)}"
        if self._deaths == 1:
            self._first = cause
        self._last_step = status.step
        if self._deaths > HOST_RESTARTS:
            raise RunFailed(f"died {self._deaths} times without a step done; first {self._first}")
        self._note = f"died {cause}; going on from the newest checkpoint"
        say(self._note, err=True)
        time.sleep(0.2 * 2**self._deaths)

    def _cause(self, code: int) -> str:
        if code < 0:
            return f"its host was ended by signal {-code} ({signal.strsignal(-code)})"
        output = tail(self._run.logs / "host.log", since=self._log_began)
        lines = output.decode(errors="replace").strip().splitlines()
        return printable(lines[-1]) if lines else f"its host ended with exit code {code}"

    # ── one host ─────────────────────────────────────────────────────────────────────────────────

    def _host(self) -> int:
        """Starts a host and waits for its end. Returns its exit code, once nothing of it is left."""
        self._temp = temp = temp_folder()
        status = self._run.read_status()
        status.state, status.doing, status.since = "starting", host.STARTING, time.time()
        status.message, status.pids, self._note = self._note, {"supervisor": os.getpid()}, ""
        status.steps = self._settings.algorithm.steps
        self._run.write_status(status)
        child, code = self._start_host(temp), host.FAILED
        held = watchdog.start(child.pid, temp, self._run.path.absolute())
        try:
            with self._awake(child.pid):
                code = self._watch(child)
            return code
        finally:
            processes.end(child.pid, str(temp))
            if code not in (host.DONE, host.PAUSED):
                keep_logs(temp, self._run.logs)
            watchdog.clear_away(child.pid, temp, self._run.path)
            child.wait()
            held.kill()
            held.wait()

    def _start_host(self, temp: Path) -> "subprocess.Popen[bytes]":
        """Starts the host's process. Its standard input is held open by this process alone; its
        temporary files are in `temp`.
        """
        with (self._run.logs / "host.log").open("ab") as log:
            self._log_began = log.tell()
            child = subprocess.Popen(
                [sys.executable, "-m", "ops.host", str(self._run.path.absolute()), str(temp)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PIPPIN_HOME": str(home()), "TMPDIR": str(temp)},
                cwd=os.path.abspath(os.sep),
            )
        (temp / HOST).write_text(str(child.pid))
        return child

    def _awake(self, pid: int) -> contextlib.AbstractContextManager[None]:
        wanted = self._settings.power.keep_awake
        return self._port.keep_awake(pid) if wanted else contextlib.nullcontext()

    def _watch(self, child: "subprocess.Popen[bytes]") -> int:
        """Watches the host until it ends, and returns its exit code. A host that hangs, or does not
        pause in time, is killed.
        """
        pausing: Deadline | None = None
        saving: Deadline | None = None
        waiting: Deadline | None = None
        while (code := child.poll()) is None:
            status = self._run.read_status()
            self._show(status)
            self._look_at_machine(child.pid)
            alone = status.doing == host.STARTING or status.state in ("finished", "failed")
            waiting = (waiting or Deadline(self._settings.deadlines.start_s)) if alone else None
            if waiting is not None and waiting.expired():
                stack = postmortem.dump_stack(child.pid, self._run.logs, "host")
                say(f"the host hangs{stack}", err=True)
                return host.HANGS
            if self._asked() is not None:
                if status.state == "starting":  # a host that starts has nothing to lose
                    return host.PAUSED
                pausing = pausing or Deadline(PAUSE_S)
                if status.state == "pausing":
                    saving = saving or Deadline(SAVE_S)
                if (saving or pausing).expired():
                    return host.PAUSED
            time.sleep(POLL_S)
        return code

    def _look_at_machine(self, session: int | None) -> None:
        """Looks at the machine now and then. `session` is the host's, if there is one."""
        now = time.monotonic()
        if now - self._looked < WATCH_S:
            return
        self._looked = now
        tree = processes.belonging(session, "") if session is not None else []
        self._run.write_machine(
            Machine(
                memory_bytes=sum(process.memory_bytes for process in tree),
                free_disk_bytes=self._port.free_disk_bytes(self._run.path) or 0,
                on_battery=self._port.on_battery(),
                thermal_pressure=self._port.thermal_pressure(),
                duty_cycle=self._settings.power.duty_cycle,
            )
        )

    def _need_bytes(self) -> int:
        """Returns the bytes that the next checkpoints will write, judged by the newest."""
        try:
            size = checkpoint.size_bytes(self._run.checkpoints)
        except OSError:  # it is being retired
            size = 0
        return CHECKPOINTS_AHEAD * size + SPARE_BYTES


def _say(run: RunDirectory, state: str, message: str) -> None:
    """Changes the status where no conductor can, if it differs."""
    status = run.read_status()
    if (status.state, status.message) != (state, message):
        if status.state != state:
            status.since = time.time()
        status.state, status.doing, status.message = state, "", message
        status.pids = {"supervisor": os.getpid()}
        run.write_status(status)
