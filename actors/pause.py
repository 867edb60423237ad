"""A pause, as the conductor sees it: known within an instant, waited for only so long.

Samplers and the learner see the request themselves, between two tokens or micro-batches; the conductor
gives them the time to hand over what they have, and waits for nobody else.
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
    """Whether somebody has asked to pause, as the conductor knows it."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._seen = asyncio.Event()

    def asked(self) -> bool:
        """Looks, and tells whoever waits."""
        if not self._seen.is_set() and self._run.pause_asked():
            failpoints.hit("pause.seen")
            self._seen.set()
        return self._seen.is_set()

    def check(self, where: str) -> None:
        """Raises Interrupted if somebody asks to pause."""
        if self.asked():
            raise Interrupted(f"paused before {where}")

    async def watch(self) -> None:
        """Look now and then, until it is cancelled."""
        while not self.asked():
            await asyncio.sleep(LOOK_S)

    async def bounded(self, work: Awaitable[T], grace_s: float, what: str) -> T:
        """The result of `work`; once a pause is asked for, for `grace_s` more at most.

        Raises Interrupted if it did not come by then: it is done anew after the pause.
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
