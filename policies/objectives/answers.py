"""Judged answers of a micro-batch, and the sums, means and pairs that preference losses use.

Results have one value for each row. Tokens that are not covered contribute exactly 0 to value and gradient,
whatever the arrays hold there. Log-ratios are not clamped: no preference loss exponentiates one without
bound.

Shapes: B rows of a micro-batch, T tokens in each, N rows of a step.
"""

import mlx.core as mx
import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike


class Answers(Struct, frozen=True, kw_only=True):
    """The judged answers of a micro-batch's rows. Both rows of a pair are in the same micro-batch."""

    covered_BT: mx.array
    """Array that is nonzero on the answer's tokens."""
    pair_B: mx.array
    """The whole number that both rows of a pair share; KTO does not use it."""
    label_B: mx.array
    """+1 for preferred (desirable), −1 for rejected (undesirable), 0 for mismatched rows (KTO) or padding."""
    reference_logprobs_BT: mx.array | None = None
    """Log-probabilities under the policy before training; None for a reference-free loss."""


def count_units(
    pair_N: ArrayLike, label_N: ArrayLike, lengths_N: ArrayLike, *, paired: bool
) -> int:
    """Returns the number of units of a whole optimiser step, by which the sum of its losses is divided.

    `lengths_N` are the numbers of covered tokens of each row. Half a pair is no unit. Raises ValueError if a
    pair has two preferred or two rejected rows.
    """
    pair_N, label_N = np.asarray(pair_N), np.sign(np.asarray(label_N))
    counted_N = (np.asarray(lengths_N) > 0) & (label_N != 0)
    if not paired:
        return int(counted_N.sum())
    sides = []
    for label, side in ((1, "preferred"), (-1, "rejected")):
        pairs, rows = np.unique(pair_N[counted_N & (label_N == label)], return_counts=True)
        if (rows > 1).any():
            pair, count = pairs[rows > 1][0], rows[rows > 1][0]
            raise ValueError(f"pair {pair}: needed one {side} row, got {count}")
        sides.append(pairs)
    return len(np.intersect1d(*sides))


def sides(logprobs_BT: mx.array, answers: Answers) -> tuple[mx.array, mx.array, mx.array]:
    """Returns which rows with a covered token are preferred, rejected, and without either label.

    Raises ValueError for arrays whose shapes do not fit.
    """
    shape, reference_BT = logprobs_BT.shape, answers.reference_logprobs_BT
    if len(shape) != 2 or answers.covered_BT.shape != shape:
        came = f"{shape} and {answers.covered_BT.shape}"
        raise ValueError(f"needed log-probabilities and cover of one shape [B, T], got {came}")
    if reference_BT is not None and reference_BT.shape != shape:
        raise ValueError(f"needed a reference of shape {shape}, got {reference_BT.shape}")
    if answers.pair_B.shape != shape[:1] or answers.label_B.shape != shape[:1]:
        came = f"{answers.pair_B.shape} and {answers.label_B.shape}"
        raise ValueError(f"needed pairs and labels of shape {shape[:1]}, got {came}")
    covered_B = (answers.covered_BT != 0).any(axis=-1)
    label_B = answers.label_B
    return covered_B & (label_B > 0), covered_B & (label_B < 0), covered_B & (label_B == 0)


def whole_pairs(logprobs_BT: mx.array, answers: Answers) -> mx.array:
    """Returns bool [B, B], True at [preferred row, rejected row] of each pair that has both."""
    preferred_B, rejected_B, _ = sides(logprobs_BT, answers)
    same_BB = answers.pair_B[:, None] == answers.pair_B[None, :]
    return same_BB & preferred_B[:, None] & rejected_B[None, :]


def difference(values_B: mx.array, pairs_BB: mx.array) -> mx.array:
    """Returns each preferred row's value minus its rejected row's; 0 on all other rows."""
    rejected_B = mx.where(pairs_BB, values_B[None, :], 0.0).sum(axis=-1)
    return mx.where(pairs_BB.any(axis=-1), values_B - rejected_B, 0.0)


def log_ratio(logprobs_BT: mx.array, answers: Answers, *, mean: bool) -> mx.array:
    """Returns log π(answer) − log ref(answer) per row, or its mean over the answer's tokens.

    Raises ValueError without a reference.
    """
    if answers.reference_logprobs_BT is None:
        raise ValueError("this loss needs the reference's log-probabilities, got none")
    # Subtracted token by token, because the difference of two long sums would lose digits.
    ratio_BT = at_least_single(logprobs_BT) - at_least_single(answers.reference_logprobs_BT)
    return mean_over(ratio_BT, answers) if mean else sum_over(ratio_BT, answers)


def sum_over(values_BT: mx.array, answers: Answers) -> mx.array:
    """Returns the sum of each row's covered tokens; 0 for a row without any."""
    values_BT = at_least_single(values_BT)
    return mx.where(answers.covered_BT != 0, values_BT, 0.0).sum(axis=-1)


def mean_over(values_BT: mx.array, answers: Answers) -> mx.array:
    """Returns the mean of each row's covered tokens; 0 for a row without any."""
    lengths_B = mx.maximum((answers.covered_BT != 0).sum(axis=-1), 1)
    return sum_over(values_BT, answers) / lengths_B


def at_least_single(values: mx.array) -> mx.array:
    """Returns the array in single precision if it is in half precision, otherwise unchanged."""
    return values.astype(mx.float32) if values.dtype in (mx.bfloat16, mx.float16) else values
