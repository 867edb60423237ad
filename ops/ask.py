"""`pippin pause`, `stop` and `resume`: requests that a run's own process answers."""

import time

from ops.outcome import FAILED, FINE
from ops.show import progress_line
from ops.terminal import say
from runtime.errors import BadInput, PippinError
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import ALIVE

STOP_S = 150.0
"""The seconds for which `pause` and `stop` wait; a run that is saving may take so long."""
RESUME_S = 10.0


def halt(run: RunDirectory, verb: str, end: bool) -> int:
    """Leaves the request and waits until the run's processes are gone. Returns an exit code."""
    began = time.monotonic()
    status = run.read_status()
    if not run.locked() or status.state not in (*ALIVE, "paused"):
        raise BadInput(f"run {run.name!r} is not running: it is {status.state}")
    run.ask_to_pause(PauseRequest(by="user", reason=f"pippin {verb}", end=end))
    while time.monotonic() - began < STOP_S:
        status = run.read_status()
        if status.state not in (*ALIVE, "paused") or (
            status.state == "paused" and not (end and run.locked())
        ):
            break
        time.sleep(0.05)
    else:
        raise PippinError(f"asked, but it is still {status.doing or status.state}")
    took = f"{time.monotonic() - began:.1f} s"
    say(f"{status.state} ({took}): {progress_line(status)}")
    if status.state in ("paused", "stopped"):
        say(f"go on with: pippin resume {run.name}")
    return FINE if status.state != "failed" else FAILED


def may_start(run: RunDirectory) -> bool:
    """Returns whether a new process is to resume the run. If so, no request stands in its way any more.

    Raises BadInput for a run that has finished.
    """
    if run.read_status().state == "finished":
        raise BadInput(f"run {run.name!r} has finished; there is nothing to go on with")
    if run.locked():
        return False
    run.withdraw_pause()
    return True


def resume_there(run: RunDirectory) -> int:
    """Withdraws the request, for the process that waits. Returns an exit code."""
    request = run.pause_request()
    if request is None:
        raise BadInput(f"run {run.name!r} is running already")
    if request.end:
        raise BadInput(f"run {run.name!r} is about to stop ({request.reason}); resume it then")
    if request.by == "machine":
        raise BadInput(f"run {run.name!r} goes on by itself; it waits: {request.reason}")
    run.withdraw_pause()
    until = time.monotonic() + RESUME_S
    while (status := run.read_status()).state == "paused" and time.monotonic() < until:
        time.sleep(0.05)
    say(f"{status.state}: going on in its own process; pippin watch {run.name}")
    return FINE
