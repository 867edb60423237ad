"""One optimiser step: annotated trajectories in, new weights out, the same for every algorithm.

A step is cut into micro-batches of a bounded number of tokens. Every denominator is the whole step's, so the
cut changes memory and nothing else. The record's annotation holds the weights of the tokens, and the
algorithm's list of terms the losses that are added up.

Shapes: B rows of a micro-batch, T padded tokens, R padded targets, N = B·R, D hidden width, K kept ids.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy as np
import pyarrow as pa

from configs.losses import Bypass
from configs.schema import Settings
from kernels.logprobs import score, selected
from policies import weights
from policies.algorithms import open_algorithm
from policies.arrays import Arrays, flat
from policies.batch import MicroBatch, Row, pack
from policies.frozen import Frozen, hosted
from policies.learned_rows import LearnedRows, learned_rows
from policies.objectives.batch import Batch, Outputs
from policies.objectives.preference import kto_baseline
from policies.objectives.preference_term import baseline_sums, implied_rewards
from policies.objectives.terms import Counts, add_up, counts_of, loss, summary, to_floats
from policies.optimizers.registry import optimizer_for
from policies.policy import Policy
from policies.reference import ReferenceLogprobs
from policies.teacher_signal import TeacherSignal
from policies.terms import PolicyGradient, Preference, needs_temperature
from policies.trainer import MayGoOn
from runtime.errors import Interrupted, RunFailed
from runtime.mismatch import check_mismatch
from runtime.trajectory import lists
from runtime.versions import WeightsVersion

REPORTED = {
    "loss": "loss",
    "pg_loss": "policy_gradient_loss",
    "kl_loss": "kl_loss",
    "ce_loss": "cross_entropy_loss",
    "divergence_loss": "divergence_loss",
    "preference_loss": "preference_loss",
    "entropy": "entropy",
    "mismatch_k3": "mismatch_kl",
    "mean_mismatch": "mismatch_mean",
    "max_mismatch": "mismatch_max",
    "ratio": "ratio_mean",
    "bounded": "clipped_share",
    "corrected": "corrected_share",
    "ess": "importance_ess",
    "kl_reference": "kl_reference",
    "ce_nats": "cross_entropy",
    "divergence_nats": "divergence",
    "unusable_tokens": "unusable_tokens",
    "preference_accuracy": "preference_accuracy",
    "reward_margin": "reward_margin",
    "chosen_reward": "chosen_reward",
    "rejected_reward": "rejected_reward",
}
"""Metrics of a step by their name in `objectives.terms.summary`, with their name in `runtime.metrics`."""


OF_LOGITS = ("entropy", "ce_nats", "divergence_nats")
"""Sums of a report that are finite where the model's logits are: advantages have no part in them."""


class Updater:
    """Applies optimiser steps to a policy."""

    def __init__(
        self, policy: Policy, settings: Settings, teachers: Mapping[str, Frozen] | None = None
    ) -> None:
        """Loads the recipe's hosted teachers unless `teachers`, by name, are given."""
        facts = settings.facts
        self._policy = policy
        self._settings = settings
        self._algorithm = open_algorithm(settings)
        self._terms = self._algorithm.terms()
        self._hosts_teachers = facts.hosts_teachers
        self._signal = TeacherSignal(
            policy, self._terms, hosted(settings) if teachers is None else teachers
        )
        self._updates = facts.updates_per_step
        at_sampling = needs_temperature(self._terms)
        self._temperature = settings.sampling.temperature if at_sampling else 1.0
        self._policy_gradient = next(
            (term for term in self._terms if isinstance(term, PolicyGradient)), None
        )
        self._reference_needed = facts.reference
        # Rows of data come again, in the next epoch or evaluation; sampled answers do not.
        self._kept = ReferenceLogprobs(self._score_by_reference) if facts.reads_data else None
        if facts.reference:
            policy.remember_reference()
        self._may_go_on: MayGoOn = lambda updated: True
        self._updated = False
        steps = settings.algorithm.steps * self._updates
        self.optimizer = optimizer_for(settings.optimizer, policy.trained(), steps)

    def state(self) -> Arrays:
        """Returns the optimiser's state by name, which a checkpoint needs besides the weights."""
        return self.optimizer.state()

    def put(self, folder: Path) -> None:
        """Writes nothing, because `state` is all that a checkpoint needs."""

    def restore(self, state: Arrays, folder: Path) -> None:
        """Continues from a saved state."""
        self.optimizer.restore(state)

    def publish(self, folder: Path, version: int, *, whole: bool) -> WeightsVersion:
        """Writes the trained weights; every version is published whole."""
        path = folder / f"v{version:06d}.safetensors"
        digest = weights.save(path, self._policy.trained())
        return WeightsVersion(version=version, path=str(path), digest=digest)

    def annotated(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the algorithm's annotation."""
        if self._settings.facts.reward_kl:
            return self._algorithm.annotate(batch, self.reward_kl(batch))
        return self._algorithm.annotate(batch)

    def step(
        self, batch: pa.RecordBatch, may_go_on: MayGoOn = lambda updated: True
    ) -> dict[str, float]:
        """Trains on an annotated batch and returns metrics; without rows nothing changes.

        Before each micro-batch it calls `may_go_on(updated)`, where `updated` is True once this step has
        changed the weights, and raises Interrupted if the result is False.
        Raises RunFailed if a gradient is not finite, or if sampler and learner are too far apart with the
        same weights; the weights are then those before the update.
        """
        self._may_go_on = may_go_on
        learned = learned_rows(batch, self._terms, hosted=self._hosts_teachers)
        rows = learned.rows
        if not rows:
            return {"trained_tokens": 0.0, **self._algorithm.report(batch)}
        packed = self._packed(learned)
        self._updated = False
        fixed = [[self._before_update(micro) for micro in micros] for micros in packed]
        reports = [self._update(micros, known) for micros, known in zip(packed, fixed)]
        report = {**reports[-1], **{k: v for k, v in reports[0].items() if "mismatch" in k}}
        report["trained_tokens"] = float(sum(len(row.positions) for row in rows))
        report["learner_tokens"] = float(sum(len(row.tokens) for row in rows))
        return report | self._algorithm.report(batch)

    def gradients(self, batch: pa.RecordBatch) -> Arrays:
        """Returns the gradient of an annotated batch's loss by name, float32; changes nothing."""
        learned = learned_rows(batch, self._terms, hosted=self._hosts_teachers)
        micros = [micro for update in self._packed(learned) for micro in update]
        total, _ = self._gradients(micros, [self._before_update(micro) for micro in micros])
        return total

    def reward_kl(self, batch: pa.RecordBatch) -> np.ndarray:
        """Returns the log-ratio [N] of the sampler to the reference, summed over each row's tokens (k1).

        Subtracted from the reward, it adds the gradient of reverse KL to the policy gradient (2506.09477).
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

    def implied_rewards(
        self, batch: pa.RecordBatch, may_go_on: MayGoOn = lambda updated: True
    ) -> np.ndarray:
        """Returns the reward [N] that the preference loss takes each row of an annotated batch to have; NaN
        for a row without a weight in it. Changes nothing; raises Interrupted if it may not go on.
        """
        self._may_go_on, self._updated = may_go_on, False
        term = next(t for t in self._terms if isinstance(t, Preference))
        learned = learned_rows(batch, self._terms, hosted=False)
        rewards_N = np.full(batch.num_rows, np.nan)
        numbers = np.array(learned.numbers)
        for micro in pack(learned.rows, self._settings.actors.micro_batch_tokens):
            known = self._before_update(micro)
            rewards_B = implied_rewards(term, self._score(micro), self._batch(micro, known))
            rewards_N[numbers[micro.rows]] = np.array(rewards_B.astype(mx.float32))
        return rewards_N

    # ── one update ───────────────────────────────────────────────────────────────────────────────

    def _packed(self, learned: LearnedRows) -> list[list[MicroBatch]]:
        """Returns the micro-batches of each update; rows of one micro-batch have the same hosted teacher."""
        limit = self._settings.actors.micro_batch_tokens
        order = {group: i for i, group in enumerate(dict.fromkeys(learned.groups))}
        updates: list[dict[str, list[Row]]] = [{} for _ in range(self._updates)]
        for row, group, teacher in zip(learned.rows, learned.groups, learned.teachers):
            updates[order[group] % self._updates].setdefault(teacher, []).append(row)
        return [
            [
                msgspec.structs.replace(micro, teacher=teacher)
                for teacher, rows in sorted(update.items())
                for micro in pack(rows, limit)
            ]
            for update in updates
            if update
        ]

    def _before_update(self, micro: MicroBatch) -> dict[str, mx.array]:
        """Returns log-probabilities that stay fixed during the step: the learner's and the reference's."""
        self._ask()
        known: dict[str, mx.array] = {}
        term = self._policy_gradient
        if term is not None and not isinstance(term.correction, Bypass):
            known["old"] = self._score(micro)
        if self._reference_needed:
            of = self._kept.of if self._kept is not None else self._score_by_reference
            known["reference"] = of(micro)
        mx.eval(known)
        return known

    def _score_by_reference(self, micro: MicroBatch) -> mx.array:
        with self._policy.reference():
            logprobs_BR = self._score(micro)
            mx.eval(logprobs_BR)
        return logprobs_BR

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
        said = [report[name] for name in OF_LOGITS if name in report]
        if not math.isfinite(report["loss"]) and not all(map(math.isfinite, said)):
            raise RunFailed(
                f"the loss is {report['loss']} at update {self.optimizer.updates + 1}: the model gives NaN "
                "or infinite logits, or gives a token of the batch no probability; the weights before it are "
                'kept (16-bit weights may overflow, which model.dtype = "float32" avoids)'
            )
        if not self._updated:
            mean_nats = summary(report).get("mean_mismatch")
            check_mismatch(mean_nats, self._settings.mismatch, self.optimizer.updates + 1)
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
        """Returns gradients summed over one update's micro-batches, and each micro-batch's metrics."""
        counts = self._counts(micros)
        baseline = self._baseline(micros, known)
        total: Arrays = {}
        sums: list[dict[str, float]] = []
        for micro, fixed in zip(micros, known):
            self._ask()
            batch = self._batch(micro, fixed, baseline)
            self._signal.prepare(micro)

            def objective(micro: MicroBatch = micro, batch: Batch = batch):
                return loss(self._outputs(micro), batch, self._terms, counts)

            (_, metrics), gradients = nn.value_and_grad(self._policy.model, objective)()
            for name, gradient in flat(gradients).items():
                gradient = gradient.astype(mx.float32)
                total[name] = total[name] + gradient if name in total else gradient
            mx.eval(total)
            sums.append(to_floats(metrics))
        return total, sums

    def _outputs(self, micro: MicroBatch) -> Outputs:
        """Returns the policy's differentiable outputs for a micro-batch's targets."""
        hidden_ND = _at_sources(self._policy.hidden(micro.tokens_BT), micro.sources_BR)
        term = self._policy_gradient
        logprobs_N, entropy_N = selected(
            hidden_ND,
            self._policy.project,
            self._policy.head_weights(),
            micro.targets_BR.reshape(-1),
            temperature=self._temperature,
            entropy_grad=bool(term and term.entropy_bonus),
        )
        shape = micro.targets_BR.shape
        return Outputs(
            logprobs_BT=logprobs_N.reshape(shape),
            entropy_BT=entropy_N.reshape(shape),
            signal=self._signal.compared(micro, hidden_ND),
        )

    def _baseline(self, micros: list[MicroBatch], known: list[dict[str, mx.array]]) -> float:
        """Returns KTO's baseline over the whole update if a term needs it, else 0."""
        term = next((t for t in self._terms if isinstance(t, Preference)), None)
        if term is None or not term.needs_baseline:
            return 0.0
        total, rows = 0.0, 0.0
        for micro, fixed in zip(micros, known):
            self._ask()
            sums = baseline_sums(term, self._score(micro), self._batch(micro, fixed))
            log_ratios, count = to_floats({"log_ratios": sums[0], "rows": sums[1]}).values()
            total, rows = total + log_ratios, rows + count
        return kto_baseline(total, rows)

    def _batch(self, micro: MicroBatch, known: dict[str, mx.array], baseline: float = 0.0) -> Batch:
        columns = micro.columns
        return Batch(
            sampled_BT=micro.sampled_BR,
            weights={term.weight: columns[term.weight] for term in self._terms},
            advantages_BT=columns["token_advantage"],
            behaviour_logprobs_BT=columns["behaviour"],
            fresh_BT=columns["fresh"],
            old_logprobs_BT=known.get("old"),
            reference_logprobs_BT=known.get("reference"),
            unit_B=micro.unit_B,
            preference_B=micro.preference_B,
            baseline=baseline,
        )

    def _counts(self, micros: list[MicroBatch]) -> Counts:
        """Returns each term's denominators, counts of this whole update."""
        names = {term.weight for term in self._terms}
        names |= {getattr(term, "counted", term.weight) for term in self._terms}
        lengths = {
            name: np.concatenate(
                [np.array((micro.columns[name] != 0).sum(axis=-1)) for micro in micros]
            )
            for name in names
        }
        units, before = [], 0
        for micro in micros:
            units.append(np.array(micro.unit_B) + before)
            before += micro.unit_B.shape[0]
        return counts_of(
            self._terms,
            lengths,
            self._settings.sampling.max_new_tokens,
            np.concatenate(units),
            np.concatenate([np.array(micro.preference_B) for micro in micros]),
        )


def named(report: dict[str, float]) -> dict[str, float]:
    """Returns a step's report under the names of `runtime.metrics`."""
    return {REPORTED[key]: value for key, value in report.items() if key in REPORTED}


def _at_sources(hidden_BTD: mx.array, sources_BR: mx.array) -> mx.array:
    """Returns the hidden states that predict the targets, flat [B·R, D]."""
    picked_BRD = mx.take_along_axis(hidden_BTD, sources_BR[..., None], axis=1)
    return picked_BRD.reshape(-1, hidden_BTD.shape[-1])
