"""Policy-gradient surrogates of the GRPO family: pure functions from arrays to a loss per token.

Each function returns two arrays [B, T]: the losses, to be minimised, and a boolean that is True where the
surrogate's bound removed the gradient or capped its coefficient. `anchor_BT` are the log-probabilities in
the ratio's denominator (`correction.anchor`). At ratio = 1 all surrogates have the gradient of REINFORCE;
they differ in how they bound larger and smaller ratios.

Losses and gradients are exactly 0 on tokens that were not sampled, whatever the arrays hold there.

Shapes: B sequences, T tokens in each. `sampled_BT` is nonzero on the tokens that the policy chose.
"""

import mlx.core as mx

from configs.losses import Cispo, Clip, DppoTv, Gspo, Reinforce, Surrogate
from policies.objectives.correction import log_ratio

Losses = tuple[mx.array, mx.array]


def surrogate(
    settings: Surrogate,
    logprobs_BT: mx.array,
    anchor_BT: mx.array,
    advantages_BT: mx.array,
    sampled_BT: mx.array,
) -> Losses:
    """Returns the losses of the surrogate that the settings name."""
    arrays = (logprobs_BT, anchor_BT, advantages_BT, sampled_BT)
    match settings:
        case Clip(low=low, high=high, dual=dual):
            return clip(*arrays, low=low, high=high, dual=dual)
        case Cispo(max_ratio=max_ratio):
            return cispo(*arrays, max_ratio=max_ratio)
        case Gspo(low=low, high=high):
            return gspo(*arrays, low=low, high=high)
        case DppoTv(delta=delta, max_ratio=max_ratio):
            return dppo_tv(*arrays, delta=delta, max_ratio=max_ratio)
        case Reinforce():
            return reinforce(*arrays)


def clip(
    logprobs_BT: mx.array,
    anchor_BT: mx.array,
    advantages_BT: mx.array,
    sampled_BT: mx.array,
    *,
    low: float,
    high: float,
    dual: float = 0.0,
) -> Losses:
    """Returns PPO's clipped surrogate (Schulman 2017, 1707.06347) with DAPO's two bounds (2503.14476).

    The loss is max(−A r, −A clip(r, 1 − low, 1 + high)). `dual`, if not 0, bounds the loss of a negative
    advantage by −A·dual (Ye 2020, 1912.09729).
    """
    ratio_BT = mx.exp(log_ratio(logprobs_BT, anchor_BT, sampled_BT))
    return _clipped(ratio_BT, _on(sampled_BT, advantages_BT), low, high, dual)


def gspo(
    logprobs_BT: mx.array,
    anchor_BT: mx.array,
    advantages_BT: mx.array,
    sampled_BT: mx.array,
    *,
    low: float,
    high: float,
) -> Losses:
    """Returns losses with a clipped ratio s of the sequence, its tokens' geometric mean (GSPO, 2507.18071).

    It is the form GSPO-token, sg(s)·π/sg(π). Summed over a sequence and divided by its length
    (`normalise.sequence_mean`), value and gradient are those of the sequence form if the advantage is one
    number for each sequence. A row must be a whole sequence.
    """
    log_ratio_BT = log_ratio(logprobs_BT, anchor_BT, sampled_BT)
    lengths_B1 = mx.maximum((sampled_BT != 0).sum(axis=-1, keepdims=True), 1)
    sequence_B1 = mx.exp(log_ratio_BT.sum(axis=-1, keepdims=True) / lengths_B1)
    own_BT = _on(sampled_BT, logprobs_BT)
    ratio_BT = mx.stop_gradient(sequence_B1) * mx.exp(own_BT - mx.stop_gradient(own_BT))
    losses_BT, bounded_BT = _clipped(ratio_BT, _on(sampled_BT, advantages_BT), low, high, 0.0)
    return losses_BT, bounded_BT


def cispo(
    logprobs_BT: mx.array,
    anchor_BT: mx.array,
    advantages_BT: mx.array,
    sampled_BT: mx.array,
    *,
    max_ratio: float,
) -> Losses:
    """Returns −sg(min(r, max_ratio))·A·log π: no token loses its gradient (MiniMax-M1, 2506.13585)."""
    ratio_BT = mx.exp(log_ratio(logprobs_BT, anchor_BT, sampled_BT))
    losses_BT, _ = reinforce(logprobs_BT, anchor_BT, advantages_BT, sampled_BT)
    return mx.stop_gradient(mx.minimum(ratio_BT, max_ratio)) * losses_BT, ratio_BT > max_ratio


def dppo_tv(
    logprobs_BT: mx.array,
    anchor_BT: mx.array,
    advantages_BT: mx.array,
    sampled_BT: mx.array,
    *,
    delta: float,
    max_ratio: float,
) -> Losses:
    """Returns DPPO's losses with binary total variation (2602.04879).

    The trust region bounds the probability and not the ratio: the loss is −sg(min(r, max_ratio))·A·log π,
    and 0 for tokens whose probability has already moved by more than `delta` in the direction of their
    advantage.
    """
    moved_BT = mx.exp(_on(sampled_BT, logprobs_BT)) - mx.exp(_on(sampled_BT, anchor_BT))
    upward_BT = _on(sampled_BT, advantages_BT) > 0
    downward_BT = _on(sampled_BT, advantages_BT) < 0
    left_BT = (upward_BT & (moved_BT > delta)) | (downward_BT & (moved_BT < -delta))
    losses_BT, capped_BT = cispo(
        logprobs_BT, anchor_BT, advantages_BT, sampled_BT, max_ratio=max_ratio
    )
    return mx.where(left_BT, 0.0, losses_BT), left_BT | capped_BT


def reinforce(
    logprobs_BT: mx.array, anchor_BT: mx.array, advantages_BT: mx.array, sampled_BT: mx.array
) -> Losses:
    """Returns −A·log π (Williams 1992). The anchor is not used: nothing corrects for a stale sampler."""
    losses_BT = -_on(sampled_BT, advantages_BT) * _on(sampled_BT, logprobs_BT)
    return losses_BT, mx.zeros(losses_BT.shape, mx.bool_)


def _clipped(
    ratio_BT: mx.array, advantages_BT: mx.array, low: float, high: float, dual: float
) -> Losses:
    free_BT = -advantages_BT * ratio_BT
    losses_BT = mx.maximum(free_BT, -advantages_BT * mx.clip(ratio_BT, 1 - low, 1 + high))
    bounded_BT = losses_BT > free_BT
    if dual:
        floor_BT = -advantages_BT * dual
        beyond_BT = (advantages_BT < 0) & (losses_BT > floor_BT)
        losses_BT = mx.where(beyond_BT, floor_BT, losses_BT)
        bounded_BT = bounded_BT | beyond_BT
    return losses_BT, bounded_BT


def _on(sampled_BT: mx.array, values_BT: mx.array) -> mx.array:
    return mx.where(sampled_BT != 0, values_BT, 0.0)
