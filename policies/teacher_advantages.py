"""Advantages from a teacher's log-probabilities of sampled tokens: reverse KL by policy gradient.

With r = log t − log p on a token that p sampled, the gradient of −E[r] is that of KL(p‖t) at the
position, without bias (Thinking Machines, "On-policy distillation", 2025). Returns that include later r's
give the KL of whole sequences (MiniLLM, Gu 2023, 2306.08543). The teacher outputs are one number for each
token, whereas the divergences need a distribution.

NaN means that there is no advantage, which differs from an advantage of zero: `annotated` gives it weight 0.

Shapes: T sampled tokens of one trajectory. All arithmetic is in float64, in numpy.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policies.advantages import EPSILON, Floats
from runtime.keys import derive, uniform

LARGEST_LOGPROB = 1e-3
"""Largest value of a log-probability after rounding; larger numbers are none."""


def per_token(teacher_logprobs_T: ArrayLike, student_logprobs_T: ArrayLike) -> Floats:
    """Returns r [T] = log t − log p of the sampled tokens; NaN where one of the two is no log-probability."""
    teacher_T, student_T = (
        np.asarray(a, np.float64) for a in (teacher_logprobs_T, student_logprobs_T)
    )
    if teacher_T.shape != student_T.shape or teacher_T.ndim != 1:
        raise ValueError(
            f"teacher: needed one log-probability for each of {student_T.shape} sampled tokens, "
            f"got {teacher_T.shape}"
        )
    good_T = _logprobs(teacher_T) & _logprobs(student_T)
    return np.where(good_T, np.where(good_T, teacher_T, 0) - np.where(good_T, student_T, 0), np.nan)


def reward_to_go(
    rewards_T: ArrayLike, *, discount: float = 1.0, length_normalized: bool = False
) -> Floats:
    """Returns R_t = Σ γ^(t'−t) r_t' over each token and all later ones [T].

    With `length_normalized` it is divided by Σ γ^(t'−t), so that early tokens do not count for more
    (MiniLLM). With a `discount` γ of 0 a token's return is its own r. A NaN makes every return that includes
    it NaN.
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: needed a number in [0, 1], got {discount}")
    rewards_T = np.asarray(rewards_T, np.float64)
    if discount == 0:  # 0 · NaN is NaN
        return rewards_T.copy()
    returns_T, total, count = np.empty_like(rewards_T), 0.0, 0.0
    for t in reversed(range(len(rewards_T))):
        total = rewards_T[t] + discount * total
        count = 1.0 + discount * count
        returns_T[t] = total / count if length_normalized else total
    return returns_T


def whitened(trajectories: Sequence[Floats]) -> list[Floats]:
    """Returns advantages less the mean, over the deviation, of all tokens of a batch (MiniLLM).

    NaN enters neither mean nor deviation.
    """
    known = np.concatenate([r[~np.isnan(r)] for r in trajectories]) if trajectories else np.empty(0)
    if len(known) < 2:
        return [np.full_like(r, np.nan) for r in trajectories]
    mean, deviation = known.mean(), known.std(ddof=1)
    return [(r - mean) / (deviation + EPSILON) for r in trajectories]


def combined(task_advantage: ArrayLike, teacher_T: Floats, coefficient: float) -> Floats:
    """Returns the task's advantage plus coefficient × the teacher's advantages [T].

    The gradient is that of E[reward] − coefficient · KL(p‖t). If the task's advantage is NaN (there is no
    reward, or no other to compare with), all are NaN, so that the trajectory is not silently trained on the
    teacher alone.
    """
    if not 0 < coefficient < np.inf:
        raise ValueError(f"coefficient: needed a number above 0, got {coefficient}")
    return np.asarray(task_advantage, np.float64) + coefficient * teacher_T


def annotated(advantages_T: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns advantages and policy-gradient weights [T] for the record; both are 0 where one is NaN."""
    known_T = ~np.isnan(advantages_T)
    return np.where(known_T, advantages_T, 0).astype(np.float32), known_T.astype(np.float32)


def from_student(mixture: float, *identity: int | str) -> bool:
    """Returns whether the student answers a prompt instead of the data, with GKD's probability λ.

    The key decides, such as ``from_student(0.5, seed, "gkd", step, prompt)``, so the result is the same
    after a resume. Raises ValueError unless λ (`mixture`) is in [0, 1].
    """
    if not 0 <= mixture <= 1:
        raise ValueError(f"mixture: needed a probability in [0, 1], got {mixture}")
    key = np.array([derive(*identity)], np.uint64)
    with np.errstate(over="ignore"):
        return bool(uniform(key, np.zeros(1, np.uint64))[0] < mixture)


def _logprobs(values_T: Floats) -> NDArray[np.bool_]:
    return np.isfinite(values_T) & (values_T <= LARGEST_LOGPROB)
