"""The divergence term: a teacher's distributions, one loss a token, beside the other two terms.

`signal` is what the learner computes next to its own log-probabilities; `terms.loss` weighs it by
the record's weights and divides it by the step's own counts. A token at which the teacher's word
was not usable stays in the counts, trains nothing, and is reported.

Shapes: B sequences, T tokens in each, N = B·T, D hidden width.
"""

from collections.abc import Sequence

import mlx.core as mx
from msgspec import Struct

from kernels.divergence import Divergence, per_token
from kernels.logprobs import Project
from kernels.teacher import Teacher


class Signal(Struct, frozen=True):
    """Of each token: the divergence in nats, whether there is one, and what it weighs in the loss."""

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
    """`kernels.divergence.per_token` of a micro-batch's N tokens, with their weights.

    Where the weight is 0 nothing has an effect, NaN in the teacher included.
    """
    divergence_N, usable_N = per_token(hidden_ND, project, weights, teacher, divergence)
    shape = weight_BT.shape
    return Signal(divergence_N.reshape(shape), usable_N.reshape(shape), weight_BT)


def weighted(signal: Signal, weight_BT: mx.array) -> mx.array:
    """Each token's loss [B, T]: exactly 0, gradient included, where the weight is or none is usable."""
    usable_BT = (weight_BT != 0) & signal.usable_BT
    return weight_BT * mx.where(usable_BT, signal.divergence_BT, 0.0)
