"""Sampled-token advantages: golden values, the gradient that they stand for, and what is not known."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from policies.teacher_advantages import (
    annotated,
    combined,
    from_student,
    per_token,
    reward_to_go,
    whitened,
)


def test_an_advantage_is_the_log_ratio_of_the_sampled_token():
    np.testing.assert_allclose(per_token([-1.0, -3.0], [-2.0, -0.5]), [1.0, -2.5])
    assert not per_token([-1.0, -3.0], [-1.0, -3.0]).any()


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf, 0.5])
def test_what_is_no_log_probability_gives_no_advantage(bad):
    found = per_token([-1.0, bad, -1.0], [-1.0, -1.0, bad])
    assert found[0] == 0 and np.isnan(found[1:]).all()
    values, weights = annotated(found)
    assert values.tolist() == [0, 0, 0] and weights.tolist() == [1, 0, 0]
    assert values.dtype == weights.dtype == np.float32


def test_one_log_probability_is_needed_for_each_token():
    with pytest.raises(ValueError, match="needed one log-probability for each of"):
        per_token([-1.0], [-1.0, -2.0])


def test_rewards_to_go_are_minillm_s():
    rewards = [0.2, -0.1, 0.4]
    np.testing.assert_allclose(reward_to_go(rewards), [0.5, 0.3, 0.4])
    normed = reward_to_go(rewards, length_normalized=True)
    np.testing.assert_allclose(normed, [0.5 / 3, 0.15, 0.4])
    np.testing.assert_allclose(reward_to_go(rewards, discount=0.5), [0.25, 0.1, 0.4])
    discounted = reward_to_go(rewards, discount=0.5, length_normalized=True)
    np.testing.assert_allclose(discounted, [0.25 / 1.75, 0.1 / 1.5, 0.4])
    assert reward_to_go([]).shape == (0,)


def test_without_a_future_each_token_stands_alone():
    rewards = [0.2, math.nan, 0.4]
    np.testing.assert_array_equal(reward_to_go(rewards, discount=0.0), rewards)
    found = reward_to_go(rewards)
    assert np.isnan(found[:2]).all() and found[2] == 0.4


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_a_discount_is_a_share(discount):
    with pytest.raises(ValueError, match="discount: needed a number in"):
        reward_to_go([0.0], discount=discount)


def test_reward_to_go_is_the_gradient_of_the_sequences_kl():
    """By enumeration of all sequences of three tokens, with no sampling noise."""
    keys = mx.random.split(mx.random.key(0), 2)
    student, teacher = (mx.random.normal((4, 3), key=key) for key in keys)
    sequences = mx.array(list(itertools.product(range(3), repeat=3)))
    before = mx.concatenate([mx.full((27, 1), 3), sequences[:, :-1]], axis=1)

    def logprobs(table):  # of the next token given the last one, [27, 3]
        rows = table - mx.logsumexp(table, axis=-1, keepdims=True)
        return rows[before, sequences]

    theirs = logprobs(teacher)

    def kl(table):
        ours = logprobs(table)
        return (mx.exp(ours.sum(-1)) * (ours - theirs).sum(-1)).sum()

    now = logprobs(student)
    chance = mx.exp(now.sum(-1))
    returns = np.stack([reward_to_go(per_token(t, s)) for t, s in zip(theirs, now)])
    alone = np.stack([per_token(t, s) for t, s in zip(theirs, now)])

    def surrogate(table, advantages):
        return -(chance[:, None] * mx.array(advantages.astype(np.float32)) * logprobs(table)).sum()

    true = np.array(mx.grad(kl)(student))
    np.testing.assert_allclose(mx.grad(surrogate)(student, returns), true, atol=1e-6)
    assert np.abs(np.array(mx.grad(surrogate)(student, alone)) - true).max() > 1e-2


def test_whitening_is_over_the_whole_batch_and_skips_what_is_not_known():
    first, second = whitened([np.array([1.0, math.nan]), np.array([2.0, 3.0])])
    np.testing.assert_allclose([*first, *second], [-1, math.nan, 0, 1], atol=1e-3)
    assert np.isnan(whitened([np.array([1.0])])[0]).all()
    assert whitened([]) == []


def test_task_and_teacher_add_up_and_nothing_known_stays_so():
    np.testing.assert_allclose(combined(2.0, np.array([1.0, -1.0]), 0.5), [2.5, 1.5])
    assert np.isnan(combined(math.nan, np.array([1.0]), 0.5)).all()
    assert np.isnan(combined(1.0, np.array([math.nan]), 0.5)).all()
    for coefficient in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="coefficient: needed a number above 0"):
            combined(1.0, np.array([1.0]), coefficient)


def test_the_mixture_is_decided_by_key():
    picks = [from_student(0.3, 7, "gkd", 1, i) for i in range(4000)]
    assert picks == [from_student(0.3, 7, "gkd", 1, i) for i in range(4000)]
    assert picks != [from_student(0.3, 8, "gkd", 1, i) for i in range(4000)]
    assert 0.27 < np.mean(picks) < 0.33
    assert not any(from_student(0.0, 7, i) for i in range(100))
    assert all(from_student(1.0, 7, i) for i in range(100))


def test_raising_the_mixture_only_adds_student_rows():
    few = [from_student(0.2, 7, i) for i in range(500)]
    many = [from_student(0.6, 7, i) for i in range(500)]
    assert all(b for a, b in zip(few, many) if a)


@pytest.mark.parametrize("mixture", [-0.1, 1.1, math.nan])
def test_a_mixture_is_a_probability(mixture):
    with pytest.raises(ValueError, match="mixture: needed a probability"):
        from_student(mixture, 0)
