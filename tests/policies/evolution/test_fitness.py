"""Scores to coefficients: by hand, against slower forms, and on the edges."""

import math

import numpy as np
import pytest

from policies.evolution.fitness import (
    centered_ranks,
    combine,
    group_mean,
    shaped,
    z_score,
)
from policies.evolution.perturbation import Member, members

SHAPINGS = ("z_score", "centered_ranks", "group_mean")
each_shaping = pytest.mark.parametrize("shaping", SHAPINGS)
RNG_SCORES = np.array([[math.sin(7 * n + 3 * q) for q in range(5)] for n in range(8)])


def coefficients(group, scores, shaping="z_score", rank=1) -> dict[int, float]:
    return {t.key: t.coefficient for t in combine(group, scores, shaping, rank).terms}


# ── shaping ──────────────────────────────────────────────────────────────────────────────────────


def test_z_scores_by_hand():
    fitness = np.array([1.0, 2.0, 3.0, 6.0])
    np.testing.assert_allclose(z_score(fitness), (fitness - 3) / math.sqrt(3.5), rtol=1e-7)


def test_ranks_are_even_from_minus_half_to_half():
    ranks = centered_ranks(np.array([10.0, -5.0, 3.0, 1e9, 4.0]))
    np.testing.assert_allclose(ranks, [0.25, -0.5, -0.25, 0.5, 0.0])


def test_ties_share_the_mean_of_their_ranks():
    ranks = centered_ranks(np.array([1.0, 0.0, 1.0, 1.0, 2.0]))
    np.testing.assert_allclose(ranks, [0.0, -0.5, 0.0, 0.0, 0.5])
    assert centered_ranks(np.ones(4)).tolist() == [0.0] * 4
    shuffled = centered_ranks(np.array([2.0, 1.0, 1.0, 0.0, 1.0]))
    assert sorted(shuffled) == sorted(ranks) and ranks.sum() == 0


def test_group_mean_takes_off_each_prompts_difficulty():
    scores = RNG_SCORES + 100 * np.arange(5)
    plain = RNG_SCORES - RNG_SCORES.mean(axis=0)
    expected = plain.mean(axis=1) / math.sqrt(scores.var() + 1e-5)
    np.testing.assert_allclose(group_mean(scores), expected, atol=1e-9)


@each_shaping
def test_shaped_fitness_is_centred_and_blind_to_an_offset(shaping):
    one, other = shaped(RNG_SCORES, shaping), shaped(RNG_SCORES + 3.0, shaping)
    assert abs(one.mean()) < 1e-12
    np.testing.assert_allclose(one, other, atol=1e-9)


# ── coefficients ─────────────────────────────────────────────────────────────────────────────────


def test_one_sided_coefficients_are_the_mean_of_fitness_times_noise():
    group, scores = members(0, 0, 8, antithetic=False), RNG_SCORES
    expected = z_score(scores.mean(axis=1)) / 8
    got = coefficients(group, scores)
    assert list(got) == [m.key for m in group]
    np.testing.assert_allclose(list(got.values()), expected, atol=1e-6)


def test_antithetic_coefficients_are_differences_of_pairs():
    group, scores = members(0, 0, 8, antithetic=True), RNG_SCORES
    f = z_score(scores.mean(axis=1))
    np.testing.assert_allclose(
        list(coefficients(group, scores).values()), (f[::2] - f[1::2]) / 8, atol=1e-6
    )


@each_shaping
def test_the_order_of_members_does_not_matter(shaping):
    group = members(0, 0, 8, antithetic=True)
    order = [3, 0, 7, 1, 2, 6, 4, 5]
    shuffled = coefficients([group[i] for i in order], RNG_SCORES[order], shaping)
    straight = coefficients(group, RNG_SCORES, shaping)
    assert shuffled.keys() == straight.keys()
    for key, value in straight.items():
        assert shuffled[key] == pytest.approx(value, abs=1e-6)


@each_shaping
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_member_without_fitness_is_left_out_as_if_it_had_not_been_there(shaping, bad):
    group = members(0, 0, 8, antithetic=False)
    scores = RNG_SCORES.copy()
    scores[2, 3] = bad
    combination = combine(group, scores, shaping, 1)
    assert combination.left_out == 1 and not combination.flat
    without = combine(group[:2] + group[3:], np.delete(scores, 2, axis=0), shaping, 1)
    assert combination.terms == without.terms


@each_shaping
def test_its_antithetic_twin_goes_with_it(shaping):
    group = members(0, 0, 8, antithetic=True)
    scores = RNG_SCORES.copy()
    scores[5] = np.nan
    combination = combine(group, scores, shaping, 1)
    assert combination.left_out == 2
    assert group[4].key not in {t.key for t in combination.terms}
    without = combine(group[:4] + group[6:], np.delete(scores, (4, 5), axis=0), shaping, 1)
    assert combination.terms == without.terms


@each_shaping
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e6])
def test_equal_fitness_gives_no_update_and_says_so(shaping, antithetic, value):
    group = members(0, 0, 8, antithetic)
    combination = combine(group, np.full((8, 3), value), shaping, 1)
    assert combination.terms == [] and combination.flat and combination.left_out == 0


@each_shaping
def test_fitness_that_differs_by_rounding_alone_is_equal(shaping):
    scores = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.3, 0.1], [0.1, 0.3, 0.2]])
    assert len(set(scores.sum(axis=1))) > 1
    assert combine(members(0, 0, 4, False), scores, shaping, 1).flat


def test_pairs_whose_members_tie_say_nothing():
    scores = np.repeat([[0.0], [1.0], [2.0]], 2, axis=0)
    combination = combine(members(0, 0, 6, True), scores, "z_score", 1)
    assert combination.terms == [] and combination.flat


def test_no_fitness_at_all_is_not_equal_fitness():
    combination = combine(members(0, 0, 4, True), np.full((4, 1), np.nan), "z_score", 1)
    assert (combination.terms, combination.left_out, combination.flat) == ([], 4, False)


def test_a_row_of_scores_for_each_member_is_needed():
    with pytest.raises(ValueError, match=r"each of 2 members, got \[3, 1\]"):
        combine([Member(1, 1), Member(2, 1)], np.zeros((3, 1)), "z_score", 1)
    with pytest.raises(ValueError, match=r"got \[2\]"):
        combine([Member(1, 1), Member(2, 1)], np.zeros(2), "z_score", 1)
