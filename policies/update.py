"""One optimiser step: annotated trajectories in, new weights out, blind to the algorithm.

A step is cut into micro-batches of a bounded number of tokens; every denominator is the whole step's,
so the cut changes memory and nothing else.

Shapes: B rows of a micro-batch, T padded tokens, R padded targets, N = B·R, D hidden width, K kept ids.
"""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy as np
import pyarrow as pa

from configs.schema import Bypass, Distill, FromStudent, Grpo, SampledToken, Settings, TextOnly
from kernels.divergence import Divergence
from kernels.logprobs import score, selected
from kernels.teacher import Teacher, TopK
from policies import weights
from policies.advantages import Method, advantages
from policies.annotate import Annotated, annotate, reverse_kl, weights_of
from policies.arrays import Arrays, flat
from policies.batch import MicroBatch, Row, pack
from policies.frozen import Frozen
from policies.objectives import divergence as distillation
from policies.objectives.normalise import denominators
from policies.objectives.terms import (
    Batch,
    PolicyGradient,
    Step,
    add_up,
    from_grpo,
    loss,
    summary,
    to_floats,
)
from policies.optimizers.registry import optimizer_for
from policies.policy import Policy
from policies.trainer import MayGoOn
from runtime.errors import Interrupted, RunFailed
from runtime.trajectory import lists, with_columns
from runtime.versions import WeightsVersion


class Updater:
    """Applies optimiser steps to a policy."""

    def __init__(
        self, policy: Policy, settings: Settings, teachers: Mapping[str, Frozen] | None = None
    ) -> None:
        """`teachers` are those that are asked here, by name."""
        self._policy = policy
        self._settings = settings
        self._teachers = teachers or {}
        algorithm = settings.algorithm
        self._distill = algorithm if isinstance(algorithm, Distill) else None
        self._divergence = _divergence(self._distill) if self._distill else None
        self._terms: PolicyGradient | None = None
        self._updates = 1
        self._temperature = 1.0
        self._reference_needed = False
        self._may_go_on: MayGoOn = lambda updated: True
        self._updated = False
        if isinstance(algorithm, Grpo):
            self._terms = from_grpo(algorithm)
            self._updates = algorithm.updates_per_step
            self._temperature = settings.sampling.temperature
            self._reference_needed = algorithm.kl.coefficient > 0
            if self._reference_needed:
                policy.remember_reference()
        if self._distill and weights_of(self._distill).own_pg:
            self._terms = PolicyGradient()
            self._temperature = settings.sampling.temperature
        self.optimizer = optimizer_for(
            settings.optimizer, policy.trained(), algorithm.steps * self._updates
        )

    def state(self) -> Arrays:
        """Of the optimiser, by name: what a checkpoint needs besides the weights."""
        return self.optimizer.state()

    def put(self, folder: Path) -> None:
        """There is nothing else."""

    def restore(self, state: Arrays, folder: Path) -> None:
        """Go on from a saved state."""
        self.optimizer.restore(state)

    def publish(self, folder: Path, version: int, *, whole: bool) -> WeightsVersion:
        """Every version is whole."""
        path = folder / f"v{version:06d}.safetensors"
        digest = weights.save(path, self._policy.trained())
        return WeightsVersion(version=version, path=str(path), digest=digest)

    def annotated(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its advantages, where the algorithm has any."""
        algorithm = self._settings.algorithm
        if self._distill and not _is_rewarded(self._distill):
            return batch
        if not isinstance(algorithm, Grpo | Distill):
            return batch
        rewards = np.array([np.nan if r is None else r for r in batch["reward"].to_pylist()])
        if isinstance(algorithm, Distill):
            return _with_advantages(batch, rewards, "group_mean")
        if algorithm.kl.coefficient and algorithm.kl.placement == "reward_k1":
            rewards -= algorithm.kl.coefficient * self.reward_kl(batch)
        return _with_advantages(batch, rewards, algorithm.advantage)

    def step(
        self, batch: pa.RecordBatch, may_go_on: MayGoOn = lambda updated: True
    ) -> dict[str, float]:
        """Train on a batch and return what is to be reported; without rows nothing changes.

        Before each micro-batch `may_go_on(updated)` is asked, where `updated` says that this step has
        changed the weights already; if it answers no, Interrupted is raised.
        Raises RunFailed if a gradient is not finite; the weights are then those before the update.
        """
        self._may_go_on = may_go_on
        annotated = annotate(batch, self._distill)
        rows = annotated.rows
        if not rows:
            return {"trained_tokens": 0.0}
        packed = self._packed(annotated)
        self._updated = False
        fixed = [[self._before_update(micro) for micro in micros] for micros in packed]
        reports = [self._update(micros, known) for micros, known in zip(packed, fixed)]
        report = {**reports[-1], **{k: v for k, v in reports[0].items() if "mismatch" in k}}
        report["trained_tokens"] = float(sum(len(row.positions) for row in rows))
        report["learner_tokens"] = float(sum(len(row.tokens) for row in rows))
        if self._distill and isinstance(self._distill.signal, SampledToken):
            report["divergence"], report["unusable_tokens"] = reverse_kl(batch, self._distill)
        return report

    def gradients(self, batch: pa.RecordBatch) -> Arrays:
        """Gradient of the whole batch's loss by name, float32, as one update; changes nothing."""
        annotated = annotate(batch, self._distill)
        micros = [micro for part in self._packed(annotated) for micro in part]
        total, _ = self._gradients(micros, [self._before_update(micro) for micro in micros])
        return total

    def _packed(self, annotated: Annotated) -> list[list[MicroBatch]]:
        """Micro-batches of each update; those of a hosted teacher's rows are of one teacher."""
        limit = self._settings.actors.micro_batch_tokens
        order = {group: i for i, group in enumerate(dict.fromkeys(annotated.groups))}
        parts: list[dict[str, list[Row]]] = [{} for _ in range(self._updates)]
        for row, group, teacher in zip(annotated.rows, annotated.groups, annotated.teachers):
            parts[order[group] % self._updates].setdefault(teacher, []).append(row)
        return [
            [
                msgspec.structs.replace(micro, teacher=teacher)
                for teacher, rows in sorted(part.items())
                for micro in pack(rows, limit)
            ]
            for part in parts
            if part
        ]

    def reward_kl(self, batch: pa.RecordBatch) -> np.ndarray:
        """[N] log-ratio of the sampler to the reference, summed over each row's sampled tokens (k1).

        Taken off the reward it makes the policy gradient that of reverse KL as well (2506.09477).
        """
        tokens, sampled = lists(batch, "tokens"), lists(batch, "sampled")
        logprobs = lists(batch, "logprobs")
        rows = []
        for ids, chosen, behaviour in zip(tokens, sampled, logprobs):
            positions = np.flatnonzero(chosen)
            rows.append(Row(ids, positions, {"behaviour": behaviour[positions]}))
        sums = np.zeros(len(rows))
        for micro in pack(rows, self._settings.actors.micro_batch_tokens):
            with self._policy.reference():
                gap_BR = (micro.columns["behaviour"] - self._score(micro)) * micro.sampled_BR
                sums[micro.rows] = np.array(gap_BR.sum(axis=-1))
        return sums

    def _before_update(self, micro: MicroBatch) -> dict[str, mx.array]:
        """Log-probabilities that stay fixed during the step: the learner's own, the reference's."""
        self._ask()
        known: dict[str, mx.array] = {}
        if self._terms is None:
            return known
        if not isinstance(self._terms.correction, Bypass):
            known["old"] = self._score(micro)
        if self._reference_needed:
            with self._policy.reference():
                known["reference"] = self._score(micro)
                mx.eval(known)
        mx.eval(known)
        return known

    def _ask(self) -> None:
        if not self._may_go_on(self._updated):
            raise Interrupted("asked to pause between two micro-batches")

    def _score(self, micro: MicroBatch) -> mx.array:
        hidden_ND = _at_sources(self._policy.hidden(micro.tokens_BT), micro.sources_BR)
        logprobs_N = score(
            hidden_ND,
            self._policy.project,
            micro.targets_BR.reshape(-1),
            temperature=self._temperature,
        )
        return logprobs_N.reshape(micro.targets_BR.shape)

    def _update(
        self, micros: list[MicroBatch], known: list[dict[str, mx.array]]
    ) -> dict[str, float]:
        total, sums = self._gradients(micros, known)
        if (report := add_up(sums)).get("unusable_tokens") and not report["divergence_tokens"]:
            raise RunFailed(
                f"the teacher gave no usable distribution for any of {report['unusable_tokens']:.0f} "
                f"tokens at update {self.optimizer.updates + 1}; the weights before it are kept"
            )
        try:
            new, norm, rate = self.optimizer.step(self._policy.trained(), total)
        except FloatingPointError as error:
            raise RunFailed(
                f"{error} at update {self.optimizer.updates + 1}; the weights before it are kept "
                "(try a lower optimizer.learning_rate)"
            ) from None
        self._policy.load_trained(new)
        self._updated = True
        return {**named(summary(report)), "grad_norm": norm, "learning_rate": rate}

    def _gradients(
        self, micros: list[MicroBatch], known: list[dict[str, mx.array]]
    ) -> tuple[Arrays, list[dict[str, float]]]:
        """Summed over the micro-batches of one update, with the sums that each reports."""
        model = self._policy.model
        step = self._denominators(micros)
        total: Arrays = {}
        sums: list[dict[str, float]] = []
        for micro, fixed in zip(micros, known):
            self._ask()
            batch = self._batch(micro, fixed)
            teacher = self._teacher(micro)

            def objective(
                micro: MicroBatch = micro, batch: Batch = batch, teacher: Teacher | None = teacher
            ):
                return self._loss(micro, batch, step, teacher)

            (_, metrics), gradients = nn.value_and_grad(model, objective)()
            for name, gradient in flat(gradients).items():
                gradient = gradient.astype(mx.float32)
                total[name] = total[name] + gradient if name in total else gradient
            mx.eval(total)
            sums.append(to_floats(metrics))
        return total, sums

    def _teacher(self, micro: MicroBatch) -> Teacher | None:
        """What a teacher says of the micro-batch, if there is a divergence to be computed."""
        if self._divergence is None:
            return None
        columns = micro.columns
        if "teacher_ids" not in columns:
            full = self._teachers[micro.teacher].full(micro)
            mx.eval(full.hidden_ND)
            return full
        ids_BRK = columns["teacher_ids"]
        shape = (-1, ids_BRK.shape[-1])
        return TopK(
            ids_BRK.reshape(shape),
            columns["teacher_id_logprobs"].reshape(shape),
            columns["teacher_tail"].reshape(-1),
            self._divergence.temperature,
        )

    def _loss(
        self, micro: MicroBatch, batch: Batch, step: Step, teacher: Teacher | None
    ) -> tuple[mx.array, dict[str, mx.array]]:
        hidden_ND = _at_sources(self._policy.hidden(micro.tokens_BT), micro.sources_BR)
        logprobs_N, entropy_N = selected(
            hidden_ND,
            self._policy.project,
            self._policy.head_weights(),
            micro.targets_BR.reshape(-1),
            temperature=self._temperature,
            entropy_grad=bool(self._terms and self._terms.entropy_bonus),
        )
        signal = None
        if teacher is not None and self._divergence is not None:
            signal = distillation.signal(
                hidden_ND,
                self._policy.project,
                self._policy.head_weights(),
                teacher,
                self._divergence,
                micro.columns["divergence_weight"],
            )
        shape = micro.targets_BR.shape
        return loss(
            logprobs_N.reshape(shape), entropy_N.reshape(shape), batch, self._terms, step, signal
        )

    def _batch(self, micro: MicroBatch, known: dict[str, mx.array]) -> Batch:
        columns = micro.columns
        if self._terms is None:
            imitates = weights_of(self._distill).imitated_ce > 0
            return Batch(
                sampled_BT=micro.sampled_BR,
                ce_weight_BT=columns["ce_weight"] if imitates else None,
            )
        return Batch(
            sampled_BT=micro.sampled_BR,
            pg_weight_BT=columns["pg_weight"],
            advantages_BT=columns["advantage"],
            behaviour_logprobs_BT=columns["behaviour"],
            old_logprobs_BT=known.get("old"),
            reference_logprobs_BT=known.get("reference"),
        )

    def _denominators(self, micros: list[MicroBatch]) -> Step:
        limit = self._settings.sampling.max_new_tokens
        lengths = {
            name: np.concatenate(
                [np.array((micro.columns[name] != 0).sum(axis=-1)) for micro in micros]
            )
            for name in ("pg_weight", "ce_weight", "divergence_weight")
        }
        # Where a divergence goes with it, the two are shares of one mean over all rows.
        imitated = "divergence_weight" if lengths["divergence_weight"].any() else "ce_weight"
        return Step(
            policy_gradient=denominators(lengths["pg_weight"], limit),
            cross_entropy=denominators(lengths[imitated], limit),
            divergence=denominators(lengths["divergence_weight"], limit),
        )


def named(report: dict[str, float]) -> dict[str, float]:
    """A step's report under the names of `runtime.metrics`."""
    names = {
        "loss": "loss",
        "entropy": "entropy",
        "mismatch_k3": "mismatch_kl",
        "max_mismatch": "mismatch_max",
        "ratio": "ratio_mean",
        "bounded": "clipped_share",
        "ess": "importance_ess",
        "kl_reference": "kl_reference",
        "ce_nats": "cross_entropy",
        "divergence_nats": "divergence",
        "unusable_tokens": "unusable_tokens",
    }
    return {names[key]: value for key, value in report.items() if key in names}


def _divergence(distill: Distill) -> Divergence | None:
    """The divergence that the settings ask for, if they do."""
    signal, chosen = distill.signal, distill.learn_from.divergence
    if isinstance(signal, SampledToken | TextOnly):
        return None
    return Divergence(
        kind=chosen.__struct_config__.tag,  # type: ignore[arg-type]
        beta=getattr(chosen, "beta", None),
        skew=getattr(chosen, "skew", None),
        temperature=signal.temperature,
    )


def _is_rewarded(distill: Distill) -> bool:
    return isinstance(distill.learn_from, FromStudent) and distill.learn_from.reward > 0


def _with_advantages(batch: pa.RecordBatch, rewards: np.ndarray, method: Method) -> pa.RecordBatch:
    values = advantages(rewards, batch["prompt_index"].to_numpy(), method)
    return with_columns(batch, {"advantage": [None if np.isnan(v) else v for v in values]})


def _at_sources(hidden_BTD: mx.array, sources_BR: mx.array) -> mx.array:
    """Hidden states that predict the targets, flat [B·R, D]."""
    picked_BRD = mx.take_along_axis(hidden_BTD, sources_BR[..., None], axis=1)
    return picked_BRD.reshape(-1, hidden_BTD.shape[-1])
