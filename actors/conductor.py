"""The conductor: drives a run and holds no arrays, only references to them.

    for each step:
        prompts ──▶ samplers ──▶ batches ──▶ verifiers ──▶ verdicts
        batches + verdicts ──▶ learner ──▶ weights version, checkpoint
        now and then: samplers answer the evaluator's prompts

All that the conductor knows between two steps is a `RunState`, which the learner's checkpoint holds. So
any actor may die. If the learner or the conductor dies, the run goes on from the checkpoint; any other
actor is started and asked again, and its random keys make it give the same answer. A pause makes a
checkpoint that also holds the unfinished answers, and ends the process; the run resumes from it as from
any other checkpoint.
"""

import asyncio
import os
import time
from collections.abc import Callable

import msgspec

from actors.answering import Underway
from actors.collector import Collected, Collector
from actors.evaluations import REPORTED, Evaluations
from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Learn, Learned, Restored, RunState, Save
from actors.pause import Pause
from actors.pool import ActorPool
from actors.step_metrics import step_metrics
from actors.system import ActorDied, ActorSystem
from configs.schema import Settings
from runtime import failpoints
from runtime.errors import Interrupted, PippinError, RunFailed
from runtime.mismatch import mismatch_doubt
from runtime.rundir import RunDirectory
from runtime.status import EvalResult, Status
from runtime.tasks.open import open_task
from runtime.versions import WeightsVersion

Report = Callable[[dict[str, float]], None]
"""The place besides the run directory to which metrics go: Ray's Prometheus export."""


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
        self._task.close()  # it gives prompts; the verifiers judge the answers
        self._pause = Pause(run)
        self._pool = ActorPool(settings, system, self._pause, run.logs, self._log)
        self._underway = Underway()
        self._collector = Collector(settings, self._pool, self._task, self._underway)
        self._status = run.read_status()
        self._status.steps, self._status.message = settings.algorithm.steps, ""
        self._evaluations = Evaluations(
            settings, self._pool, self._underway, self._status, self._doing, self._note_evaluation
        )
        self._launcher = {k: v for k, v in self._status.pids.items() if k == "supervisor"}
        self._versions: dict[int, WeightsVersion] = {}
        self._clock = time.monotonic()
        self._state = RunState()
        """The state behind the last step that is learned."""
        self._learning = 0
        """The step that the learner takes now."""
        self._seconds = 0.0
        """The seconds of all steps so far; evaluations are not counted."""
        self._lag = settings.facts.max_lag

    async def run(self, dashboard: str = "") -> Status:
        """Runs to the end. Raises RunFailed with the first cause, Interrupted after a pause."""
        self._status.dashboard = dashboard
        watch = asyncio.ensure_future(self._watch())
        try:
            self._doing("starting the actors", "starting")
            await self._pool.start()
            while True:
                learner = ActorId("learner")
                process = self._pool.process_of(learner)
                try:
                    await self._go_on()
                    break
                except ActorDied as death:  # the learner's; calls to other actors are repeated
                    await self._pool.revive(learner, process, death)
        except Interrupted:
            raise
        except PippinError as error:
            if error.__cause__ is not None:  # an actor's, with the stack that it had there
                self._log.error("an actor failed", trace=str(error.__cause__))
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
        """Notices a pause at once. A step that is being learned may take a while until it can stop."""
        await self._pause.watch()
        if self._learning:
            self._doing(f"learning step {self._learning}", "pausing")

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────

    async def _go_on(self) -> None:
        """Runs from the newest checkpoint to the last step."""
        await self._stand_at_checkpoint()
        ahead: asyncio.Task[Collected] | None = None
        try:
            await self._evaluations.run(self._state.step, self._versions)
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
                await self._evaluations.run(step, self._versions)
        except Interrupted:
            if ahead is not None:  # it ends by itself, with answers that are kept
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
        learner = self._pool.process_of(ActorId("learner"))
        self._underway.begin(
            {
                (work.purpose, work.step): learner.earlier.remote(work.purpose, work.step)
                for work in restored.unfinished
            }
        )

    def _adopt(self, restored: Restored) -> RunState:
        """Makes the run directory say what the checkpoint says. What came later is done again."""
        state = restored.state
        # Lines of this very step are made again, if they are lost.
        steps = ((step, None) for step in range(1, state.step))
        evals = self._evaluations.due_before(state.step)
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
            # The learner had checkpointed the step, and an actor died before it was noted.
            line = {"step": state.step, **step_metrics(restored.metrics)}
            self._run.append_line("metrics.jsonl", line)
        status.message = "; ".join(filter(None, notes))
        self._log.info("restored", step=state.step, note=status.message)
        return state

    async def _collect(self, step: int, state: RunState) -> Collected:
        self._doing(f"collecting step {step}")
        # Always exactly so many versions behind, so that a run can be repeated.
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
            keep=self._evaluations.best(),
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
        """Saves all unfinished work before a pause: the last step and every answer that is half
        sampled.
        """
        self._doing("saving what is under way", "pausing")
        works, batches = self._underway.unfinished()
        request = Save(
            state=msgspec.structs.replace(self._state, seconds=self._seconds),
            keep=self._evaluations.best(),
            metrics=self._status.metrics,
            unfinished=works,
        )
        what = f"the learner to save step {self._state.step}"
        try:
            digest = await self._pool.learner().save(request, *batches, what=what)
        except ActorDied as death:  # the newest checkpoint is kept; later work is done again
            self._log.warning("paused without saving", cause=str(death))
            return
        self._status.optimizer_digest = digest or self._status.optimizer_digest
        failpoints.hit("pause.saved")
        self._write()

    def _note_evaluation(self, result: EvalResult) -> None:
        self._status.evals.append(result)
        self._run.append_line("evals.jsonl", result)
        failpoints.hit("eval.noted")
        if result.score is not None and result.metric in REPORTED:
            self._report({REPORTED[result.metric]: result.score})
        self._write()

    # ── the status ───────────────────────────────────────────────────────────────────────────────

    def _note(self, collected: Collected, learned: Learned) -> None:
        """Writes down what a step did; the learner has made it durable already."""
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

    def _fail(self, cause: str) -> None:
        self._log.error("failed", cause=cause)
        self._status.message = cause
        self._doing("stopped by a failure", "failed")

    def _doing(self, doing: str, state: str = "running") -> None:
        """Writes into the status what is being done, and since when. A pause takes effect here."""
        self._status.doing, self._status.state, self._status.since = doing, state, time.time()
        self._write()
        if state == "running":
            self._pause.check(doing)

    def _write(self) -> None:
        ledger = self._state.ledger.pull(self._underway.in_flight)
        self._status.ledger = ledger.as_dict()
        self._status.pids = {**self._launcher, "conductor": os.getpid(), **self._pool.pids}
        self._run.write_status(self._status)
