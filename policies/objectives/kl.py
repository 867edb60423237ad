"""Estimators of KL(π‖ref) on sampled tokens; each has its own use, because their gradients differ.

With d = log π − log ref on a token sampled from π (Schulman, "Approximating KL divergence", 2020;
Tang & Munos, 2506.09477):

    estimator          as a value            as a loss, the gradient of
    k1 = d             unbiased              nothing: its expectation is 0
    k2 = d²/2          biased                KL(π‖ref), the reverse KL that is wanted
    k3 = e^−d − 1 + d  unbiased, low noise   KL(ref‖π), the other one

So k1 is subtracted from the reward, k2 is added to the loss, and k3 is only reported.

Shapes: B sequences, T tokens in each. All estimators are 0 on tokens that were not sampled.
"""

import mlx.core as mx

from policies.objectives.correction import log_ratio


def k1(logprobs_BT: mx.array, reference_logprobs_BT: mx.array, sampled_BT: mx.array) -> mx.array:
    """Returns d; its sum over a sequence, times the coefficient, is subtracted from the reward."""
    return log_ratio(logprobs_BT, reference_logprobs_BT, sampled_BT)


def k2(logprobs_BT: mx.array, reference_logprobs_BT: mx.array, sampled_BT: mx.array) -> mx.array:
    """Returns d²/2, for the loss."""
    return 0.5 * log_ratio(logprobs_BT, reference_logprobs_BT, sampled_BT) ** 2


def k3(logprobs_BT: mx.array, reference_logprobs_BT: mx.array, sampled_BT: mx.array) -> mx.array:
    """Returns e^−d − 1 + d, which is never negative, for the report."""
    d_BT = log_ratio(logprobs_BT, reference_logprobs_BT, sampled_BT)
    return mx.maximum(mx.expm1(-d_BT) + d_BT, 0.0)
