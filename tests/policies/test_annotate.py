"""What each token weighs: a table, against rows made by hand."""

import math

import msgspec
import numpy as np
import pytest
from policies.annotate import annotate, reverse_kl, weights_of

from configs.algorithms.distillation import Distill
from runtime.trajectory import StopReason, Trajectory, to_batch


def distill(**changes) -> Distill:
    raw = {"teachers": {"big": {"name": "local", "path": "/t"}}, **changes}
    return msgspec.convert(raw, Distill)


def row(sample: int = 0, **changes) -> Trajectory:
    values = {
        "step": 1, "task": "t", "prompt_index": 0, "sample": sample, "key": 1,
        "tokens": [4, 5, 6, 2], "sampled": [False, False, True, True],
        "logprobs": [0.0, 0.0, -0.5, -1.0], "weights_version": [-1, -1, 0, 0], "prompt_tokens": 2,
        "temperature": 1.0, "stop_reason": StopReason.STOP, "text": "6", "teacher": "big",
        "teacher_logprobs": [0.0, 0.0, -0.25, -2.0],
    }  # fmt: skip
    return Trajectory(**(values | changes))


def data(**changes) -> Trajectory:
    return row(
        stop_reason=StopReason.DATA, sampled=[False] * 4, logprobs=[0.0] * 4,
        weights_version=[-1] * 4, teacher_logprobs=None, **changes,
    )  # fmt: skip


SAMPLED = {"signal": {"name": "sampled"}}


def columns(rows: list[Trajectory], settings: Distill | None) -> list[dict[str, list[float]]]:
    found = annotate(to_batch(rows), settings).rows
    return [{name: values.tolist() for name, values in r.columns.items()} for r in found]


@pytest.mark.parametrize(
    ("changes", "own", "imitated"),
    [
        ({}, (0, 0, 1), None),
        (SAMPLED, (1, 0, 0), None),
        ({"learn_from": {"name": "student", "reward": 0.5, "group_size": 2}}, (1, 0, 1), None),
        ({"learn_from": {"name": "data", "alpha": 0.75}}, None, (0, 0.25, 0.75)),
        ({"learn_from": {"name": "mixed"}}, (0, 0, 1), (0, 0, 1)),
        ({"learn_from": {"name": "teacher"}, "signal": {"name": "text"}}, None, (0, 1, 0)),
    ],
)
def test_the_table_of_weights(changes, own, imitated):
    settings = distill(**changes)
    names = ("pg_weight", "ce_weight", "divergence_weight")
    if own:
        (found,) = columns([row(advantage=1.0)], settings)
        assert tuple(found[name][0] for name in names) == own
    if imitated:
        for one in (data(), row(author="big", weights_version=[-1] * 4)):
            (found,) = columns([one], settings)
            assert tuple(found[name][0] for name in names) == imitated


def test_without_distillation_nothing_has_changed():
    own, answer = columns([row(advantage=2.0), data()], None)
    assert own["advantage"] == [2.0, 2.0] and own["pg_weight"] == [1.0, 1.0]
    assert answer["ce_weight"] == [1.0, 1.0] and answer["pg_weight"] == [0.0, 0.0]
    assert own["divergence_weight"] == answer["divergence_weight"] == [0.0, 0.0]


def test_a_sampled_tokens_advantage_is_the_teachers_surprise_less_ones_own():
    (found,) = columns([row()], distill(**SAMPLED))
    assert found["advantage"] == [0.25, -1.0]
    later = {"signal": {"name": "sampled", "credit": "reward_to_go"}}
    (found,) = columns([row()], distill(**later))
    assert found["advantage"] == [-0.375, -1.0]


def test_the_tasks_advantage_is_added_with_its_coefficient():
    source = {"name": "student", "reward": 0.5, "group_size": 2}
    (found,) = columns([row(advantage=4.0)], distill(learn_from=source, **SAMPLED))
    assert found["advantage"] == [2.25, 1.0]
    assert columns([row(advantage=None)], distill(learn_from=source, **SAMPLED)) == []
    (found,) = columns([row(advantage=4.0)], distill(learn_from=source))
    assert found["advantage"] == [2.0, 2.0] and found["divergence_weight"] == [1.0, 1.0]


def test_what_a_teacher_did_not_say_weighs_nothing_and_is_counted():
    silent = row(teacher_logprobs=[0.0, 0.0, math.nan, -2.0])
    (found,) = columns([silent], distill(**SAMPLED))
    assert found["pg_weight"] == [0.0, 1.0] and found["advantage"] == [0.0, -1.0]
    batch = to_batch([silent, row(1), row(2, dropped="teacher_unusable")])
    mean, unusable = reverse_kl(batch, distill(**SAMPLED))
    assert unusable == 1 and mean == pytest.approx((1.0 - 0.25 + 1.0) / 3)
    nobody = to_batch([row(teacher_logprobs=None)])
    assert reverse_kl(nobody, distill(**SAMPLED))[1] == 2


def test_the_top_k_of_each_token_travels_as_it_came():
    said = {
        "teacher_ids": [1, 2, 3, 4, 5, 6], "teacher_id_logprobs": [-0.5] * 6,
        "teacher_tail": [-1.0, -2.0],
    }  # fmt: skip
    settings = distill(signal={"name": "top_k", "k": 3})
    (found,) = annotate(to_batch([row(**said)]), settings).rows
    assert found.columns["teacher_ids"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.columns["teacher_id_logprobs"].shape == (2, 3)
    assert found.columns["teacher_tail"].tolist() == [-1.0, -2.0]


def test_a_hosted_teachers_rows_are_told_apart():
    batch = to_batch([row(), row(1, teacher="small")])
    assert annotate(batch, distill()).teachers == ["big", "small"]
    assert annotate(batch, distill(**SAMPLED)).teachers == ["", ""]


def test_weights_are_those_of_the_step_whatever_the_rows():
    assert weights_of(None).own_pg == 1.0
    assert np.isclose(weights_of(distill(learn_from={"name": "data"})).imitated_ce, 0.5)
