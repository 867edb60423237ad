"""The actor pool: how the conductor asks its actors, with a deadline, and starts them again when they die."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from actors import handles, postmortem
from actors.handles import ActorId
from actors.messages import Hello
from actors.pause import Pause
from actors.system import ActorDied, ActorStuck, ActorSystem
from configs.schema import Settings
from configs.tasks import judges
from runtime.errors import Interrupted, RunFailed

T = TypeVar("T")

ACTOR_STARTED = "actor started"
"""The event in the conductor's log from which a measurement takes how long a start took."""
BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
GRACE_S = {"sampler": 5.0, "teacher": 5.0, "verifier": 0.0, "evaluator": 0.0, "reader": 0.0}
"""The seconds for which a pause waits for an actor's answer. Samplers and teachers hand over what they have
at the next token; verifiers, the reader and the evaluator are asked again afterwards. The learner is waited
for: it stops between two micro-batches, or is about to write what it has learned.
"""
LATER = {"verifier", "evaluator"}
"""Roles that are started when the others have started: they are not needed before something has been
sampled.
"""
STUCK_WEIGHT = 2
"""The number of deaths that a missed deadline counts as: each has cost its whole length."""


class ActorPool:
    """Makes calls to actors. All but the learner are stateless towards the run, so a call to one that
    died is made again. A learner's death is for the caller, which must go back to a checkpoint.
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
        """The first death since a step was done, and the end of that actor's log: the cause, where later
        deaths are its symptoms."""
        self._reviving: dict[ActorId, asyncio.Lock] = {}
        self._greeted: dict[ActorId, asyncio.Task[None]] = {}
        self.pids: dict[str, int] = {}

    async def start(self) -> None:
        """Starts every actor of the program, and waits for those that learn and sample."""
        actors = actors_of(self._settings)
        first = [actor for actor in actors if actor.role not in LATER]
        self._begin(first)
        await together(self._greeted[actor] for actor in first)
        self._begin([actor for actor in actors if actor.role in LATER])

    def _begin(self, actors: list[ActorId]) -> None:
        """Begins to start some actors. A call to one of them waits until the actor has answered."""
        for actor in actors:
            self._system.start(actor)
            self._greeted[actor] = task = asyncio.ensure_future(self._greet(actor))
            task.add_done_callback(
                lambda t: t.cancelled() or t.exception()
            )  # an error is raised where the actor is asked

    def sampler(self, index: int) -> handles.Sampler:
        """Returns the handle of a sampler."""
        return handles.Sampler(self._ask, ActorId("sampler", index))

    def verifier(self, index: int) -> handles.Verifier:
        """Returns the handle of a verifier."""
        return handles.Verifier(self._ask, ActorId("verifier", index))

    def teacher(self, index: int) -> handles.Teacher:
        """Returns the handle of a teacher."""
        return handles.Teacher(self._ask, ActorId("teacher", index))

    def reader(self) -> handles.Reader:
        """Returns the handle of the reader."""
        return handles.Reader(self._ask, ActorId("reader"))

    def evaluator(self) -> handles.Evaluator:
        """Returns the handle of the evaluator."""
        return handles.Evaluator(self._ask, ActorId("evaluator"))

    def learner(self) -> handles.Learner:
        """Returns the handle of the learner. Its calls raise ActorDied: they are not made again."""
        return handles.Learner(self._ask, ActorId("learner"))

    def process_of(self, actor: ActorId) -> Any:
        """Returns the handle of the actor's present process, which a restart replaces."""
        return self._system.actor(actor)

    def step_done(self) -> None:
        """Forgets earlier deaths, because a step worked."""
        self._deaths, self._tries, self._first = 0, 0, None

    async def revive(self, actor: ActorId, dead: Any, death: ActorDied) -> None:
        """Starts an actor again in the place of `dead`, after a wait.

        Several calls to one actor see the same death: the first starts the actor, the others find it
        started. Raises RunFailed when actors have died too often.
        """
        async with self._reviving.setdefault(actor, asyncio.Lock()):
            while self._system.actor(actor) is dead:
                self._pause.check(f"{actor.name} was started again")
                self._count(actor.name, death)
                self.pids.pop(actor.name, None)  # another process may get the number soon
                await asyncio.sleep(min(BACKOFF_S * 2**self._deaths, LONGEST_BACKOFF_S))
                dead = self._system.start(actor)
                try:
                    await self._hello(actor)
                    return
                except ActorDied as again:
                    death = again

    async def _ask(self, actor: ActorId, call: Callable[[Any], Any], what: str) -> tuple[Any, Any]:
        if greeted := self._greeted.get(actor):
            await asyncio.shield(greeted)
        while True:
            asked = self._system.actor(actor)
            references = call(asked)
            first = references[0] if isinstance(references, list) else references
            answer = self._system.wait(first, self._limit_s(actor.role), what)
            if actor.role in GRACE_S:
                answer = self._pause.bounded(answer, GRACE_S[actor.role], what)
            try:
                return await answer, references
            except ActorDied as death:
                if actor.role == "learner":
                    raise
                await self.revive(actor, asked, death)

    async def _greet(self, actor: ActorId) -> None:
        greeted = self._system.actor(actor)
        try:
            await self._hello(actor)
        except ActorDied as death:
            await self.revive(actor, greeted, death)

    async def _hello(self, actor: ActorId) -> None:
        reference = self._system.actor(actor).hello.remote()
        limit_s = self._settings.deadlines.start_s
        what = f"{actor.name} to start"
        hello: Hello = await self._pause.bounded(
            self._system.wait(reference, limit_s, what), 0.0, what
        )
        self.pids[actor.name] = hello.pid
        self._log.info(ACTOR_STARTED, name=actor.name, pid=hello.pid, backend=hello.backend)

    def _count(self, name: str, death: ActorDied) -> None:
        """Counts one more death. Raises RunFailed with the first death when there were too many."""
        stuck = isinstance(death, ActorStuck)
        self._deaths += STUCK_WEIGHT if stuck else 1
        self._tries += 1
        self._log.warning("actor died", name=name, cause=str(death), deaths=self._deaths)
        stack = postmortem.dump_stack(self.pids.get(name), self._logs, name) if stuck else ""
        if not self._first:
            what = f"{death}{stack}" if stuck else f"{name} {death}"
            self._first = what, postmortem.tail(self._logs, name)
        if self._deaths > self._settings.actors.restarts:
            what, tail = self._first
            raise RunFailed(f"{what}; {self._tries} tries without a step done{tail}")

    def _limit_s(self, role: str) -> float:
        """Returns the deadline of a role. An actor that is throttled (`power.duty_cycle`) may take so
        much longer.
        """
        deadlines, duty_cycle = self._settings.deadlines, self._settings.power.duty_cycle
        limits = {
            "sampler": deadlines.generate_s / duty_cycle,
            "teacher": deadlines.generate_s / duty_cycle,
            "learner": deadlines.learn_s / duty_cycle,
        }
        return limits.get(role, deadlines.score_s)


def actors_of(settings: Settings) -> list[ActorId]:
    """Returns the actors of a run."""
    facts, evaluated = settings.facts, settings.eval.prompts > 0
    actors = [ActorId("learner")]
    if facts.reads_data:
        actors.append(ActorId("reader"))
    if facts.samples or (evaluated and judges(settings.task)):
        actors += [ActorId("sampler", i) for i in range(settings.actors.samplers)]
        actors += [ActorId("verifier", i) for i in range(settings.actors.verifiers)]
    if facts.asks_teachers:
        actors += [ActorId("teacher", i) for i in range(len(facts.teachers))]
    return [*actors, ActorId("evaluator")] if evaluated else actors


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """Returns all results in order. The first failure cancels the others. A pause waits for all of
    them: each ends soon, and has something to hand over.
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
