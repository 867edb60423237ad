"""Advantages: how much better an answer was than its group's others, from rewards alone.

Rewards are flat arrays, with the number of each reward's group. NaN means that there is no reward: it
enters no mean and gets no advantage (NaN), which differs from an advantage of zero. A group with fewer
than two rewards gets no advantages either.

Shapes: N trajectories, G trajectories of one group. All arithmetic in float64, in numpy.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Method = Literal["group_mean", "group_std", "rloo", "batch_std"]

EPSILON = 1e-4
"""This is added to a standard deviation (TRL's value), so that float noise in equal rewards stays small."""


def advantages(rewards_N: ArrayLike, group_N: ArrayLike, method: Method) -> Floats:
    """Returns advantages [N] by `method`; NaN for a reward that gets none.

    Raises ValueError if a reward is infinite.
    """
    rewards_N, group_N = _checked(rewards_N, group_N)
    if method == "batch_std":
        return batch_std(rewards_N, group_N)
    one_group = {"group_mean": group_mean, "group_std": group_std, "rloo": rloo}[method]
    result_N = np.full(rewards_N.shape, np.nan)
    for rows in _groups(rewards_N, group_N):
        result_N[rows] = one_group(rewards_N[rows])
    return result_N


def group_mean(rewards_G: Floats) -> Floats:
    """Returns rewards less the group's mean, without a division that biases by difficulty (Dr. GRPO,
    2503.20783)."""
    return rewards_G - rewards_G.mean()


def group_std(rewards_G: Floats) -> Floats:
    """Returns `group_mean` in units of the group's standard deviation, ddof 1 (GRPO, 2402.03300)."""
    return group_mean(rewards_G) / (rewards_G.std(ddof=1) + EPSILON)


def rloo(rewards_G: Floats) -> Floats:
    """Returns each reward less the mean of the others, unbiased in scale too (RLOO, 2402.14740)."""
    return group_mean(rewards_G) * (len(rewards_G) / (len(rewards_G) - 1))


def batch_std(rewards_N: Floats, group_N: NDArray[np.int64]) -> Floats:
    """Returns rewards less the group's mean, over the deviation of all compared rewards (2508.08221)."""
    result_N = advantages(rewards_N, group_N, "group_mean")
    compared_N = ~np.isnan(result_N)
    if not compared_N.any():
        return result_N
    return result_N / (rewards_N[compared_N].std(ddof=1) + EPSILON)


def informative(rewards_G: ArrayLike, tolerance: float) -> bool:
    """Returns whether a group's rewards differ by more than `tolerance`; other groups give no gradient.

    The tolerance is explicit, because float noise divided by its own deviation looks like a signal.
    """
    rewards_G = np.asarray(rewards_G, np.float64)
    rewards_G = rewards_G[~np.isnan(rewards_G)]
    return len(rewards_G) > 1 and float(np.ptp(rewards_G)) > tolerance


def overlong_penalty(length_tokens: int, limit_tokens: int, zone_tokens: int) -> float:
    """Returns DAPO's soft length penalty (2503.14476, eq. 13) in [−1, 0], to be added to a reward.

    It is 0 up to ``limit_tokens - zone_tokens``, then falls linearly to −1 at the limit, and stays −1
    beyond it. Without a zone, only lengths above the limit have a penalty.
    """
    excess_tokens = length_tokens - (limit_tokens - zone_tokens)
    if excess_tokens <= 0:
        return 0.0
    return -min(excess_tokens / zone_tokens, 1.0) if zone_tokens else -1.0


def _checked(rewards_N: ArrayLike, group_N: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    rewards_N, group_N = np.asarray(rewards_N, np.float64), np.asarray(group_N, np.int64)
    if rewards_N.ndim != 1 or rewards_N.shape != group_N.shape:
        raise ValueError(
            "rewards and groups need one shape [N], "
            f"got {list(rewards_N.shape)} and {list(group_N.shape)}"
        )
    if np.isinf(rewards_N).any():
        raise ValueError(f"a reward needs to be finite or NaN (none), got {rewards_N.tolist()}")
    return rewards_N, group_N


def _groups(rewards_N: Floats, group_N: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Returns the scored rows of each group that has two or more of them."""
    scored_N = ~np.isnan(rewards_N)
    groups = (np.flatnonzero(scored_N & (group_N == group)) for group in np.unique(group_N))
    return [rows for rows in groups if len(rows) > 1]
