"""Sends requests to samplers and verifiers, to the reader and to teachers, and gathers their answers.

The batches stay where they are: only references and facts about rows pass through here. Answers that
were sampled for work that is not done are kept by reference, so that a pause can make them durable.
"""

import time
from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from actors.messages import (
    Generate,
    Generated,
    Judged,
    Members,
    TeacherReport,
    TeacherRequest,
    Unfinished,
)
from actors.pool import ActorPool, together
from configs.schema import Settings
from policies.algorithms.protocol import AskTeacher, Read, Request, Sample
from runtime.errors import Interrupted
from runtime.metrics import Meter
from runtime.settlement import Row, Settled
from runtime.trajectory import StopReason
from runtime.versions import WeightsVersion

T = TypeVar("T")
Work = tuple[str, int]
"""The purpose of some answers ("sample" or "eval"), and their step."""


class Answers(Struct, kw_only=True):
    """Holds one batch of answers: the rows by reference, the facts about them, and the decisions."""

    batch: Any
    rows: list[Row]
    settled: list[Settled] = []


class Underway:
    """Holds what was sampled for steps and evaluations that are not done, and the answers that a pause
    interrupted.
    """

    def __init__(self) -> None:
        self._sampled: dict[Work, list[Any]] = {}
        self._earlier: dict[Work, Any] = {}
        self._pulled: dict[int, int] = {}

    def begin(self, earlier: dict[Work, Any]) -> None:
        """Begins at a checkpoint, which holds the answers in `earlier` to later work."""
        self._sampled = {work: [batch] for work, batch in earlier.items()}
        self._earlier = earlier
        self._pulled = {}

    def done(self, purpose: str, step: int) -> None:
        """Forgets the answers of a step that is learned, or of an evaluation that is noted: they are
        finished.
        """
        self._sampled.pop((purpose, step), None)
        self._earlier.pop((purpose, step), None)
        if purpose == "sample":
            self._pulled.pop(step, None)

    def pulled(self, step: int, trajectories: int) -> None:
        """Counts that so many more trajectories of a step are in flight."""
        self._pulled[step] = self._pulled.get(step, 0) + trajectories

    def keep(self, work: Work, batch: Any) -> None:
        """Keeps what was made for work that is not done."""
        self._sampled.setdefault(work, []).append(batch)

    def earlier(self, work: Work) -> list[Any]:
        """Returns what a pause had interrupted, as arguments for the call that goes on with it."""
        return [self._earlier[work]] if work in self._earlier else []

    def unfinished(self) -> tuple[list[Unfinished], list[Any]]:
        """Returns all that was sampled for work that is not done: what it is for, and the batches."""
        works = [
            Unfinished(purpose=purpose, step=step, batches=len(batches))
            for (purpose, step), batches in self._sampled.items()
        ]
        return works, [batch for batches in self._sampled.values() for batch in batches]

    @property
    def in_flight(self) -> int:
        """Returns how many trajectories were pulled and are not learned or dropped for good."""
        return sum(self._pulled.values())


class Answering:
    """Sends requests to the actors and gives back one `Answers` for each batch, in order."""

    def __init__(self, settings: Settings, pool: ActorPool, underway: Underway) -> None:
        self._settings = settings
        self._facts = settings.facts
        self._pool = pool
        self._underway = underway
        self._teachers = list(self._facts.teachers)

    async def answer(
        self, requests: Sequence[Request], step: int, version: WeightsVersion, meter: Meter
    ) -> list[Answers]:
        """Returns the answers of a training step, after sending its requests to the actors.

        Raises RunFailed if rewards failed too many times in a row. Raises Interrupted if a pause is
        asked for, once every sampler has handed over what it has.
        """
        what = f"step {step}"
        generate: list[Generate] = []
        other: list[Read | AskTeacher] = []
        for request in requests:
            if isinstance(request, Sample):
                generate += self._generates(request, step, version)
            else:
                other.append(request)
        found = []
        if generate:
            judged = self._facts.needs_reward
            found += await self.sampled(generate, what, meter, judged=judged)
        found += await together(self._other(request, step, meter) for request in other)
        return found

    async def sampled(
        self, requests: list[Generate], what: str, meter: Meter, *, judged: bool
    ) -> list[Answers]:
        """Returns the answer to each request, sampled by a sampler and judged as soon as it comes."""
        began = time.perf_counter()
        found = await together(
            self._one(i, request, what, judged) for i, request in enumerate(requests)
        )
        meter.add("answer_s", time.perf_counter() - began)
        meter.add("sampler_busy_s", max(done.seconds for done, _, _ in found))
        meter.add("sampler_tokens", sum(done.sampled_tokens for done, _, _ in found))
        meter.add("verifier_busy_s", sum(judged.seconds for _, judged, _ in found))
        meter.top("gpu_wait_s", max(done.waited_s for done, _, _ in found))
        meter.add("weights_load_s", max(done.loaded_s for done, _, _ in found))
        meter.top("sampler_memory_bytes", max(done.memory_bytes for done, _, _ in found))
        return [Answers(batch=batch, rows=judged.rows) for _, judged, batch in found]

    def split(self, items: Sequence[T]) -> list[Sequence[T]]:
        """Returns a share for each sampler, in order, none of them empty."""
        count = min(self._settings.actors.samplers, len(items))
        return [
            items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)
        ]

    async def scored_by_teachers(self, step: int, answers: Answers, meter: Meter) -> str:
        """Sends a batch to each teacher in turn, which scores its rows. Returns a sentence on the first
        row that a teacher could not score, or "". A row for which no teacher output is usable is
        dropped.
        """
        failure = ""
        dropped = [row.dropped for row in answers.settled]
        for index, name in enumerate(self._teachers):
            what = f"teacher {name} to score step {step}"
            done, answers.batch = await self._pool.teacher(index).score(
                answers.batch, dropped, what=what
            )
            failure = failure or self._note(done, name, meter)
            dropped = list(done.dropped)
        answers.settled = [
            row if row.failure is not None else replace(row, dropped=reason)
            for row, reason in zip(answers.settled, dropped)
        ]
        return failure

    # ── one request ──────────────────────────────────────────────────────────────────────────────

    def _generates(self, request: Sample, step: int, version: WeightsVersion) -> list[Generate]:
        """Returns a request for each sampler: a share of the prompts, or of the population."""

        def generate(prompts: Sequence[Any], members: Members | None) -> Generate:
            return Generate(
                step=step,
                purpose="sample",
                prompts=list(prompts),
                group_size=request.answers,
                weights=version,
                temperature=request.temperature,
                max_new_tokens=self._settings.sampling.max_new_tokens,
                members=members,
                likelihood=request.likelihood,
            )

        if not request.members:
            return [generate(share, None) for share in self.split(request.prompts)]
        return [
            generate(request.prompts, Members(first=share[0], count=len(share)))
            for share in self.split(range(request.answers))
        ]

    async def _one(
        self, i: int, request: Generate, what: str, judged: bool
    ) -> tuple[Generated, Judged, Any]:
        work = (request.purpose, request.step)
        done, batch = await self._pool.sampler(i).generate(
            request, *self._underway.earlier(work), what=f"sampler-{i} to answer {what}"
        )
        self._underway.keep(work, batch)
        if done.interrupted:
            raise Interrupted(f"paused while sampler-{i} answered {what}")
        judge = i % self._settings.actors.verifiers
        verdicts = await self._pool.verifier(judge).score(
            batch, request.prompts, judged, what=f"verifier-{judge} to score {what}"
        )
        return done, verdicts, batch

    async def _other(self, request: Read | AskTeacher, step: int, meter: Meter) -> Answers:
        if isinstance(request, Read):
            rows, batch = await self._pool.reader().read(
                step, list(request.prompts), what=f"the reader to read step {step}"
            )
            return Answers(batch=batch, rows=rows)
        return await self._by_teacher(request, step, meter)

    async def _by_teacher(self, request: AskTeacher, step: int, meter: Meter) -> Answers:
        name, work = request.teacher, ("sample", step)
        sampling = self._settings.sampling
        asked = TeacherRequest(
            step=step,
            prompts=list(request.prompts),
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
        )
        done, batch = await self._pool.teacher(self._teachers.index(name)).generate(
            asked, *self._underway.earlier(work), what=f"teacher {name} to answer step {step}"
        )
        self._underway.keep(work, batch)
        meter.add("one_token_answers", done.one_token_answers)
        meter.failure = meter.failure or self._note(done, name, meter)
        rows = [
            Row(
                prompt=prompt.index, sample=0, tokens=0, stop_reason=StopReason.DATA, dropped=reason
            )
            for prompt, reason in zip(request.prompts, done.dropped)
        ]
        return Answers(batch=batch, rows=rows)

    def _note(self, done: TeacherReport, name: str, meter: Meter) -> str:
        """Notes a teacher's work. Returns its first failure. Raises Interrupted if a pause cut it
        short.
        """
        meter.add("teacher_busy_s", done.seconds)
        meter.add("teacher_tokens", done.tokens)
        meter.add("teacher_cached_rows", done.cached_rows)
        meter.add("teacher_asked_rows", done.asked_rows)
        meter.top("gpu_wait_s", done.waited_s)
        meter.top("teacher_memory_bytes", done.memory_bytes)
        if done.interrupted:
            raise Interrupted(f"paused while teacher {name} worked")
        return done.first_failure
