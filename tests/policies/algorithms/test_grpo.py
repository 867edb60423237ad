"""GRPO: what becomes of judged groups, and what each token weighs; pure functions of rows."""

import numpy as np
import pytest

from configs.losses import Gspo
from policies.advantages import advantages as advantages_of
from policies.algorithms.protocol import Sample
from policies.terms import PolicyGradient
from runtime.ledger import Ledger
from runtime.settlement import entered
from runtime.trajectory import to_batch
from tests.policies.algorithms.records import (
    advantages,
    annotated,
    asked,
    column,
    data,
    dropped,
    groups_of,
    judged,
    learned,
    opened,
    row,
)


def test_a_step_asks_for_a_group_of_each_prompt():
    prompts = asked(3)
    (request,) = opened("grpo", group_size=4).requests(1, prompts)
    assert request == Sample(prompts=prompts, answers=4, temperature=0.75)


# ── settle ───────────────────────────────────────────────────────────────────────────────────────


def test_a_row_s_advantage_is_its_reward_less_the_group_s_mean():
    settlement = opened("grpo").settle(groups_of([1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]))
    assert advantages(settlement) == [0.75, -0.25, -0.25, -0.25, 0.5, -0.5, 0.5, -0.5]
    assert dropped(settlement) == [None] * 8 and settlement.useful_prompts == 2
    assert [r.reward for r in settlement.rows] == [1, 0, 0, 0, 1, 0, 1, 0]
    assert [r.passed for r in settlement.rows][:2] == [True, False]


@pytest.mark.parametrize("method", ["group_mean", "group_std", "rloo", "batch_std"])
def test_advantages_are_by_the_method_of_the_recipe(method):
    rows = groups_of([1.0, 0.0, 0.25], [1.0, None, 0.0])
    rewards = [np.nan if r.reward is None else r.reward for r in rows]
    expected = advantages_of(rewards, [r.prompt for r in rows], method)
    found = advantages(opened("grpo", advantage=method).settle(rows))
    assert found == [None if np.isnan(v) else v for v in expected]
    assert len(set(found)) > 2


def test_rows_settle_alike_in_any_order():
    rows = [*groups_of([1.0, 0.0, 0.5], [0.25, 0.25, 0.25], [None, 1.0, None])]
    forth = opened("grpo").settle(rows)
    order = [4, 8, 0, 6, 2, 7, 1, 5, 3]
    mixed = opened("grpo").settle([rows[i] for i in order])
    assert mixed.rows == [forth.rows[i] for i in order]
    assert mixed.useful_prompts == forth.useful_prompts == 1


def test_groups_that_teach_nothing_are_dropped_and_are_not_useful():
    rows = groups_of([1.0, 1.0], [0.0, 0.00005], [0.0, 1.0], [None, 1.0], [None, None])
    settlement = opened("grpo").settle(rows)
    assert dropped(settlement) == [
        *["zero_variance"] * 4, None, None, None, "too_few_scored", None, None
    ]  # fmt: skip
    assert settlement.useful_prompts == 1
    assert [r.failure for r in settlement.rows][6:] == ["raised", None, "raised", "raised"]


def test_equal_groups_stay_if_the_recipe_says_so_but_lone_rewards_never_do():
    rows = groups_of([1.0, 1.0], [None, 1.0])
    settlement = opened("grpo", drop_zero_variance=False).settle(rows)
    assert dropped(settlement) == [None, None, None, "too_few_scored"]
    assert advantages(settlement) == [0.0, 0.0, None, None] and settlement.useful_prompts == 1


def test_the_tolerance_is_the_recipe_s():
    rows = groups_of([0.0, 0.3])
    assert dropped(opened("grpo", zero_variance_tolerance=0.2).settle(rows)) == [None] * 2
    wide = opened("grpo", zero_variance_tolerance=0.4).settle(rows)
    assert dropped(wide) == ["zero_variance"] * 2


def test_a_failed_reward_joins_no_mean_and_has_no_reason_to_be_dropped():
    settlement = opened("grpo").settle(groups_of([1.0, None, 0.0]))
    assert advantages(settlement) == [0.5, None, -0.5]
    assert dropped(settlement) == [None] * 3
    assert settlement.rows[1].failure == "raised" and settlement.rows[1].reward is None


def test_truncated_answers_give_no_gradient_but_count_in_the_mean_if_masked():
    rows = [judged(0, n, reward, stop_reason=reason) for n, (reward, reason) in enumerate(
        [(1.0, "stop"), (0.0, "length"), (None, "length"), (0.5, "stop")]
    )]  # fmt: skip
    masked = opened("grpo", overlong={"mask_truncated": True}).settle(rows)
    assert dropped(masked) == [None, "truncated", None, None]
    assert advantages(masked) == [0.5, -0.5, None, 0.0]
    assert dropped(opened("grpo").settle(rows)) == [None] * 4


def test_a_group_s_reason_comes_before_a_row_s():
    rows = [judged(0, n, 1.0, stop_reason="length") for n in range(2)]
    masked = opened("grpo", overlong={"mask_truncated": True}).settle(rows)
    assert dropped(masked) == ["zero_variance"] * 2


@pytest.mark.parametrize(("tokens", "penalty"), [(10, 0.0), (12, -0.1), (16, -0.3), (20, -0.5)])
def test_an_answer_near_the_limit_loses_a_part_of_its_reward(tokens, penalty):
    algorithm = opened("grpo", overlong={"penalty_tokens": 10, "penalty": 0.5})
    rows = [judged(0, 0, 1.0, tokens=tokens), judged(0, 1, 0.0), judged(0, 2, None, tokens=20)]
    shaped, other, failed = algorithm.settle(rows).rows
    assert shaped.reward == pytest.approx(1.0 + penalty)
    assert shaped.parts == {"correct": 1.0, "overlong": pytest.approx(penalty)}
    assert shaped.passed is True and shaped.advantage == pytest.approx((1.0 + penalty) / 2)
    assert other.parts == {"correct": 0.0, "overlong": 0.0} and other.reward == 0.0
    assert failed.reward is None and failed.parts == {} and failed.failure == "raised"


def test_without_a_zone_no_reward_is_shaped():
    (alone, _) = opened("grpo").settle([judged(0, 0, 1.0, tokens=20), judged(0, 1, 0.0)]).rows
    assert alone.reward == 1.0 and alone.parts == {"correct": 1.0}


def test_the_penalty_can_make_equal_groups_informative():
    algorithm = opened("grpo", overlong={"penalty_tokens": 10})
    settlement = algorithm.settle([judged(0, 0, 1.0, tokens=20), judged(0, 1, 1.0)])
    assert dropped(settlement) == [None, None] and advantages(settlement) == [-0.5, 0.5]


def test_every_row_of_a_settlement_enters_the_ledger_once():
    rows = groups_of([1.0, 1.0], [0.0, 1.0], [None, 1.0], [None, None])
    ledger = entered(Ledger().pull(8), opened("grpo").settle(rows).rows)
    assert ledger == Ledger().pull(8).settle(
        2, ["zero_variance", "zero_variance", "too_few_scored"], ["raised"] * 3
    )
    assert ledger.in_flight == 0


# ── describe ─────────────────────────────────────────────────────────────────────────────────────


def test_a_step_s_answers_are_described():
    rows = [
        judged(0, 0, 1.0, tokens=2), judged(0, 1, 1.0, tokens=4),
        judged(1, 0, 0.0, tokens=20, stop_reason="length"), judged(1, 1, None, tokens=6),
        judged(2, 0, 0.0), judged(2, 1, 0.0),
        judged(3, 0, 0.5), judged(3, 1, 1.0),
    ]  # fmt: skip
    assert opened("grpo").describe(rows) == pytest.approx({
        "reward_mean": 3.5 / 7, "pass_at_1": 3 / 7, "failed_share": 1 / 8,
        "completion_tokens_mean": 48 / 8, "stop_share": 7 / 8, "truncated_share": 1 / 8,
        "zero_variance_share": 3 / 4, "all_passed_share": 1 / 4, "none_passed_share": 2 / 4,
    })  # fmt: skip


def test_the_mean_reward_is_the_shaped_one():
    rows = [judged(0, 0, 1.0, tokens=20), judged(0, 1, 1.0, tokens=1)]
    algorithm = opened("grpo", overlong={"penalty_tokens": 10})
    found = algorithm.describe(rows)
    assert found["reward_mean"] == 0.5 and found["zero_variance_share"] == 0.0
    assert found["pass_at_1"] == 1.0


def test_a_step_without_rows_is_described_without_a_division_by_zero():
    found = opened("grpo").describe([])
    assert set(found.values()) == {0.0}


# ── annotate ─────────────────────────────────────────────────────────────────────────────────────


def test_sampled_tokens_have_the_row_s_advantage_and_weight_one():
    batch = annotated(opened("grpo"), row(advantage=2.0), row(1, advantage=-0.5))
    assert column(batch, "token_advantage") == [2.0, 2.0]
    assert column(batch, "token_advantage", 1) == [-0.5, -0.5]
    for i in range(2):
        assert column(batch, "policy_gradient_weight", i) == [1.0, 1.0]
        for name in ("cross_entropy_weight", "divergence_weight", "preference_weight"):
            assert column(batch, name, i) is None


def test_dropped_rows_and_rows_without_an_advantage_are_not_trained_on():
    rows = [row(advantage=2.0, dropped="truncated"), row(1, advantage=None), row(2, advantage=0.0)]
    batch = annotated(opened("grpo"), *rows)
    assert [column(batch, "policy_gradient_weight", i) for i in range(3)] == [None, None, [1, 1]]
    (found,) = learned(opened("grpo"), *rows)
    assert found["token_advantage"] == [0.0, 0.0]


def test_reward_kl_is_taken_off_the_reward_before_the_group_is_compared():
    kl = {"coefficient": 0.5, "placement": "reward_k1"}
    rows = [row(n, reward=r, advantage=7.0) for n, r in enumerate([1.0, 0.0, None])]
    batch = opened("grpo", kl=kl).annotate(to_batch(rows), np.array([1.0, -1.0, 4.0]))
    # 1 − 0.5 and 0 + 0.5: the log-ratio has eaten the difference. The failed row is compared with nothing.
    assert batch["advantage"].to_pylist() == [0.0, 0.0, None]
    assert column(batch, "token_advantage") == [0.0, 0.0]
    assert column(batch, "policy_gradient_weight", 2) is None
    more = opened("grpo", kl=kl).annotate(to_batch(rows), np.array([1.0, 1.0, 4.0]))
    assert more["advantage"].to_pylist() == [0.5, -0.5, None]


def test_settings_become_terms():
    def term(**settings) -> PolicyGradient:
        (found,) = opened("grpo", **settings).terms()
        assert isinstance(found, PolicyGradient)
        return found

    in_loss = term(kl={"coefficient": 0.1}, entropy_bonus=0.01, surrogate={"name": "gspo"})
    assert (in_loss.kl_coefficient, in_loss.entropy_bonus) == (0.1, 0.01)
    assert isinstance(in_loss.surrogate, Gspo)
    assert term(kl={"coefficient": 0.1, "placement": "reward_k1"}).kl_coefficient == 0
    assert term().kl_coefficient == 0 and term().normalizer == "token_mean"
    assert term(normalizer="constant").normalizer == "constant"


def test_an_answer_of_data_without_an_advantage_is_no_business_of_grpo():
    assert learned(opened("grpo"), data()) == []
