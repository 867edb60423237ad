"""The inputs of the loss terms: a micro-batch of annotated rows, and the policy's outputs for their tokens.

Shapes: B sequences, T tokens in each.
"""

from collections.abc import Mapping
from typing import TypeVar

import mlx.core as mx
from msgspec import Struct, field

from policies.objectives.divergence import Signal

A = TypeVar("A")
Metrics = dict[str, mx.array]


class Batch(Struct, frozen=True, kw_only=True):
    """An annotated micro-batch: arrays [B, T], None where no term needs them.

    `sampled_BT` is 1 on tokens that a loss may use. A token with the weight 0 has no effect in that term,
    even if arrays hold NaN there. Rows are whole sequences.
    """

    sampled_BT: mx.array
    weights: Mapping[str, mx.array] = field(default_factory=dict)
    """Each token's weight in each term, by the term's weight column."""
    advantages_BT: mx.array | None = None
    behaviour_logprobs_BT: mx.array | None = None
    """Log-probabilities under the sampler's policy μ."""
    fresh_BT: mx.array | None = None
    """1 on tokens that the learner's own version of the weights sampled; None if all are."""
    old_logprobs_BT: mx.array | None = None
    """Log-probabilities of the learner at the start of the step, which a decoupled correction needs."""
    reference_logprobs_BT: mx.array | None = None
    """Log-probabilities of the model before training, which a KL term needs; reported if they are there."""
    unit_B: mx.array | None = None
    """Number of each row's pair or group, for terms whose unit is more than a row."""
    baseline: float = 0.0
    """Mean log-ratio of the step's mismatched rows, for a loss of answers that are judged alone."""
    preference_B: mx.array | None = None
    """1 for a preferred row, -1 for a rejected one, 0 for one that serves for comparison only."""


class Outputs(Struct, frozen=True, kw_only=True):
    """The policy's outputs for a micro-batch, differentiable, at the temperature of the loss."""

    logprobs_BT: mx.array
    entropy_BT: mx.array
    signal: Signal | None = None
    """The divergence from a teacher at each token, if a term needs it."""


def needed(value: A | None, term: str, what: str) -> A:
    """Returns the value. Raises ValueError if it is None, since a term needs all its inputs."""
    if value is None:
        raise ValueError(f"the {term.removeprefix('the ')} term needs {what}, got none")
    return value
