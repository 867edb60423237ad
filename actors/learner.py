"""The learner (student trainer): the only actor that changes weights, and the run's one writer of
weights, checkpoints and the trajectory log.

    learn(step n):  merge ▸ advantages ▸ update ▸ append to the log ▸ publish weights n ▸ checkpoint n
    save():         checkpoint n again, with the answers of later work that a pause interrupts

A checkpoint names the length of the log, so that a learner that resumes from it cuts off what came
later. A pause takes effect between two micro-batches, if the step can be repeated from its beginning.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pyarrow as pa
import ray

from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import (
    Hello,
    Learn,
    Learned,
    Restored,
    RunState,
    Save,
    Unfinished,
)
from actors.unfinished import PREFIX, Rows, gather, put, take
from configs.schema import Settings
from policies import weights
from policies.comparison import evaluations
from policies.device import LEASE_SHARE, bound_cache, gpu_lease, patience_s
from policies.load import load_policy
from policies.trainer import MayGoOn, trainer_for
from runtime import checkpoint, failpoints
from runtime.blas import load_blas
from runtime.checkpoint import Checkpoint
from runtime.errors import RunFailed
from runtime.rundir import RunDirectory
from runtime.settlement import Settled
from runtime.status import EvalResult
from runtime.throttle import Throttle
from runtime.trajectory import UNLOGGED, merge, with_columns
from runtime.trajectory_log import EMPTY_CHAIN, TrajectoryLog
from runtime.versions import WeightsVersion

SCORE_BYTES = 8
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"


class Learner:
    """Takes steps in order, each exactly once."""

    def __init__(self, settings: Settings, run: str, actor: ActorId) -> None:
        began = time.perf_counter()
        self._settings = settings
        self._name = name = actor.name
        self._run = RunDirectory(Path(run).parent, Path(run).name)
        self._log = open_log(self._run.logs, name)
        self._lease = gpu_lease()
        self._patience_s = patience_s(settings, settings.deadlines.learn_s)
        with self._lease.hold(
            f"{name} to load the model", LEASE_SHARE * settings.deadlines.start_s
        ):
            self._policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
            self._trainer = trainer_for(self._policy, settings)
        self._trajectories = TrajectoryLog(self._run.trajectories)
        self._step = -1
        self._saved: Checkpoint | None = None
        """The newest checkpoint."""
        self._unfinished: dict[tuple[str, int], pa.RecordBatch] = {}
        self._versions: list[WeightsVersion] = []
        self._lag = settings.facts.max_lag
        bound_cache()
        self._log.info("started", pid=os.getpid(), checkpoint=settings.model.path)
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Returns a greeting once the constructor has finished."""
        return Hello(
            pid=os.getpid(), backend=load_blas(self._settings.exact), seconds=self._started_s
        )

    @ray.method
    def restore(self) -> Restored:
        """Loads the newest good checkpoint, or the base. Returns where the run then stands; later work
        is cut off.
        """
        with self._lease.hold(f"{self._name} to restore", self._patience_s):
            return self._restore()

    def _restore(self) -> Restored:
        checkpoint.clear_leftovers(self._run.checkpoints)
        found, passed_over = checkpoint.newest(self._run.checkpoints, self._has_its_log)
        for sentence in passed_over:
            self._log.error("damaged checkpoint passed over", what=sentence)
        if passed_over:
            if found is None:
                raise RunFailed(f"no checkpoint is intact: {passed_over[0]}")
            checkpoint.set_aside(self._run.checkpoints, found.step, found.revision)
        failpoints.hit("restore.begin")
        self._saved = found
        self._unfinished = take(found.path) if found else {}
        run = msgspec.convert(found.state["run"], RunState) if found else RunState()
        if found is None or run.step == 0:
            self._stand_at_base()
        else:
            self._stand_at(found, run.step)
        failpoints.hit("restore.log")
        self._versions.append(self._trainer.publish(self._run.weights, run.step, whole=True))
        self._clear_others()
        note = f"passed over: {'; '.join(passed_over)}" if passed_over else ""
        self._log.info("restored", step=run.step, note=note)
        failpoints.hit("restore.done")
        return Restored(
            state=run,
            weights=self._versions[-1],
            versions=self._versions,
            optimizer_digest=found.state["optimizer_digest"]
            if found and run.step
            else weights.digest(self._trainer.state()),
            trajectories_digest=self._trajectories.chain,
            metrics=found.state["metrics"] if found else {},
            unfinished=[Unfinished(purpose=p, step=step) for p, step in self._unfinished],
            note=note,
        )

    def _has_its_log(self, found: Checkpoint) -> None:
        """Raises Damaged if the trajectory log does not match what the checkpoint says of it."""
        state = found.state
        self._trajectories.verify(state.get("log_size", 0), state.get("log_chain", EMPTY_CHAIN))

    def _stand_at_base(self) -> None:
        if self._step > 0:
            raise RunFailed(
                "the learner has trained already, and there is no checkpoint to go back to"
            )
        self._trajectories.restore(0, EMPTY_CHAIN)
        self._step, self._versions = 0, []

    def _stand_at(self, found: Checkpoint, step: int) -> None:
        state = found.state
        self._policy.load_trained(weights.load(found.path / WEIGHTS, state["weights_digest"]))
        self._trainer.restore(
            weights.load(found.path / OPTIMIZER, state["optimizer_digest"]), found.path
        )
        self._trajectories.restore(state["log_size"], state["log_chain"])
        self._step, self._versions = step, self._older_versions(state["versions"], found.path)

    @ray.method
    def earlier(self, purpose: str, step: int) -> pa.RecordBatch | None:
        """Returns the answers that a pause interrupted, as the checkpoint has them."""
        return self._unfinished.get((purpose, step))

    @ray.method
    def learn(self, request: Learn, *batches: pa.RecordBatch) -> Learned:
        """Takes step `request.step`. Returns what it did.

        Raises RunFailed if the step is not the next one. Raises Interrupted if a pause is asked for:
        the learner can then only save, and be ended.
        """
        failpoints.hit("learn.begin")
        if request.step != self._step + 1:
            raise RunFailed(
                f"the learner stands at step {self._step}, was asked for {request.step}"
            )
        holder = f"{self._name} for step {request.step}"
        with self._lease.hold(holder, self._patience_s, self._run.pause_asked) as waited_s:
            began = time.perf_counter()
            mx.reset_peak_memory()
            batch = merge(
                with_settlement(batch, settled)
                for batch, settled in zip(batches, request.settled, strict=True)
            )
            self._check_age(batch, request.step)
            batch = self._trainer.annotated(batch)
            metrics = self._trainer.step(batch, self._may_go_on())
            failpoints.hit("learn.updated")
            nothing = [None] * batch.num_rows
            self._trajectories.append(with_columns(batch, dict.fromkeys(UNLOGGED, nothing)))
            failpoints.hit("learn.logged")
            self._step = request.step
            newest = self._trainer.publish(self._run.weights, request.step, whole=False)
            self._versions.append(newest)
            metrics["exchanged_bytes"] = self._exchanged_bytes(newest, batch.num_rows)
            metrics["learner_memory_bytes"] = float(mx.get_peak_memory())
            metrics["gpu_wait_s"] = max(waited_s, request.metrics.get("gpu_wait_s", 0.0))
            metrics["learner_busy_s"] = time.perf_counter() - began
            optimizer_digest = ""
            if request.checkpoint:
                optimizer_digest = self._checkpoint(request.state, {**request.metrics, **metrics})
            self._retire(request.keep)
            mx.clear_cache()
        self._log.info("learned", step=request.step, rows=batch.num_rows)
        failpoints.hit("learn.done")
        return Learned(
            weights=self._versions[-1],
            metrics=metrics,
            trajectories_digest=self._trajectories.chain,
            optimizer_digest=optimizer_digest,
        )

    @ray.method
    def compare(self, step: int, batch: pa.RecordBatch) -> list[EvalResult]:
        """Returns how well the weights of `step` tell the preferred answers of a batch from the rejected.

        Raises Interrupted if a pause is asked for.
        """
        if step != self._step:
            raise RunFailed(f"the learner stands at step {self._step}, was asked about {step}")
        who = f"{self._name} to compare answers"
        with self._lease.hold(who, self._patience_s, self._run.pause_asked):
            throttle = Throttle(self._run, "learn.micro_batch", self._settings.power.duty_cycle)
            rewards_N = self._trainer.implied_rewards(
                self._trainer.annotated(batch), lambda updated: throttle.may_continue()
            )
            mx.clear_cache()
        return evaluations(step, batch, rewards_N)

    @ray.method
    def save(self, request: Save, *batches: pa.RecordBatch) -> str:
        """Checkpoints the present step with the unfinished answers of later work. Returns the
        optimiser's digest. What the newest checkpoint holds already is linked, not written again.
        """
        if request.state.step != self._step:
            raise RunFailed(f"the learner stands at step {self._step}, not at {request.state.step}")
        rows = gather(request.unfinished, batches)
        if self._is_saved():  # files are linked and rows written: nothing is computed
            if not rows and not self._unfinished:
                return ""
            digest = self._checkpoint_again(request.state, rows)
        else:
            holder = f"{self._name} to save"
            with self._lease.hold(holder, self._patience_s):
                digest = self._checkpoint(request.state, request.metrics, rows)
        self._retire(request.keep)
        self._log.info("saved", step=self._step, unfinished=sum(r.num_rows for r in rows.values()))
        return digest

    @ray.method
    def close(self) -> None:
        """Closes the learner's files."""
        self._trajectories.close()

    def _may_go_on(self) -> MayGoOn:
        """Returns the test between micro-batches. A step that has changed the weights goes on to its
        end, unless the unchanged weights are on disk.
        """
        throttle = Throttle(self._run, "learn.micro_batch", self._settings.power.duty_cycle)
        saved = self._is_saved()
        return lambda updated: throttle.may_continue() or (updated and not saved)

    def _is_saved(self) -> bool:
        """Returns whether the weights are on disk as they are now: in the newest checkpoint, or as the
        base.
        """
        return self._step == (self._saved.step if self._saved else 0)

    def _exchanged_bytes(self, version: WeightsVersion, rows: int) -> float:
        """Returns the bytes that take the samplers to a version, and a score for each row; trajectories
        are not counted.
        """
        size = Path(version.path).stat().st_size
        return float(self._settings.actors.samplers * size + SCORE_BYTES * rows)

    # ── records ──────────────────────────────────────────────────────────────────────────────────

    def _check_age(self, batch: pa.RecordBatch, step: int) -> None:
        """Raises RunFailed for a token older than the run allows. This checks the sampler's promise."""
        stamps = batch["weights_version"].values.to_numpy()
        oldest = int(stamps.min(initial=step - 1, where=stamps >= 0))
        if step - 1 - oldest > self._lag:
            raise RunFailed(
                f"step {step} has tokens of weights version {oldest}; algorithm.max_lag = {self._lag} "
                f"allows {step - 1 - self._lag} and newer"
            )

    # ── weights and checkpoints ──────────────────────────────────────────────────────────────────

    def _version_path(self, version: int) -> Path:
        return self._run.weights / f"v{version:06d}.safetensors"

    def _older_versions(self, named: dict[str, str], folder: Path) -> list[WeightsVersion]:
        """Returns the versions before the checkpoint's that a lagging sampler still needs. The
        checkpoint holds them too, because the run went on after it and has deleted them.
        """
        kept = []
        for version, digest in sorted((int(v), d) for v, d in named.items()):
            path = self._version_path(version)
            path.unlink(missing_ok=True)
            link(folder / path.name, path)
            kept.append(WeightsVersion(version=version, path=str(path), digest=digest))
        return kept

    def _clear_others(self) -> None:
        """Deletes weights files that belong to no known version: of steps that are done again, or of a
        killed writer.
        """
        known = {version.path for version in self._versions}
        for file in self._run.weights.iterdir():
            if str(file) not in known:
                file.unlink()

    def _checkpoint(
        self, run: RunState, metrics: dict[str, float], rows: Rows | None = None
    ) -> str:
        """Writes what is in memory as a durable checkpoint. Returns the optimiser's digest."""
        self._trajectories.sync()
        newest = self._versions[-1]
        optimizer = self._trainer.state()
        size = checkpoint.size_bytes(self._run.checkpoints)
        older = [v for v in self._versions[:-1] if v.version >= run.step - self._lag]
        state = {
            "run": msgspec.to_builtins(run),
            "metrics": metrics,
            "weights_digest": newest.digest,
            "optimizer_digest": weights.digest(optimizer),
            "log_size": self._trajectories.size,
            "log_chain": self._trajectories.chain,
            "versions": {str(v.version): v.digest for v in older},
        }

        def write(folder: Path) -> None:
            if newest.base is None:
                link(Path(newest.path), folder / WEIGHTS)
            else:
                weights.save(folder / WEIGHTS, self._policy.trained(), need_bytes=size)
            for version in older:
                link(Path(version.path), folder / Path(version.path).name)
            weights.save(folder / OPTIMIZER, optimizer, need_bytes=size)
            self._trainer.put(folder)
            put(folder, rows or {})

        self._saved = checkpoint.publish(self._run.checkpoints, run.step, state, write)
        return state["optimizer_digest"]

    def _checkpoint_again(self, run: RunState, rows: Rows) -> str:
        """Writes the newest checkpoint, or the base, once more with other unfinished rows. Returns the
        optimiser's digest.
        """
        before = self._saved
        state = before.state if before else {"metrics": {}}
        state = {**state, "run": msgspec.to_builtins(run)}
        kept = {
            name: digest
            for name, digest in (before.files if before else {}).items()
            if name != checkpoint.STATE and not name.startswith(PREFIX)
        }

        def write(folder: Path) -> None:
            for name in kept:
                assert before is not None
                link(before.path / name, folder / name)
            put(folder, rows)

        self._saved = checkpoint.publish(self._run.checkpoints, run.step, state, write, known=kept)
        return state.get("optimizer_digest", "")

    def _retire(self, keep: list[int]) -> None:
        settings = self._settings.checkpoint
        checkpoint.retire(self._run.checkpoints, settings.keep, keep, settings.keep_every)
        oldest = self._step - self._lag
        for version in [v for v in self._versions if v.version < oldest]:
            self._versions.remove(version)
            if version.base is None:  # otherwise later versions need it as their base
                Path(version.path).unlink(missing_ok=True)


def with_settlement(batch: pa.RecordBatch, rows: list[Settled]) -> pa.RecordBatch:
    """Returns the batch with the decisions about its rows written in."""
    columns: dict[str, list[Any]] = {
        "dropped": [row.dropped for row in rows],
        "reward": [row.reward for row in rows],
        "passed": [row.passed for row in rows],
        "failure": [row.failure for row in rows],
        "advantage": [row.advantage for row in rows],
        "reward_parts": [
            msgspec.json.encode(row.parts, order="sorted").decode() if row.parts else None
            for row in rows
        ],
    }
    if any(row.preference is not None for row in rows):
        columns["pair"] = [row.pair for row in rows]
        columns["preference"] = [row.preference for row in rows]
    return with_columns(batch, columns)


def link(source: Path, target: Path) -> None:
    """Links a file under a second name, or copies it."""
    try:
        os.link(source, target)
    except OSError:  # a volume without hard links
        shutil.copyfile(source, target)
