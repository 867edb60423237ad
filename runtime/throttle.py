"""The throttle that long work passes between two tokens or two micro-batches: may it go on, and how fast?

    throttle = Throttle(run, "sample.token", duty_cycle=0.5)
    decoder.run(sequences, sampling, between_tokens=lambda: version if throttle.may_continue() else None)

It looks whether the run directory holds a request to pause, which costs a microsecond or two and needs no
connection to anybody, and it rests so long that the work in between takes its share of the time. A lid that
was closed in between looks like long work: no piece of work counts more than a few times the one before it.
"""

import time
from collections.abc import Callable

from runtime import failpoints
from runtime.rundir import RunDirectory

LOOK_S = 0.05
"""How often a long rest looks at the request."""
FIRST_S, LONGER = 1.0, 4.0
"""How much work is believed to be: this long at first, then so many times the one before."""


class Throttle:
    """One piece of work's own; `may_continue` is called between its parts."""

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
        self._rest_share = 1 / duty_cycle - 1
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._worked_s = 0.0
        """The last piece of work, as the clock has it."""

    def may_continue(self) -> bool:
        """False if somebody asks to pause. Rests first, where there is a duty cycle."""
        failpoints.hit(self._point)
        if self._rest_share:
            self._rest()
        return not self._run.pause_asked()

    def _rest(self) -> None:
        worked_s = self._clock() - self._began
        believed_s = min(worked_s, max(LONGER * self._worked_s, FIRST_S))
        self._worked_s = worked_s
        until = self._clock() + believed_s * self._rest_share
        while (left_s := until - self._clock()) > 0 and not self._run.pause_asked():
            self._sleep(min(left_s, LOOK_S))
        self._began = self._clock()
