"""The supervisor of a run: a small process that holds the run's lock and starts, watches and clears away its
host, the process tree that computes.

    supervisor ── starts, ends ──▶ host (Ray, conductor, actors)      one after another, from pause to pause
        │ reads pause.json, the machine's state; writes machine.json
        └── holds ──▶ leash, which ends the host when the supervisor is gone

Ctrl-C, SIGTERM and a closed terminal are a pause, and then this process ends; a second signal leaves at
once. `pippin pause` lets it wait, without a host and so without memory, until `pippin resume`. What is not
paused or done was killed: it is started again, from the newest checkpoint, until that happens too often.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from configs import load
from configs.schema import Settings
from ops import host, leash, processes
from ops.conditions import Conditions
from ops.machine import Machine as Port
from ops.machine import this_machine
from ops.preflight import check_same_model
from ops.session import keep_logs, temp_folder
from runtime import checkpoint
from runtime.clock import Deadline
from runtime.errors import BadInput, Interrupted, PippinError, RunFailed
from runtime.home import home
from runtime.rundir import Machine, PauseRequest, RunDirectory, Status

POLL_S = 0.1
WATCH_S = 2.0
"""How often the machine and the processes' memory are looked at."""
HOST_RESTARTS = 3
PAUSE_S = 9.0
"""From the request until the host is killed, unless it is saving by then."""
SAVE_S = 120.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SPARE_BYTES = 64 << 20
CHECKPOINTS_AHEAD = 2
"""So many of the newest checkpoint's size must be free, or the run pauses."""
Show = Callable[[Status], None]


def supervise(run: RunDirectory, show: Show | None = None, port: Port | None = None) -> Status:
    """Run to the end; `show` is called a few times a second with the status.

    Raises RunFailed with the first cause, Interrupted when it paused and this process is to end, BadInput
    if another process has the run.
    """
    run.lock()
    signals = Signals(run)
    try:
        settings = load(run.recipe)
        check_same_model(run, settings)
        supervisor = Supervisor(run, settings, signals, show or (lambda status: None), port)
        supervisor.run()
        return run.read_status()
    except Interrupted:
        request = run.pause_request()
        stopped = request is not None and request.by == "user" and request.end
        run.settle("stopped" if stopped else "paused")
        run.withdraw_pause()
        raise
    except PippinError as error:
        run.settle("failed", str(error))
        raise
    except Exception as error:
        run.settle("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        signals.end()
        run.unlock()


class Supervisor:
    """Host after host, with pauses between them."""

    def __init__(
        self,
        run: RunDirectory,
        settings: Settings,
        signals: "Signals",
        show: Show,
        port: Port | None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._signals = signals
        self._show = show
        self._port = port or this_machine()
        self._conditions = Conditions(settings.power, self._port, run.path, self._need_bytes)
        self._looked = -WATCH_S
        self._deaths, self._last_step, self._first = 0, -1, ""

    def run(self) -> None:
        """Until the run is done. Raises as `supervise` does."""
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
        """While somebody asks to pause, or the machine gives a reason to."""
        while (request := self._asked()) is not None:
            where = (
                "" if request.by == "machine" else f"; go on with: pippin resume {self._run.name}"
            )
            self._say("paused", f"{request.reason}{where}")
            if request.end:
                raise Interrupted(request.reason)
            self._show(self._run.read_status())
            time.sleep(POLL_S)

    def _asked(self) -> PauseRequest | None:
        """The request there is; the machine's own is made and withdrawn here."""
        request = self._run.pause_request()
        if request is not None and request.by != "machine":
            return request
        reason = self._conditions.reason()
        if reason is None:
            if request is not None:
                self._run.withdraw_pause()
            return None
        if request is None or request.reason != reason:
            request = PauseRequest(by="machine", reason=reason)
            self._run.ask_to_pause(request)
        return request

    def _say(self, state: str, message: str) -> None:
        """Change the status where no conductor can, if it says something new."""
        status = self._run.read_status()
        if (status.state, status.message) != (state, message):
            if status.state != state:
                status.since = time.time()
            status.state, status.doing, status.message = state, "", message
            status.pids = {"supervisor": os.getpid()}
            self._run.write_status(status)

    def _count_death(self, code: int) -> None:
        """The host died. Raises RunFailed with the first cause when that happens too often."""
        status = self._run.read_status()
        self._deaths = 1 if status.step > self._last_step else self._deaths + 1
        if self._deaths == 1:
            self._first = (
                f"at step {status.step + 1}, {status.doing or 'starting'}: {self._cause(code)}"
            )
        self._last_step = status.step
        if self._deaths > HOST_RESTARTS:
            raise RunFailed(f"died {self._deaths} times without a step done; first {self._first}")
        self._say("starting", f"died {self._first}; going on from the newest checkpoint")
        time.sleep(0.2 * 2**self._deaths)

    def _cause(self, code: int) -> str:
        if code < 0:
            return f"its host was ended by signal {-code} ({signal.strsignal(-code)})"
        lines = (self._run.logs / "host.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"its host ended with exit code {code}"

    # ── one host ─────────────────────────────────────────────────────────────────────────────────

    def _host(self) -> int:
        """Start a host and see it to its end; gives its exit code. Nothing of it is left then."""
        temp = temp_folder()
        status = self._run.read_status()
        status.state, status.doing, status.since = "starting", "starting Ray", time.time()
        status.message, status.pids = "", {"supervisor": os.getpid()}
        status.steps = self._settings.algorithm.steps
        self._run.write_status(status)
        with (self._run.logs / "host.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "ops.host", str(self._run.path.absolute()), str(temp)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "PIPPIN_HOME": str(home()),
                },  # it may be relative to where we are
                cwd=os.path.abspath(os.sep),
            )
        held = leash.put_on(child.pid, temp, self._run.path.absolute())
        try:
            with self._awake(child.pid):
                return self._watch(child)
        finally:
            processes.end(child.pid, str(temp))
            keep_logs(temp, self._run)
            leash.clear_away(child.pid, temp, self._run.path)
            child.wait()
            held.kill()
            held.wait()

    def _awake(self, pid: int) -> contextlib.AbstractContextManager[None]:
        wanted = self._settings.power.keep_awake
        return self._port.keep_awake(pid) if wanted else contextlib.nullcontext()

    def _watch(self, child: "subprocess.Popen[bytes]") -> int:
        """Until it ends; one that does not pause in time is ended as it is."""
        pausing: Deadline | None = None
        saving: Deadline | None = None
        while (code := child.poll()) is None:
            status = self._run.read_status()
            self._show(status)
            self._look_at_machine(child.pid)
            if self._asked() is not None:
                if status.state == "starting":  # it has nothing yet that could be lost
                    return host.PAUSED
                pausing = pausing or Deadline(PAUSE_S)
                if status.state == "pausing":
                    saving = saving or Deadline(SAVE_S)
                if (saving or pausing).expired():
                    return host.PAUSED
            time.sleep(POLL_S)
        return code

    def _look_at_machine(self, session: int) -> None:
        now = time.monotonic()
        if now - self._looked < WATCH_S:
            return
        self._looked = now
        tree = processes.belonging(session, "")
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
        """What the next checkpoints will write, judged by the newest."""
        try:
            size = checkpoint.size_bytes(self._run.checkpoints)
        except OSError:  # it is being retired
            size = 0
        return CHECKPOINTS_AHEAD * size + SPARE_BYTES


class Signals:
    """The first SIGINT, SIGTERM or SIGHUP asks to pause and end, the second ends this process at once."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._asked = False
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # of a detached run, whose terminal may close
                signal.signal(number, self._handle)

    def end(self) -> None:
        """Leave them to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self._asked:
            os._exit(128 + number)  # the leash ends what is running
        self._asked = True
        reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self._run.ask_to_pause(PauseRequest(by="signal", reason=reason, end=True))
        os.write(2, b"\npausing; once more leaves at once\n")
