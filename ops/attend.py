"""The process that `pippin launch` and `pippin resume` become: the supervisor, with the summary at its end.

It replaces the process that has checked the recipe, which has loaded much that a run of weeks need not hold.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ops.outcome import FINE, exit_code
from ops.show import LiveLine, first_and_last
from ops.signals import hold_back
from ops.supervise import supervise
from ops.terminal import say
from runtime.errors import Interrupted
from runtime.home import PRIVATE_UMASK
from runtime.rundir import RunDirectory
from runtime.status import Status

HERE, DETACHED = "here", "detached"


def become(run: RunDirectory) -> None:
    """Replaces this process by the run's supervisor, at this terminal. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    hold_back()
    os.execv(sys.executable, command(run, HERE))


def command(run: RunDirectory, where: str) -> list[str]:
    """Returns the command line of a run's supervisor."""
    return [sys.executable, "-m", "ops.attend", str(run.path.absolute()), where]


def main(path: str, where: str) -> int:
    """Supervises a run and prints how it ended. Returns the exit code."""
    os.umask(PRIVATE_UMASK)
    run = RunDirectory(Path(path).parent, Path(path).name)
    if where == DETACHED:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return exit_code(lambda: _finish(run, None))
    return exit_code(lambda: _finish(run, LiveLine()))


def _finish(run: RunDirectory, show: LiveLine | None) -> int:
    try:
        status = supervise(run, _heard(show))
    except Interrupted:
        status = run.read_status()
        raise Interrupted(
            f"{status.state} after step {status.step}; go on with: pippin resume {run.name}"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            if show:
                show.end()
    for line in first_and_last(status):
        say(line)
    say(f"finished: pippin status {run.name}, pippin export {run.name} DIR, files in {run.path}")
    return FINE


def _heard(show: LiveLine | None) -> Callable[[Status], None]:
    """Returns `show`, which then ignores a terminal that is closed: a run goes on without one."""

    def say(status: Status) -> None:
        with contextlib.suppress(OSError):
            if show:
                show(status)

    return say


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
