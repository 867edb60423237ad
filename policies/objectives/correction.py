"""Off-policy correction: ratios of the policy to the sampler's policy, and token weights made of them.

There are three policies: μ sampled the tokens (behaviour), π_old is the learner's at the start of the step,
and π is being optimised. In the decoupled form the surrogate's ratio is π/π_old and a token has the weight
f(π_old/μ) (Hilton 2021, 2110.00641; AReaL, 2505.24298). In the bypass form the ratio is π/μ, which is
already the correction, so the weight is 1; both together would count the mismatch twice.

Shapes: B sequences, T tokens in each. `sampled_BT` is nonzero on the tokens that the policy chose.
"""

import mlx.core as mx

from configs.losses import Bypass, Correction, Mask, Truncate

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this value before they are exponentiated."""


def log_ratio(numerator_BT: mx.array, denominator_BT: mx.array, sampled_BT: mx.array) -> mx.array:
    """Returns the clamped difference of log-probabilities; 0 on tokens that were not sampled."""
    difference_BT = mx.where(sampled_BT != 0, numerator_BT - denominator_BT, 0.0)
    return mx.clip(difference_BT, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def anchor(
    correction: Correction, old_logprobs_BT: mx.array | None, behaviour_logprobs_BT: mx.array
) -> mx.array:
    """Returns the log-probabilities in the denominator of the surrogate's ratio: μ in bypass, else π_old."""
    match correction:
        case Bypass():
            return behaviour_logprobs_BT
        case Truncate() | Mask():
            return _needed(old_logprobs_BT)


def token_weights(
    correction: Correction,
    old_logprobs_BT: mx.array | None,
    behaviour_logprobs_BT: mx.array,
    sampled_BT: mx.array,
) -> mx.array:
    """Returns the factor of each token's loss, a constant to the gradient; 1 on tokens not sampled."""
    match correction:
        case Bypass():
            return mx.ones_like(behaviour_logprobs_BT)
        case Truncate(cap=cap):
            old_BT = _needed(old_logprobs_BT)
            return truncated(old_BT, behaviour_logprobs_BT, sampled_BT, cap=cap)
        case Mask(low=low, high=high):
            old_BT = _needed(old_logprobs_BT)
            return masked(old_BT, behaviour_logprobs_BT, sampled_BT, low=low, high=high)


def truncated(
    old_logprobs_BT: mx.array, behaviour_logprobs_BT: mx.array, sampled_BT: mx.array, *, cap: float
) -> mx.array:
    """Returns min(π_old/μ, cap), the weights of truncated importance sampling (Ionides 2008)."""
    ratio_BT = mx.exp(log_ratio(old_logprobs_BT, behaviour_logprobs_BT, sampled_BT))
    return mx.stop_gradient(mx.minimum(ratio_BT, cap))


def masked(
    old_logprobs_BT: mx.array,
    behaviour_logprobs_BT: mx.array,
    sampled_BT: mx.array,
    *,
    low: float,
    high: float,
) -> mx.array:
    """Returns π_old/μ within [low, high] and 0 outside, masked importance sampling (IcePop, 2510.18855)."""
    ratio_BT = mx.exp(log_ratio(old_logprobs_BT, behaviour_logprobs_BT, sampled_BT))
    inside_BT = (ratio_BT >= low) & (ratio_BT <= high)
    return mx.stop_gradient(mx.where(inside_BT, ratio_BT, 0.0))


def _needed(old_logprobs_BT: mx.array | None) -> mx.array:
    if old_logprobs_BT is None:
        raise ValueError("a decoupled correction needs the learner's old log-probabilities")
    return old_logprobs_BT
