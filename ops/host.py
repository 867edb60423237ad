"""The process that hosts a run's Ray session, and with it the conductor and all actors.

It lives from one pause to the next. The supervisor starts it, learns from its exit code how it ended, and
then kills whatever is left of its session; so it needs no graceful end, and a death is an end like others.
"""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from actors import postmortem
from configs import load
from configs.schema import Settings
from ops.session import RayFailed, dead_daemons, start_ray
from runtime.clock import Deadline
from runtime.errors import BadInput, Interrupted, PippinError, RunFailed
from runtime.home import PRIVATE_UMASK
from runtime.plain_text import printable_lines
from runtime.rundir import RunDirectory

POLL_S = 0.25
CONDUCTOR_RESTARTS = 3
DONE, FAILED, BAD_INPUT, PAUSED, RAY_DIED, HANGS = 0, 11, 12, 13, 14, 15
"""Exit codes: Python itself ends with none of them, because that is a death like others."""
STARTING = "starting Ray"
"""The activity in a status until the conductor writes its own."""


def main(path: str, temp: str) -> int:
    """Hosts the run until it is done, paused or cannot go on. Returns the exit code."""
    os.umask(PRIVATE_UMASK)  # Ray's daemons and all actors inherit it
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    run = RunDirectory(Path(path).parent, Path(path).name)
    stack = (run.logs / "host.stack").open("a")
    faulthandler.register(postmortem.DUMP_SIGNAL, stack, all_threads=True)
    try:
        settings = load(run.recipe)
        session = start_ray(settings, run, Path(temp))
        _drive(settings, run, session.dashboard)
    except Interrupted:
        return PAUSED
    except RayFailed as error:
        print(error, flush=True)
        return RAY_DIED
    except PippinError as error:
        run.settle("failed", printable_lines(str(error)))
        return BAD_INPUT if isinstance(error, BadInput) else FAILED
    except Exception as error:
        import traceback

        traceback.print_exc()
        run.settle("failed", printable_lines(f"{type(error).__name__}: {error}"))
        return FAILED
    return DONE


def _end_with_supervisor() -> None:
    """Ends this process with its supervisor, which holds its standard input open as long as it lives."""
    while os.read(0, 64):
        pass
    os._exit(FAILED)


def _drive(settings: Settings, run: RunDirectory, dashboard: str) -> None:
    """Starts the conductor and waits for its end. A conductor that died goes on from the checkpoint."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    from actors.program import first_cause, start_conductor

    deaths, generation, last_step, first = 0, 0, -1, ""
    limit_s = settings.deadlines.start_s
    while True:
        try:
            conductor = start_conductor(settings, run, generation)
            greeting = conductor.pid.remote()
            _wait(greeting, Deadline(limit_s), "conductor to start")
            ending = conductor.run.remote(dashboard)
            _wait(ending, None, "run to end", Pulse(conductor, ray.get(greeting), limit_s, run))
            ray.get(ending)
            return
        except RayTaskError as error:
            raise first_cause(error, "the conductor") from None
        except (RayActorError, Hangs) as error:
            if run.pause_asked():
                raise Interrupted("the conductor died in a pause") from None
            cause = str(error).strip().splitlines()[0]
            print(f"the conductor died: {cause}", flush=True)
            step = run.read_status().step
            deaths = 1 if step > last_step else deaths + 1
            generation, last_step = generation + 1, step
            first = cause if deaths == 1 else first
            if deaths > CONDUCTOR_RESTARTS:
                raise RunFailed(
                    f"the conductor died {deaths} times at step {step + 1}: {first}"
                    f"{postmortem.tail(run.logs, 'conductor')}"
                ) from None
            _say_restarting(run)
            time.sleep(0.2 * 2**deaths)


def _say_restarting(run: RunDirectory) -> None:
    """Replaces the last message of a conductor that died, because it is not true any more."""
    status = run.read_status()
    status.state, status.doing, status.since = "starting", "starting the conductor", time.time()
    status.pids = {name: pid for name, pid in status.pids.items() if name == "supervisor"}
    run.write_status(status)


class Hangs(Exception):
    """Says that the conductor does not answer."""


class Pulse:
    """Asks the conductor again and again whether it is alive: nothing else would notice if it hung."""

    def __init__(self, conductor: Any, pid: int, limit_s: float, run: RunDirectory) -> None:
        self._conductor = conductor
        self._pid = pid
        self._limit_s = limit_s
        self._run = run
        self._ask()

    def feel(self) -> None:
        """Raises Hangs, with the conductor killed, if it has not answered for too long."""
        import ray

        if ray.wait([self._answer], timeout=0)[0]:
            self._ask()
        elif self._deadline.expired():
            stack = postmortem.dump_stack(self._pid, self._run.logs, "conductor")
            ray.kill(self._conductor)
            raise Hangs(f"waited {self._limit_s:g} s for the conductor to answer{stack}")

    def _ask(self) -> None:
        self._answer, self._deadline = self._conductor.pid.remote(), Deadline(self._limit_s)


def _wait(
    reference: object, deadline: Deadline | None, what: str, pulse: Pulse | None = None
) -> None:
    """Waits until Ray has an answer. Ends this process if one of Ray's daemons dies."""
    import ray

    while not ray.wait([reference], timeout=POLL_S)[0]:
        if dead := dead_daemons():
            print(f"Ray's {dead[0]} died", flush=True)
            os._exit(RAY_DIED)
        if deadline is not None and deadline.expired():
            raise RunFailed(f"waited too long for the {what} (deadlines.start_s)")
        if pulse is not None:
            pulse.feel()


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Ray's own clean-up takes seconds, the supervisor's none
