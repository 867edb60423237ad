"""How well a policy tells preferred answers from rejected ones, on held-out prompts.

Shapes: N rows, M pairs or judged answers.
"""

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray


class Measured(Struct, frozen=True):
    """A mean with its standard error over M units."""

    mean: float
    stderr: float
    count: int


def margins(
    rewards_N: NDArray[np.float64], prompts: Sequence[int], preferences: Sequence[int]
) -> NDArray[np.float64]:
    """Returns the reward margin [M] of each prompt: preferred minus rejected.

    A prompt with one judged answer has that answer's reward, with the sign of its label.
    """
    sides: dict[int, dict[int, float]] = {}
    for reward, prompt, side in zip(rewards_N, prompts, preferences):
        if side:
            sides.setdefault(prompt, {})[side] = float(reward)
    return np.array([side.get(1, 0.0) - side.get(-1, 0.0) for side in sides.values()])


def accuracy(margins_M: NDArray[np.float64]) -> Measured:
    """Returns the share of margins above 0, where a margin of 0 counts half."""
    return measured((margins_M > 0) + 0.5 * (margins_M == 0))


def measured(values_M: NDArray[np.float64]) -> Measured:
    """Returns mean and standard error; both NaN without values, the error 0 of a single one."""
    count = len(values_M)
    if not count:
        return Measured(math.nan, math.nan, 0)
    spread = float(values_M.std(ddof=1)) if count > 1 else 0.0
    return Measured(float(values_M.mean()), spread / math.sqrt(count), count)
