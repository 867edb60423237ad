"""The loss of a step: the same however it is cut, and what its report says."""

import mlx.core as mx
import numpy as np
import pytest
from msgspec.structs import replace

from configs.losses import Bypass, Cispo, Clip, DppoTv, Gspo, Mask, Reinforce, Truncate
from policies.objectives.batch import Batch, Outputs
from policies.objectives.terms import add_up, loss, summary
from policies.terms import CrossEntropy, PolicyGradient
from tests.policies.objectives.micro_batches import (
    CE,
    LENGTHS,
    PG,
    B,
    T,
    counts,
    each,
    gradient,
    only,
    problem,
    rows,
    values,
)

SURROGATES = [Clip(), Cispo(), Gspo(), DppoTv(), Reinforce()]
CORRECTIONS = [Bypass(), Truncate(), Mask()]


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
        "mean_mismatch": np.abs(d).mean(),
        "ratio": np.exp(-d).mean(),
        "ess": w.sum() ** 2 / (len(w) * (w**2).sum()),
    }
    assert {k: report[k] for k in expected} == pytest.approx(expected, rel=1e-4)


def test_the_mean_mismatch_is_over_the_learner_s_own_tokens_alone():
    logits, targets, batch = problem(spread=0.5)
    covered = np.array(batch.sampled_BT) == 1
    fresh = covered & (np.arange(covered.size).reshape(covered.shape) % 2 == 0)
    gaps = np.abs(np.array(values(logits, targets)[0]) - np.array(batch.behaviour_logprobs_BT))
    part = replace(only(batch, PG), fresh_BT=mx.array(fresh.astype(np.float32)))
    report = summary(gradient([PolicyGradient()], logits, targets, part)[1])
    assert report["mean_mismatch"] == pytest.approx(gaps[fresh].mean(), rel=1e-4)
    none = replace(part, fresh_BT=mx.zeros(covered.shape))
    assert "mean_mismatch" not in summary(gradient([PolicyGradient()], logits, targets, none)[1])


def test_an_empty_report_is_no_error():
    assert summary(add_up([])) == {}
    assert summary({"pg_tokens": 0.0, "pg_loss": 0.0}) == {"pg_tokens": 0.0, "pg_loss": 0.0}
