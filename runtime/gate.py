"""The gate that long work passes between two tokens or two micro-batches: may it go on, and how fast?

    gate = Gate(run, "sample.token", duty_cycle=0.5)
    decoder.run(sequences, sampling, between_tokens=lambda: version if gate.open() else None)

It looks whether the run directory holds a request to pause, which costs a microsecond or two and needs no
connection to anybody, and it rests so long that the work in between takes its share of the time.
"""

import time

from runtime import failpoints
from runtime.rundir import RunDirectory

LOOK_S = 0.05
"""How often a long rest looks at the request."""


class Gate:
    """One piece of work's own; `open` is called between its parts."""

    def __init__(self, run: RunDirectory, point: str, duty_cycle: float = 1.0) -> None:
        self._run = run
        self._point = point
        self._rest_share = 1 / duty_cycle - 1
        self._began = time.monotonic()

    def open(self) -> bool:
        """False if somebody asks to pause. Rests first, where there is a duty cycle."""
        failpoints.hit(self._point)
        if self._rest_share:
            self._rest()
        return not self._run.pause_asked()

    def _rest(self) -> None:
        until = time.monotonic() + (time.monotonic() - self._began) * self._rest_share
        while (left_s := until - time.monotonic()) > 0 and not self._run.pause_asked():
            time.sleep(min(left_s, LOOK_S))
        self._began = time.monotonic()
