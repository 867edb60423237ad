"""The divergence term: one loss for each token, from a teacher's distributions.

The learner computes `signal` together with its own log-probabilities; `terms.loss` weighs it by the record's
weights and divides it by the step's own counts. A token whose teacher output was not usable stays in the
counts, trains nothing, and is reported.

Shapes: B sequences, T tokens in each, N = B·T, D hidden width.
"""

from collections.abc import Sequence

import mlx.core as mx
from msgspec import Struct

from kernels.divergence import Divergence, per_token
from kernels.logprobs import Project
from kernels.teacher import Teacher


class Signal(Struct, frozen=True):
    """Each token's divergence in nats, whether it is usable, and its weight in the loss."""

    divergence_BT: mx.array
    usable_BT: mx.array
    weight_BT: mx.array


def signal(
    hidden_ND: mx.array,
    project: Project,
    weights: Sequence[mx.array],
    teacher: Teacher,
    divergence: Divergence,
    weight_BT: mx.array,
) -> Signal:
    """Returns `kernels.divergence.per_token` of a micro-batch's N tokens, with their weights.

    A token with the weight 0 has no effect, even if the teacher output there is NaN.
    """
    divergence_N, usable_N = per_token(hidden_ND, project, weights, teacher, divergence)
    shape = weight_BT.shape
    return Signal(divergence_N.reshape(shape), usable_N.reshape(shape), weight_BT)


def weighted(signal: Signal, weight_BT: mx.array) -> mx.array:
    """Returns each token's loss [B, T]; it and its gradient are exactly 0 if the weight is 0 or no
    teacher output is usable."""
    usable_BT = (weight_BT != 0) & signal.usable_BT
    return weight_BT * mx.where(usable_BT, signal.divergence_BT, 0.0)
