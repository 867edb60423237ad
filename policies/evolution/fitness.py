"""From scores to a coefficient for each key: pure functions, float64, in numpy.

A member one of whose scores could not be had (NaN, or not finite) is left out, and its antithetic twin
with it: a mean over other prompts is no fitness to compare. Equal fitness says nothing: no terms.

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
"""Added to the deviation (2509.24372)."""
GROUP_EPSILON = 1e-5
"""Added to the variance (EGGROLL's code)."""
EQUAL = 1e-9
"""Fitness that differs by less than this share of its size differs by rounding."""
COEFFICIENT_BITS = 22
"""The coefficients of a generation, added up as integers, fit this many bits."""


class Combination(Struct, frozen=True):
    """What a generation's scores say."""

    terms: list[Term]
    """Empty: no update."""
    left_out: int
    """Members without a fitness, and their twins."""
    flat: bool
    """The fitness was equal, or told no pair's members apart."""


def combine(
    members: Items[Member], scores_NQ: ArrayLike, shaping: Shaping, rank: int
) -> Combination:
    """mean over members of fitness·sign·noise, as a coefficient for each key.

    One-sided and antithetic alike (in an antithetic pair it is the difference); 1/σ is left to the
    step size. The reference of EGGROLL multiplies by √N as well: so can the step size. Raises
    ValueError unless there is a row of scores for each member.
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
    """Fitness [N] of finite scores, of a size that does not depend on the task's."""
    match shaping:
        case "z_score":
            return z_score(scores_NQ.mean(axis=1))
        case "centered_ranks":
            return centered_ranks(scores_NQ.mean(axis=1))
        case "group_mean":
            return group_mean(scores_NQ)


def z_score(fitness_N: Floats) -> Floats:
    """In deviations (ddof 0) from the mean (2509.24372)."""
    return (fitness_N - fitness_N.mean()) / (fitness_N.std() + Z_EPSILON)


def centered_ranks(fitness_N: Floats) -> Floats:
    """Ranks, evenly from −½ to ½ (OpenAI ES, 1703.03864); ties share the mean of theirs.

    Ties by order of arrival, as in the reference code, would be a bias towards low indices.
    """
    _, place_N, counts = np.unique(fitness_N, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - counts + ends - 1) / 2
    return ranks[place_N] / max(len(fitness_N) - 1, 1) - 0.5


def group_mean(scores_NQ: Floats) -> Floats:
    """Each score less its prompt's mean, over the deviation of all; their mean (EGGROLL)."""
    less_NQ = scores_NQ - scores_NQ.mean(axis=0)
    return less_NQ.mean(axis=1) / math.sqrt(scores_NQ.var() + GROUP_EPSILON)


def equal(fitness_N: Floats) -> bool:
    """Whether the fitness of all is one number, up to the rounding of its mean."""
    return float(np.ptp(fitness_N)) <= EQUAL * float(np.abs(fitness_N).max())


def snapped(coefficients: Items[float], rank: int) -> list[float]:
    """To the nearest multiples of a power of two of which at most 2²² come together.

    All sums of ±coefficients are then exact in float32, whatever their order: a generation's update has
    the same bits on every backend. It costs a relative 2⁻²²·(number of keys) of a coefficient.
    """
    total = max(rank, 1) * sum(map(abs, coefficients))
    if not total:
        return [0.0 for _ in coefficients]
    unit = 2.0 ** (math.frexp(total)[1] - COEFFICIENT_BITS + 1)
    return [round(c / unit) * unit for c in coefficients]
