"""How well a policy tells preferred answers from rejected ones, on held-out prompts.

Shapes: N rows, M pairs or judged answers.
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from runtime.status import PREFERENCE_ACCURACY, REWARD_MARGIN, EvalResult


class Measured(Struct, frozen=True):
    """A mean with its standard error over M units."""

    mean: float
    stderr: float
    count: int


def evaluations(
    step: int, batch: pa.RecordBatch, rewards_N: NDArray[np.float64]
) -> list[EvalResult]:
    """Returns accuracy and margin of the weights of a step, from the reward of each row of a batch.

    A row whose reward is NaN was not compared, and counts as failed. The tokens are those of the answers.
    """
    used = np.flatnonzero(~np.isnan(rewards_N))
    columns = (batch[name].to_pylist() for name in ("prompt_index", "preference"))
    prompts, sides = ([column[i] for i in used] for column in columns)
    margins_M = margins(rewards_N[used], prompts, sides)
    found = {PREFERENCE_ACCURACY: accuracy(margins_M), REWARD_MARGIN: measured(margins_M)}
    lengths = np.diff(batch["tokens"].offsets.to_numpy()) - batch["prompt_tokens"].to_numpy()
    return [
        EvalResult(
            step=step,
            task=batch["task"][0].as_py(),
            metric=metric,
            score=result.mean if result.count else None,
            n=result.count,
            stderr=result.stderr if result.count else 0.0,
            mean_tokens=float(lengths.mean()),
            truncated=0.0,
            failed=batch.num_rows - len(used),
        )
        for metric, result in found.items()
    ]


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
