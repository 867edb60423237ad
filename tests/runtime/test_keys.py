"""Keys are a stored format: a change here would make no old run repeatable."""

import numpy as np
import pytest

from runtime.keys import Stream, derive, mix, uniform

KNOWN = {
    "empty": 13020603013274838756,
    "sample": 3313269131677292888,
    "large seed": 6865891665151781975,
    "utf-8": 4123113521679772215,
    "draws": [0.4937572479248047, 0.8875216245651245, 0.4388539791107178, 0.5960243940353394],
    "integers": [13, 40, 52, 68, 22, 82, 80, 85],
    "shuffled": [7, 2, 3, 4, 1, 5, 0, 6],
}


def draws(key: int, count: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return uniform(np.full(count, key, np.uint64), np.arange(count, dtype=np.uint64))


def test_known_keys_stay():
    assert derive() == KNOWN["empty"]
    assert derive(0, "sample", 1, 2, 3) == KNOWN["sample"]
    assert derive(2**63 - 1, "eval", 0) == KNOWN["large seed"]
    assert derive("naïve") == KNOWN["utf-8"]


def test_the_output_function_is_splitmix64():
    # The first outputs of the authors' C code for seed 1234567.
    state = np.uint64(1234567)
    with np.errstate(over="ignore"):
        states = [state + np.uint64(n) * np.uint64(0x9E3779B97F4A7C15) for n in (1, 2, 3)]
        outputs = mix(np.array(states)).tolist()
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_known_draws_stay():
    assert draws(derive(0, "sample", 1, 2, 3), 4).tolist() == KNOWN["draws"]
    stream = Stream(7, "task")
    assert [stream.integer(0, 99) for _ in range(8)] == KNOWN["integers"]
    assert Stream(7, "shuffle").shuffled(range(8)) == KNOWN["shuffled"]


@pytest.mark.parametrize(
    "parts",
    [
        (0, "sample", 1, 2, 3), (1, "sample", 1, 2, 3), (0, "eval", 1, 2, 3),
        (0, "sample", 2, 1, 3), (0, "sample", 1, 3, 2), (0, "sample", 12, 3), (0, "sample", 1, 23),
        ("0", "sample", 1, 2, 3), (0, "sample1", 2, 3), (0, "samp", "le", 1, 2, 3), (0,), ("",), (),
    ],
)  # fmt: skip
def test_another_identity_is_another_key(parts):
    others = [(0, "sample", 1, 2, 4), (0, 0), ("0",), (0, "sample", 1, 2, 3, 0)]
    assert derive(*parts) not in [derive(*other) for other in others]
    assert derive(*parts) == derive(*parts)


def test_no_two_of_many_identities_share_a_key():
    keys = {
        derive(seed, "sample", step, prompt, sample)
        for seed in range(3)
        for step in range(10)
        for prompt in range(30)
        for sample in range(20)
    }
    assert len(keys) == 3 * 10 * 30 * 20


def test_draws_are_uniform():
    values = np.concatenate([draws(derive("uniform", i), 1000) for i in range(100)])
    counts, _ = np.histogram(values, bins=64, range=(0, 1))
    chi2 = ((counts - len(values) / 64) ** 2 / (len(values) / 64)).sum()
    assert 25 < chi2 < 120  # 63 degrees of freedom: beyond the 1e-5 quantiles on both sides
    assert values.dtype == np.float32
    assert 0 <= values.min() < 1e-4 and 1 - 1e-4 < values.max() < 1
    assert ((values * 2**24) == np.floor(values * 2**24)).all()


def test_neighbouring_streams_and_positions_are_independent():
    keys = [derive(0, "sample", 1, 0, sample) for sample in range(200)]
    table = np.stack([draws(key, 500) for key in keys])  # streams × positions
    for a, b in [(table[:-1], table[1:]), (table[:, :-1], table[:, 1:])]:
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(a.size)
    assert len(np.unique(table[:, 0])) > 195  # on a grid of 2⁻²⁴ hardly two are equal


def test_consecutive_raw_keys_do_not_make_shifted_streams():
    # A stream is read at golden-ratio steps: only a key that is one step on would be the same, shifted.
    a, b = draws(1, 1000), draws(2, 1000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
    assert np.isin(a, b).mean() < 0.01


def test_a_draw_is_addressed_by_its_position_not_by_who_asks():
    key = derive(3, "sample", 0)
    whole = draws(key, 64)
    order = np.random.default_rng(0).permutation(64)
    with np.errstate(over="ignore"):
        shuffled = uniform(np.full(64, key, np.uint64), order.astype(np.uint64))
        alone = [
            uniform(np.array([key], np.uint64), np.array([n], np.uint64))[0] for n in range(64)
        ]
    np.testing.assert_array_equal(shuffled, whole[order])
    np.testing.assert_array_equal(alone, whole)


def test_a_row_does_not_depend_on_its_neighbours():
    keys = np.array([derive(i) for i in range(50)], np.uint64)
    positions = np.arange(50, dtype=np.uint64) * np.uint64(7)
    with np.errstate(over="ignore"):
        together = uniform(keys, positions)
        alone = [uniform(keys[i : i + 1], positions[i : i + 1])[0] for i in range(50)]
    np.testing.assert_array_equal(together, alone)


def test_integers_cover_their_range_and_shuffles_are_permutations():
    stream = Stream("integers")
    values = [stream.integer(-3, 3) for _ in range(7000)]
    counts = np.bincount(np.array(values) + 3)
    assert len(counts) == 7 and counts.min() > 850
    assert [Stream(0).integer(5, 5) for _ in range(3)] == [5, 5, 5]
    orders = {tuple(Stream("order", i).shuffled("abc")) for i in range(200)}
    assert len(orders) == 6
    assert sorted(Stream(1).shuffled(range(100))) == list(range(100))
    assert Stream(1).choice("x") == "x"
