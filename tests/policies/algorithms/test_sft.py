"""Supervised fine-tuning: every answer token of data weighs one."""

from policies.algorithms.protocol import Read
from policies.terms import CrossEntropy
from runtime.settlement import Row
from tests.policies.algorithms.records import annotated, asked, column, data, learned, opened


def test_data_answers_the_prompts():
    prompts = asked(2)
    assert opened("sft").requests(3, prompts) == [Read(prompts=prompts)]


def test_rows_stay_as_they_were_read():
    rows = [
        Row(prompt=0, sample=0, tokens=0, stop_reason="data"),
        Row(prompt=1, sample=0, tokens=0, stop_reason="data", dropped="too_long"),
    ]
    settlement = opened("sft").settle(rows)
    assert [row.dropped for row in settlement.rows] == [None, "too_long"]
    assert all(r.advantage is None and r.reward is None for r in settlement.rows)
    assert settlement.useful_prompts == 2
    assert opened("sft").describe(rows) == {}


def test_every_token_of_an_answer_weighs_one_and_no_prompt_does():
    batch = annotated(opened("sft"), data(), data(1, dropped="too_long"))
    assert column(batch, "cross_entropy_weight") == [1.0, 1.0]
    for name in ("policy_gradient_weight", "divergence_weight", "token_advantage"):
        assert column(batch, name) is None
    assert column(batch, "cross_entropy_weight", 1) is None
    (found,) = learned(opened("sft"), data(), data(1, dropped="too_long"))
    assert found["cross_entropy_weight"] == [1.0, 1.0] and found["token_advantage"] == [0.0, 0.0]


def test_the_loss_is_cross_entropy_alone():
    assert opened("sft").terms() == [CrossEntropy()]
