"""What `pippin launch` and `pippin resume` turn into: the supervisor's process, and what it says at the end.

It replaces the process that has checked the recipe, which has loaded much that a run of weeks need not hold.
"""

import os
import signal
import sys
from pathlib import Path

from ops.outcome import FINE, exit_code
from ops.show import LiveLine, eval_line
from ops.supervise import supervise
from runtime.errors import Interrupted
from runtime.rundir import RunDirectory

HERE, DETACHED = "here", "detached"


def become(run: RunDirectory) -> None:
    """Replace this process by the run's supervisor, at this terminal. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command(run, HERE))


def command(run: RunDirectory, where: str) -> list[str]:
    """The command line of a run's supervisor."""
    return [sys.executable, "-m", "ops.attend", str(run.path.absolute()), where]


def main(path: str, where: str) -> int:
    """Supervise a run and say how it ended; gives the exit code."""
    run = RunDirectory(Path(path).parent, Path(path).name)
    if where == DETACHED:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return exit_code(lambda: _finish(run, None))
    return exit_code(lambda: _finish(run, LiveLine()))


def _finish(run: RunDirectory, show: LiveLine | None) -> int:
    try:
        status = supervise(run, show)
    except Interrupted:
        status = run.read_status()
        raise Interrupted(
            f"{status.state} after step {status.step}; go on with: pippin resume {run.name}"
        ) from None
    finally:
        if show:
            show.end()
    if len(status.evals) > 1:
        print(eval_line(status.evals[0], status.evals[0]))
        print(eval_line(status.evals[-1], status.evals[0]))
    print(f"finished: pippin status {run.name}, pippin export {run.name} DIR, files in {run.path}")
    return FINE


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
