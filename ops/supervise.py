"""The process that a run lives in: it holds the run's lock, Ray's session and the conductor.

Ctrl-C, SIGTERM and `pippin stop` ask the conductor to stop between two phases; a second signal leaves
at once. Either way the newest checkpoint stays, and `pippin resume` goes on from it.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from configs import load
from configs.schema import Settings
from ops.preflight import check_same_model
from ops.session import dead_daemons, ray_session
from runtime.errors import Interrupted, PippinError, RunFailed
from runtime.rundir import RunDirectory, Status

POLL_S = 0.25
CONDUCTOR_RESTARTS = 3
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Show = Callable[[Status], None]


def supervise(run: RunDirectory, show: Show | None = None) -> Status:
    """Run to the end in this process; `show` is called a few times a second with the status.

    Raises RunFailed with the first cause, Interrupted if somebody asked to stop, BadInput if another
    process has the run.
    """
    run.lock()
    stop = Stop()
    try:
        settings = load(run.recipe)
        check_same_model(run, settings)
        run.forget_requests()
        _say_starting(run, settings)
        with ray_session(settings, run) as session:
            stop.listen()  # again: Ray has put its own handler there
            _drive(settings, run, session.dashboard, stop, show or (lambda status: None))
        return run.read_status()
    except Interrupted:
        _settle(run, "interrupted", "")
        raise
    except PippinError as error:
        _settle(run, "failed", str(error))
        raise
    except Exception as error:
        _settle(run, "failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        stop.end()
        run.forget_requests()
        run.unlock()


def _drive(settings: Settings, run: RunDirectory, dashboard: str, stop: "Stop", show: Show) -> None:
    """Start the conductor and wait for its end; one that died goes on from the checkpoint."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    from actors.program import first_cause, start_conductor

    deaths, generation, last_step = 0, 0, -1
    while True:
        conductor = start_conductor(settings, run, generation)
        told = False
        try:
            limit_s = settings.deadlines.start_s
            if not ray.wait([conductor.pid.remote()], timeout=limit_s)[0]:
                raise RunFailed(f"waited {limit_s:.0f} s for the conductor to start")
            ending = conductor.run.remote(dashboard)
            while not ray.wait([ending], timeout=POLL_S)[0]:
                if dead := dead_daemons():
                    raise RunFailed(
                        f"Ray's {dead[0]} died; go on from the checkpoint with: pippin resume {run.name}"
                    )
                show(run.read_status())
                if (stop.asked or run.asked_to_stop()) and not told:
                    conductor.stop.remote()
                    told = True
            ray.get(ending)
            show(run.read_status())
            return
        except RayTaskError as error:
            raise first_cause(error, "the conductor") from None
        except RayActorError as error:
            if told:
                raise Interrupted("stopped") from None
            step = run.read_status().step
            deaths = 1 if step > last_step else deaths + 1
            generation, last_step = generation + 1, step
            if deaths > CONDUCTOR_RESTARTS:
                reason = str(error).strip().splitlines()[0]
                raise RunFailed(
                    f"the conductor died {deaths} times without a step done: {reason}"
                ) from None
            time.sleep(0.2 * 2**deaths)


class Stop:
    """The first SIGINT or SIGTERM asks to stop, the second ends this process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()

    def listen(self) -> None:
        """Take the signals over."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def end(self) -> None:
        """Leave them to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        os.write(2, b"\nstopping after this phase; once more leaves at once\n")


def _say_starting(run: RunDirectory, settings: Settings) -> None:
    """What came before stays visible while Ray starts."""
    status = run.read_status()
    status.state, status.doing, status.since = "starting", "starting Ray", time.time()
    status.message, status.pids = "", {"supervisor": os.getpid()}
    status.steps = settings.algorithm.steps
    run.write_status(status)


def _settle(run: RunDirectory, state: str, message: str) -> None:
    """Write the end down if the conductor could not."""
    status = run.read_status()
    if status.state != state:
        status.state, status.doing, status.since = state, "", time.time()
        status.message = status.message or message
        run.write_status(status)


def main(path: str) -> int:
    """The body of a detached run: everything goes to the run's own log."""
    run = RunDirectory(Path(path).parent, Path(path).name)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        supervise(run)
    except Interrupted:
        return 130
    except PippinError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1]))
