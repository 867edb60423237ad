"""The conductor's side of its actors: asked with a deadline, started again when they die."""

import asyncio
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from actors import postmortem
from actors.messages import Hello
from actors.pause import Pause
from actors.system import ActorDied, ActorStuck, ActorSystem
from configs.distillation import asks_actors, reads_data, student_samples
from configs.schema import Distill, Settings, Sft
from runtime.errors import Interrupted, RunFailed

T = TypeVar("T")

BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
GRACE_S = {"sampler": 5.0, "teacher": 5.0, "verifier": 0.0, "evaluator": 0.0, "reader": 0.0}
"""How long a pause waits for a part's answer. Who samples hands over what it has at its next token; the
others are asked again afterwards. The learner is waited for: it stops between two micro-batches, or is
about to write down what it has learned."""
LATER = {"verifier", "evaluator"}
"""Started when the others are there: nobody needs them before something has been sampled."""
STUCK_WEIGHT = 2
"""A deadline that was missed counts as so many deaths: each has cost its whole length."""


class ActorPool:
    """Calls to actors. All but the learner are stateless towards the run, so a call to one that died
    is made again; a learner's death is for the caller, who must go back to a checkpoint.
    """

    def __init__(
        self, settings: Settings, system: ActorSystem, pause: Pause, logs: Path, log: Any
    ) -> None:
        self._settings = settings
        self._system = system
        self._pause = pause
        self._logs = logs
        self._log = log
        self._deaths = self._tries = 0
        self._first: tuple[str, str] | None = None
        """The first death since a step was done, and the end of that part's log: the cause, where later
        deaths are its symptoms."""
        self._reviving: dict[tuple[str, int], asyncio.Lock] = {}
        self._greeted: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.pids: dict[str, int] = {}

    async def start(self) -> None:
        """Start every actor of the program, and wait for those that learn and sample."""
        roles = roles_of(self._settings)
        first = [part for part in roles if part[0] not in LATER]
        self._begin(first)
        await together(self._greeted[part] for part in first)
        self._begin([part for part in roles if part[0] in LATER])

    def _begin(self, parts: list[tuple[str, int]]) -> None:
        """Begin to start some; who asks one waits until it has answered."""
        for part in parts:
            self._system.start(*part)
            self._greeted[part] = task = asyncio.ensure_future(self._greet(*part))
            task.add_done_callback(lambda t: t.cancelled() or t.exception())  # for who asks it

    def learner(self) -> Any:
        """The handle of the learner that lives now."""
        return self._system.actor("learner", 0)

    def step_done(self) -> None:
        """A step worked: earlier deaths count no more."""
        self._deaths, self._tries, self._first = 0, 0, None

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

    async def revive(self, role: str, index: int, dead: Any, death: ActorDied) -> None:
        """Start an actor again in the place of `dead`, after a pause.

        Several calls to one actor see the same death: the first starts it, the others find it there.
        Raises RunFailed when actors have died too often.
        """
        async with self._reviving.setdefault((role, index), asyncio.Lock()):
            while self._system.actor(role, index) is dead:
                self._pause.check(f"{role}-{index} was started again")
                self._count(f"{role}-{index}", death)
                self.pids.pop(f"{role}-{index}", None)  # the number may be another's soon
                await asyncio.sleep(min(BACKOFF_S * 2**self._deaths, LONGEST_BACKOFF_S))
                dead = self._system.start(role, index)
                try:
                    await self._hello(role, index)
                    return
                except ActorDied as again:
                    death = again

    async def _ask(
        self, role: str, index: int, method: str, arguments: tuple[Any, ...], what: str
    ) -> tuple[Any, Any]:
        if greeted := self._greeted.get((role, index)):
            await asyncio.shield(greeted)
        while True:
            part = self._system.actor(role, index)
            references = getattr(part, method).remote(*arguments)
            first = references[0] if isinstance(references, list) else references
            answer = self._system.wait(first, self._limit_s(role), what)
            if role in GRACE_S:
                answer = self._pause.bounded(answer, GRACE_S[role], what)
            try:
                return await answer, references
            except ActorDied as death:
                if role == "learner":
                    raise
                await self.revive(role, index, part, death)

    async def _greet(self, role: str, index: int) -> None:
        part = self._system.actor(role, index)
        try:
            await self._hello(role, index)
        except ActorDied as death:
            await self.revive(role, index, part, death)

    async def _hello(self, role: str, index: int) -> None:
        name = f"{role}-{index}"
        reference = self._system.actor(role, index).hello.remote()
        limit_s = self._settings.deadlines.start_s
        what = f"{name} to start"
        hello: Hello = await self._pause.bounded(
            self._system.wait(reference, limit_s, what), 0.0, what
        )
        self.pids[name] = hello.pid
        self._log.info("part started", part=name, pid=hello.pid, backend=hello.backend)

    def _count(self, name: str, death: ActorDied) -> None:
        """One death more. Raises RunFailed with the first of them when there were too many."""
        stuck = isinstance(death, ActorStuck)
        self._deaths += STUCK_WEIGHT if stuck else 1
        self._tries += 1
        self._log.warning("part died", part=name, cause=str(death), deaths=self._deaths)
        stack = postmortem.dump_stack(self.pids.get(name), self._logs, name) if stuck else ""
        if not self._first:
            what = f"{death}{stack}" if stuck else f"{name} {death}"
            self._first = what, postmortem.tail(self._logs, name)
        if self._deaths > self._settings.actors.restarts:
            what, tail = self._first
            raise RunFailed(f"{what}; {self._tries} tries without a step done{tail}")

    def _limit_s(self, role: str) -> float:
        """Who rests between pieces of work (`power.duty_cycle`) may take so much longer."""
        deadlines, duty_cycle = self._settings.deadlines, self._settings.power.duty_cycle
        limits = {
            "sampler": deadlines.generate_s / duty_cycle,
            "teacher": deadlines.generate_s / duty_cycle,
            "learner": deadlines.learn_s / duty_cycle,
        }
        return limits.get(role, deadlines.score_s)


def roles_of(settings: Settings) -> list[tuple[str, int]]:
    """The actors of a program, as (role, index)."""
    samplers = [("sampler", i) for i in range(settings.actors.samplers)]
    verifiers = [("verifier", i) for i in range(settings.actors.verifiers)]
    answering = samplers + verifiers if settings.eval.prompts else []
    match settings.algorithm:
        case Sft():
            roles = [("reader", 0), *answering]
        case Distill() as distill:
            teachers = range(len(distill.teachers)) if asks_actors(distill) else ()
            roles = [("reader", 0)] if reads_data(distill) else []
            roles += samplers + verifiers if student_samples(distill) else answering
            roles += [("teacher", i) for i in teachers]
        case _:
            roles = samplers + verifiers
    evaluator = [("evaluator", 0)] if settings.eval.prompts else []
    return [("learner", 0), *roles, *evaluator]


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """All results in order; the first failure ends the others, but a pause waits for all: each comes to
    its own end soon, and has something to hand over.
    """
    tasks = [asyncio.ensure_future(w) for w in work]
    try:
        return await asyncio.gather(*tasks)
    except Interrupted:
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
