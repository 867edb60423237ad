"""Which KL each estimator's gradient is, by enumeration of seven outcomes (algorithms.md §1.4)."""

import mlx.core as mx
import numpy as np
import pytest

from policies.objectives.kl import k1, k2, k3

SAMPLED = mx.ones((1, 7))
EXP_ERROR = 1e-7
"""MLX's exponential on the CPU is no better than this, in double precision as well."""


@pytest.fixture(autouse=True)
def on_the_cpu():
    with mx.stream(mx.cpu):
        yield


def outcomes():
    generator = np.random.default_rng(0)
    logits, other = generator.normal(0, 1, (2, 1, 7))
    return mx.array(logits, mx.float64), log_softmax(mx.array(other, mx.float64))


def log_softmax(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def reverse(logits, reference):
    logprobs = log_softmax(logits)
    return (mx.exp(logprobs) * (logprobs - reference)).sum()


def forward(logits, reference):
    return (mx.exp(reference) * (reference - log_softmax(logits))).sum()


def expected_loss(estimator, logits, reference):
    """E over samples: each outcome counts by its probability, which is not differentiated."""
    logprobs = log_softmax(logits)
    return (mx.stop_gradient(mx.exp(logprobs)) * estimator(logprobs, reference, SAMPLED)).sum()


def gradient(function, logits, reference):
    return np.array(mx.grad(function)(logits, reference))


def as_loss(estimator):
    return lambda logits, reference: expected_loss(estimator, logits, reference)


def test_k2_in_the_loss_has_the_gradient_of_reverse_kl():
    ours, theirs = gradient(as_loss(k2), *outcomes()), gradient(reverse, *outcomes())
    np.testing.assert_allclose(ours, theirs, atol=EXP_ERROR)


def test_k1_in_the_loss_has_none():
    np.testing.assert_allclose(gradient(as_loss(k1), *outcomes()), 0, atol=EXP_ERROR)


def test_k3_in_the_loss_would_be_forward_kl():
    ours = gradient(as_loss(k3), *outcomes())
    np.testing.assert_allclose(ours, gradient(forward, *outcomes()), atol=EXP_ERROR)
    assert np.abs(ours - gradient(reverse, *outcomes())).max() > 0.05


def test_k1_in_the_reward_has_the_gradient_of_reverse_kl():
    logits, reference = outcomes()

    def score_function(logits, reference):
        logprobs = log_softmax(logits)
        cost = mx.stop_gradient(k1(logprobs, reference, SAMPLED))
        return (mx.stop_gradient(mx.exp(logprobs)) * cost * logprobs).sum()

    ours, theirs = (gradient(f, logits, reference) for f in (score_function, reverse))
    np.testing.assert_allclose(ours, theirs, atol=EXP_ERROR)


def test_k1_and_k3_are_unbiased_as_values_and_k2_is_not():
    logits, reference = outcomes()
    true = reverse(logits, reference).item()
    assert expected_loss(k1, logits, reference).item() == pytest.approx(true, abs=EXP_ERROR)
    assert expected_loss(k3, logits, reference).item() == pytest.approx(true, abs=EXP_ERROR)
    assert abs(expected_loss(k2, logits, reference).item() - true) > 0.01


def test_k3_is_exact_where_the_difference_is_small():
    d = 1e-6
    value = k3(mx.array([[d - 1]], mx.float64), mx.array([[-1.0]], mx.float64), mx.ones((1, 1)))
    assert value.item() == pytest.approx(d**2 / 2, rel=1e-3)


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_other_tokens_count_nothing_and_extremes_stay_finite(estimator):
    logprobs, reference = mx.array([[-1e4, -0.1, mx.nan]]), mx.array([[-0.1, -1e4, mx.nan]])
    sampled = mx.array([[1.0, 1.0, 0.0]])
    values = estimator(logprobs, reference, sampled)
    assert mx.isfinite(values).all() and values[0, 2].item() == 0
    slope = mx.grad(lambda lp: estimator(lp, reference, sampled).sum())(logprobs)
    assert mx.isfinite(slope).all() and slope[0, 2].item() == 0


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_equal_policies_have_no_divergence(estimator):
    logprobs = mx.array([[-1.0, -2.0]])
    assert not estimator(logprobs, logprobs, mx.ones((1, 2))).any()
