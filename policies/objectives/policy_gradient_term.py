"""The policy-gradient term: a surrogate, its off-policy correction, KL to the reference, entropy bonus.

Shapes: B sequences, T tokens in each.
"""

import mlx.core as mx

from configs.losses import Bypass
from policies.objectives import correction as corrections
from policies.objectives import kl
from policies.objectives.batch import Batch, Metrics, Outputs, needed
from policies.objectives.correction import log_ratio
from policies.objectives.normalise import Denominators, reduce, token_mean
from policies.objectives.policy_gradient import surrogate
from policies.terms import PolicyGradient, Term

KL_WEIGHT_CAP = 2.0
"""Largest weight π/μ of a token in the KL term, which no clipping protects."""
TERM = "policy-gradient"


def policy_gradient(
    terms: Term, outputs: Outputs, batch: Batch, step: Denominators
) -> tuple[mx.array, Metrics]:
    """Returns the term's share of the loss, and sums over its tokens for the report."""
    assert isinstance(terms, PolicyGradient)
    logprobs_BT, entropy_BT = outputs.logprobs_BT, outputs.entropy_BT
    pg_weight_BT = needed(batch.weights.get(terms.weight), TERM, "weights")
    advantages_BT = needed(batch.advantages_BT, TERM, "advantages")
    behaviour_BT = needed(batch.behaviour_logprobs_BT, TERM, "the sampler's log-probabilities")
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
        reference_BT = needed(
            batch.reference_logprobs_BT, TERM, "the reference's log-probabilities"
        )
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
    fresh_BT = covered_BT if batch.fresh_BT is None else covered_BT & (batch.fresh_BT != 0)
    return share, metrics | _mismatch(current_BT, behaviour_BT, raw_BT, covered_BT, fresh_BT)


def _kl(
    logprobs_BT: mx.array, reference_BT: mx.array, behaviour_BT: mx.array, covered_BT: mx.array
) -> mx.array:
    """Returns k2 to the reference, weighted by the ratio π/μ so that it is right off-policy too."""
    weight_BT = mx.exp(log_ratio(logprobs_BT, behaviour_BT, covered_BT))
    weight_BT = mx.stop_gradient(mx.minimum(weight_BT, KL_WEIGHT_CAP))
    return weight_BT * kl.k2(logprobs_BT, reference_BT, covered_BT)


def _mismatch(
    current_BT: mx.array,
    behaviour_BT: mx.array,
    weight_BT: mx.array,
    covered_BT: mx.array,
    fresh_BT: mx.array,
) -> Metrics:
    """Returns sums that measure how far the learner is from the sampler; `weight_BT` is not truncated.

    The mean is over the fresh tokens alone, which the learner's own weights sampled.
    """
    difference_BT = mx.where(covered_BT, behaviour_BT - current_BT, 0.0)
    weight_BT = mx.where(covered_BT, weight_BT, 0.0)
    return {
        "mismatch_k3": kl.k3(behaviour_BT, current_BT, covered_BT).sum(),
        "max_mismatch": mx.abs(difference_BT).max(),
        "mismatch_abs": mx.where(fresh_BT, mx.abs(difference_BT), 0.0).sum(),
        "fresh_tokens": fresh_BT.sum(),
        "weight": weight_BT.sum(),
        "weight_squared": (weight_BT**2).sum(),
    }
