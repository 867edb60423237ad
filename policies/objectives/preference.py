"""Preference losses: pure functions from log-probabilities of judged answers to a loss per unit.

A unit is what the loss is about: a pair of one preferred and one rejected answer, or, in KTO, one
judged answer. Each function returns losses [B], to be minimised, with a pair's loss on the row of
its preferred answer (KTO: on the answer's own row) and exactly 0 elsewhere; and metrics that are
sums and constants to the gradient. The caller divides by the units of the whole optimiser step, so
that micro-batches add up to it as long as none tears a pair apart:

    units = count_units(pair_N, label_N, lengths_N, paired=FACTS["dpo"].paired)
    losses_B, sums = dpo(logprobs_BT, answers, beta=0.1)
    share = losses_B.sum() / units

Losses, gradients and metrics are exactly 0 on padding and on rows without a covered token, whatever
the arrays hold there, and for half a pair.

Shapes: B rows of a micro-batch, T tokens in each.
"""

import math
from collections.abc import Mapping

import mlx.core as mx
from msgspec import Struct

from policies.objectives.answers import (
    Answers,
    difference,
    log_ratio,
    mean_over,
    sides,
    sum_over,
    whole_pairs,
)

LARGEST_MEAN_LOGPROB = -1e-6
"""ORPO's odds p/(1 − p) take the mean log-probability to be at most this, so that 1 − p > 0."""


class Facts(Struct, frozen=True):
    """What a loss needs from the program around it."""

    needs_reference: bool
    """Whether `Answers.reference_logprobs_BT` must be there."""
    paired: bool
    """Whether a unit is two rows, preferred and rejected, or one row."""


FACTS = {
    "dpo": Facts(needs_reference=True, paired=True),
    "ipo": Facts(needs_reference=True, paired=True),
    "simpo": Facts(needs_reference=False, paired=True),
    "orpo": Facts(needs_reference=False, paired=True),
    "kto": Facts(needs_reference=True, paired=False),
}

Metrics = dict[str, mx.array]
Losses = tuple[mx.array, Metrics]


def dpo(
    logprobs_BT: mx.array,
    answers: Answers,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    robust: bool = False,
    length_normalized: bool = False,
    nll_weight: float = 0.0,
) -> Losses:
    """Returns ℓ(m) = −log σ(m), m = β·(log-ratio of preferred − of rejected) (2305.18290).

    `label_smoothing` s is the share of labels taken to be wrong: (1−s)·ℓ(m) + s·ℓ(−m), cDPO
    (Mitchell 2023, "A note on DPO with noisy preferences"), or with `robust` the unbiased
    ((1−s)·ℓ(m) − s·ℓ(−m)) / (1−2s) (2403.00409). `length_normalized` divides each log-ratio by
    its answer's tokens, so that a long answer gains no margin by its length alone (Tülu 3,
    2411.15124, with β = 5). `nll_weight` is RPO's weight of the preferred answer's mean negative
    log-likelihood per token (2404.19733). Raises ValueError without a reference, for arrays whose
    shapes do not fit, or for `robust` with s ≥ 0.5.
    """
    if robust and not label_smoothing < 0.5:
        raise ValueError(f"robust DPO needs label_smoothing below 0.5, got {label_smoothing}")
    pairs_BB = whole_pairs(logprobs_BT, answers)
    reward_B = beta * log_ratio(logprobs_BT, answers, mean=length_normalized)
    margin_B = difference(reward_B, pairs_BB)
    sign, scale = (-1, 1 - 2 * label_smoothing) if robust else (1, 1)
    as_labelled_B = (1 - label_smoothing) * _negative_log_sigmoid(margin_B)
    flipped_B = label_smoothing * _negative_log_sigmoid(-margin_B)
    losses_B = (as_labelled_B + sign * flipped_B) / scale
    return _of_pairs(losses_B, reward_B, logprobs_BT, answers, pairs_BB, nll_weight)


def ipo(
    logprobs_BT: mx.array,
    answers: Answers,
    *,
    beta: float,
    length_normalized: bool = True,
    nll_weight: float = 0.0,
) -> Losses:
    """Returns (h − 1/(2β))², h = log-ratio of preferred − of rejected (2310.12036, eq. 17).

    The paper's h is of whole answers. Its spread grows with their length while the target does
    not, and a squared error is led by its largest. So the default is the mean over an answer's
    tokens, as in TRL on the word of IPO's authors; `length_normalized=False` is the sum.
    `nll_weight` and errors are as in `dpo`.
    """
    pairs_BB = whole_pairs(logprobs_BT, answers)
    log_ratio_B = log_ratio(logprobs_BT, answers, mean=length_normalized)
    losses_B = (difference(log_ratio_B, pairs_BB) - 1 / (2 * beta)) ** 2
    return _of_pairs(losses_B, beta * log_ratio_B, logprobs_BT, answers, pairs_BB, nll_weight)


def simpo(
    logprobs_BT: mx.array, answers: Answers, *, beta: float, gamma: float, nll_weight: float = 0.0
) -> Losses:
    """Returns −log σ(m − γ), m = β·(mean log-probability of preferred − of rejected) (2405.14734).

    `gamma` is γ itself, not its ratio to β. The reported margin is m, without γ. `nll_weight` is
    as in `dpo`; no reference is used.
    """
    pairs_BB = whole_pairs(logprobs_BT, answers)
    reward_B = beta * mean_over(logprobs_BT, answers)
    losses_B = _negative_log_sigmoid(difference(reward_B, pairs_BB) - gamma)
    return _of_pairs(losses_B, reward_B, logprobs_BT, answers, pairs_BB, nll_weight)


def orpo(logprobs_BT: mx.array, answers: Answers, *, beta: float) -> Losses:
    """Returns −log p_w − β·log σ(log odds(p_w) − log odds(p_l)) (2403.07691, where β is λ).

    p is the geometric mean of an answer's token probabilities and odds(p) = p/(1 − p). The
    reported rewards are β·log p; no reference is used.
    """
    pairs_BB = whole_pairs(logprobs_BT, answers)
    mean_B = mean_over(logprobs_BT, answers)
    losses_B = beta * _negative_log_sigmoid(difference(_log_odds(mean_B), pairs_BB))
    return _of_pairs(losses_B, beta * mean_B, logprobs_BT, answers, pairs_BB, nll_weight=1.0)


def kto(
    logprobs_BT: mx.array,
    answers: Answers,
    *,
    beta: float,
    baseline: float | mx.array,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Losses:
    """Returns λ_D·σ(β(z₀ − r)) of desirable and λ_U·σ(β(r − z₀)) of undesirable rows (2402.01306).

    r is the answer's summed log-ratio. `baseline` is z₀, one number for the whole optimiser step
    (`kto_baseline`) and a constant to the gradient. The reported margin is β(r − z₀) of desirable
    and β(z₀ − r) of undesirable rows: positive where the answer is on its side of z₀.
    """
    desirable_B, undesirable_B, _ = sides(logprobs_BT, answers)
    log_ratio_B = log_ratio(logprobs_BT, answers, mean=False)
    above_B = beta * (log_ratio_B - mx.stop_gradient(mx.array(baseline)))
    margin_B = mx.where(desirable_B, above_B, mx.where(undesirable_B, -above_B, 0.0))
    weight_B = desirable_B * desirable_weight + undesirable_B * undesirable_weight
    logprob_B = sum_over(logprobs_BT, answers)
    units_B = desirable_B | undesirable_B
    metrics = _metrics(beta * log_ratio_B, margin_B, logprob_B, desirable_B, undesirable_B, units_B)
    return weight_B * mx.sigmoid(-margin_B), metrics


def mismatched(logprobs_BT: mx.array, answers: Answers) -> tuple[mx.array, mx.array]:
    """Returns the sum of the log-ratios of the rows labelled 0, and how many rows those are.

    They are answers behind other rows' prompts, by which KTO estimates how far the policy is from
    the reference. Both numbers add up over micro-batches and are constants to the gradient.
    """
    *_, rows_B = sides(logprobs_BT, answers)
    log_ratio_B = mx.stop_gradient(log_ratio(logprobs_BT, answers, mean=False))
    return mx.where(rows_B, log_ratio_B, 0.0).sum(), rows_B.sum()


def kto_baseline(log_ratio_sum: float, rows: float) -> float:
    """Returns z₀ = max(0, mean log-ratio of the step's mismatched rows), 0 where there are none.

    A sum that is not a number gives a baseline that is none either.
    """
    return max(log_ratio_sum / rows, 0.0) if rows else 0.0


def report(sums: Mapping[str, float]) -> dict[str, float]:
    """Returns the means of a step from the sums of its metrics.

    `accuracy` is the share of units with a positive margin, where a margin of 0 counts half, and
    `margin` is per unit. Rewards and log-probabilities (summed over an answer's tokens) are per
    answer of their side. A mean of nothing is left out.
    """
    means = {"units": sums["units"]}
    for name in sums.keys() - {"units", "chosen", "rejected"}:
        side = name.partition("_")[0]
        count = sums[side if side in ("chosen", "rejected") else "units"]
        if count:
            means[name] = sums[name] / count
    return dict(sorted(means.items()))


def _of_pairs(
    losses_B: mx.array,
    reward_B: mx.array,
    logprobs_BT: mx.array,
    answers: Answers,
    pairs_BB: mx.array,
    nll_weight: float,
) -> Losses:
    """Returns the losses of whole pairs, with the preferred answer's weighted NLL added."""
    preferred_B, rejected_B = pairs_BB.any(axis=1), pairs_BB.any(axis=0)
    margin_B, logprob_B = difference(reward_B, pairs_BB), sum_over(logprobs_BT, answers)
    if nll_weight:
        losses_B = losses_B - nll_weight * mean_over(logprobs_BT, answers)
    metrics = _metrics(reward_B, margin_B, logprob_B, preferred_B, rejected_B, preferred_B)
    return mx.where(preferred_B, losses_B, 0.0), metrics


def _metrics(
    reward_B: mx.array,
    margin_B: mx.array,
    logprob_B: mx.array,
    chosen_B: mx.array,
    rejected_B: mx.array,
    units_B: mx.array,
) -> Metrics:
    """Returns the sums that `report` reads; `units_B` are the rows that carry a margin."""
    correct_B = (margin_B > 0) + 0.5 * (margin_B == 0)
    sums = {
        "units": units_B,
        "chosen": chosen_B,
        "rejected": rejected_B,
        "accuracy": mx.where(units_B, correct_B, 0.0),
        "margin": mx.where(units_B, margin_B, 0.0),
        "chosen_reward": mx.where(chosen_B, reward_B, 0.0),
        "rejected_reward": mx.where(rejected_B, reward_B, 0.0),
        "chosen_logprob": mx.where(chosen_B, logprob_B, 0.0),
        "rejected_logprob": mx.where(rejected_B, logprob_B, 0.0),
    }
    return {k: mx.stop_gradient(v.astype(mx.float32).sum()) for k, v in sums.items()}


def _negative_log_sigmoid(x: mx.array) -> mx.array:
    return mx.logaddexp(-x, mx.zeros_like(x))


def _log_odds(mean_B: mx.array) -> mx.array:
    """Returns log(p / (1 − p)) of p = e^mean, with log(1 − p) in the form that keeps its digits."""
    mean_B = mx.minimum(mean_B, LARGEST_MEAN_LOGPROB)
    near_one_B = mx.log(-mx.expm1(mean_B))
    near_zero_B = mx.log1p(-mx.exp(mean_B))
    return mean_B - mx.where(mean_B > -math.log(2), near_one_B, near_zero_B)
