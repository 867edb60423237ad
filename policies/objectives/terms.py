"""The loss of an optimiser step, blind to the algorithm: a sum of terms over annotated tokens.

A record says per token how much it weighs in each term (as in PrimeIntellect's prime-rl), and each
term is divided by its own counts over the whole optimiser step. So losses, gradients and metrics
of micro-batches add up to the step's, however it was cut:

    parts = [loss(logprobs_BT, entropy_BT, batch, terms, step) for batch in micro_batches]
    report = summary(add_up([to_floats(metrics) for _, metrics in parts]))

Shapes: B sequences, T tokens in each.
"""

import math
from collections.abc import Iterable, Mapping

import mlx.core as mx
import numpy as np
from msgspec import Struct

from configs.schema import Bypass, Clip, Grpo
from policies.objectives import correction as corrections
from policies.objectives import kl
from policies.objectives.correction import Correction, log_ratio
from policies.objectives.divergence import Signal, weighted
from policies.objectives.normalise import Denominators, Normalizer, reduce, token_mean
from policies.objectives.policy_gradient import Surrogate, surrogate
from policies.objectives.supervised import cross_entropy

KL_WEIGHT_CAP = 2.0
"""Largest weight π/μ of a token in the KL term, which no clipping protects."""


class PolicyGradient(Struct, frozen=True, kw_only=True):
    """The settings of the policy-gradient term and of what comes with it."""

    surrogate: Surrogate = Clip()
    correction: Correction = Bypass()
    normalizer: Normalizer = "token_mean"
    kl_coefficient: float = 0.0
    """Of k2 to the reference in the loss; 0 for none."""
    entropy_bonus: float = 0.0
    """Of the mean entropy of the term's tokens; the loss then needs differentiable entropies."""


class Step(Struct, frozen=True):
    """What the terms are divided by: counts of one whole optimiser step."""

    policy_gradient: Denominators
    cross_entropy: Denominators
    divergence: Denominators | None = None
    """None where no teacher's distributions are trained on."""


class Batch(Struct, frozen=True, kw_only=True):
    """A micro-batch, annotated: arrays [B, T], None where the term that needs them is not used.

    `sampled` is 1 on tokens that the policy chose. `pg_weight` and `ce_weight` are what a token
    weighs in the two terms; where it is 0 nothing has an effect, NaN included. Rows are whole
    sequences. What comes with the third term, a teacher's, is a `divergence.Signal`.
    """

    sampled_BT: mx.array
    pg_weight_BT: mx.array | None = None
    ce_weight_BT: mx.array | None = None
    advantages_BT: mx.array | None = None
    behaviour_logprobs_BT: mx.array | None = None
    """Of μ, which really sampled."""
    old_logprobs_BT: mx.array | None = None
    """Of the learner at the start of the step; needed by a decoupled correction."""
    reference_logprobs_BT: mx.array | None = None
    """Of the model before training; needed by a KL term, reported wherever there."""


Metrics = dict[str, mx.array]
NOT_MEANS = {"ce_nats", "divergence_nats", "weight", "weight_squared"}
"""Sums that are not divided by the policy gradient's tokens."""


def from_grpo(grpo: Grpo) -> PolicyGradient:
    """The policy-gradient term that the settings ask for."""
    in_loss = grpo.kl.placement == "loss_k2"
    return PolicyGradient(
        surrogate=grpo.surrogate,
        correction=grpo.correction,
        normalizer=grpo.normalizer,
        kl_coefficient=grpo.kl.coefficient if in_loss else 0.0,
        entropy_bonus=grpo.entropy_bonus,
    )


def loss(
    logprobs_BT: mx.array,
    entropy_BT: mx.array,
    batch: Batch,
    terms: PolicyGradient | None,
    step: Step,
    signal: Signal | None = None,
) -> tuple[mx.array, Metrics]:
    """This micro-batch's share of the step's loss, and sums for the report.

    `logprobs_BT` and `entropy_BT` are the policy's, at the sampling temperature. Without `terms`
    there is no policy gradient, without `signal` no divergence. The metrics are constants; `add_up`
    and `summary` read them. Raises ValueError if something is missing that a term needs.
    """
    total, metrics = mx.array(0.0), {}
    if terms is not None:
        share, more = _policy_gradient(logprobs_BT, entropy_BT, batch, terms, step.policy_gradient)
        total, metrics = total + share, metrics | more
    if batch.ce_weight_BT is not None:
        share, more = _cross_entropy(logprobs_BT, batch.ce_weight_BT, step.cross_entropy)
        total, metrics = total + share, metrics | more
    if signal is not None:
        share, more = _divergence(signal, step.divergence)
        total, metrics = total + share, metrics | more
    metrics = {k: mx.stop_gradient(v.astype(mx.float32)) for k, v in metrics.items()}
    return total, metrics | {"loss": mx.stop_gradient(total)}


def add_up(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of several micro-batches as those of one: sums, and the largest of ``max_…``."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if name not in total:
                total[name] = value
            else:
                total[name] = max(total[name], value) if _largest(name) else total[name] + value
    return total


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Evaluated, as Python floats."""
    mx.eval(metrics)
    return {name: float(np.asarray(value)) for name, value in metrics.items()}


def summary(sums: Mapping[str, float]) -> dict[str, float]:
    """The report of a step: means over the tokens of each term, in nats where they are log-ratios.

    `mismatch_k1` and `mismatch_k3` estimate KL(μ‖π) between sampler and learner, `max_mismatch` is
    the largest difference of a token's log-probability, `kl_reference` estimates KL(π‖ref). `weight`
    is the mean importance weight before truncation, `ess` the effective share of the samples under
    it, `chi2` its E[w²] − 1. `bounded` and `corrected` are the shares of tokens at which the
    surrogate's bound and the correction's took hold. `divergence_nats` is over the tokens at which
    a teacher was usable, `unusable_tokens` the others.
    """
    report = {name: sums[name] for name in sums if _largest(name) or name.endswith("loss")}
    report |= {name: sums[name] for name in sums if name.endswith("tokens")}
    if sums.get("ce_tokens"):
        report["ce_nats"] = sums["ce_nats"] / sums["ce_tokens"]
    if sums.get("divergence_tokens"):
        report["divergence_nats"] = sums["divergence_nats"] / sums["divergence_tokens"]
    tokens = sums.get("pg_tokens", 0.0)
    if tokens:
        means = sums.keys() - report.keys() - NOT_MEANS
        report |= {name: sums[name] / tokens for name in means}
        report["weight"] = sums["weight"] / tokens
        report["ess"] = sums["weight"] ** 2 / (tokens * max(sums["weight_squared"], math.ulp(0)))
        report["chi2"] = sums["weight_squared"] / tokens - 1
    return dict(sorted(report.items()))


def _policy_gradient(
    logprobs_BT: mx.array,
    entropy_BT: mx.array,
    batch: Batch,
    terms: PolicyGradient,
    step: Denominators,
) -> tuple[mx.array, Metrics]:
    pg_weight_BT = _needed(batch.pg_weight_BT, "weights")
    advantages_BT = _needed(batch.advantages_BT, "advantages")
    behaviour_BT = _needed(batch.behaviour_logprobs_BT, "the sampler's log-probabilities")
    old_BT = batch.old_logprobs_BT
    covered_BT = (batch.sampled_BT != 0) & (pg_weight_BT != 0)
    anchor_BT = corrections.anchor(terms.correction, old_BT, behaviour_BT)
    correction_BT = corrections.token_weights(terms.correction, old_BT, behaviour_BT, covered_BT)
    losses_BT, bounded_BT = surrogate(
        terms.surrogate, logprobs_BT, anchor_BT, advantages_BT, covered_BT
    )
    weights_BT = correction_BT * mx.where(covered_BT, pg_weight_BT, 0.0)
    share = pg_loss = reduce(terms.normalizer, weights_BT * losses_BT, covered_BT, step)
    metrics = {"pg_loss": pg_loss}
    if terms.kl_coefficient:
        reference_BT = _needed(batch.reference_logprobs_BT, "the reference's log-probabilities")
        losses_BT = _kl(logprobs_BT, reference_BT, behaviour_BT, covered_BT)
        kl_loss = terms.kl_coefficient * reduce(terms.normalizer, losses_BT, covered_BT, step)
        share, metrics["kl_loss"] = share + kl_loss, kl_loss
    if terms.entropy_bonus:
        entropy = token_mean(mx.where(covered_BT, entropy_BT, 0.0), step)
        share = share - terms.entropy_bonus * entropy
    current_BT = mx.stop_gradient(logprobs_BT)
    ratio_BT = mx.exp(log_ratio(current_BT, anchor_BT, covered_BT))
    raw_BT = mx.exp(log_ratio(current_BT if old_BT is None else old_BT, behaviour_BT, covered_BT))
    metrics |= {
        "pg_tokens": covered_BT.sum(),
        "bounded": (bounded_BT & covered_BT).sum(),
        "ratio": mx.where(covered_BT, ratio_BT, 0.0).sum(),
        "entropy": mx.where(covered_BT, entropy_BT, 0.0).sum(),
    }
    if not isinstance(terms.correction, Bypass):
        metrics["corrected"] = ((correction_BT != raw_BT) & covered_BT).sum()
    if batch.reference_logprobs_BT is not None:
        k3_BT = kl.k3(current_BT, batch.reference_logprobs_BT, covered_BT)
        metrics["kl_reference"] = k3_BT.sum()
    return share, metrics | _mismatch(current_BT, behaviour_BT, raw_BT, covered_BT)


def _kl(
    logprobs_BT: mx.array, reference_BT: mx.array, behaviour_BT: mx.array, covered_BT: mx.array
) -> mx.array:
    """k2 to the reference, weighted by the ratio to what sampled: right off-policy as well."""
    weight_BT = mx.exp(log_ratio(logprobs_BT, behaviour_BT, covered_BT))
    weight_BT = mx.stop_gradient(mx.minimum(weight_BT, KL_WEIGHT_CAP))
    return weight_BT * kl.k2(logprobs_BT, reference_BT, covered_BT)


def _mismatch(
    current_BT: mx.array, behaviour_BT: mx.array, weight_BT: mx.array, covered_BT: mx.array
) -> Metrics:
    """How far the learner is from what sampled; `weight_BT` before any truncation."""
    difference_BT = mx.where(covered_BT, behaviour_BT - current_BT, 0.0)
    weight_BT = mx.where(covered_BT, weight_BT, 0.0)
    return {
        "mismatch_k1": kl.k1(behaviour_BT, current_BT, covered_BT).sum(),
        "mismatch_k3": kl.k3(behaviour_BT, current_BT, covered_BT).sum(),
        "max_mismatch": mx.abs(difference_BT).max(),
        "weight": weight_BT.sum(),
        "weight_squared": (weight_BT**2).sum(),
    }


def _cross_entropy(
    logprobs_BT: mx.array, ce_weight_BT: mx.array, step: Denominators
) -> tuple[mx.array, Metrics]:
    share = token_mean(cross_entropy(logprobs_BT, ce_weight_BT), step)
    covered_BT = (ce_weight_BT != 0).astype(mx.float32)
    metrics = {"ce_loss": share, "ce_tokens": covered_BT.sum()}
    return share, metrics | {"ce_nats": cross_entropy(logprobs_BT, covered_BT).sum()}


def _divergence(signal: Signal, step: Denominators | None) -> tuple[mx.array, Metrics]:
    if step is None:
        raise ValueError("the divergence term needs the step's counts of it, got none")
    share = token_mean(weighted(signal, signal.weight_BT), step)
    covered_BT = (signal.weight_BT != 0).astype(mx.float32)
    usable_BT = covered_BT * signal.usable_BT
    metrics = {"divergence_loss": share, "divergence_tokens": usable_BT.sum()}
    metrics["divergence_nats"] = weighted(signal, covered_BT).sum()
    return share, metrics | {"unusable_tokens": covered_BT.sum() - usable_BT.sum()}


def _needed(array_BT: mx.array | None, what: str) -> mx.array:
    if array_BT is None:
        raise ValueError(f"the policy-gradient term needs {what}, got none")
    return array_BT


def _largest(name: str) -> bool:
    return name.startswith("max_")
