"""Preference learning: a pair is learned from whole or not at all; pure functions of rows."""

from policies.algorithms.protocol import Read, Sample
from policies.terms import Preference
from runtime.settlement import Row
from tests.policies.algorithms.records import (
    annotated,
    asked,
    column,
    data,
    dropped,
    groups_of,
    learned,
    opened,
    row,
)

ONLINE = {"learn_from": {"name": "policy", "group_size": 3}}


def read(prompt: int, sample: int, reason: str | None = None) -> Row:
    return Row(prompt=prompt, sample=sample, tokens=0, stop_reason="data", dropped=reason)


def test_pairs_are_read_or_made_of_the_policy_s_own_answers():
    prompts = asked(2)
    assert opened("preference").requests(1, prompts) == [Read(prompts=prompts)]
    sampled = [Sample(prompts=prompts, answers=3, temperature=0.75)]
    assert opened("preference", **ONLINE).requests(1, prompts) == sampled


def test_a_pair_of_which_one_row_is_too_long_is_dropped_whole():
    rows = [
        read(0, 0),
        read(0, 1),
        read(1, 0, "too_long"),
        read(1, 1),
        read(2, 0, "a"),
        read(2, 1, "b"),
    ]
    settlement = opened("preference").settle(rows)
    assert dropped(settlement) == [None, None, "too_long", "other_of_pair_dropped", "a", "b"]
    assert settlement.useful_prompts == 1


def test_the_best_answer_is_preferred_to_the_worst_and_the_others_are_not_compared():
    rows = groups_of([0.5, 0.0, 1.0], [1.0, 1.0, 1.0], [None, 0.0, None], [None, 0.0, 1.0])
    settlement = opened("preference", **ONLINE).settle(rows)
    found = [(r.preference, r.pair, r.dropped, r.failure) for r in settlement.rows]
    lost = (None, None, None, "raised")
    assert found == [
        (None, None, "not_compared", None), (-1, 0, None, None), (1, 0, None, None),
        *[(None, None, "zero_variance", None)] * 3,
        lost, (None, None, "too_few_scored", None), lost,
        lost, (-1, 3, None, None), (1, 3, None, None),
    ]  # fmt: skip
    assert settlement.useful_prompts == 2


def test_the_first_of_equals_is_taken():
    settlement = opened("preference", **ONLINE).settle(groups_of([1.0, 0.0, 1.0, 0.0]))
    assert [r.preference for r in settlement.rows] == [1, -1, None, None]


def test_compared_answers_weigh_one_and_rows_that_are_not_compared_nothing():
    rows = [
        data(0, pair=0, preference=1), data(1, pair=0, preference=-1), data(2, preference=0),
        data(3, pair=1, preference=1, dropped="too_long"), row(4, failure="raised"),
    ]  # fmt: skip
    algorithm = opened("preference")
    batch = annotated(algorithm, *rows)
    weights = [column(batch, "preference_weight", i) for i in range(5)]
    assert weights == [[1.0, 1.0]] * 3 + [None, None]
    assert len(learned(algorithm, *rows)) == 3
    (term,) = algorithm.terms()
    assert isinstance(term, Preference) and term.paired
