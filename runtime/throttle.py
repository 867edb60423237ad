"""The throttle: between two tokens or micro-batches it pauses long work, and slows it to its duty cycle.

    throttle = Throttle(run, "sample.token", duty_cycle=0.5)
    decoder.run(sequences, sampling, between_tokens=lambda: version if throttle.may_continue() else None)

It checks whether the run directory holds a request to pause, which takes one to two microseconds and needs no
connection to another process. Then it sleeps so long that work takes its share of the time. Time asleep with
a closed lid looks like long work, so no piece of work counts for more than a few times the previous one.
"""

import time
from collections.abc import Callable

from runtime import failpoints
from runtime.rundir import RunDirectory

LOOK_S = 0.05
"""Seconds between checks for a request to pause during a long sleep."""
FIRST_S, LONGER = 1.0, 4.0
"""Bounds on the counted length of a piece of work: FIRST_S seconds, or LONGER times the previous piece."""


class Throttle:
    """The throttle of one task, which calls `may_continue` between two pieces of its work."""

    def __init__(
        self,
        run: RunDirectory,
        point: str,
        duty_cycle: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run = run
        self._point = point
        self._sleep_share = 1 / duty_cycle - 1
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._worked_s = 0.0
        """Length of the last piece of work by the clock."""

    def may_continue(self) -> bool:
        """Sleeps first if the duty cycle is below 1; returns False if the run is asked to pause."""
        failpoints.hit(self._point)
        if self._sleep_share:
            self._sleep_its_share()
        return not self._run.pause_asked()

    def _sleep_its_share(self) -> None:
        worked_s = self._clock() - self._began
        counted_s = min(worked_s, max(LONGER * self._worked_s, FIRST_S))
        self._worked_s = worked_s
        until = self._clock() + counted_s * self._sleep_share
        while (left_s := until - self._clock()) > 0 and not self._run.pause_asked():
            self._sleep(min(left_s, LOOK_S))
        self._began = self._clock()
