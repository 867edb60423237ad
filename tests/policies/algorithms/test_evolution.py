"""Evolution strategies: every member answers every prompt, and its mean reward is its fitness."""

import pytest

from policies.algorithms.protocol import Sample
from tests.policies.algorithms.records import (
    advantages,
    annotated,
    asked,
    dropped,
    judged,
    opened,
    row,
)


def test_every_member_answers_the_same_prompts():
    prompts = asked(3)
    (request,) = opened("es", population=6, temperature=0.25).requests(1, prompts)
    assert request == Sample(prompts=prompts, answers=6, temperature=0.25, members=True)


def test_members_score_the_data_s_answers_where_likelihood_is_the_fitness():
    (request,) = opened("es", population=6, fitness="log_likelihood").requests(1, asked(1))
    assert isinstance(request, Sample) and request.likelihood and request.members


def test_a_row_s_advantage_is_its_member_s_fitness_above_the_mean_of_all():
    scores = {(0, 0): 1.0, (0, 1): 0.0, (0, 2): 0.5, (7, 0): 1.0, (7, 1): 1.0, (7, 2): 0.5}
    rows = [judged(prompt, member, reward) for (prompt, member), reward in scores.items()]
    settlement = opened("es", population=3, antithetic=False).settle(rows)
    third = 2 / 3
    expected = {0: 1 - third, 1: 0.5 - third, 2: 0.5 - third}
    assert advantages(settlement) == pytest.approx([expected[r.sample] for r in rows])
    assert [r.reward for r in settlement.rows] == list(scores.values())
    assert dropped(settlement) == [None] * 6 and settlement.useful_prompts == 2


def test_a_member_with_a_failed_reward_has_no_fitness_and_joins_no_mean():
    rows = [judged(p, m, None if (p, m) == (1, 0) else float(m)) for p in (0, 1) for m in range(3)]
    settlement = opened("es", population=3, antithetic=False).settle(rows)
    assert advantages(settlement) == [None, -0.5, 0.5] * 2
    assert [r.failure for r in settlement.rows] == [None, None, None, "raised", None, None]


def test_a_generation_without_any_fitness_settles_all_the_same():
    settlement = opened("es", population=2).settle([judged(0, m, None) for m in range(2)])
    assert advantages(settlement) == [None, None]
    assert opened("es", population=2).settle([]).rows == []


def test_the_members_answers_are_described():
    rows = [judged(0, 0, 1.0, tokens=2), judged(0, 1, 0.0, tokens=4, stop_reason="length")]
    assert opened("es", population=2).describe(rows) == {
        "reward_mean": 0.5, "pass_at_1": 0.5, "failed_share": 0.0, "completion_tokens_mean": 3.0,
        "stop_share": 0.5, "truncated_share": 0.5,
    }  # fmt: skip
    assert opened("es").describe([]) == {}


def test_no_token_has_a_weight_in_a_loss():
    algorithm = opened("es")
    plain = row(advantage=1.0)
    batch = annotated(algorithm, plain)
    assert all(batch[name].null_count == 1 for name in batch.schema.names if "weight" in name[-6:])
    assert algorithm.terms() == [] and algorithm.report(batch) == {}
