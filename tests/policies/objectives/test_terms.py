"""The loss of a step: the same however it is cut, and what its report says.

Shapes: B sequences, T tokens in each, V outcomes.
"""

import mlx.core as mx
import numpy as np
import pytest
from msgspec.structs import asdict, replace

from configs.losses import Bypass, Cispo, Clip, DppoTv, Gspo, Mask, Reinforce, Truncate
from policies.objectives import terms as arithmetic
from policies.objectives.batch import Batch, Outputs
from policies.objectives.normalise import denominators
from policies.objectives.terms import (
    Counts,
    add_up,
    computes,
    counts_of,
    loss,
    summary,
    to_floats,
)
from policies.terms import CrossEntropy, Divergence, PolicyGradient, Term

SURROGATES = [Clip(), Cispo(), Gspo(), DppoTv(), Reinforce()]
CORRECTIONS = [Bypass(), Truncate(), Mask()]
PG, CE = PolicyGradient.weight, CrossEntropy.weight
LENGTHS = [2, 6, 4, 1]
B, T, V = 4, 6, 5


def problem(seed: int = 0, spread: float = 0.2):
    """Logits [B, T, V], targets and an annotated batch with two terms in it."""
    generator = np.random.default_rng(seed)
    logits = mx.array(generator.normal(size=(B, T, V)).astype(np.float32))
    targets = mx.array(generator.integers(0, V, (B, T)))
    sampled = (np.arange(T) < np.array(LENGTHS)[:, None]).astype(np.float32)
    now, _ = values(logits, targets)

    def near() -> mx.array:
        return now + mx.array(generator.normal(0, spread, (B, T)).astype(np.float32))

    batch = Batch(
        sampled_BT=mx.array(sampled),
        weights={PG: mx.array(sampled), CE: mx.array(sampled * 0.1)},
        advantages_BT=mx.array(generator.normal(size=(B, 1)).astype(np.float32) * sampled),
        behaviour_logprobs_BT=near(),
        old_logprobs_BT=near(),
        reference_logprobs_BT=near(),
    )
    return logits, targets, batch


def values(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    entropy = -(mx.exp(logprobs) * logprobs).sum(-1)
    return mx.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0], entropy


def outputs(logits: mx.array, targets: mx.array) -> Outputs:
    logprobs, entropy = values(logits, targets)
    return Outputs(logprobs_BT=logprobs, entropy_BT=entropy)


def each(batch: Batch, change) -> Batch:
    """The batch with every array changed, the weights too."""
    changed = {
        k: None if v is None else change(v) for k, v in asdict(batch).items() if k != "weights"
    }
    return Batch(**changed, weights={name: change(w) for name, w in batch.weights.items()})


def rows(batch: Batch, part: slice) -> Batch:
    return each(batch, lambda array: array[part])


def only(batch: Batch, *names: str) -> Batch:
    return replace(batch, weights={name: batch.weights[name] for name in names})


def counts(lengths=LENGTHS) -> Counts:
    return {name: denominators(lengths, T) for name in (PG, CE, Divergence.weight)}


def gradient(terms: list[Term], logits, targets, batch, step=None):
    def function(logits):
        return loss(outputs(logits, targets), batch, terms, step or counts())

    (total, metrics), slope = mx.value_and_grad(function)(logits)
    return total.item(), to_floats(metrics), np.array(slope)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("normalizer", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_step_cut_into_micro_batches_is_the_same_step(surrogate, correction, normalizer, parts):
    policy_gradient = PolicyGradient(
        surrogate=surrogate,
        correction=correction,
        normalizer=normalizer,
        kl_coefficient=0.3,
        entropy_bonus=0.1,
    )
    terms = [policy_gradient, CrossEntropy()]
    logits, targets, batch = problem()
    total, report, slope = gradient(terms, logits, targets, batch)
    cut = [slice(i, i + B // parts) for i in range(0, B, B // parts)]
    pieces = [gradient(terms, logits[c], targets[c], rows(batch, c)) for c in cut]
    assert sum(p[0] for p in pieces) == pytest.approx(total, rel=1e-5, abs=1e-6)
    difference = np.concatenate([p[2] for p in pieces]) - slope
    assert np.linalg.norm(difference) <= 1e-6 * np.linalg.norm(slope)
    assert add_up(p[1] for p in pieces) == pytest.approx(report, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_padding_changes_nothing(surrogate, correction):
    policy_gradient = PolicyGradient(surrogate=surrogate, correction=correction, kl_coefficient=0.3)
    terms = [policy_gradient, CrossEntropy()]
    logits, targets, batch = problem()
    _, report, slope = gradient(terms, logits, targets, batch)
    wide = each(batch, lambda array: mx.pad(array, [(0, 0), (0, 3)]))
    for name in ("behaviour_logprobs_BT", "old_logprobs_BT", "reference_logprobs_BT"):
        getattr(wide, name)[:, T:] = mx.nan
    padded = mx.pad(logits, [(0, 0), (0, 3), (0, 0)]), mx.pad(targets, [(0, 0), (0, 3)])
    _, same, result = gradient(terms, *padded, wide)
    np.testing.assert_allclose(result[:, :T], slope, atol=1e-7)
    assert not result[:, T:].any()
    assert same == pytest.approx(report, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_zero_advantage_gives_exactly_zero_gradient_and_others_do_not(surrogate, correction):
    terms = [PolicyGradient(surrogate=surrogate, correction=correction)]
    logits, targets, batch = problem(spread=1e-5)
    batch = only(batch, PG)
    assert gradient(terms, logits, targets, batch)[2].any()
    batch = replace(batch, advantages_BT=mx.zeros((B, T)))
    assert not gradient(terms, logits, targets, batch)[2].any()


def test_tokens_of_weight_zero_are_in_no_term():
    logits, targets, batch = problem()
    weight = np.array(batch.weights[PG])
    weight[1] = 0
    batch = replace(batch, weights={PG: mx.array(weight)})
    terms = [PolicyGradient(kl_coefficient=0.3, entropy_bonus=0.1)]
    _, report, slope = gradient(terms, logits, targets, batch, counts([2, 0, 4, 1]))
    assert report["pg_tokens"] == 7
    assert not slope[1].any() and slope[0].any()


def test_terms_add_up():
    logits, targets, batch = problem()
    terms = [PolicyGradient(kl_coefficient=0.3, entropy_bonus=0.1), CrossEntropy()]
    total, report, _ = gradient(terms, logits, targets, batch)
    entropy = report["entropy"] / sum(LENGTHS)
    parts = report["pg_loss"] + report["kl_loss"] + report["ce_loss"] - 0.1 * entropy
    assert total == pytest.approx(parts, rel=1e-5)
    assert total == pytest.approx(report["loss"])


def test_bypass_takes_the_ratio_to_what_sampled_and_does_not_weigh():
    logits, targets, batch = problem()
    terms = [PolicyGradient(surrogate=Cispo(max_ratio=100), correction=Bypass()), CrossEntropy()]
    with_old = gradient(terms, logits, targets, batch)[2]
    without = gradient(terms, logits, targets, replace(batch, old_logprobs_BT=None))[2]
    np.testing.assert_array_equal(with_old, without)


def test_decoupled_equals_bypass_where_no_bound_binds():
    """π/π_old · π_old/μ = π/μ: the two corrections differ only in what they cut off."""
    logits, targets, batch = problem()
    slopes = [
        gradient(
            [PolicyGradient(surrogate=Cispo(max_ratio=100), correction=correction), CrossEntropy()],
            logits,
            targets,
            batch,
        )[2]
        for correction in (Bypass(), Truncate(cap=100), Mask(low=1e-3, high=100))
    ]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slopes[2], slopes[0], rtol=1e-4, atol=1e-7)


def test_rejected_tokens_do_not_make_the_others_count_for_more():
    logits, targets, batch = problem()
    batch = only(batch, PG)
    old = np.array(batch.behaviour_logprobs_BT)
    old[1, 0] += 5
    batch = replace(batch, old_logprobs_BT=mx.array(old))
    _, report, slope = gradient([PolicyGradient(correction=Mask())], logits, targets, batch)
    every = replace(batch, old_logprobs_BT=batch.behaviour_logprobs_BT)
    _, _, whole = gradient([PolicyGradient(correction=Mask())], logits, targets, every)
    assert report["corrected"] == 1
    assert not slope[1, 0].any()
    np.testing.assert_allclose(np.delete(slope[1], 0, 0), np.delete(whole[1], 0, 0), atol=1e-7)


def test_the_kl_term_is_reverse_kl_also_off_policy():
    """One token, seven outcomes, sampled from another policy: gradients by enumeration."""
    generator = np.random.default_rng(3)
    logits, behaviour, reference = generator.normal(0, 0.2, (3, 1, 7)).astype(np.float32)

    def log_softmax(x):
        return x - mx.logsumexp(x, axis=-1, keepdims=True)

    behaviour, reference = log_softmax(mx.array(behaviour)), log_softmax(mx.array(reference))
    chance = mx.exp(behaviour)

    def estimator(logits):
        batch = Batch(
            sampled_BT=mx.ones((1, 7)),
            weights={PG: mx.ones((1, 7))},
            advantages_BT=mx.zeros((1, 7)),
            behaviour_logprobs_BT=behaviour,
            reference_logprobs_BT=reference,
        )
        terms, total = [PolicyGradient(kl_coefficient=1.0)], 0.0
        for i in range(7):
            here = slice(i, i + 1)
            logprobs = log_softmax(logits)[:, here]
            said = Outputs(logprobs_BT=logprobs, entropy_BT=logprobs)
            one = each(batch, lambda array, here=here: array[:, here])
            share, _ = loss(said, one, terms, counts([1]))
            total = total + chance[0, i] * share
        return total

    def reverse(logits):
        logprobs = log_softmax(logits)
        return (mx.exp(logprobs) * (logprobs - reference)).sum()

    ours, theirs = (np.array(mx.grad(f)(mx.array(logits))) for f in (estimator, reverse))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_supervised_learning_needs_no_policy_gradient_arrays():
    logits, targets, batch = problem()
    batch = Batch(sampled_BT=batch.sampled_BT, weights={CE: batch.sampled_BT})
    total, report, _ = gradient([CrossEntropy()], logits, targets, batch)
    nats = -np.array(values(logits, targets)[0])[np.array(batch.sampled_BT) == 1].mean()
    assert total == pytest.approx(nats, rel=1e-5)
    assert summary(report)["ce_nats"] == pytest.approx(nats, rel=1e-5)


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
    with pytest.raises(ValueError, match=f"no loss term looks at {', '.join(lost)}"):
        loss(outputs(logits, targets), batch, terms, counts())
    with pytest.raises(ValueError, match="no loss term looks at reward"):
        strange = replace(batch, weights={**batch.weights, "reward": batch.sampled_BT})
        loss(outputs(logits, targets), strange, [PolicyGradient(), CrossEntropy()], counts())


def test_a_term_from_elsewhere_brings_its_arithmetic(monkeypatch):
    class Length(Term, frozen=True, kw_only=True):
        weight = "preference_weight"

    logits, targets, batch = problem()
    batch = replace(only(batch, CE), weights={Length.weight: batch.sampled_BT})
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


def test_each_term_is_divided_by_its_own_tokens():
    lengths = {PG: np.array([3, 0, 2]), CE: np.array([0, 4, 0])}
    found = counts_of([PolicyGradient(), CrossEntropy()], lengths, 10)
    assert found == {PG: denominators([3, 0, 2], 10), CE: denominators([0, 4, 0], 10)}
    assert (found[PG].tokens, found[CE].tokens, found[PG].sequences) == (5, 4, 2)


def test_beside_a_divergence_cross_entropy_is_a_share_of_one_mean():
    name = Divergence.weight
    terms = [CrossEntropy(counted=name), Divergence(kind="forward")]
    lengths = {CE: np.array([0, 4, 0]), name: np.array([3, 4, 0])}
    assert counts_of(terms, lengths, 10) == {n: denominators([3, 4, 0], 10) for n in (CE, name)}
    alone = counts_of(terms, lengths | {name: np.zeros(3, int)}, 10)
    assert alone[CE] == denominators([0, 4, 0], 10)


def test_the_report_on_policy_is_clean():
    logits, targets, batch = problem()
    now, entropy = values(logits, targets)
    batch = replace(
        batch, behaviour_logprobs_BT=now, old_logprobs_BT=now, reference_logprobs_BT=now
    )
    terms = [PolicyGradient(correction=Truncate()), CrossEntropy()]
    report = summary(gradient(terms, logits, targets, batch)[1])
    clean = {"ratio": 1, "ess": 1, "mismatch_k3": 0}
    clean |= {"max_mismatch": 0, "bounded": 0, "corrected": 0, "kl_reference": 0, "pg_tokens": 13}
    assert {k: report[k] for k in clean} == pytest.approx(clean, abs=1e-6)
    covered = np.array(batch.sampled_BT) == 1
    assert report["entropy"] == pytest.approx(np.array(entropy)[covered].mean(), rel=1e-5)


def test_the_report_off_policy_matches_its_formulas():
    logits, targets, batch = problem(spread=0.5)
    report = summary(gradient([PolicyGradient()], logits, targets, only(batch, PG))[1])
    covered = np.array(batch.sampled_BT) == 1
    now, behaviour, old = (
        np.array(a, np.float64)[covered]
        for a in (
            values(logits, targets)[0],
            batch.behaviour_logprobs_BT,
            batch.old_logprobs_BT,
        )
    )
    d, w = behaviour - now, np.exp(old - behaviour)
    expected = {
        "mismatch_k3": (np.exp(-d) - 1 + d).mean(),
        "max_mismatch": np.abs(d).max(),
        "ratio": np.exp(-d).mean(),
        "ess": w.sum() ** 2 / (len(w) * (w**2).sum()),
    }
    assert {k: report[k] for k in expected} == pytest.approx(expected, rel=1e-4)


def test_an_empty_report_is_no_error():
    assert summary(add_up([])) == {}
    assert summary({"pg_tokens": 0.0, "pg_loss": 0.0}) == {"pg_tokens": 0.0, "pg_loss": 0.0}
