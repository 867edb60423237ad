"""Normalisers against algorithms.md §1.2, and the cut into micro-batches."""

import mlx.core as mx
import pytest

from policies.objectives.normalise import denominators, reduce
from policies.objectives.supervised import cross_entropy

COVERED = mx.array([[1.0] * 2 + [0.0] * 4, [1.0] * 6])
LOSSES = COVERED * mx.array([[1.0], [-1.0]])


@pytest.mark.parametrize(
    ("normalizer", "value"), [("token_mean", -0.5), ("sequence_mean", 0.0), ("constant", -1 / 3)]
)
def test_a_short_good_and_a_long_bad_answer(normalizer, value):
    step = denominators([2, 6], 6)
    assert reduce(normalizer, LOSSES, COVERED, step).item() == pytest.approx(value)
    halves = [reduce(normalizer, LOSSES[i : i + 1], COVERED[i : i + 1], step) for i in (0, 1)]
    assert sum(halves).item() == pytest.approx(value)


def test_sequences_outside_the_term_are_not_counted():
    step = denominators([2, 0, 6, 0], 6)
    assert (step.tokens, step.sequences, step.constant) == (8, 2, 12)


def test_an_empty_step_divides_by_one_not_by_zero():
    step = denominators([0, 0], 6)
    assert reduce("sequence_mean", mx.zeros((2, 6)), mx.zeros((2, 6)), step).item() == 0


def test_cross_entropy_as_in_prime_rl():
    logprobs = mx.array([[-0.1, -0.2, mx.nan]])

    def mean(weight: float, tokens: int) -> float:
        losses = cross_entropy(logprobs, mx.array([[weight, weight, 0.0]]))
        return reduce("token_mean", losses, losses, denominators([tokens], 6)).item()

    assert mean(1.0, 2) == pytest.approx(0.15)
    assert mean(0.1, 1) == pytest.approx(0.03)


def test_cross_entropy_pulls_by_its_weight_and_never_on_context():
    logprobs, weight = mx.array([[-0.1, -0.2, mx.nan]]), mx.array([[1.0, 0.5, 0.0]])
    slope = mx.grad(lambda lp: cross_entropy(lp, weight).sum())(logprobs)
    assert slope.tolist() == [[-1, -0.5, 0]]
