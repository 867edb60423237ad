"""Distillation: whose answers are asked for, and what each token weighs, against rows made by hand."""

import math

import msgspec
import pytest

from policies.algorithms.protocol import AskTeacher, Read, Sample
from policies.teacher_advantages import from_student
from policies.terms import CrossEntropy, Divergence, PolicyGradient
from runtime.settlement import Row
from runtime.trajectory import to_batch
from tests.policies.algorithms.records import (
    BIG,
    advantages,
    annotated,
    asked,
    column,
    data,
    distillation,
    dropped,
    groups_of,
    judged,
    learned,
    row,
)

SAMPLED = {"signal": {"name": "sampled"}}
TEXT = {"learn_from": {"name": "teacher"}, "signal": {"name": "text"}}
REWARDED = {"learn_from": {"name": "student", "reward": 0.5, "group_size": 2}}


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


def test_each_source_answers_its_prompts():
    prompts = asked(3, "big")
    student = distillation(learn_from={"name": "student", "group_size": 2})
    assert student.requests(1, prompts) == [Sample(prompts=prompts, answers=2, temperature=0.75)]
    assert distillation(learn_from={"name": "data"}).requests(1, prompts) == [Read(prompts=prompts)]


def test_each_prompt_is_asked_of_its_own_teacher():
    teachers = {**BIG, "small": {"name": "local", "path": "/s"}, "idle": BIG["big"]}
    big, small = asked(2, "big"), asked(3, "small")
    found = distillation(teachers=teachers, **TEXT).requests(1, [*small, *big])
    assert found == [
        AskTeacher(teacher="big", prompts=big),
        AskTeacher(teacher="small", prompts=small),
    ]


def test_a_mixture_asks_each_prompt_once_and_draws_by_key():
    prompts = asked(40)
    algorithm = distillation(learn_from={"name": "mixed", "student_share": 0.25})
    sample, read = algorithm.requests(2, prompts)
    assert isinstance(sample, Sample) and isinstance(read, Read) and sample.answers == 1
    own = [p for p in prompts if from_student(0.25, 5, "gkd", 2, p.index)]
    assert list(sample.prompts) == own and 0 < len(own) < 20
    assert list(read.prompts) == [p for p in prompts if p not in own]
    assert algorithm.requests(2, prompts) == [sample, read]
    assert algorithm.requests(3, prompts) != [sample, read]


def test_a_mixture_asks_nobody_for_nothing():
    algorithm = distillation(learn_from={"name": "mixed", "student_share": 0.5})
    kinds = {
        tuple(type(request) for request in algorithm.requests(step, asked(1)))
        for step in range(20)
    }  # fmt: skip
    assert kinds == {(Sample,), (Read,)}


# ── settle ───────────────────────────────────────────────────────────────────────────────────────


def test_without_a_reward_rows_stay_as_they_came():
    rows = [
        Row(prompt=0, sample=0, tokens=3, stop_reason="stop"),
        Row(prompt=1, sample=0, tokens=0, stop_reason="data", dropped="too_long"),
    ]
    settlement = distillation().settle(rows)
    assert dropped(settlement) == [None, "too_long"] and advantages(settlement) == [None, None]
    assert settlement.useful_prompts == 2


def test_with_a_reward_the_group_s_mean_is_taken_off():
    rows = groups_of([1.0, 0.0], [1.0, None], [0.5, 0.5])
    settlement = distillation(**REWARDED).settle(rows)
    assert advantages(settlement) == [0.5, -0.5, None, None, 0.0, 0.0]
    assert dropped(settlement) == [None, None, "too_few_scored", None, None, None]
    assert [r.failure for r in settlement.rows] == [None, None, None, "raised", None, None]


# ── describe ─────────────────────────────────────────────────────────────────────────────────────


def test_rewards_are_described_only_where_there_are_some():
    lengths = {"completion_tokens_mean", "stop_share", "truncated_share"}
    assert distillation(**REWARDED).describe(groups_of([1.0, 0.0])).keys() == lengths | {
        "reward_mean", "pass_at_1", "failed_share"
    }  # fmt: skip
    unscored = [judged(0, 0, None)]
    assert distillation().describe(unscored).keys() == lengths
    assert distillation(learn_from={"name": "data"}).describe([]) == {}


def test_a_mixture_says_how_many_rows_were_the_student_s():
    answers = [judged(0, 0, None, tokens=7)]
    texts = [Row(prompt=p, sample=0, tokens=0, stop_reason="data") for p in (1, 2, 3)]
    found = distillation(learn_from={"name": "mixed"}).describe(answers + texts)
    assert found["student_share"] == 0.25 and found["completion_tokens_mean"] == 7


# ── annotate ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "own", "imitated"),
    [
        ({}, (0, 0, 1), None),
        (SAMPLED, (1, 0, 0), None),
        (REWARDED, (1, 0, 1), None),
        ({"learn_from": {"name": "data", "alpha": 0.75}}, None, (0, 0.25, 0.75)),
        ({"learn_from": {"name": "mixed"}}, (0, 0, 1), (0, 0, 1)),
        ({"learn_from": {"name": "mixed", "alpha": 0.75}}, (0, 0, 1), (0, 0.25, 0.75)),
        (TEXT, None, (0, 1, 0)),
    ],
)
def test_the_table_of_weights(changes, own, imitated):
    algorithm = distillation(**changes)
    names = ("policy_gradient_weight", "cross_entropy_weight", "divergence_weight")

    def weights(one) -> tuple[float, ...]:
        batch = annotated(algorithm, one)
        found = [column(batch, name) or [0.0, 0.0] for name in names]
        assert all(len(set(values)) == 1 for values in found)
        (read,) = learned(algorithm, one)
        terms = {term.weight for term in algorithm.terms()}
        assert all(read[n] == v for n, v in zip(names, found) if n in terms)
        assert all(not any(v) for n, v in zip(names, found) if n not in terms)
        return tuple(values[0] for values in found)

    if own:
        assert weights(row(advantage=1.0)) == own
    if imitated:
        for one in (data(), row(author="big", weights_version=[-1] * 4)):
            assert weights(one) == imitated


@pytest.mark.parametrize("source", ["data", "teacher", "mixed"])
def test_soft_targets_share_a_loss_of_one(source):
    for alpha, weights in ((0.5, (0.5, 0.5)), (0.25, (0.75, 0.25)), (1.0, (0.0, 1.0))):
        algorithm = distillation(learn_from={"name": source, "alpha": alpha})
        batch = annotated(algorithm, data())
        names = ("cross_entropy_weight", "divergence_weight")
        found = [column(batch, name) for name in names]
        assert found == [[weight] * 2 for weight in weights]
    for alpha in (0.0, -0.1, 1.1):
        with pytest.raises(msgspec.ValidationError, match=r"\$\.algorithm\.learn_from\.alpha"):
            distillation(learn_from={"name": source, "alpha": alpha})


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, [Divergence]),
        (SAMPLED, [PolicyGradient]),
        (REWARDED, [PolicyGradient, Divergence]),
        (REWARDED | SAMPLED, [PolicyGradient]),
        ({"learn_from": {"name": "data", "alpha": 0.75}}, [CrossEntropy, Divergence]),
        ({"learn_from": {"name": "data", "alpha": 1.0}}, [Divergence]),
        ({"learn_from": {"name": "mixed"}}, [Divergence]),
        (TEXT, [CrossEntropy]),
    ],
)
def test_the_terms_are_those_in_which_a_token_can_have_a_weight(changes, kinds):
    assert [type(term) for term in distillation(**changes).terms()] == kinds


def test_the_divergence_is_the_recipe_s():
    source = {"name": "mixed", "alpha": 0.5, "divergence": {"name": "jsd", "beta": 0.25}}
    signal = {"name": "full", "temperature": 2.0}
    ce, divergence = distillation(learn_from=source, signal=signal).terms()
    assert divergence == Divergence(kind="jsd", beta=0.25, temperature=2.0)
    # Beside a divergence the cross-entropy's mean is over all rows, as the divergence's is.
    assert ce == CrossEntropy(counted="divergence_weight")
    assert distillation(**TEXT).terms() == [CrossEntropy()]


def test_a_sampled_tokens_advantage_is_the_teachers_surprise_less_ones_own():
    (found,) = learned(distillation(**SAMPLED), row())
    assert found["token_advantage"] == [0.25, -1.0]
    later = {"signal": {"name": "sampled", "credit": "reward_to_go"}}
    (found,) = learned(distillation(**later), row())
    assert found["token_advantage"] == [-0.375, -1.0]


def test_whitened_advantages_are_in_deviations_of_the_rows_that_are_trained_on():
    algorithm = distillation(signal={"name": "sampled", "whiten": True})
    rows = [row(), row(1, teacher_logprobs=[0.0, 0.0, -1.5, -1.0]), row(2, dropped="too_long")]
    found = [value for columns in learned(algorithm, *rows) for value in columns["token_advantage"]]
    assert len(found) == 4
    assert sum(found) == pytest.approx(0, abs=1e-6)
    assert sum(value**2 for value in found) == pytest.approx(3, abs=1e-2)


def test_the_tasks_advantage_is_added_with_its_coefficient():
    both = distillation(**REWARDED, **SAMPLED)
    (found,) = learned(both, row(advantage=4.0))
    assert found["token_advantage"] == [2.25, 1.0]
    assert learned(both, row(advantage=None)) == []
    (found,) = learned(distillation(**REWARDED), row(advantage=4.0))
    assert found["token_advantage"] == [2.0, 2.0] and found["divergence_weight"] == [1.0, 1.0]


def test_what_a_teacher_did_not_say_weighs_nothing_and_is_counted():
    silent = row(teacher_logprobs=[0.0, 0.0, math.nan, -2.0])
    algorithm = distillation(**SAMPLED)
    (found,) = learned(algorithm, silent)
    assert found["policy_gradient_weight"] == [0.0, 1.0] and found["token_advantage"] == [0.0, -1.0]
    report = algorithm.report(to_batch([silent, row(1), row(2, dropped="teacher_unusable")]))
    assert report["unusable_tokens"] == 1
    assert report["divergence"] == pytest.approx((1.0 - 0.25 + 1.0) / 3)
    nothing = to_batch([row(teacher_logprobs=None)])
    assert algorithm.report(nothing)["unusable_tokens"] == 2


def test_a_teacher_that_said_nothing_leaves_no_row_and_an_account_of_it():
    algorithm, silent = (
        distillation(**SAMPLED),
        row(teacher_logprobs=[0.0, 0.0, math.nan, math.nan]),
    )
    assert learned(algorithm, silent) == []
    report = algorithm.report(to_batch([silent]))
    assert report["unusable_tokens"] == 2 and math.isnan(report["divergence"])
    assert algorithm.report(to_batch([row(dropped="too_long")])) == {}


def test_the_report_is_of_sampled_tokens_alone():
    assert distillation().report(to_batch([row()])) == {}
    assert distillation(**TEXT).report(to_batch([data()])) == {}
