"""A step cut into micro-batches: whole units, of about one length, within a number of tokens."""

import numpy as np
import pytest

from policies.batch import BUCKETS, Row, bucket, pack


def made(length: int, unit: int | None = None, preference: int = 0) -> Row:
    """A row whose tokens say how long it is, with all but the first one as targets."""
    positions = np.arange(1, length)
    values = np.linspace(0.5, 1.0, length - 1).astype(np.float32)
    tokens = np.full(length, length, np.int32)
    return Row(tokens, positions, {"w": values}, unit=unit, preference=preference)


def test_sizes_are_few_and_hold_the_length():
    for length in (1, 8, 9, 100, 4096, 4097, 9000):
        assert bucket(length) >= length
        assert bucket(length) in BUCKETS or bucket(length) % BUCKETS[-1] == 0
    assert [bucket(n) for n in (8, 9, 4097)] == [8, 16, 8192]


@pytest.mark.parametrize("limit", [1, 16, 64, 100, 10_000])
def test_every_row_is_in_one_micro_batch_and_none_is_over_the_limit(limit):
    rows = [made(n) for n in (30, 5, 7, 60, 5, 12, 2, 31)]
    micros = pack(rows, limit)
    assert sorted(i for micro in micros for i in micro.rows) == list(range(8))
    for micro in micros:
        count, length = micro.tokens_BT.shape
        assert count == 1 or count * length <= limit
        for b, i in enumerate(micro.rows):
            tokens = np.array(micro.tokens_BT[b])
            assert (tokens[: len(rows[i].tokens)] == rows[i].tokens).all()
            assert not tokens[len(rows[i].tokens) :].any()
            targets = len(rows[i].positions)
            assert np.array(micro.sampled_BR[b]).sum() == targets
            assert (
                np.array(micro.columns["w"][b, :targets]).tolist() == rows[i].columns["w"].tolist()
            )
            assert not np.array(micro.columns["w"][b, targets:]).any()
    assert len(micros) == {1: 8, 10_000: 1}.get(limit, len(micros))


@pytest.mark.parametrize("limit", [1, 16, 64, 100, 200, 10_000])
def test_rows_of_one_unit_share_a_micro_batch(limit):
    lengths = [(60, 3), (5, 9), (30, 3), (7, 9), (5, 4), (6, None), (58, 4), (20, None), (8, 9)]
    rows = [made(length, unit) for length, unit in lengths]
    micros = pack(rows, limit)
    assert sorted(i for micro in micros for i in micro.rows) == list(range(len(rows)))
    for unit in (3, 4, 9):
        whose = {i for i, (_, u) in enumerate(lengths) if u == unit}
        assert sum(not whose.isdisjoint(micro.rows) for micro in micros) == 1
    for micro in micros:
        count, length = micro.tokens_BT.shape
        units = {("unit", lengths[i][1]) if lengths[i][1] else ("row", i) for i in micro.rows}
        assert len(units) == 1 or count * length <= limit


def test_a_unit_longer_than_the_limit_is_whole_and_alone():
    rows = [made(5), made(100, 1), made(5, 1), made(100)]
    alone = [micro.rows for micro in pack(rows, 32)]
    assert sorted(alone) == [[0], [1, 2], [3]]


@pytest.mark.parametrize("unit", [0, 1, 2, 3])
def test_a_row_s_number_is_no_unit_s(unit):
    """Rows 1 and 3 are alone, whatever number the unit of rows 0 and 2 has."""
    rows = [made(5, unit), made(5), made(5, unit), made(5)]
    (micro,) = pack(rows, 10_000)
    units = dict(zip(micro.rows, np.array(micro.unit_B).tolist()))
    assert units[0] == units[2] and len({units[0], units[1], units[3]}) == 3
    assert pack(rows, 8)[0].rows == [0, 2]


def test_units_are_counted_within_the_micro_batch_and_sides_are_kept():
    rows = [made(5, 70, 1), made(5, 12, -1), made(5, 70, -1), made(5, 12, 1), made(5)]
    (micro,) = pack(rows, 10_000)
    assert sorted(set(np.array(micro.unit_B).tolist())) == [0, 1, 2]
    sides = {i: (u, p) for i, u, p in zip(
        micro.rows, np.array(micro.unit_B).tolist(), np.array(micro.preference_B).tolist()
    )}  # fmt: skip
    assert sides[0][0] == sides[2][0] != sides[1][0] == sides[3][0]
    assert [sides[i][1] for i in range(5)] == [1, -1, -1, 1, 0]
    assert np.array(micro.tokens_BT).shape == (5, 8)


def test_without_units_the_cut_is_by_length_alone():
    rows = [made(n) for n in (60, 5, 30, 7)]
    assert [micro.rows for micro in pack(rows, 64)] == [[1, 3], [2], [0]]
