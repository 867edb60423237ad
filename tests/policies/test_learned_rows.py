"""From an annotated batch to rows: what is trained on, in which order, and nothing lost silently."""

from itertools import combinations, pairwise
from typing import ClassVar

import numpy as np
import pytest

from configs.preferences import Dpo
from policies.annotation import constant, kept, per_token, with_annotation
from policies.batch import pack
from policies.learned_rows import WEIGHTS, learned_rows
from policies.terms import CrossEntropy, Divergence, PolicyGradient, Preference, Term, Unit
from runtime.trajectory import ANNOTATION, Span, Trajectory, to_batch
from tests.policies.algorithms.records import data, distillation, opened, row

REVERSE = Divergence(kind="reverse")


def weighed(sample: int = 0, weight: str = "cross_entropy_weight", **changes) -> Trajectory:
    return data(sample, **{weight: [0.0, 0.0, 1.0, 0.5]}, **changes)


# ── annotation ───────────────────────────────────────────────────────────────────────────────────


def test_a_column_has_values_on_answer_tokens_and_null_for_rows_that_are_not_trained_on():
    batch = to_batch([row(), data(1), row(2, dropped="too_long")])
    assert kept(batch) == [0, 1]
    assert constant(batch, {})[0] is None
    found = per_token(batch, {0: np.array([0.5, -1.0]), 1: 2.0})
    assert [v if v is None else v.tolist() for v in found] == [[0, 0, 0.5, -1], [0, 0, 2, 2], None]
    annotated = with_annotation(batch, divergence_weight=found)
    assert annotated["divergence_weight"].to_pylist() == [[0, 0, 0.5, -1], [0, 0, 2, 2], None]
    assert annotated["cross_entropy_weight"].null_count == 3


@pytest.mark.parametrize("name", ["cross_entropy_weigth", "reward", "weight"])
def test_an_unknown_annotation_column_is_refused(name):
    batch = to_batch([row()])
    with pytest.raises(ValueError, match=rf"annotation has the columns .*got \{{'{name}'\}}"):
        with_annotation(batch, **{name: constant(batch, {0: 1.0})})


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_is_trained_on_if_a_token_of_it_has_a_weight():
    rows = [weighed(), data(1), weighed(2), data(3, cross_entropy_weight=[0.0] * 4)]
    found = learned_rows(to_batch(rows), [CrossEntropy()], hosted=False)
    assert len(found.rows) == 2
    for one in found.rows:
        assert one.tokens.tolist() == [4, 5, 6, 2] and one.positions.tolist() == [2, 3]
        assert one.columns["cross_entropy_weight"].tolist() == [1.0, 0.5]
        assert one.columns["token_advantage"].tolist() == [0.0, 0.0]


def test_rows_keep_the_batch_s_order_and_stand_beside_their_prompt():
    rows = [weighed(prompt_index=p, tokens=[p, 5, 6, 2]) for p in (9, 3, 3, 7)]
    found = learned_rows(to_batch(rows), [CrossEntropy()], hosted=False)
    assert found.groups == [9, 3, 3, 7]
    assert [int(one.tokens[0]) for one in found.rows] == [9, 3, 3, 7]


def test_every_term_has_its_column_and_other_rows_zeros_in_it():
    rows = [weighed(), weighed(1, "divergence_weight")]
    found = learned_rows(to_batch(rows), [CrossEntropy(), REVERSE], hosted=False)
    soft, hard = (one.columns for one in found.rows)
    assert soft["divergence_weight"].tolist() == hard["cross_entropy_weight"].tolist() == [0, 0]
    assert soft["cross_entropy_weight"].tolist() == hard["divergence_weight"].tolist() == [1, 0.5]


def test_what_sampled_stands_beside_its_tokens():
    one = row(policy_gradient_weight=[0.0, 0.0, 1.0, 1.0], token_advantage=[0.0, 0.0, 3.0, -1.0])
    (found,) = learned_rows(to_batch([one]), [PolicyGradient()], hosted=False).rows
    assert found.columns["behaviour"].tolist() == [-0.5, -1.0]
    assert found.columns["token_advantage"].tolist() == [3.0, -1.0]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_that_no_term_looks_at_is_refused(name):
    terms = [t for t in (CrossEntropy(), REVERSE, PolicyGradient()) if t.weight != name]
    batch = to_batch([data(), weighed(1, name)])
    with pytest.raises(ValueError, match=f"the record has {name}s, but no loss term uses them"):
        learned_rows(batch, terms, hosted=False)
    zeros = to_batch([data(0, **{name: [0.0] * 4})])
    assert learned_rows(zeros, terms, hosted=False).rows == []


def test_only_the_batch_s_own_rows_are_asked_for_such_weights():
    """A slice shares the memory of rows that are not in it."""
    own = weighed(1, divergence_weight=[0.0] * 4)
    batch = to_batch([weighed(0, "divergence_weight"), own, weighed(2, "divergence_weight")])
    found = learned_rows(batch.slice(1, 1), [CrossEntropy()], hosted=False)
    assert [one.columns["cross_entropy_weight"].tolist() for one in found.rows] == [[1.0, 0.5]]


def test_a_term_whose_weight_is_no_column_of_the_record_is_refused():
    class Strange(Term, frozen=True, kw_only=True):
        weight = "strange_weight"

    with pytest.raises(ValueError, match=r"Strange needs .*cross_entropy_weight.*got strange_w"):
        learned_rows(to_batch([weighed()]), [CrossEntropy(), Strange()], hosted=False)


def test_the_weights_are_the_annotation_but_the_advantage():
    assert {*WEIGHTS, "token_advantage"} == set(ANNOTATION)
    assert {CrossEntropy.weight, Divergence.weight, PolicyGradient.weight} < set(WEIGHTS)


# ── teachers ─────────────────────────────────────────────────────────────────────────────────────


def test_the_top_k_of_each_token_travels_as_it_came():
    given = {
        "teacher_ids": [1, 2, 3, 4, 5, 6], "teacher_id_logprobs": [-0.5] * 6,
        "teacher_tail": [-1.0, -2.0],
    }  # fmt: skip
    algorithm = distillation(signal={"name": "top_k", "k": 3})
    batch = algorithm.annotate(to_batch([row(**given)]))
    (found,) = learned_rows(batch, algorithm.terms(), hosted=False).rows
    assert found.columns["teacher_ids"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.columns["teacher_id_logprobs"].shape == (2, 3)
    assert found.columns["teacher_tail"].tolist() == [-1.0, -2.0]


def test_a_hosted_teacher_s_rows_are_told_apart():
    algorithm = distillation()
    batch = algorithm.annotate(to_batch([row(), row(1, teacher="small")]))
    hosted, elsewhere = (
        learned_rows(batch, algorithm.terms(), hosted=here).teachers for here in (True, False)
    )
    assert hosted == ["big", "small"] and elsewhere == ["", ""]


# ── pairs and turns ──────────────────────────────────────────────────────────────────────────────


def test_rows_know_their_pair_and_which_of_the_two_is_preferred():
    term = Preference(settings=Dpo())
    sides = [{"pair": 4, "preference": 1}, {"pair": 4, "preference": -1}, {}]
    rows = [weighed(i, weight=term.weight, **side) for i, side in enumerate(sides)]
    found = learned_rows(to_batch(rows), [term], hosted=False).rows
    assert [(one.unit, one.preference) for one in found] == [(4, 1), (4, -1), (None, 0)]


def test_an_observation_is_never_a_target():
    roles = ("prompt", "answer", "observation", "answer")
    turns = [Span(role, a, b) for role, (a, b) in zip(roles, pairwise([0, 2, 4, 6, 7]))]
    many = {
        "tokens": [4, 5, 6, 2, 8, 9, 2], "spans": turns, "weights_version": [-1] * 7,
        "teacher_logprobs": None,
    }  # fmt: skip
    chosen = [False, False, True, True, False, False, True]
    sampled = row(**many, sampled=chosen, logprobs=[-float(c) for c in chosen], advantage=1.0)
    (found,) = learned_rows(
        opened("grpo").annotate(to_batch([sampled])), opened("grpo").terms(), hosted=False
    ).rows
    assert found.positions.tolist() == [2, 3, 6]
    assert found.columns["policy_gradient_weight"].tolist() == [1.0, 1.0, 1.0]
    read = data(**many | {"sampled": [False] * 7, "logprobs": [0.0] * 7})
    batch = opened("sft").annotate(to_batch([read]))
    assert batch["cross_entropy_weight"].to_pylist() == [[0, 0, 1, 1, 0, 0, 1]]
    (found,) = learned_rows(batch, opened("sft").terms(), hosted=False).rows
    assert found.positions.tolist() == [2, 3, 6]


class OfGroups(Term, frozen=True, kw_only=True):
    """A term that compares a group's answers with each other."""

    weight: ClassVar[str] = "cross_entropy_weight"
    unit: ClassVar[Unit] = "group"


@pytest.mark.parametrize(
    ("term", "units"),
    [
        (CrossEntropy(), [None] * 4),
        (OfGroups(), [9, 3, 3, 9]),
        (Preference(settings=Dpo()), [1, 1, 2, 2]),
    ],
)
def test_what_may_not_be_cut_apart_is_the_term_s_unit(term, units):
    places = [(9, 1), (3, 1), (3, 2), (9, 2)]
    rows = [
        weighed(i, weight=term.weight, prompt_index=prompt, pair=pair, preference=1)
        for i, (prompt, pair) in enumerate(places)
    ]
    found = learned_rows(to_batch(rows), [term], hosted=False)
    assert [one.unit for one in found.rows] == units
    together = [sorted(micro.rows) for micro in pack(found.rows, 1)]
    assert all(any({i, j} <= set(part) for part in together) == (units[i] == units[j] is not None)
               for i, j in combinations(range(4), 2))  # fmt: skip
