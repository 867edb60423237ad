"""Typed handles to the actors: the calls of each, with their arguments and results.

    done, batch = await pool.sampler(0).generate(request, what="sampler-0 to answer step 3")

A payload stays where it was made: a reference to it comes back. `what` completes "waited 60 s for …".
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from actors.messages import (
    Generate,
    Generated,
    Judged,
    Learn,
    Learned,
    Restored,
    Save,
    TeacherReport,
    TeacherRequest,
)
from runtime.settlement import Row
from runtime.status import EvalResult
from runtime.tasks.prompt import Prompt

Reference = Any
"""A value that lies in the object store or in this process, by reference."""


class ActorId(Struct, frozen=True):
    """Names one actor of a run: its role, and its number among the actors of that role."""

    role: str
    index: int = 0

    @property
    def name(self) -> str:
        """Returns the name in logs, such as "sampler-0"."""
        return f"{self.role}-{self.index}"


class Asks(Protocol):
    """Makes a call to an actor, and makes it again if the actor died."""

    def __call__(
        self, actor: ActorId, call: Callable[[Any], Any], what: str
    ) -> Awaitable[tuple[Any, Any]]:
        """Returns the value of the call's (first) result, and the reference or references."""
        ...


class Handle(Struct, frozen=True):
    """Holds one actor, and the way to ask it."""

    ask: Asks
    actor: ActorId

    async def value(self, call: Callable[[Any], Any], what: str) -> Any:
        """Returns what a call with one result gives."""
        return (await self.ask(self.actor, call, what))[0]

    async def value_and_batch(self, call: Callable[[Any], Any], what: str) -> tuple[Any, Reference]:
        """Returns the first result of a call with two, and the reference of the second."""
        value, references = await self.ask(self.actor, call, what)
        return value, references[1]


class Sampler(Handle, frozen=True):
    """Asks a rollout worker."""

    async def generate(
        self, request: Generate, *earlier: Reference, what: str
    ) -> tuple[Generated, Reference]:
        """Returns what was done, and the batch. The answers in `earlier` are continued."""
        return await self.value_and_batch(lambda a: a.generate.remote(request, *earlier), what)


class Verifier(Handle, frozen=True):
    """Asks the actor that turns answers into verdicts."""

    async def score(
        self, batch: Reference, prompts: list[Prompt], judged: bool, *, what: str
    ) -> Judged:
        """Returns the rows of a batch with their verdicts."""
        return await self.value(lambda a: a.score.remote(batch, prompts, judged), what)


class Reader(Handle, frozen=True):
    """Asks the actor that makes batches of data rows."""

    async def read(
        self, step: int, prompts: list[Prompt], *, what: str
    ) -> tuple[list[Row], Reference]:
        """Returns the rows, and the batch that they are in."""
        return await self.value_and_batch(lambda a: a.read.remote(step, prompts), what)


class Teacher(Handle, frozen=True):
    """Asks the actor that answers prompts and scores the answers of others."""

    async def generate(
        self, request: TeacherRequest, *earlier: Reference, what: str
    ) -> tuple[TeacherReport, Reference]:
        """Returns what was done, and the batch of its answers."""
        return await self.value_and_batch(lambda a: a.generate.remote(request, *earlier), what)

    async def score(
        self, batch: Reference, dropped: Sequence[str | None], *, what: str
    ) -> tuple[TeacherReport, Reference]:
        """Returns what was done, and the batch with the teacher's columns."""
        return await self.value_and_batch(lambda a: a.score.remote(batch, list(dropped)), what)


class Evaluator(Handle, frozen=True):
    """Asks the actor that holds the held-out prompts and sums up the answers to them."""

    async def prompts(self, *, what: str) -> list[Prompt]:
        """Returns the held-out prompts."""
        return await self.value(lambda a: a.prompts.remote(), what)

    async def summarise(
        self, step: int, metric: str, rows: list[list[Row]], *batches: Reference, what: str
    ) -> EvalResult:
        """Returns the result of one evaluation."""
        return await self.value(lambda a: a.summarise.remote(step, metric, rows, *batches), what)


class Learner(Handle, frozen=True):
    """Asks the actor that takes steps and keeps the checkpoints."""

    async def restore(self, *, what: str) -> Restored:
        """Returns where the run stands after loading the newest good checkpoint."""
        return await self.value(lambda a: a.restore.remote(), what)

    async def learn(self, request: Learn, *batches: Reference, what: str) -> Learned:
        """Returns what one step did."""
        return await self.value(lambda a: a.learn.remote(request, *batches), what)

    async def compare(self, step: int, batch: Reference, *, what: str) -> list[EvalResult]:
        """Returns how well the learner's weights tell preferred answers from rejected ones."""
        return await self.value(lambda a: a.compare.remote(step, batch), what)

    async def save(self, request: Save, *batches: Reference, what: str) -> str:
        """Returns the optimiser's digest after checkpointing the present step."""
        return await self.value(lambda a: a.save.remote(request, *batches), what)
