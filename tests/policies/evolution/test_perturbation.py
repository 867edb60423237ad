"""Noise of tensors: its factors, its sums, and that an estimate from it points where it should."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from kernels.noise import noise
from policies.evolution.fitness import combine, snapped
from policies.evolution.perturbation import (
    Member,
    Perturbation,
    Term,
    chosen_names,
    combined,
    factors,
    members,
    perturbed,
)

SHAPES = {"layers.0.a.weight": (12, 20), "layers.1.a.weight": (12, 20), "norm.weight": (20,)}
MATRICES = {name: shape for name, shape in SHAPES.items() if len(shape) == 2}
A = "layers.0.a.weight"
KINDS = ("rademacher", "uniform", "normal")


def low(rank: int, noise="rademacher", sigma: float = 0.1, shapes=MATRICES) -> Perturbation:
    return Perturbation(sigma=sigma, rank=rank, noise=noise, shapes=shapes)


def one(which: Perturbation, name: str, key: int) -> np.ndarray:
    return np.array(combined(which, name, [Term(key, 1.0)]))


def drawn(which: Perturbation, keys) -> np.ndarray:
    """The noise of A for each key, the obvious way."""
    if not which.rank:
        return np.stack([one(which, A, key) for key in keys]).astype(np.float64)
    a_PRM, b_PRN = (np.array(f, np.float64) for f in factors(which, A, np.array(keys, np.uint64)))
    return np.einsum("prm,prn->pmn", a_PRM, b_PRN) / math.sqrt(which.rank)


# ── members ──────────────────────────────────────────────────────────────────────────────────────


def test_antithetic_members_are_neighbours_with_one_key():
    pairs = members(1, 2, 6, antithetic=True)
    assert [m.sign for m in pairs] == [1, -1] * 3
    assert [m.key for m in pairs[::2]] == [m.key for m in pairs[1::2]]
    assert len({m.key for m in pairs}) == 3
    assert {m.sign for m in members(1, 2, 6, antithetic=False)} == {1}


def test_keys_differ_between_seeds_generations_and_pairs():
    keys = [m.key for s in (0, 1) for g in (0, 1) for m in members(s, g, 5, antithetic=False)]
    assert len(set(keys)) == 20
    with pytest.raises(ValueError, match="even population, got 5"):
        members(0, 0, 5, antithetic=True)


# ── noise ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_noise_is_the_product_of_its_factors(rank, kind):
    a_PRM, b_PRN = factors(low(rank, kind), A, np.array([7], np.uint64))
    expected = np.array(a_PRM)[0].T @ np.array(b_PRN)[0] / math.sqrt(rank)
    values = one(low(rank, kind), A, 7)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert np.linalg.matrix_rank(values) == rank


def test_noise_is_independent_between_tensors_of_one_shape_and_between_keys():
    which = low(0, shapes={f"layers.{i}.a.weight": (64, 64) for i in range(3)})
    drawn = [one(which, name, key).ravel() for name in which.shapes for key in (1, 2)]
    for x, y in itertools.combinations(drawn, 2):
        assert abs(x @ y) / 4096 < 5 / 64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_every_element_has_variance_one_and_no_two_are_correlated(rank, kind):
    which = low(rank, kind, shapes={A: (4, 5)})
    drawn_KE = drawn(which, range(2000)).reshape(2000, -1)
    covariance = drawn_KE.T @ drawn_KE / len(drawn_KE)
    assert np.abs(covariance - np.eye(20)).max() < 0.16


def test_a_member_is_master_plus_signed_noise_rounded_once():
    master = {name: mx.random.normal(s, key=mx.random.key(1)) for name, s in SHAPES.items()}
    which = low(0, "uniform", sigma=0.01, shapes=SHAPES)
    dtypes = dict.fromkeys(SHAPES, mx.bfloat16)
    for sign in (1, -1):
        got = perturbed(which, master, Member(5, sign), dtypes)
        for name in SHAPES:
            whole = np.array(master[name]) + sign * 0.01 * one(which, name, 5)
            assert got[name].dtype == mx.bfloat16
            assert mx.array_equal(got[name], mx.array(whole).astype(mx.bfloat16))


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_a_sum_over_keys_is_the_sum_one_by_one(rank, kind):
    which, count = low(rank, kind, shapes=MATRICES), 70  # more than KEYS_AT_ONCE
    coefficients = snapped([math.sin(k) / count for k in range(count)], rank)
    terms = [Term(key, c) for key, c in enumerate(coefficients)]
    expected = sum(
        np.float64(c) * one(which, A, key).astype(np.float64) for key, c in terms_of(terms)
    )
    np.testing.assert_allclose(np.array(combined(which, A, terms)), expected, atol=1e-6)


def terms_of(terms):
    return [(t.key, t.coefficient) for t in terms]


@pytest.mark.parametrize("rank", [0, 1, 4, 8])
def test_sums_of_signs_are_exact_in_any_order(rank):
    which = low(rank, shapes={A: (12, 20)})
    coefficients = snapped([math.sin(7 * k) for k in range(100)], rank)
    terms = [Term(key, c) for key, c in enumerate(coefficients)]
    forwards, backwards = combined(which, A, terms), combined(which, A, terms[::-1])
    assert mx.array_equal(forwards, backwards)
    unscaled = [
        np.float64(t.coefficient) * np.rint(one(which, A, t.key) * max(rank, 1) ** 0.5)
        for t in terms
    ]
    exact = np.sum(unscaled, axis=0)  # float64 holds it
    assert np.array_equal(exact.astype(np.float32), exact)
    scaled = exact.astype(np.float32) * np.float32(max(rank, 1) ** -0.5)
    assert np.array_equal(np.array(forwards), scaled)


def test_snapped_coefficients_are_near_and_their_sums_fit():
    for rank, count in ((1, 3), (4, 500), (16, 10_000)):
        coefficients = [math.sin(k) * 10 ** math.cos(k) for k in range(count)]
        exact = snapped(coefficients, rank)
        unit = min(math.ldexp(1, math.frexp(c)[1] - 22) for c in exact if c)
        total = sum(map(abs, coefficients))
        worst = max(abs(a - b) for a, b in zip(coefficients, exact))
        assert worst <= rank * total * 2.0**-21
        assert [float(np.float32(c)) for c in exact] == exact
        assert unit > 0
        grid = rank * sum(map(abs, exact))
        units = [c / (2.0 ** (math.frexp(rank * total)[1] - 21)) for c in exact]
        assert all(u == int(u) for u in units) and rank * sum(map(abs, units)) <= 2**22
        assert grid == pytest.approx(rank * total, rel=1e-2)
    assert snapped([0.0, 0.0], 1) == [0.0, 0.0]


# ── the estimate ─────────────────────────────────────────────────────────────────────────────────


def cosine(which: Perturbation, keys: int, antithetic: bool) -> float:
    """Of the mean estimate to the gradient of a quadratic, over a few generations."""
    side = which.shapes[A][0]
    grid = np.arange(side * side).reshape(side, side)
    here, best = np.sin(grid), np.cos(3 * grid)
    cosines = []
    for generation in range(8):
        group = members(0, generation, keys * (1 + antithetic), antithetic)
        noises = drawn(which, [m.key for m in group])
        moved = [here + m.sign * which.sigma * e for m, e in zip(group, noises)]
        fitness = [[-0.5 * ((weights - best) ** 2).sum()] for weights in moved]
        combination = combine(group, fitness, "z_score", which.rank)
        estimate = np.array(combined(which, A, combination.terms), np.float64)
        along = (estimate * (best - here)).sum() / np.linalg.norm(best - here)
        cosines.append(along / np.linalg.norm(estimate))
    return float(np.mean(cosines))


@pytest.mark.parametrize("rank", [0, 1, 4])
@pytest.mark.parametrize(("antithetic", "keys"), [(True, 100), (True, 333), (False, 333)])
def test_on_a_quadratic_the_cosine_to_the_gradient_follows_the_theory(rank, antithetic, keys):
    """√(N/(N + d)) for N keys and d numbers, whatever the rank."""
    side = 16
    which = low(rank, sigma=1e-3, shapes={A: (side, side)})
    assert cosine(which, keys, antithetic) == pytest.approx(
        math.sqrt(keys / (keys + side * side)), abs=0.03
    )


def test_bell_shaped_factors_of_rank_1_cost_a_little_of_the_cosine():
    """Their norms vary: as if d were (m + κ − 1)·(n + κ − 1), with kurtosis κ. Signs have κ = 1."""
    side, keys = 16, 333
    assert cosine(low(1, "normal", 1e-3, {A: (side, side)}), keys, True) == pytest.approx(
        math.sqrt(keys / (keys + (side + 1.7) ** 2)), abs=0.03
    )


def test_streams_of_a_tensor_do_not_come_from_the_bare_key():
    bare = np.array(noise(np.array([7], np.uint64), 12, "rademacher"))[0]
    a_PRM, _ = factors(low(1), A, np.array([7], np.uint64))
    assert not np.array_equal(np.array(a_PRM)[0, 0], bare)


# ── which weights ────────────────────────────────────────────────────────────────────────────────

NAMES = [
    "lm_head.weight",
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{m}.weight" for i in range(12) for m in ("mlp.up_proj", "norm")),
]


def test_all_names_are_chosen_by_default_and_the_last_blocks_by_number():
    assert chosen_names(NAMES, -1, [], 12) == sorted(NAMES)
    chosen = chosen_names(NAMES, 3, [], 12)
    assert {name.split(".")[2] for name in chosen} == {"9", "10", "11"} and len(chosen) == 6
    assert chosen_names(NAMES, 1, ["norm"], 12) == ["model.layers.11.norm.weight"]
    assert len(chosen_names(NAMES, -1, ["norm"], 12)) == 12
