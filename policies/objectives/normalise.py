"""How losses per token become one number: divided by counts of the *whole* optimiser step.

The counts are taken once, before the step is cut into micro-batches and before any correction
rejects tokens. Losses of the micro-batches then simply add up to the step's, and rejecting tokens
does not make the others count for more.

Shapes: B sequences of a micro-batch, T tokens in each, N sequences of a step.
"""

import mlx.core as mx
import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike

from policies.terms import Normalizer


class Denominators(Struct, frozen=True):
    """Of one loss term over one optimiser step: the trajectories that are trained on.

    Groups that are dropped for having equal rewards are not among them (as in prime-rl and tinker);
    without that, `algorithm.drop_zero_variance = false`.
    """

    tokens: float
    """Tokens that the term covers."""
    sequences: float
    """Sequences with at least one such token."""
    constant: float
    """Sequences × the limit of new tokens, whatever the lengths are (Dr. GRPO)."""


def denominators(lengths_N: ArrayLike, limit_tokens: int) -> Denominators:
    """Counts of a step whose sequences have so many tokens in the term; 1 where there are none."""
    lengths_N = np.asarray(lengths_N, np.int64)
    sequences = max(int((lengths_N > 0).sum()), 1)
    tokens = max(int(lengths_N.sum()), 1)
    return Denominators(float(tokens), float(sequences), float(sequences * limit_tokens))


def reduce(
    normalizer: Normalizer, losses_BT: mx.array, covered_BT: mx.array, step: Denominators
) -> mx.array:
    """A micro-batch's share of the step's loss, by the normaliser of that name.

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
    """Every token counts the same (DAPO, 2503.14476)."""
    return losses_BT.sum() / step.tokens


def sequence_mean(losses_BT: mx.array, covered_BT: mx.array, step: Denominators) -> mx.array:
    """Every sequence counts the same, whatever its length (GRPO, 2402.03300; GSPO, 2507.18071)."""
    lengths_B = mx.maximum((covered_BT != 0).sum(axis=-1), 1)
    return (losses_BT.sum(axis=-1) / lengths_B).sum() / step.sequences


def constant(losses_BT: mx.array, step: Denominators) -> mx.array:
    """In expectation the policy gradient itself at any mix of lengths (Dr. GRPO, 2503.20783)."""
    return losses_BT.sum() / step.constant
