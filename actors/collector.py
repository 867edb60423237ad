"""Collects a step's trajectories, for every algorithm alike.

    prompts ──▶ requests ──▶ answers ──▶ settled ──▶ (teachers) ──▶ learner
                   ▲                        │
                   └── a further round, if too few prompts were useful

The algorithm says what to request and how answers are settled. The collector drives it and keeps the ledger.
"""

from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from actors.answering import Answering, Answers, Underway
from actors.messages import RunState
from actors.pool import ActorPool, together
from configs.schema import Settings
from policies.algorithms import open_algorithm
from runtime import failpoints
from runtime.errors import RunFailed
from runtime.metrics import Meter
from runtime.settlement import Row, entered
from runtime.tasks.prompt import Prompt, Task, check_teacher
from runtime.versions import WeightsVersion


class Collected(Struct, kw_only=True):
    """Holds a step's batches, with what is known about their rows."""

    state: RunState
    """Where the run stands once this step is learned."""
    answers: list[Answers] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def batches(self) -> list[Any]:
        """Returns the batches, by reference."""
        return [answers.batch for answers in self.answers]


class Collector:
    """Pulls prompts from the task's stream and turns them into trajectories that can be learned from."""

    def __init__(self, settings: Settings, pool: ActorPool, task: Task, underway: Underway) -> None:
        self._facts = settings.facts
        self._algorithm = open_algorithm(settings)
        self._answering = Answering(settings, pool, underway)
        self._task = task
        self._underway = underway

    async def collect(self, step: int, state: RunState, version: WeightsVersion) -> Collected:
        """Returns the step's batches, sampled with `version`.

        Raises RunFailed if rewards failed too many times in a row or the teachers gave nothing usable for
        any row, Interrupted if a pause is asked for.
        """
        facts, meter = self._facts, Meter()
        answers: list[Answers] = []
        cursor, pulled, wanted = state.cursor, 0, facts.prompts_per_step
        for _ in range(facts.rounds):
            prompts = self._pull(cursor if facts.fresh_prompts else 0, wanted)
            cursor += len(prompts) if facts.fresh_prompts else 0
            rows = len(prompts) * facts.answers_per_prompt
            pulled += rows
            self._underway.pulled(step, rows)
            requests = self._algorithm.requests(step, prompts)
            answers += await self._answering.answer(requests, step, version, meter)
            wanted = facts.prompts_per_step - self._settle(answers)
            meter.add("sample_rounds", 1)
            if wanted <= 0:
                break
        if facts.teachers_score:
            await self._ask_teachers(step, answers, meter)
        failpoints.hit("step.collected")
        self._refuse_useless(step, answers, meter)
        ledger = state.ledger.pull(pulled)
        for batch in answers:
            ledger = entered(ledger, batch.settled)
        return Collected(
            state=RunState(step=step, cursor=cursor, ledger=ledger),
            answers=answers,
            metrics=self._metrics(step, answers, version, meter),
        )

    def _pull(self, cursor: int, count: int) -> list[Prompt]:
        """Returns the next prompts of the stream, each with its teacher if there are any."""
        prompts = [self._task.prompt("train", cursor + i) for i in range(count)]
        if not self._facts.teachers:
            return prompts
        first = next(iter(self._facts.teachers))
        for prompt in prompts:
            check_teacher(prompt, self._facts.teachers)
        return [replace(prompt, teacher=prompt.teacher or first) for prompt in prompts]

    def _settle(self, answers: list[Answers]) -> int:
        """Settles all rows of the step so far together. Returns how many prompts were useful."""
        settlement = self._algorithm.settle(_rows(answers))
        rest = settlement.rows
        for batch in answers:
            batch.settled, rest = rest[: len(batch.rows)], rest[len(batch.rows) :]
        return settlement.useful_prompts

    async def _ask_teachers(self, step: int, answers: list[Answers], meter: Meter) -> None:
        failures = await together(
            self._answering.scored_by_teachers(step, batch, meter) for batch in answers
        )
        meter.failure = meter.failure or next(filter(None, failures), "")

    def _refuse_useless(self, step: int, answers: list[Answers], meter: Meter) -> None:
        """Raises RunFailed if teachers failed and no row is left to be trained on."""
        if meter.failure and all(row.dropped for batch in answers for row in batch.settled):
            raise RunFailed(
                f"the teachers gave nothing usable for any row of step {step}; the first: "
                f"{meter.failure}"
            )

    def _metrics(
        self, step: int, answers: list[Answers], version: WeightsVersion, meter: Meter
    ) -> dict[str, float]:
        found = {**meter.values, **self._algorithm.describe(_rows(answers))}
        if self._facts.samples:
            found["staleness_versions"] = step - 1 - version.version
        if asked := found.get("teacher_asked_rows"):
            found["teacher_cached_share"] = found["teacher_cached_rows"] / asked
        return found


def _rows(answers: list[Answers]) -> list[Row]:
    return [row for batch in answers for row in batch.rows]
