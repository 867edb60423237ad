"""Time-outs that count only time in which this process was awake.

While a laptop sleeps or a process tree is frozen, no process can work, so that time must not count; nor must
a jump of the monotonic clock. A deadline therefore adds up the time between its checks, and one check never
adds more than a short tick. A waiting process must check at least every LONGEST_TICK_S seconds, and twice
within the limit; longer gaps count as sleep.

    deadline = Deadline(limit_s=60)
    while not ready():
        if deadline.expired():
            raise ...
        time.sleep(0.1)
"""

import time
from collections.abc import Callable

LONGEST_TICK_S = 2.0


class Deadline:
    """A limit of `limit_s` seconds from now, counting only time in which this process is awake."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._left_s = limit_s
        # Half of a short limit, because one sleep would otherwise use all of it up.
        self._longest_tick_s = min(LONGEST_TICK_S, limit_s / 2)

    def left_s(self) -> float:
        """Returns the seconds left, at least 0; it counts as a check."""
        now = self._clock()
        self._left_s -= min(max(now - self._last, 0.0), self._longest_tick_s)
        self._last = now
        return max(self._left_s, 0.0)

    def expired(self) -> bool:
        """Returns whether the limit is used up; it counts as a check."""
        return self.left_s() <= 0
