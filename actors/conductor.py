"""The conductor: drives a run and holds no arrays, only references to them.

    for each step:
        prompts ──▶ samplers ──▶ batches ──▶ verifiers ──▶ verdicts
        batches + verdicts ──▶ learner ──▶ weights version, checkpoint
        now and then: samplers answer the evaluator's prompts

All it knows between two steps is a `RunState`, which the learner's checkpoint holds. So any part may
die: the others are started and asked again, and their keys make them answer the same; if the learner
or the conductor dies, the run goes on from the checkpoint. A pause makes a checkpoint that also has the
answers under way, and ends; to go on from it is to go on from any other.
"""

import asyncio
import math
import os
import time
from collections.abc import Callable, Sequence

import msgspec

from actors.answering import Answering, Underway
from actors.collector import Collected, Collector
from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Generate, Learn, Learned, Restored, RunState, Save
from actors.pause import Pause
from actors.pool import ActorPool
from actors.system import ActorDied, ActorSystem
from configs.schema import Settings
from configs.tasks import judges
from runtime import failpoints
from runtime.errors import Interrupted, PippinError, RunFailed
from runtime.metrics import METRICS, Meter
from runtime.mismatch import mismatch_doubt
from runtime.rundir import RunDirectory
from runtime.status import (
    PASS_AT_1,
    PASS_AT_1_SAMPLED,
    PREFERENCE_ACCURACY,
    REWARD_MARGIN,
    EvalResult,
    Status,
)
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Prompt
from runtime.versions import WeightsVersion

REPORTED_EVALS = {
    PASS_AT_1: "eval_pass_at_1",
    PREFERENCE_ACCURACY: "eval_preference_accuracy",
    REWARD_MARGIN: "eval_reward_margin",
}
"""Evaluations that go to Prometheus, by metric."""

Report = Callable[[dict[str, float]], None]
"""Where metrics go besides the run directory: Ray's Prometheus export."""


class Conductor:
    """Runs one program from its newest checkpoint to its end."""

    def __init__(
        self,
        settings: Settings,
        run: RunDirectory,
        system: ActorSystem,
        report: Report | None = None,
    ) -> None:
        self._settings = settings
        self._run = run
        self._report = report or (lambda metrics: None)
        self._log = open_log(run.logs, "conductor")
        self._task = open_task(settings.task, settings.seed)
        self._task.close()  # hands out prompts; judging them is the verifiers' work
        self._pause = Pause(run)
        self._pool = ActorPool(settings, system, self._pause, run.logs, self._log)
        self._underway = Underway()
        self._collector = Collector(settings, self._pool, self._task, self._underway)
        self._answering = Answering(settings, self._pool, self._underway)
        self._status = run.read_status()
        self._status.steps, self._status.message = settings.algorithm.steps, ""
        self._launcher = {k: v for k, v in self._status.pids.items() if k == "supervisor"}
        self._versions: dict[int, WeightsVersion] = {}
        self._clock = time.monotonic()
        self._state = RunState()
        """Where the run stands: behind the last step that is learned."""
        self._learning = 0
        """The step that the learner takes now."""
        self._seconds = 0.0
        """Of all steps so far, evaluations not counted."""
        self._lag = settings.facts.max_lag

    async def run(self, dashboard: str = "") -> Status:
        """Run to the end. Raises RunFailed with the first cause, Interrupted after a pause."""
        self._status.dashboard = dashboard
        watch = asyncio.ensure_future(self._watch())
        try:
            self._doing("starting the actors", "starting")
            await self._pool.start()
            while True:
                learner = ActorId("learner")
                living = self._pool.living(learner)
                try:
                    await self._go_on()
                    break
                except (
                    ActorDied
                ) as death:  # the learner: all others are asked again where they died
                    await self._pool.revive(learner, living, death)
        except Interrupted:
            raise
        except PippinError as error:
            if error.__cause__ is not None:  # an actor's, with the stack that it had there
                self._log.error("a part failed", trace=str(error.__cause__))
            self._fail(str(error))
            raise
        except Exception as error:
            self._log.exception("failed")
            self._fail(f"the conductor failed: {type(error).__name__}: {error}")
            raise RunFailed(self._status.message) from error
        finally:
            watch.cancel()
        self._doing("done", "finished")
        return self._status

    async def _watch(self) -> None:
        """See a pause at once; a step that is being learned may take a while to a place to stop at."""
        await self._pause.watch()
        if self._learning:
            self._doing(f"learning step {self._learning}", "pausing")

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────

    async def _go_on(self) -> None:
        """From the newest checkpoint to the last step."""
        await self._stand_at_checkpoint()
        ahead: asyncio.Task[Collected] | None = None
        try:
            await self._evaluate_if_due(self._state.step)
            while self._state.step < self._status.steps:
                self._clock = time.monotonic()
                step = self._state.step + 1
                collected = await (ahead or self._collect(step, self._state))
                ahead = None
                if self._lag and step < self._status.steps:
                    ahead = asyncio.create_task(self._collect(step + 1, collected.state))
                learned = await self._learn(step, collected)
                self._state = collected.state
                self._note(collected, learned)
                await self._evaluate_if_due(step)
        except Interrupted:
            if ahead is not None:  # it comes to its own end, with answers to be kept
                await asyncio.gather(ahead, return_exceptions=True)
            await self._save()
            raise
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def _stand_at_checkpoint(self) -> None:
        restored = await self._pool.learner().restore(
            what="the learner to load the newest checkpoint"
        )
        self._state = self._adopt(restored)
        learner = self._pool.living(ActorId("learner"))
        self._underway.begin(
            {
                (work.purpose, work.step): learner.earlier.remote(work.purpose, work.step)
                for work in restored.unfinished
            }
        )

    def _adopt(self, restored: Restored) -> RunState:
        """Make the run directory say what the checkpoint says; what came later is done anew."""
        state = restored.state
        # What is of this very step is made again, if it is lost.
        steps = ((step, None) for step in range(1, state.step))
        metrics = (*self._sampled_modes(), *self._compared_metrics())
        evals = ((s, m) for s in range(state.step) if self._is_eval_due(s) for m in metrics)
        notes = [
            restored.note,
            self._run.keep_lines("metrics.jsonl", state.step, steps),
            self._run.keep_lines("evals.jsonl", state.step, evals),
        ]
        status = self._status
        status.evals = [
            msgspec.convert(line, EvalResult) for line in self._run.read_lines("evals.jsonl")
        ]
        status.step = state.step
        self._seconds = state.seconds
        status.weights_digest = restored.weights.digest
        status.optimizer_digest = restored.optimizer_digest
        status.trajectories_digest = restored.trajectories_digest
        self._versions = {version.version: version for version in restored.versions}
        noted = self._run.read_lines("metrics.jsonl")
        if state.step and (not noted or noted[-1]["step"] != state.step):
            # The learner had checkpointed the step when somebody died before it was noted.
            line = {"step": state.step, **step_metrics(restored.metrics)}
            self._run.append_line("metrics.jsonl", line)
        status.message = "; ".join(filter(None, notes))
        self._log.info("restored", step=state.step, note=status.message)
        return state

    async def _collect(self, step: int, state: RunState) -> Collected:
        self._doing(f"collecting step {step}")
        # Exactly so many versions behind, never whichever is the newest: a run repeats.
        version = self._versions[max(step - 1 - self._lag, 0)]
        return await self._collector.collect(step, state, version)

    async def _learn(self, step: int, collected: Collected) -> Learned:
        self._doing(f"learning step {step}")
        collected.state = msgspec.structs.replace(
            collected.state, seconds=self._seconds + time.monotonic() - self._clock
        )
        request = Learn(
            step=step,
            settled=[answers.settled for answers in collected.answers],
            state=collected.state,
            checkpoint=step == self._status.steps
            or step % self._settings.checkpoint.every_steps == 0,
            keep=self._best(),
            metrics=collected.metrics,
        )
        self._learning = step
        try:
            learned = await self._pool.learner().learn(
                request, *collected.batches, what=f"the learner to learn step {step}"
            )
        finally:
            self._learning = 0
        failpoints.hit("step.learned")
        self._underway.done("sample", step)
        self._versions[step] = learned.weights
        for version in [v for v in self._versions if v < step - self._lag]:
            del self._versions[version]
        return learned

    async def _save(self) -> None:
        """A pause loses nothing: not a step without a checkpoint, not an answer half sampled."""
        self._doing("saving what is under way", "pausing")
        works, batches = self._underway.unfinished()
        request = Save(
            state=msgspec.structs.replace(self._state, seconds=self._seconds),
            keep=self._best(),
            metrics=self._status.metrics,
            unfinished=works,
        )
        what = f"the learner to save step {self._state.step}"
        try:
            digest = await self._pool.learner().save(request, *batches, what=what)
        except ActorDied as death:  # the newest checkpoint stands; what came later is done anew
            self._log.warning("paused without saving", cause=str(death))
            return
        self._status.optimizer_digest = digest or self._status.optimizer_digest
        failpoints.hit("pause.saved")
        self._write()

    async def _evaluate_if_due(self, step: int) -> None:
        if not self._is_eval_due(step):
            return
        for metric, temperature in self._sampled_modes().items():
            if not self._is_evaluated(step, metric):
                await self._evaluate(step, metric, temperature)
        compared = self._compared_metrics()
        if compared and not all(self._is_evaluated(step, metric) for metric in compared):
            await self._compare(step)

    def _is_evaluated(self, step: int, metric: str) -> bool:
        return any(result.step == step for result in self._status.of_metric(metric))

    def _sampled_modes(self) -> dict[str, float]:
        """Returns the metrics of sampled answers, each with its temperature."""
        settings = self._settings.eval
        if not judges(self._settings.task):
            return {}
        modes = {PASS_AT_1: settings.temperature}
        return modes | {PASS_AT_1_SAMPLED: 1.0} if settings.sampled else modes

    def _compared_metrics(self) -> tuple[str, ...]:
        """Returns the metrics of held-out answers that are compared, not sampled."""
        return (PREFERENCE_ACCURACY, REWARD_MARGIN) if self._settings.facts.reads_pairs else ()

    def _is_eval_due(self, step: int) -> bool:
        """The base, every `every_steps`, and the last weights."""
        settings = self._settings.eval
        regular = settings.every_steps > 0 and step % settings.every_steps == 0
        return settings.prompts > 0 and (regular or step in (0, self._status.steps))

    async def _evaluate(self, step: int, metric: str, temperature: float) -> None:
        self._doing(f"evaluating {f'step {step}' if step else 'the base'}")
        purpose = "eval" if metric == PASS_AT_1 else "eval-sampled"
        settings, version = self._settings.eval, self._versions[step]
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
        self._note_evaluation(result)

    async def _compare(self, step: int) -> None:
        """Evaluates how well the weights tell the preferred answers of held-out prompts from the rejected."""
        self._doing(f"comparing answers at {f'step {step}' if step else 'the base'}")
        what = f"the comparison of step {step}"
        prompts = await self._pool.evaluator().prompts(what=f"the prompts of {what}")
        _, batch = await self._pool.reader().read(step, prompts, what=f"the answers of {what}")
        for result in await self._pool.learner().compare(step, batch, what=what):
            if not self._is_evaluated(step, result.metric):
                self._note_evaluation(result)

    def _note_evaluation(self, result: EvalResult) -> None:
        self._status.evals.append(result)
        self._run.append_line("evals.jsonl", result)
        failpoints.hit("eval.noted")
        if result.score is not None and result.metric in REPORTED_EVALS:
            self._report({REPORTED_EVALS[result.metric]: result.score})
        self._write()

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    def _note(self, collected: Collected, learned: Learned) -> None:
        """Write down what a step did; the learner has made it durable already."""
        self._pool.step_done()
        seconds = time.monotonic() - self._clock
        metrics = step_metrics({**collected.metrics, **learned.metrics}, seconds)
        status = self._status
        status.step, status.metrics = self._state.step, metrics
        status.message = mismatch_doubt(metrics, self._settings.mismatch) or status.message
        status.weights_digest = learned.weights.digest
        status.optimizer_digest = learned.optimizer_digest or status.optimizer_digest
        status.trajectories_digest = learned.trajectories_digest
        self._seconds += seconds
        status.seconds = self._seconds
        status.eta_s = self._seconds / status.step * (status.steps - status.step)
        self._run.append_line("metrics.jsonl", {"step": status.step, **metrics})
        failpoints.hit("step.noted")
        self._report(metrics)
        self._write()

    def _best(self) -> list[int]:
        """Returns the step of the best evaluation so far, by the run's first metric: its checkpoint stays."""
        metric = next(iter((*self._sampled_modes(), *self._compared_metrics())), PASS_AT_1)
        evals = self._status.of_metric(metric)
        scored = [(e.score, e.step) for e in evals if e.step and e.score is not None]
        return [max(scored, key=lambda one: one[0])[1]] if scored else []

    def _fail(self, cause: str) -> None:
        self._log.error("failed", cause=cause)
        self._status.message = cause
        self._doing("stopped by a failure", "failed")

    def _doing(self, doing: str, state: str = "running") -> None:
        """Say what is being done, and since when; a boundary at which a pause takes effect."""
        self._status.doing, self._status.state, self._status.since = doing, state, time.time()
        self._write()
        if state == "running":
            self._pause.check(doing)

    def _write(self) -> None:
        ledger = self._state.ledger.pull(self._underway.in_flight)
        self._status.ledger = ledger.as_dict()
        self._status.pids = {**self._launcher, "conductor": os.getpid(), **self._pool.pids}
        self._run.write_status(self._status)


def step_metrics(raw: dict[str, float], seconds: float | None = None) -> dict[str, float]:
    """The step's metrics under their public names: rates, and what each role waited, where the
    step's own seconds are known.
    """
    values = dict(raw)
    teacher = ("teacher",) if "teacher_busy_s" in values else ()
    for role in ("sampler", "learner", "verifier", *teacher):
        busy = values.setdefault(f"{role}_busy_s", 0.0)
        if seconds is not None:
            values["step_seconds"] = seconds
            values[f"{role}_wait_s"] = max(seconds - busy, 0.0)
    values["sampler_tokens_per_s"] = _rate(
        values.get("sampler_tokens", 0), values["sampler_busy_s"]
    )
    if teacher:
        values["teacher_tokens_per_s"] = _rate(values["teacher_tokens"], values["teacher_busy_s"])
    values["learner_tokens_per_s"] = _rate(
        values.pop("learner_tokens", 0), values["learner_busy_s"]
    )
    # JSON has no NaN: a number that is none is left out.
    return {n: float(values[n]) for n in METRICS if n in values and math.isfinite(values[n])}


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
