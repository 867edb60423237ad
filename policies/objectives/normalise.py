"""Normalisation: losses per token become one number, divided by counts of the *whole* optimiser step.

The counts are taken once, before the step is cut into micro-batches and before any correction
rejects tokens. Losses of the micro-batches then add up to the step's loss, and rejecting tokens
does not make the others count for more.

Shapes: B sequences of a micro-batch, T tokens in each, N sequences of a step.
"""

import mlx.core as mx
import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike

from policies.terms import Normalizer


class Denominators(Struct, frozen=True):
    """The counts of one loss term over the trajectories that one optimiser step trains on.

    Groups that are dropped for equal rewards are not counted (as in prime-rl and tinker); with
    `algorithm.drop_zero_variance = false` they are.
    """

    tokens: float
    """Number of tokens that the term covers."""
    sequences: float
    """Number of sequences with at least one such token."""
    constant: float
    """Number of sequences × the limit of new tokens, whatever the lengths are (Dr. GRPO)."""


def denominators(lengths_N: ArrayLike, limit_tokens: int) -> Denominators:
    """Returns the counts of a step whose sequences have `lengths_N` tokens in the term, at least 1 each."""
    lengths_N = np.asarray(lengths_N, np.int64)
    sequences = max(int((lengths_N > 0).sum()), 1)
    tokens = max(int(lengths_N.sum()), 1)
    return Denominators(float(tokens), float(sequences), float(sequences * limit_tokens))


def reduce(
    normalizer: Normalizer, losses_BT: mx.array, covered_BT: mx.array, step: Denominators
) -> mx.array:
    """Returns a micro-batch's share of the step's loss, by the normaliser of that name.

    `covered_BT` is nonzero on the term's tokens; rows are whole sequences.
    """
    match normalizer:
        case "token_mean":
            return token_mean(losses_BT, step)
        case "sequence_mean":
            return sequence_mean(losses_BT, covered_BT, step)
        case "constant":
            return constant(losses_BT, step)


def token_mean(losses_BT: mx.array, step: Denominators) -> mx.array:
    """Returns the share in which every token counts the same (DAPO, 2503.14476)."""
    return losses_BT.sum() / step.tokens


def sequence_mean(losses_BT: mx.array, covered_BT: mx.array, step: Denominators) -> mx.array:
    """Returns the share in which every sequence counts the same, whatever its length (GRPO, 2402.03300;
    GSPO, 2507.18071)."""
    lengths_B = mx.maximum((covered_BT != 0).sum(axis=-1), 1)
    return (losses_BT.sum(axis=-1) / lengths_B).sum() / step.sequences


def constant(losses_BT: mx.array, step: Denominators) -> mx.array:
    """Returns the share whose expected gradient is the policy gradient at any mix of lengths (Dr. GRPO,
    2503.20783)."""
    return losses_BT.sum() / step.constant
