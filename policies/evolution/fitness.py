"""Turns scores into a coefficient for each key: pure functions, float64, in numpy.

A member with a missing score (NaN or infinite) is left out together with its antithetic twin, because a mean
over other prompts cannot be compared. If all fitness values are equal, there are no terms.

Shapes: N members, Q prompts.
"""

import math
from collections import defaultdict
from collections.abc import Sequence as Items
from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from policies.evolution.perturbation import Member, Term

Floats = NDArray[np.float64]
Shaping = Literal["z_score", "centered_ranks", "group_mean"]

Z_EPSILON = 1e-8
"""This is added to the standard deviation (2509.24372)."""
GROUP_EPSILON = 1e-5
"""This is added to the variance (EGGROLL's code)."""
EQUAL = 1e-9
"""Relative difference of fitness below which it is rounding."""
COEFFICIENT_BITS = 22
"""Bits that hold the sum of a generation's coefficients as integers."""


class Combination(Struct, frozen=True):
    """The update that follows from a generation's scores."""

    terms: list[Term]
    """A term for each key; empty for no update."""
    left_out: int
    """Number of members without a fitness, and of their twins."""
    flat: bool
    """True if the fitness was equal for all members, or equal within each pair."""


def combine(
    members: Items[Member], scores_NQ: ArrayLike, shaping: Shaping, rank: int
) -> Combination:
    """Returns the mean over members of fitness·sign·noise, as a coefficient for each key.

    It serves one-sided noise and antithetic pairs, for which the coefficient is a difference. The factor
    1/σ is left to the step size, and so is the √N of EGGROLL's reference code. Raises ValueError unless
    there is a row of scores for each member.
    """
    scores_NQ = np.asarray(scores_NQ, np.float64)
    if scores_NQ.ndim != 2 or len(scores_NQ) != len(members) or not scores_NQ.size:
        raise ValueError(
            f"scores need a row for each of {len(members)} members, got {list(scores_NQ.shape)}"
        )
    twins: dict[int, list[int]] = defaultdict(list)
    for n, member in enumerate(members):
        twins[member.key].append(n)
    finite_N = np.all(np.isfinite(scores_NQ), axis=1)
    kept = [n for n, m in enumerate(members) if finite_N[twins[m.key]].all()]
    left_out = len(members) - len(kept)
    if len(kept) < 2 or equal(scores_NQ[kept].mean(axis=1)):
        return Combination([], left_out, flat=len(kept) > 0)
    coefficients: dict[int, float] = defaultdict(float)
    for n, fitness in zip(kept, shaped(scores_NQ[kept], shaping)):
        coefficients[members[n].key] += members[n].sign * float(fitness) / len(kept)
    exact = snapped(list(coefficients.values()), rank)
    terms = [Term(key, c) for key, c in zip(coefficients, exact) if c]
    return Combination(terms, left_out, flat=not terms)


def shaped(scores_NQ: Floats, shaping: Shaping) -> Floats:
    """Returns the fitness [N] of finite scores, on a scale that does not depend on the task."""
    match shaping:
        case "z_score":
            return z_score(scores_NQ.mean(axis=1))
        case "centered_ranks":
            return centered_ranks(scores_NQ.mean(axis=1))
        case "group_mean":
            return group_mean(scores_NQ)


def z_score(fitness_N: Floats) -> Floats:
    """Returns the fitness as deviations from the mean, in standard deviations of ddof 0 (2509.24372)."""
    return (fitness_N - fitness_N.mean()) / (fitness_N.std() + Z_EPSILON)


def centered_ranks(fitness_N: Floats) -> Floats:
    """Returns ranks, spaced evenly from −½ to ½ (OpenAI ES, 1703.03864); tied values share a mean rank.

    Breaking ties by index, as the reference code does, would be a bias towards low indices.
    """
    _, place_N, counts = np.unique(fitness_N, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - counts + ends - 1) / 2
    return ranks[place_N] / max(len(fitness_N) - 1, 1) - 0.5


def group_mean(scores_NQ: Floats) -> Floats:
    """Returns each member's mean of score less prompt mean, over the deviation of all scores (EGGROLL)."""
    less_NQ = scores_NQ - scores_NQ.mean(axis=0)
    return less_NQ.mean(axis=1) / math.sqrt(scores_NQ.var() + GROUP_EPSILON)


def equal(fitness_N: Floats) -> bool:
    """Returns whether all members have the same fitness, up to rounding."""
    return float(np.ptp(fitness_N)) <= EQUAL * float(np.abs(fitness_N).max())


def snapped(coefficients: Items[float], rank: int) -> list[float]:
    """Returns the coefficients rounded to multiples of a power of two, at most 2²² of it in their sum.

    All sums of ±coefficients are then exact in float32, whatever their order, so a generation's update has
    the same bits on every backend. The relative rounding error of a coefficient is 2⁻²²·(number of keys).
    """
    total = max(rank, 1) * sum(map(abs, coefficients))
    if not total:
        return [0.0 for _ in coefficients]
    unit = 2.0 ** (math.frexp(total)[1] - COEFFICIENT_BITS + 1)
    return [round(c / unit) * unit for c in coefficients]
