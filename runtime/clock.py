"""Time-outs that count only time in which this process was awake.

A laptop sleeps, a process tree is frozen, a monotonic clock jumps: then nobody was late, because
nobody could work. So time is counted in looks, and a look never counts more than a short tick,
however long ago the one before was. Whoever waits must look at least every LONGEST_TICK_S seconds,
and twice within the limit: what lies further apart counts as sleep.

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
    """`limit_s` seconds from now, of those that this process lives through."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._left_s = limit_s
        # Half a short limit, or one sleep would use all of it up.
        self._longest_tick_s = min(LONGEST_TICK_S, limit_s / 2)

    def left_s(self) -> float:
        """Seconds left, 0 if none are; this is a look at the clock."""
        now = self._clock()
        self._left_s -= min(max(now - self._last, 0.0), self._longest_tick_s)
        self._last = now
        return max(self._left_s, 0.0)

    def expired(self) -> bool:
        """Whether the limit is used up; this is a look at the clock."""
        return self.left_s() <= 0
