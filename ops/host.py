"""The process that hosts a run's Ray session, and with it the conductor and all actors.

It lives from one pause to the next. The supervisor starts it, learns from its exit code how it ended, and
then kills whatever is left of its session; so it needs no graceful end, and a death is an end like others.
"""

import os
import sys
import threading
import time
from pathlib import Path

from configs import load
from configs.schema import Settings
from ops.session import dead_daemons, start_ray
from runtime.clock import Deadline
from runtime.errors import BadInput, Interrupted, PippinError, RunFailed
from runtime.rundir import RunDirectory

POLL_S = 0.25
CONDUCTOR_RESTARTS = 3
DONE, FAILED, BAD_INPUT, PAUSED, DAEMON_DIED = 0, 1, 2, 3, 4
"""Exit codes."""


def main(path: str, temp: str) -> int:
    """Host the run until it is done, paused or cannot go on; gives the exit code."""
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    run = RunDirectory(Path(path).parent, Path(path).name)
    try:
        settings = load(run.recipe)
        session = start_ray(settings, run, Path(temp))
        _drive(settings, run, session.dashboard)
    except Interrupted:
        return PAUSED
    except PippinError as error:
        run.settle("failed", str(error))
        return BAD_INPUT if isinstance(error, BadInput) else FAILED
    except Exception as error:
        import traceback

        traceback.print_exc()
        run.settle("failed", f"{type(error).__name__}: {error}")
        return FAILED
    return DONE


def _end_with_supervisor() -> None:
    """It holds our standard input open as long as it lives."""
    while os.read(0, 64):
        pass
    os._exit(FAILED)


def _drive(settings: Settings, run: RunDirectory, dashboard: str) -> None:
    """Start the conductor and wait for its end; one that died goes on from the checkpoint."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    from actors.program import first_cause, start_conductor

    deaths, generation, last_step, first = 0, 0, -1, ""
    while True:
        try:
            conductor = start_conductor(settings, run, generation)
            _wait(
                conductor.pid.remote(), Deadline(settings.deadlines.start_s), "conductor to start"
            )
            ending = conductor.run.remote(dashboard)
            _wait(ending, None, "run to end")
            ray.get(ending)
            return
        except RayTaskError as error:
            raise first_cause(error, "the conductor") from None
        except RayActorError as error:
            if run.pause_asked():
                raise Interrupted("the conductor died in a pause") from None
            step = run.read_status().step
            deaths = 1 if step > last_step else deaths + 1
            generation, last_step = generation + 1, step
            first = first or str(error).strip().splitlines()[0]
            if deaths > CONDUCTOR_RESTARTS:
                raise RunFailed(
                    f"the conductor died {deaths} times at step {step + 1}: {first}"
                ) from None
            time.sleep(0.2 * 2**deaths)


def _wait(reference: object, deadline: Deadline | None, what: str) -> None:
    """Until Ray has an answer; ends this process if one of Ray's daemons dies."""
    import ray

    while not ray.wait([reference], timeout=POLL_S)[0]:
        if dead := dead_daemons():
            print(f"Ray's {dead[0]} died", flush=True)
            os._exit(DAEMON_DIED)
        if deadline is not None and deadline.expired():
            raise RunFailed(f"waited too long for the {what} (deadlines.start_s)")


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Ray's own clean-up takes seconds; the supervisor's none
