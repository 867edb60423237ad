"""The conductor's side of its actors: asked with a deadline, started again when they die."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

from actors.fleet import Fleet, PartDied, PartStuck
from actors.messages import Hello
from configs.schema import Settings, Sft
from runtime.errors import RunFailed

T = TypeVar("T")

BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
STUCK_WEIGHT = 2
"""A deadline that was missed counts as so many deaths: each has cost its whole length."""


class Parts:
    """Calls to actors. All but the learner are stateless towards the run, so a call to one that died
    is made again; a learner's death is for the caller, who must go back to a checkpoint.
    """

    def __init__(self, settings: Settings, fleet: Fleet, log: Any) -> None:
        self._settings = settings
        self._fleet = fleet
        self._log = log
        self._deaths = 0
        self._reviving: dict[tuple[str, int], asyncio.Lock] = {}
        self.pids: dict[str, int] = {}

    async def start(self) -> None:
        """Start every actor of the program and wait until all have answered."""
        roles = roles_of(self._settings)
        for role, index in roles:
            self._fleet.start(role, index)
        await together(self._greet(role, index) for role, index in roles)

    def learner(self) -> Any:
        """The handle of the learner that lives now."""
        return self._fleet.part("learner", 0)

    def step_done(self) -> None:
        """A step worked: earlier deaths count no more."""
        self._deaths = 0

    async def ask(self, role: str, index: int, method: str, *arguments: Any, what: str) -> Any:
        """The value that a method returns. `what` says what is waited for, should it not come."""
        value, _ = await self._ask(role, index, method, arguments, what)
        return value

    async def ask_two(
        self, role: str, index: int, method: str, *arguments: Any, what: str
    ) -> tuple[Any, Any]:
        """The value of a method's first result and the reference of its second."""
        value, references = await self._ask(role, index, method, arguments, what)
        return value, references[1]

    async def revive(self, role: str, index: int, dead: Any, death: PartDied) -> None:
        """Start an actor again in the place of `dead`, after a pause.

        Several calls to one actor see the same death: the first starts it, the others find it there.
        Raises RunFailed when actors have died too often.
        """
        async with self._reviving.setdefault((role, index), asyncio.Lock()):
            while self._fleet.part(role, index) is dead:
                self._deaths += STUCK_WEIGHT if isinstance(death, PartStuck) else 1
                name = f"{role}-{index}"
                self._log.warning("part died", part=name, cause=str(death), deaths=self._deaths)
                if self._deaths > self._settings.actors.restarts:
                    if isinstance(death, PartStuck):
                        raise RunFailed(str(death))
                    raise RunFailed(
                        f"{name} died {self._deaths} times without a step done: {death}"
                    )
                await asyncio.sleep(min(BACKOFF_S * 2**self._deaths, LONGEST_BACKOFF_S))
                dead = self._fleet.start(role, index)
                try:
                    await self._hello(role, index)
                    return
                except PartDied as again:
                    death = again

    async def _ask(
        self, role: str, index: int, method: str, arguments: tuple[Any, ...], what: str
    ) -> tuple[Any, Any]:
        while True:
            part = self._fleet.part(role, index)
            references = getattr(part, method).remote(*arguments)
            first = references[0] if isinstance(references, list) else references
            try:
                return await self._fleet.wait(first, self._limit_s(role), what), references
            except PartDied as death:
                if role == "learner":
                    raise
                await self.revive(role, index, part, death)

    async def _greet(self, role: str, index: int) -> None:
        part = self._fleet.part(role, index)
        try:
            await self._hello(role, index)
        except PartDied as death:
            await self.revive(role, index, part, death)

    async def _hello(self, role: str, index: int) -> None:
        name = f"{role}-{index}"
        reference = self._fleet.part(role, index).hello.remote()
        limit_s = self._settings.deadlines.start_s
        hello: Hello = await self._fleet.wait(reference, limit_s, f"{name} to start")
        self.pids[name] = hello.pid
        self._log.info("part started", part=name, pid=hello.pid, backend=hello.backend)

    def _limit_s(self, role: str) -> float:
        deadlines = self._settings.deadlines
        limits = {"sampler": deadlines.generate_s, "learner": deadlines.learn_s}
        return limits.get(role, deadlines.score_s)


def roles_of(settings: Settings) -> list[tuple[str, int]]:
    """The actors of a program, as (role, index)."""
    samplers = [("sampler", i) for i in range(settings.actors.samplers)]
    verifiers = [("verifier", i) for i in range(settings.actors.verifiers)]
    if isinstance(settings.algorithm, Sft):
        answering = samplers + verifiers if settings.eval.prompts else []
        roles = [("reader", 0), *answering]
    else:
        roles = samplers + verifiers
    evaluator = [("evaluator", 0)] if settings.eval.prompts else []
    return [("learner", 0), *roles, *evaluator]


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results in order; the first failure ends the others."""
    tasks = [asyncio.ensure_future(w) for w in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
