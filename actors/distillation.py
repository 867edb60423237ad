"""Collecting a step of distillation: whose answers, and what the teachers say of them.

    student  prompts ──▶ samplers ──▶ (verifiers) ──▶ teachers ──▶ learner
    data     prompts ──▶ reader   ──────────────────▶ teachers ──▶ learner
    teacher  prompts ──▶ teachers ──────────────────▶ teachers ──▶ learner

The last teachers are left out where the learner's process hosts them, or their text is all that counts.
A batch passes each teacher in turn, which says something of its own rows only.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from actors.messages import Ask, Generate, RunState, Scored, TeacherReport
from actors.pool import ActorPool, together
from actors.rollouts import Collected, Rollouts, describe_answers, judged
from configs.distillation import answers_per_prompt, is_hosted
from configs.schema import Distill, FromData, FromStudent, FromTeacher, Mixed, Settings, TextOnly
from policies.teacher_advantages import from_student
from runtime import failpoints
from runtime.errors import Interrupted, RunFailed
from runtime.metrics import Meter
from runtime.tasks.prompt import Prompt, check_teacher
from runtime.versions import WeightsVersion


class _Lesson(Struct):
    """A batch by reference, the verdicts if it has any, and why a row is not trained on."""

    batch: Any
    dropped: list[str | None]
    scored: Scored | None = None
    failed: list[str] = []


class Lessons:
    """Has one step's rows made and taught."""

    def __init__(
        self, settings: Settings, distill: Distill, parts: ActorPool, rollouts: Rollouts
    ) -> None:
        self._settings = settings
        self._distill = distill
        self._pool = parts
        self._rollouts = rollouts
        self._names = list(distill.teachers)
        self._meter = Meter()
        self._first_failure = ""

    async def collect(self, step: int, state: RunState, version: WeightsVersion) -> Collected:
        """The step's batches. Raises RunFailed if the teachers said nothing usable of any row,
        Interrupted if somebody asks to pause.
        """
        distill = self._distill
        prompts = self._rollouts.pull(state.cursor, distill.prompts_per_step)
        for prompt in prompts:
            check_teacher(prompt, self._distill.teachers)
        pulled = len(prompts) * answers_per_prompt(distill)
        self._rollouts.begin_step(step, pulled)
        lessons = await self._made(step, prompts, version)
        if not is_hosted(distill) and not isinstance(distill.signal, TextOnly):
            lessons = await together(self._taught(step, lesson) for lesson in lessons)
        failpoints.hit("step.collected")
        ledger = state.ledger.pull(pulled)
        for lesson in lessons:
            reasons = [reason for reason in lesson.dropped if reason is not None]
            trained = len(lesson.dropped) - len(reasons) - len(lesson.failed)
            ledger = ledger.settle(trained, reasons, lesson.failed)
        if self._first_failure and all(r for lesson in lessons for r in lesson.dropped):
            raise RunFailed(
                f"the teachers said nothing usable of any row of step {step}; the first: "
                f"{self._first_failure}"
            )
        collected = Collected(
            state=RunState(step=step, cursor=state.cursor + len(prompts), ledger=ledger),
            batches=[lesson.batch for lesson in lessons],
            scored=[lesson.scored for lesson in lessons],
            dropped=[lesson.dropped for lesson in lessons],
        )
        collected.metrics = {**self._meter.values, **self._described(judged(collected))}
        return collected

    # ── whose answers ────────────────────────────────────────────────────────────────────────────

    async def _made(
        self, step: int, prompts: list[Prompt], version: WeightsVersion
    ) -> list[_Lesson]:
        match self._distill.learn_from:
            case FromStudent() as source:
                return await self._sampled(step, prompts, version, source.group_size)
            case FromData():
                return [await self._read(step, prompts)]
            case FromTeacher():
                return await self._answered(step, prompts)
            case Mixed() as source:
                seed = self._settings.seed
                own, data = [], []
                for prompt in prompts:
                    chosen = from_student(source.student_share, seed, "gkd", step, prompt.index)
                    (own if chosen else data).append(prompt)
                self._meter.add("student_share", len(own) / len(prompts))
                lessons = await self._sampled(step, own, version, 1) if own else []
                return [*lessons, await self._read(step, data)] if data else lessons

    async def _sampled(
        self, step: int, prompts: list[Prompt], version: WeightsVersion, group_size: int
    ) -> list[_Lesson]:
        sampling = self._settings.sampling
        requests = [
            Generate(
                step=step,
                purpose="sample",
                prompts=list(share),
                group_size=group_size,
                weights=version,
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
            )
            for share in self._rollouts.split(prompts)
        ]
        parts = await self._rollouts.answer(requests, f"step {step}", self._meter, learning=True)
        self._meter.add("staleness_versions", step - 1 - version.version)
        return [self._sorted_out(scored, batch, group_size) for _, scored, batch in parts]

    def _sorted_out(self, scored: Scored, batch: Any, group_size: int) -> _Lesson:
        """A reward that is needed and was not had drops its row; a group that has one only, all."""
        source = self._distill.learn_from
        verdicts = scored.verdicts
        if not isinstance(source, FromStudent) or not source.reward:
            return _Lesson(batch, [None] * len(verdicts), scored)
        dropped: list[str | None] = []
        for first in range(0, len(verdicts), group_size):
            group = verdicts[first : first + group_size]
            enough = sum(verdict.reward is not None for verdict in group) > 1
            dropped += [
                None if enough or verdict.reward is None else "too_few_scored" for verdict in group
            ]
        failed = [verdict.failure for verdict in verdicts if verdict.failure is not None]
        return _Lesson(batch, dropped, scored, failed)

    async def _read(self, step: int, prompts: list[Prompt]) -> _Lesson:
        dropped, batch = await self._pool.ask_two(
            "reader", 0, "read", step, prompts, what=f"the reader to read step {step}"
        )
        return _Lesson(batch, list(dropped))

    async def _answered(self, step: int, prompts: list[Prompt]) -> list[_Lesson]:
        """Each teacher's answers to its prompts."""
        work = ("sample", step)
        sampling = self._settings.sampling

        async def one(index: int, mine: list[Prompt]) -> _Lesson:
            request = Ask(
                step=step,
                prompts=mine,
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
            )
            name = self._names[index]
            what = f"teacher {name} to answer step {step}"
            earlier = self._rollouts.earlier(work)
            done, batch = await self._pool.ask_two(
                "teacher", index, "generate", request, *earlier, what=what
            )
            self._rollouts.keep(work, batch)
            self._note(done, name)
            return _Lesson(batch, list(done.dropped))

        asked = [
            (i, mine)
            for i, name in enumerate(self._names)
            if (mine := [prompt for prompt in prompts if prompt.teacher == name])
        ]
        return await together(one(index, mine) for index, mine in asked)

    # ── what the teachers say ────────────────────────────────────────────────────────────────────

    async def _taught(self, step: int, lesson: _Lesson) -> _Lesson:
        dropped = lesson.dropped
        for index, name in enumerate(self._names):
            what = f"teacher {name} to score step {step}"
            done, batch = await self._pool.ask_two(
                "teacher", index, "score", lesson.batch, dropped, what=what
            )
            self._note(done, name)
            lesson.batch, dropped = batch, list(done.dropped)
        failed = (
            {i for i, v in enumerate(lesson.scored.verdicts) if v.failure is not None}
            if (lesson.scored and lesson.failed)
            else set[int]()
        )
        lesson.dropped = [None if i in failed else reason for i, reason in enumerate(dropped)]
        return lesson

    def _note(self, done: TeacherReport, name: str) -> None:
        """Raises Interrupted if there is more to be done, after a pause."""
        self._first_failure = self._first_failure or done.first_failure
        meter = self._meter
        meter.add("teacher_busy_s", done.seconds)
        meter.add("teacher_tokens", done.tokens)
        meter.add("_cached_rows", done.cached_rows)
        meter.add("_asked_rows", done.asked_rows)
        meter.top("gpu_wait_s", done.waited_s)
        meter.top("teacher_memory_bytes", done.memory_bytes)
        if isinstance(self._distill.learn_from, FromTeacher):
            meter.add("one_token_answers", done.one_token_answers)
        if done.interrupted:
            raise Interrupted(f"paused while teacher {name} worked")

    def _described(self, scored: Sequence[Scored]) -> dict[str, float]:
        found = describe_answers(list(scored)) if scored else {}
        if not any(v.reward is not None for s in scored for v in s.verdicts):
            for name in ("reward_mean", "pass_at_1", "failed_share"):
                found.pop(name, None)
        if asked := self._meter.values.get("_asked_rows"):
            found["teacher_cached_share"] = self._meter.values["_cached_rows"] / asked
        return found
