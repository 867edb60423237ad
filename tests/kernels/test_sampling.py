"""Sampling against its plain form, against frequencies, and at the edges of truncation."""

import math

import mlx.core as mx
import numpy as np
import pytest

from kernels.logprobs import normalise
from kernels.sampling import invert, kept, sample, sample_plain
from runtime.keys import uniform

ROWS, V = 64, 97
TRUNCATIONS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.6},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.02},
]


def logits(rows: int = ROWS, v: int = V, scale: float = 2.0) -> mx.array:
    return scale * mx.random.normal((rows, v), key=mx.random.key(3))


def draws(count: int, position: int = 0) -> mx.array:
    keys = np.arange(count, dtype=np.uint64) * np.uint64(7919)
    with np.errstate(over="ignore"):
        return mx.array(uniform(keys, np.full(count, position, np.uint64)))


def test_a_token_without_mass_is_never_taken():
    mass = mx.array([[0.0, 0.0, 1.0, 0.0, 2.0, 0.0]])
    edges = [0.0, 1 / 3, 1.0 - 2**-24, *np.linspace(0, 0.999, 50)]
    tokens = invert(mx.broadcast_to(mass, (len(edges), 6)), mx.array(edges, mx.float32))
    assert set(np.array(tokens).tolist()) == {2, 4}
    assert tokens[0].item() == 2  # a draw of 0 is not the first token, but the first with mass
    assert tokens[2].item() == 4  # the largest draw there is stays inside


@pytest.mark.parametrize("v", [5, 1000, 150_000])
def test_the_largest_and_smallest_draws_stay_within_the_vocabularys_mass(v):
    mass = mx.random.uniform(shape=(2, v), key=mx.random.key(1))
    mass[:, : v // 5] = 0
    mass[:, -v // 5 :] = 0
    tokens = invert(mass, mx.array([0.0, 1.0 - 2**-24]))
    assert (np.array(mass)[[0, 1], np.array(tokens)] > 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_it_agrees_with_the_plain_form(temperature):
    tokens, logprobs = sample(logits(), draws(ROWS), temperature=temperature)
    plain_tokens, plain_logprobs = sample_plain(logits(), draws(ROWS), temperature=temperature)
    assert np.array(tokens).tolist() == plain_tokens
    np.testing.assert_allclose(np.array(logprobs), plain_logprobs, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}])
def test_frequencies_are_those_of_the_distribution(options):
    count, v = 40_000, 12
    one = logits(1, v, scale=1.0)
    tokens, logprobs = sample(
        mx.broadcast_to(one, (count, v)), draws(count, 5), temperature=0.8, **options
    )
    seen = np.bincount(np.array(tokens), minlength=v)
    expected = count * np.array(truncated(np.array(one)[0], 0.8, **options))
    inside = expected > 0
    assert seen[~inside].sum() == 0
    chi_square = float(((seen - expected)[inside] ** 2 / expected[inside]).sum())
    freedom = int(inside.sum()) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)  # draws are keyed: never flaky
    exact = np.log(expected[np.array(tokens)] / count)
    np.testing.assert_allclose(np.array(logprobs), exact, atol=1e-5)


def truncated(
    row: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    """The kept distribution in plain Python: min-p and top-k on the whole, then top-p of the rest."""
    mass = np.exp(row.astype(np.float64) / temperature)
    order = sorted(range(len(row)), key=lambda token: -mass[token])
    keep = [t for t in order if mass[t] >= min_p * max(mass)][: top_k or None]
    total, running, nucleus = sum(mass[t] for t in keep), 0.0, []
    for token in keep:
        if running >= top_p * total:
            break
        nucleus.append(token)
        running += mass[token]
    return [mass[t] / running if t in nucleus else 0.0 for t in range(len(row))]


@pytest.mark.parametrize("options", TRUNCATIONS, ids=str)
def test_what_is_kept_is_what_plain_python_keeps(options):
    _, exp, _ = normalise(logits(), 0.9)
    keep = np.array(
        kept(exp, options.get("top_k", 0), options.get("top_p", 1.0), options.get("min_p", 0.0))
    )
    for row, keeps in zip(np.array(logits()), keep):
        assert (
            np.flatnonzero(keeps).tolist()
            == np.flatnonzero(truncated(row, 0.9, **options)).tolist()
        )


@pytest.mark.parametrize("options", [{}, *TRUNCATIONS], ids=str)
def test_probabilities_within_the_kept_set_add_up_to_one(options):
    row = logits(1, 31)
    grid = mx.array((np.arange(20_000) + 0.5) / 20_000, mx.float32)
    tokens, logprobs = sample(mx.broadcast_to(row, (20_000, 31)), grid, temperature=1.3, **options)
    each = dict(zip(np.array(tokens).tolist(), np.array(logprobs).tolist()))
    assert sum(map(math.exp, each.values())) == pytest.approx(
        1, abs=2e-3
    )  # a grid may miss rare ones


def test_ties_at_the_edge_are_all_kept():
    exp = mx.array([[1.0, 0.5, 0.5, 0.5, 0.1]])
    assert np.array(kept(exp, 2, 1.0, 0.0)).tolist() == [[True, True, True, True, False]]


def test_truncation_that_keeps_all_changes_nothing():
    plain = sample(logits(), draws(ROWS), temperature=1.0)
    loose = sample(logits(), draws(ROWS), temperature=1.0, top_k=V, top_p=1.0, min_p=0.0)
    assert all(mx.array_equal(a, b) for a, b in zip(plain, loose))


def test_temperature_zero_takes_the_likeliest_with_certainty():
    tokens, logprobs = sample(logits(), draws(ROWS), temperature=0)
    assert mx.array_equal(tokens, mx.argmax(logits(), axis=-1))
    assert mx.array_equal(logprobs, mx.zeros(ROWS))


def test_a_row_does_not_depend_on_the_rows_beside_it():
    together = sample(logits(), draws(ROWS), temperature=1.0)
    for row in range(0, ROWS, 9):
        alone = sample(logits()[row : row + 1], draws(ROWS)[row : row + 1], temperature=1.0)
        assert all(mx.array_equal(a, b[row : row + 1]) for a, b in zip(alone, together))


def test_half_precision_logits_are_normalised_in_full():
    half = logits().astype(mx.bfloat16)
    assert all(
        mx.array_equal(a, b)
        for a, b in zip(
            sample(half, draws(ROWS), temperature=1.0),
            sample(half.astype(mx.float32), draws(ROWS), temperature=1.0),
        )
    )


def test_impossible_tokens_are_never_taken():
    forbidden = logits(ROWS, 8)
    forbidden[:, 3:] = -mx.inf
    tokens, logprobs = sample(forbidden, draws(ROWS), temperature=1.0)
    assert tokens.max().item() < 3  # type: ignore[operator]
    assert np.isfinite(np.array(logprobs)).all()
