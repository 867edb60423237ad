"""Importance weights: truncated, masked, and none in bypass."""

import math

import mlx.core as mx
import numpy as np
import pytest

from configs.losses import Bypass, Mask, Truncate
from policies.objectives.correction import anchor, log_ratio, masked, token_weights, truncated

BEHAVIOUR = mx.full((1, 4), -3.0)
OLD = BEHAVIOUR + mx.log(mx.array([[0.25, 1.0, 1.9, 8.0]]))
SAMPLED = mx.ones((1, 4))


def test_truncation_caps_from_above_only():
    weights = truncated(OLD, BEHAVIOUR, SAMPLED, cap=2.0)
    np.testing.assert_allclose(weights, [[0.25, 1, 1.9, 2]], rtol=1e-6)


def test_masking_drops_on_both_sides():
    weights = masked(OLD, BEHAVIOUR, SAMPLED, low=0.5, high=2.0)
    np.testing.assert_allclose(weights, [[0, 1, 1.9, 0]], rtol=1e-6)


def test_bypass_weighs_nothing_and_anchors_on_what_sampled():
    assert token_weights(Bypass(), None, BEHAVIOUR, SAMPLED).tolist() == [[1, 1, 1, 1]]
    assert anchor(Bypass(), OLD, BEHAVIOUR) is BEHAVIOUR


@pytest.mark.parametrize("settings", [Truncate(), Mask()])
def test_decoupled_anchors_on_the_old_policy_and_needs_it(settings):
    assert anchor(settings, OLD, BEHAVIOUR) is OLD
    with pytest.raises(ValueError, match="old log-probabilities"):
        anchor(settings, None, BEHAVIOUR)
    with pytest.raises(ValueError, match="old log-probabilities"):
        token_weights(settings, None, BEHAVIOUR, SAMPLED)


@pytest.mark.parametrize("settings", [Truncate(), Mask()])
def test_weights_are_constants(settings):
    def loss(old):
        return token_weights(settings, old, BEHAVIOUR, SAMPLED).sum()

    assert not mx.grad(loss)(OLD).any()


@pytest.mark.parametrize("settings", [Bypass(), Truncate(), Mask()])
def test_equal_policies_weigh_one(settings):
    assert token_weights(settings, OLD, OLD, SAMPLED).tolist() == [[1, 1, 1, 1]]


def test_log_ratios_are_clamped_and_zero_off_the_sampled_tokens():
    numerator, denominator = mx.array([[0.0, -99, mx.nan]]), mx.array([[-99.0, 0, 1]])
    result = log_ratio(numerator, denominator, mx.array([[1, 1, 0]]))
    assert result.tolist() == [[20, -20, 0]]
    assert math.isfinite(mx.exp(result).sum().item())
