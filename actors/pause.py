"""A pause, as the conductor sees it: known within an instant, waited for only so long.

Samplers and the learner see the request themselves, between two tokens or micro-batches. The conductor
gives them the time to hand over what they have, and waits for no other actor.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from runtime import failpoints
from runtime.errors import Interrupted
from runtime.rundir import RunDirectory

T = TypeVar("T")
LOOK_S = 0.05


class Pause:
    """Knows whether a pause is asked for, as the conductor sees it."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._seen = asyncio.Event()

    def asked(self) -> bool:
        """Returns whether a pause is asked for, and wakes the calls that wait for one."""
        if not self._seen.is_set() and self._run.pause_asked():
            failpoints.hit("pause.seen")
            self._seen.set()
        return self._seen.is_set()

    def check(self, where: str) -> None:
        """Raises Interrupted if a pause is asked for."""
        if self.asked():
            raise Interrupted(f"paused before {where}")

    async def watch(self) -> None:
        """Looks for a pause now and then, until it is cancelled."""
        while not self.asked():
            await asyncio.sleep(LOOK_S)

    async def bounded(self, work: Awaitable[T], grace_s: float, what: str) -> T:
        """Returns the result of `work`. Once a pause is asked for, waits for `grace_s` more at most.

        Raises Interrupted if the result did not come by then: the work is done again after the pause.
        """
        task = asyncio.ensure_future(work)
        seen = asyncio.ensure_future(self._seen.wait())
        try:
            await asyncio.wait({task, seen}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=grace_s)
            if not task.done():
                raise Interrupted(f"paused while we waited for {what}")
            return task.result()
        finally:
            for one in (task, seen):
                one.cancel()
