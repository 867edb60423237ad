"""What the loss terms look at: a micro-batch of annotated rows, and what the policy says of their tokens.

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
    """A micro-batch, annotated: arrays [B, T], None where no term needs them.

    `sampled` is 1 on tokens that a loss may look at. Where a weight is 0 nothing has an effect in its term,
    NaN included. Rows are whole sequences.
    """

    sampled_BT: mx.array
    weights: Mapping[str, mx.array] = field(default_factory=dict)
    """What a token weighs in each term, by the term's weight column."""
    advantages_BT: mx.array | None = None
    behaviour_logprobs_BT: mx.array | None = None
    """Log-probabilities of μ, which really sampled."""
    fresh_BT: mx.array | None = None
    """1 on tokens that the learner's own version of the weights sampled; None if all are."""
    old_logprobs_BT: mx.array | None = None
    """Log-probabilities of the learner at the start of the step; needed by a decoupled correction."""
    reference_logprobs_BT: mx.array | None = None
    """Log-probabilities of the model before training; needed by a KL term, reported wherever there."""
    unit_B: mx.array | None = None
    """Number of the pair or group that a row belongs to, for terms whose unit is more than a row."""
    baseline: float = 0.0
    """Mean log-ratio of the step's mismatched rows, for a loss of answers that are judged alone."""
    preference_B: mx.array | None = None
    """1 for a preferred row, -1 for a rejected one, 0 for one that is only compared with."""


class Outputs(Struct, frozen=True, kw_only=True):
    """What the policy says of a micro-batch, at the sampling temperature: differentiable."""

    logprobs_BT: mx.array
    entropy_BT: mx.array
    signal: Signal | None = None
    """The divergence from a teacher at each token, where a term needs it."""


def needed(value: A | None, who: str, what: str) -> A:
    """Returns the value. Raises ValueError if it is None: a term is never computed without its input."""
    if value is None:
        raise ValueError(f"the {who.removeprefix('the ')} term needs {what}, got none")
    return value
