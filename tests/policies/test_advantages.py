"""Advantages against the values of algorithms.md §1.1 and DAPO's length penalty against §1.5."""

import numpy as np
import pytest

from policies.advantages import advantages, informative, overlong_penalty

NAN = float("nan")
METHODS = ["group_mean", "group_std", "rloo", "batch_std"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("group_mean", [0.75, -0.25, -0.25, -0.25]),
        ("group_std", [1.5, -0.5, -0.5, -0.5]),
        ("rloo", [1, -1 / 3, -1 / 3, -1 / 3]),
        ("batch_std", [1.5, -0.5, -0.5, -0.5]),
    ],
)
def test_one_success_in_four(method, expected):
    result = advantages([1, 0, 0, 0], [0, 0, 0, 0], method)
    np.testing.assert_allclose(result, expected, atol=4e-4)  # epsilon in the deviation


@pytest.mark.parametrize("method", METHODS)
def test_advantages_of_a_group_sum_to_zero(method):
    rewards = np.random.default_rng(0).normal(size=24)
    groups = np.arange(24) % 3
    result = advantages(rewards, groups, method)
    for group in range(3):
        assert abs(result[groups == group].sum()) < 1e-12


def test_rloo_is_the_reward_less_the_mean_of_the_others():
    rewards = np.array([0.3, 1.0, 0.1, 0.0, 0.7])
    others = [rewards[np.arange(5) != i].mean() for i in range(5)]
    np.testing.assert_allclose(advantages(rewards, [7] * 5, "rloo"), rewards - others)


def test_batch_std_divides_by_the_deviation_of_the_whole_batch():
    rewards, groups = np.array([0.0, 1.0, 4.0, 8.0]), [0, 0, 1, 1]
    expected = np.array([-0.5, 0.5, -2.0, 2.0]) / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(advantages(rewards, groups, "batch_std"), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_reward_is_not_a_zero(method):
    with_gap = advantages([1, NAN, 0, 0], [0, 0, 0, 0], method)
    assert np.isnan(with_gap[1])
    np.testing.assert_allclose(with_gap[[0, 2, 3]], advantages([1, 0, 0], [0, 0, 0], method))


@pytest.mark.parametrize("method", METHODS)
def test_a_lone_reward_has_no_advantage(method):
    assert np.isnan(advantages([1.0, NAN], [0, 0], method)).all()
    np.testing.assert_array_equal(
        np.isnan(advantages([5.0, 1, 0], [3, 1, 1], method)), [True, False, False]
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_trajectories_does_not_matter(method):
    generator = np.random.default_rng(1)
    rewards, groups, order = (
        generator.normal(size=12),
        np.arange(12) // 4,
        generator.permutation(12),
    )
    shuffled = advantages(rewards[order], groups[order], method)
    np.testing.assert_allclose(shuffled, advantages(rewards, groups, method)[order], rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_equal_rewards_give_no_push(method):
    assert not advantages([0.1 + 0.2] * 4, [0] * 4, method).any()


def test_nothing_in_gives_nothing_out():
    assert advantages([], [], "batch_std").shape == (0,)


def test_infinite_or_ragged_rewards_are_refused():
    with pytest.raises(ValueError, match="finite"):
        advantages([float("inf"), 0], [0, 0], "group_mean")
    with pytest.raises(ValueError, match="one shape"):
        advantages([1, 0, 0], [0, 0], "group_mean")


def test_float_noise_is_not_information():
    assert not informative([1.0, 1.0 + 1e-6, 1.0], tolerance=1e-4)
    assert not informative([0.0, 0.5], tolerance=0.5)
    assert informative([0.0, 0.5], tolerance=0.4)
    assert not informative([1.0, NAN], tolerance=0.0)
    assert not informative([NAN, NAN], tolerance=0.0)


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (120, -1)]
)
def test_overlong_penalty_grows_through_its_zone(length, penalty):
    assert overlong_penalty(length, 100, 20) == pytest.approx(penalty)


def test_without_a_zone_only_the_excess_is_punished():
    assert (overlong_penalty(100, 100, 0), overlong_penalty(101, 100, 0)) == (0, -1)
