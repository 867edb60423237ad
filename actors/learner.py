"""The learner (student trainer): the only actor that changes weights, and the run's one writer of
weights, checkpoints and the trajectory log.

    learn(step n):  merge ▸ advantages ▸ append to the log ▸ update ▸ publish weights n ▸ checkpoint n

A checkpoint names the length of the log, so that whoever goes on from it cuts off what came later.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pyarrow as pa
import ray

from actors.logs import open_log
from actors.messages import Hello, Learn, Learned, Restored, RunState, Scored, WeightsVersion
from configs.schema import Grpo, Settings
from policies import weights
from policies.advantages import advantages
from policies.device import LEASE_SHARE, bound_cache, gpu_lease
from policies.model import load_policy
from policies.update import Updater
from runtime import checkpoint
from runtime.blas import load_blas
from runtime.errors import RunFailed
from runtime.rundir import RunDirectory
from runtime.trajectory import merge, with_columns
from runtime.trajectory_log import EMPTY_CHAIN, TrajectoryLog


class Learner:
    """Takes steps in order, each exactly once."""

    def __init__(self, settings: Settings, run: str, name: str) -> None:
        began = time.perf_counter()
        self._settings = settings
        self._name = name
        self._run = RunDirectory(Path(run).parent, Path(run).name)
        self._log = open_log(self._run.logs, name)
        self._lease = gpu_lease()
        with self._lease.hold(
            f"{name} to load the model", LEASE_SHARE * settings.deadlines.start_s
        ):
            self._policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
            self._updater = Updater(self._policy, settings)
        self._trajectories = TrajectoryLog(self._run.trajectories)
        self._step = -1
        self._versions: list[WeightsVersion] = []
        algorithm = settings.algorithm
        self._lag = algorithm.max_lag if isinstance(algorithm, Grpo) else 0
        bound_cache()
        self._log.info("started", pid=os.getpid(), checkpoint=settings.model.path)
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Answers when the constructor has finished."""
        return Hello(
            pid=os.getpid(), backend=load_blas(self._settings.exact), seconds=self._started_s
        )

    @ray.method
    def restore(self) -> Restored:
        """Stand where the newest good checkpoint stands, or at the base; later work is cut off."""
        with self._lease.hold(
            f"{self._name} to restore", LEASE_SHARE * self._settings.deadlines.learn_s
        ):
            return self._restore()

    def _restore(self) -> Restored:
        found, passed_over = checkpoint.newest(self._run.checkpoints)
        for sentence in passed_over:
            self._log.error("damaged checkpoint passed over", what=sentence)
        if found is None:
            if passed_over:
                raise RunFailed(f"no checkpoint is intact: {passed_over[0]}")
            return self._begin()
        state = found.state
        run = msgspec.convert(state["run"], RunState)
        self._policy.load_trained(
            weights.load(found.path / "weights.safetensors", state["weights_digest"])
        )
        self._updater.optimizer.restore(
            weights.load(found.path / "optimizer.safetensors", state["optimizer_digest"])
        )
        self._trajectories.restore(state["log_size"], state["log_chain"])
        self._step = run.step
        self._versions = self._older_versions(state["versions"], found.path)
        self._versions.append(self._publish(run.step))
        self._clear_others()
        note = f"passed over: {'; '.join(passed_over)}" if passed_over else ""
        self._log.info("restored", step=run.step, note=note)
        return Restored(
            state=run,
            weights=self._versions[-1],
            versions=self._versions,
            optimizer_digest=state["optimizer_digest"],
            trajectories_digest=self._trajectories.chain,
            metrics=state["metrics"],
            note=note,
        )

    @ray.method
    def learn(self, request: Learn, *batches: pa.RecordBatch) -> Learned:
        """Take step `request.step`. Raises RunFailed if it is not the next one."""
        if request.step != self._step + 1:
            raise RunFailed(
                f"the learner stands at step {self._step}, was asked for {request.step}"
            )
        who = f"{self._name} for step {request.step}"
        with self._lease.hold(who, LEASE_SHARE * self._settings.deadlines.learn_s) as waited_s:
            began = time.perf_counter()
            mx.reset_peak_memory()
            batch = merge(
                self._scored(batch, scored, dropped)
                for batch, scored, dropped in zip(
                    batches, request.scored or [None] * len(batches), request.dropped
                )
            )
            self._check_age(batch, request.step)
            batch = self._with_advantages(batch)
            self._trajectories.append(batch)
            metrics = self._updater.step(batch)
            self._step = request.step
            self._versions.append(self._publish(request.step))
            metrics["learner_memory_bytes"] = float(mx.get_peak_memory())
            metrics["gpu_wait_s"] = max(waited_s, request.metrics.get("gpu_wait_s", 0.0))
            metrics["learner_busy_s"] = time.perf_counter() - began
            optimizer_digest = self._checkpoint(request, metrics) if request.checkpoint else ""
            self._retire(request.keep)
            mx.clear_cache()
        self._log.info("learned", step=request.step, rows=batch.num_rows)
        return Learned(
            weights=self._versions[-1],
            metrics=metrics,
            trajectories_digest=self._trajectories.chain,
            optimizer_digest=optimizer_digest,
        )

    @ray.method
    def save(self, request: Learn) -> str:
        """Checkpoint the present step, if a stop finds it without one; gives the optimiser's digest."""
        if request.step != self._step:
            raise RunFailed(f"the learner stands at step {self._step}, not at {request.step}")
        with self._lease.hold(
            f"{self._name} to save", LEASE_SHARE * self._settings.deadlines.learn_s
        ):
            digest = self._checkpoint(request, {})
        self._retire(request.keep)
        return digest

    @ray.method
    def close(self) -> None:
        """Close files."""
        self._trajectories.close()

    # ── records ──────────────────────────────────────────────────────────────────────────────────

    def _scored(
        self, batch: pa.RecordBatch, scored: Scored | None, dropped: list[str | None]
    ) -> pa.RecordBatch:
        """The batch with its verdicts written in."""
        columns: dict[str, list[Any]] = {"dropped": dropped}
        if scored is not None:
            verdicts = scored.verdicts
            columns |= {
                "reward": [v.reward for v in verdicts],
                "passed": [v.passed for v in verdicts],
                "failure": [v.failure for v in verdicts],
                "reward_parts": [
                    msgspec.json.encode(v.parts, order="sorted").decode() if v.parts else None
                    for v in verdicts
                ],
            }
        return with_columns(batch, columns)

    def _check_age(self, batch: pa.RecordBatch, step: int) -> None:
        """Raises RunFailed for a token older than the run allows: the sampler's promise, checked."""
        stamps = batch["weights_version"].values.to_numpy()
        oldest = int(stamps.min(initial=step - 1, where=stamps >= 0))
        if step - 1 - oldest > self._lag:
            raise RunFailed(
                f"step {step} has tokens of weights version {oldest}; algorithm.max_lag = {self._lag} "
                f"allows {step - 1 - self._lag} and newer"
            )

    def _with_advantages(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        algorithm = self._settings.algorithm
        if not isinstance(algorithm, Grpo):
            return batch
        rewards = np.array([np.nan if r is None else r for r in batch["reward"].to_pylist()])
        if algorithm.kl.coefficient and algorithm.kl.placement == "reward_k1":
            rewards -= algorithm.kl.coefficient * self._updater.reward_kl(batch)
        groups = batch["prompt_index"].to_numpy()
        values = advantages(rewards, groups, algorithm.advantage)
        return with_columns(batch, {"advantage": [None if np.isnan(v) else v for v in values]})

    # ── weights and checkpoints ──────────────────────────────────────────────────────────────────

    def _begin(self) -> Restored:
        if self._step != -1:
            raise RunFailed(
                "the learner has trained already, and there is no checkpoint to go back to"
            )
        self._trajectories.restore(0, EMPTY_CHAIN)
        self._step = 0
        self._versions = [self._publish(0)]
        self._clear_others()
        return Restored(
            state=RunState(),
            weights=self._versions[0],
            versions=self._versions,
            optimizer_digest=weights.digest(self._updater.optimizer.state()),
            trajectories_digest=self._trajectories.chain,
        )

    def _publish(self, version: int) -> WeightsVersion:
        path = self._version_path(version)
        digest = weights.save(path, self._policy.trained())
        return WeightsVersion(version=version, path=str(path), digest=digest)

    def _version_path(self, version: int) -> Path:
        return self._run.weights / f"v{version:06d}.safetensors"

    def _older_versions(self, named: dict[str, str], folder: Path) -> list[WeightsVersion]:
        """Versions before the checkpoint's that a lagging sampler still needs: it holds them too,
        because the run went on after it and has retired them.
        """
        kept = []
        for version, digest in sorted((int(v), d) for v, d in named.items()):
            path = self._version_path(version)
            path.unlink(missing_ok=True)
            _link(folder / path.name, path)
            kept.append(WeightsVersion(version=version, path=str(path), digest=digest))
        return kept

    def _clear_others(self) -> None:
        """Delete weights files that nobody knows: of steps that are done anew, of a killed writer."""
        known = {version.path for version in self._versions}
        for file in self._run.weights.iterdir():
            if str(file) not in known:
                file.unlink()

    def _checkpoint(self, request: Learn, metrics: dict[str, float]) -> str:
        self._trajectories.sync()
        newest = self._versions[-1]
        optimizer = self._updater.optimizer.state()
        older = [v for v in self._versions[:-1] if v.version >= request.step - self._lag]
        optimizer_digest = weights.digest(optimizer)
        state = {
            "run": msgspec.to_builtins(request.state),
            "metrics": {**request.metrics, **metrics},
            "weights_digest": newest.digest,
            "optimizer_digest": optimizer_digest,
            "log_size": self._trajectories.size,
            "log_chain": self._trajectories.chain,
            "versions": {str(v.version): v.digest for v in older},
        }

        def write(folder: Path) -> None:
            _link(Path(newest.path), folder / "weights.safetensors")
            for version in older:
                _link(Path(version.path), folder / Path(version.path).name)
            weights.save(folder / "optimizer.safetensors", optimizer)

        checkpoint.publish(self._run.checkpoints, request.step, state, write)
        return optimizer_digest

    def _retire(self, keep: list[int]) -> None:
        checkpoint.retire(self._run.checkpoints, self._settings.checkpoint.keep, keep)
        oldest = self._step - self._lag
        for version in [v for v in self._versions if v.version < oldest]:
            self._versions.remove(version)
            Path(version.path).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a volume without hard links
        shutil.copyfile(source, target)
