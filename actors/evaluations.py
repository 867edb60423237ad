"""The evaluations of a run: which are due at a step, and how each is made.

sampled     samplers answer the evaluator's prompts, verifiers judge ──▶ pass@1
compared    the reader reads held-out pairs, the learner compares them ──▶ accuracy and margin
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from actors.answering import Answering, Underway
from actors.messages import Generate
from actors.pool import ActorPool
from configs.schema import Settings
from configs.tasks import judges
from runtime.metrics import Meter
from runtime.status import (
    PASS_AT_1,
    PASS_AT_1_SAMPLED,
    PREFERENCE_ACCURACY,
    REWARD_MARGIN,
    EvalResult,
    Status,
)
from runtime.tasks.prompt import Prompt
from runtime.versions import WeightsVersion

REPORTED = {
    PASS_AT_1: "eval_pass_at_1",
    PREFERENCE_ACCURACY: "eval_preference_accuracy",
    REWARD_MARGIN: "eval_reward_margin",
}
"""Evaluations that go to Prometheus, by metric."""


class Evaluations:
    """Evaluates the base, the weights of every so many steps, and the last weights."""

    def __init__(
        self,
        settings: Settings,
        pool: ActorPool,
        underway: Underway,
        status: Status,
        doing: Callable[[str], None],
        note: Callable[[EvalResult], None],
    ) -> None:
        """Takes `doing`, which is told the present activity, and `note`, which writes a result down."""
        self._settings = settings
        self._pool = pool
        self._underway = underway
        self._answering = Answering(settings, pool, underway)
        self._status = status
        self._doing = doing
        self._note = note

    async def run(self, step: int, versions: Mapping[int, WeightsVersion]) -> None:
        """Makes the evaluations that are due at a step and not made yet."""
        if not self._is_due(step):
            return
        for metric, temperature in self._sampled().items():
            if not self._is_made(step, metric):
                await self._sample(step, metric, temperature, versions[step])
        if not all(self._is_made(step, metric) for metric in self._compared()):
            await self._compare(step)

    def due_before(self, step: int) -> Iterator[tuple[int, str]]:
        """Yields the step and metric of every evaluation that a run at `step` has made."""
        for earlier in filter(self._is_due, range(step)):
            for metric in (*self._sampled(), *self._compared()):
                yield earlier, metric

    def best(self) -> list[int]:
        """Returns the step of the best evaluation so far, by the run's first metric; [] before any."""
        metric = next(iter((*self._sampled(), *self._compared())), PASS_AT_1)
        evals = self._status.of_metric(metric)
        scored = [(e.score, e.step) for e in evals if e.step and e.score is not None]
        return [max(scored, key=lambda one: one[0])[1]] if scored else []

    def _is_due(self, step: int) -> bool:
        settings = self._settings.eval
        regular = settings.every_steps > 0 and step % settings.every_steps == 0
        return settings.prompts > 0 and (regular or step in (0, self._status.steps))

    def _is_made(self, step: int, metric: str) -> bool:
        return any(result.step == step for result in self._status.of_metric(metric))

    def _sampled(self) -> dict[str, float]:
        """Returns the metrics of sampled answers, each with its temperature."""
        settings = self._settings.eval
        if not judges(self._settings.task):
            return {}
        modes = {PASS_AT_1: settings.temperature}
        return modes | {PASS_AT_1_SAMPLED: 1.0} if settings.sampled else modes

    def _compared(self) -> tuple[str, ...]:
        """Returns the metrics of held-out answers that are compared, not sampled."""
        return (PREFERENCE_ACCURACY, REWARD_MARGIN) if self._settings.facts.reads_pairs else ()

    async def _sample(
        self, step: int, metric: str, temperature: float, version: WeightsVersion
    ) -> None:
        self._doing(f"evaluating {f'step {step}' if step else 'the base'}")
        purpose = "eval" if metric == PASS_AT_1 else "eval-sampled"
        settings = self._settings.eval
        limit = settings.max_new_tokens or self._settings.sampling.max_new_tokens

        def request(prompts: Sequence[Prompt]) -> Generate:
            return Generate(
                step=step,
                purpose=purpose,
                prompts=list(prompts),
                group_size=settings.samples if temperature else 1,
                weights=version,
                temperature=temperature,
                max_new_tokens=limit,
                top_k=settings.top_k,
                top_p=settings.top_p,
                min_p=settings.min_p,
            )

        what = f"the evaluation of step {step}"
        prompts = await self._pool.evaluator().prompts(what=f"the prompts of {what}")
        requests = [request(share) for share in self._answering.split(prompts)]
        answers = await self._answering.sampled(requests, what, Meter(), judged=True)
        result = await self._pool.evaluator().summarise(
            step,
            metric,
            [part.rows for part in answers],
            *(part.batch for part in answers),
            what=f"the evaluator to sum up {what}",
        )
        self._underway.done(purpose, step)
        self._note(result)

    async def _compare(self, step: int) -> None:
        """Measures how well the weights tell preferred answers to held-out prompts from rejected ones."""
        self._doing(f"comparing answers at {f'step {step}' if step else 'the base'}")
        what = f"the comparison of step {step}"
        prompts = await self._pool.evaluator().prompts(what=f"the prompts of {what}")
        _, batch = await self._pool.reader().read(step, prompts, what=f"the answers of {what}")
        for result in await self._pool.learner().compare(step, batch, what=what):
            if not self._is_made(step, result.metric):
                self._note(result)
