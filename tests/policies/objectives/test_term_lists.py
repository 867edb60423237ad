"""A list of loss terms: nothing that a term needs may be missing, no weight is lost."""

import numpy as np
import pytest
from msgspec.structs import replace

from configs.losses import Truncate
from configs.preferences import Dpo, Kto
from policies.objectives import terms as arithmetic
from policies.objectives.normalise import denominators
from policies.objectives.terms import computes, counts_of, loss
from policies.terms import CrossEntropy, Divergence, PolicyGradient, Preference, Term
from tests.policies.objectives.micro_batches import (
    CE,
    LENGTHS,
    PG,
    T,
    counts,
    gradient,
    only,
    outputs,
    problem,
    values,
)


@pytest.mark.parametrize(
    ("term", "missing", "complaint"),
    [
        (PolicyGradient(kl_coefficient=1.0), "reference_logprobs_BT", "needs the reference's log-"),
        (
            PolicyGradient(),
            "behaviour_logprobs_BT",
            "needs the sampler's log-probabilities, got none",
        ),
        (PolicyGradient(), "advantages_BT", "policy-gradient term needs advantages, got none"),
        (
            PolicyGradient(correction=Truncate()),
            "old_logprobs_BT",
            "needs the learner's old log-prob",
        ),
    ],
)
def test_what_a_term_needs_is_asked_for(term, missing, complaint):
    logits, targets, batch = problem()
    batch = only(batch, PG)
    loss(outputs(logits, targets), batch, [term], counts())
    with pytest.raises(ValueError, match=complaint):
        loss(outputs(logits, targets), replace(batch, **{missing: None}), [term], counts())


@pytest.mark.parametrize(
    ("term", "complaint"),
    [
        (PolicyGradient(), "the policy-gradient term needs weights, got none"),
        (CrossEntropy(), "the cross-entropy term needs weights, got none"),
        (
            Divergence(kind="reverse"),
            "the divergence term needs a teacher's distributions, got none",
        ),
    ],
)
def test_a_term_without_its_input_is_no_term_of_zero(term, complaint):
    logits, targets, batch = problem()
    with pytest.raises(ValueError, match=complaint):
        loss(outputs(logits, targets), replace(batch, weights={}), [term], counts())


@pytest.mark.parametrize("terms", [[], [PolicyGradient()], [CrossEntropy()]])
def test_a_weight_that_no_term_of_the_list_looks_at_is_refused(terms):
    logits, targets, batch = problem()
    lost = sorted({PG, CE} - {term.weight for term in terms})
    with pytest.raises(ValueError, match=f"no loss term uses {', '.join(lost)}"):
        loss(outputs(logits, targets), batch, terms, counts())
    with pytest.raises(ValueError, match="no loss term uses reward"):
        strange = replace(batch, weights={**batch.weights, "reward": batch.sampled_BT})
        loss(outputs(logits, targets), strange, [PolicyGradient(), CrossEntropy()], counts())


def test_a_term_from_elsewhere_brings_its_arithmetic(monkeypatch):
    class Length(Term, frozen=True, kw_only=True):
        weight = "preference_weight"

    logits, targets, batch = problem()
    batch = replace(batch, weights={Length.weight: batch.sampled_BT})
    step = {Length.weight: denominators(LENGTHS, T)}
    with pytest.raises(LookupError, match="the term Length has no arithmetic"):
        loss(outputs(logits, targets), batch, [Length()], step)

    def arithmetic_of(term, outputs, batch, counts):
        share = (outputs.logprobs_BT * batch.weights[term.weight]).sum() / counts.tokens
        return share, {"length_loss": share}

    monkeypatch.setattr(arithmetic, "_COMPUTED", dict(arithmetic._COMPUTED))
    computes(Length, arithmetic_of)
    total, report, slope = gradient([Length()], logits, targets, batch, step)
    covered = np.array(batch.sampled_BT) == 1
    assert total == pytest.approx(np.array(values(logits, targets)[0])[covered].mean(), rel=1e-5)
    assert report["length_loss"] == report["loss"] == pytest.approx(total) and slope.any()


UNITS, SIDES = np.array([0, 0, 1, 2, 2]), np.array([1, -1, 1, -1, 1])
"""Two pairs with a row between them, and half a pair."""


def test_each_term_is_divided_by_its_own_tokens():
    lengths = {PG: np.array([3, 0, 2, 0, 0]), CE: np.array([0, 4, 0, 0, 0])}
    found = counts_of([PolicyGradient(), CrossEntropy()], lengths, 10, UNITS, SIDES)
    assert found == {PG: denominators([3, 0, 2], 10), CE: denominators([0, 4, 0], 10)}
    assert (found[PG].tokens, found[CE].tokens, found[PG].sequences) == (5, 4, 2)


def test_beside_a_divergence_cross_entropy_is_a_share_of_one_mean():
    name = Divergence.weight
    terms = [CrossEntropy(counted=name), Divergence(kind="forward")]
    lengths = {CE: np.array([0, 4, 0, 0, 0]), name: np.array([3, 4, 0, 0, 0])}
    shared = counts_of(terms, lengths, 10, UNITS, SIDES)
    assert shared == {n: denominators([3, 4, 0], 10) for n in (CE, name)}
    alone = counts_of(terms, lengths | {name: np.zeros(5, int)}, 10, UNITS, SIDES)
    assert alone[CE] == denominators([0, 4, 0], 10)


@pytest.mark.parametrize(
    ("settings", "lengths", "units"),
    [
        (Dpo(), [3, 4, 2, 5, 1], 2),
        (Dpo(), [3, 4, 2, 0, 1], 1),
        (Dpo(), [0, 0, 2, 0, 0], 1),
        (Kto(), [3, 4, 2, 5, 1], 5),
        (Kto(), [3, 0, 2, 0, 1], 3),
    ],
)
def test_preferences_are_divided_by_their_pairs_or_by_judged_answers(settings, lengths, units):
    term = Preference(settings=settings)
    found = counts_of([term], {term.weight: np.array(lengths)}, 10, UNITS, SIDES)[term.weight]
    assert (found.sequences, found.tokens) == (units, sum(lengths))
