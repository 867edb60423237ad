"""Preference losses at points that can be worked out by hand, KTO's baseline, and what is refused."""

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from policies.objectives.answers import Answers, count_units
from policies.objectives.preference import FACTS, dpo, kto, kto_baseline, mismatched, report
from tests.policies.objectives.judged import LOSSES, answers_of, computed, micro_batch


def one_pair(chosen, rejected, reference_chosen=None, reference_rejected=None):
    """A pair of answers of the same length."""
    reference = [reference_chosen or chosen, reference_rejected or rejected]
    logprobs, reference = np.float32([chosen, rejected]), np.float32(reference)
    return [logprobs, reference, np.ones(logprobs.shape), np.array([5, 5]), np.array([1, -1])]


def test_a_policy_that_is_its_reference_has_dpo_loss_log_2_and_half_of_beta_as_gradient():
    losses, gradient, metrics = computed("dpo", one_pair([-1, -2], [-3, -1]), {"beta": 0.1})
    np.testing.assert_allclose(losses, [np.log(2), 0], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.05, -0.05], [0.05, 0.05]], rtol=1e-6)
    assert report(metrics) == {
        "units": 1,
        "accuracy": 0.5,
        "margin": 0,
        "chosen_reward": 0,
        "rejected_reward": 0,
        "chosen_logprob": -3,
        "rejected_logprob": -4,
    }


def test_rewards_are_beta_times_the_log_ratio():
    batch = one_pair([-1, -2], [-3, -1], [-2, -2], [-2.5, -1])
    *_, metrics = computed("dpo", batch, {"beta": 0.5})
    means = report(metrics)
    assert (means["chosen_reward"], means["rejected_reward"]) == (0.5, -0.25)
    assert (means["margin"], means["accuracy"]) == (0.75, 1)


@pytest.mark.parametrize(("length_normalized", "gain"), [(True, 2.5), (False, 1.25)])
def test_ipo_is_at_its_minimum_where_the_margin_is_half_of_one_over_beta(length_normalized, gain):
    beta, settings = 0.2, {"beta": 0.2, "length_normalized": length_normalized}
    batch = one_pair([-1 + gain, -3 + gain], [-2, -1], [-1, -3], [-2, -1])
    losses, gradient, metrics = computed("ipo", batch, settings)
    assert not losses.any() and not gradient.any()
    assert metrics["margin"] == pytest.approx(beta / (2 * beta))
    for away, sign in ((0.01, 1), (-0.01, -1)):
        batch[0][0] += away
        losses, gradient, _ = computed("ipo", batch, settings)
        assert losses[0] > 0 and np.sign(gradient[0]).tolist() == [sign, sign]
        batch[0][0] -= away


def test_length_normalized_dpo_does_not_reward_a_longer_answer_for_its_length():
    batch = one_pair([-1, -1, -1, -1], [-2, -2, 0, 0], [-1.5] * 4, [-2.5, -2.5, 0, 0])
    batch[2][1, 2:] = 0
    *_, metrics = computed("dpo", batch, {"beta": 5.0, "length_normalized": True})
    assert metrics["margin"] == 0
    *_, metrics = computed("dpo", batch, {"beta": 5.0})
    assert metrics["margin"] == 5


def test_simpo_needs_a_margin_of_gamma_for_log_2():
    losses, _, metrics = computed("simpo", one_pair([-1], [-2]), {"beta": 2.0, "gamma": 2.0})
    np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-6)
    assert metrics["margin"] == 2


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_reference_free_losses_need_none(name):
    assert not FACTS[name].needs_reference
    batch = one_pair([-1, -2], [-3, -1])
    answers = answers_of(batch)
    free = Answers(covered_BT=answers.covered_BT, pair_B=answers.pair_B, label_B=answers.label_B)
    settings = {"gamma": 1.0} if name == "simpo" else {}
    losses_B, _ = LOSSES[name](mx.array(batch[0]), free, beta=0.1, **settings)
    assert losses_B[0] > 0
    for other, facts in FACTS.items():
        if facts.needs_reference:
            more = {"baseline": 0.0} if other == "kto" else {}
            with pytest.raises(ValueError, match="needs the reference's log-probabilities"):
                LOSSES[other](mx.array(batch[0]), free, beta=0.1, **more)


def test_orpo_is_finite_for_an_answer_that_is_certain_or_impossible():
    for chosen, rejected in ((0, -1), (-1, 0), (0, 0), (-500, -1), (-1, -500), (-1e-9, -500)):
        losses, gradient, _ = computed("orpo", one_pair([chosen], [rejected]), {"beta": 0.1})
        assert np.isfinite(losses).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_a_margin_of_thousands_neither_overflows_nor_loses_its_gradient(name):
    settings = {"dpo": {}, "simpo": {"gamma": 1.0}, "kto": {"baseline": 0.0}}[name]
    for chosen, rejected in ((-4000, -1), (-1, -4000)):
        batch = one_pair([chosen], [rejected], [-1.0], [-1.0])
        losses, gradient, _ = computed(name, batch, {**settings, "beta": 1.0})
        assert np.isfinite(losses).all() and np.isfinite(gradient).all()
        if name != "kto":
            assert gradient[0, 0] == (-1 if chosen < rejected else 0)


# ── KTO's baseline and the units ─────────────────────────────────────────────────────────────────


def test_the_baseline_is_the_mean_log_ratio_of_the_mismatched_rows_over_the_step():
    generator = np.random.default_rng(7)
    batches = [micro_batch(generator) for _ in range(3)]
    sums = [mismatched(mx.array(b[0]), answers_of(b)) for b in batches]
    rows = [
        (b[0] - b[1])[row][b[2][row]].sum(dtype=np.float64)
        for b in batches
        for row in np.flatnonzero((b[4] == 0) & b[2].any(axis=1))
    ]
    assert sum(count.item() for _, count in sums) == len(rows) == 6
    baseline = kto_baseline(sum(total.item() for total, _ in sums), len(rows))
    assert baseline == pytest.approx(max(np.mean(rows), 0), rel=1e-5)


def test_the_baseline_is_never_negative_and_does_not_hide_a_broken_sum():
    assert kto_baseline(-3.0, 2) == 0 and kto_baseline(3.0, 2) == 1.5 and kto_baseline(0.0, 0) == 0
    assert np.isnan(kto_baseline(float("nan"), 2))


def test_no_gradient_goes_through_the_baseline():
    batch = micro_batch(np.random.default_rng(8), pairs=3)
    answers = answers_of(batch)

    def total(logprobs_BT):
        baseline = mx.where(answers.covered_BT, logprobs_BT, 0.0).mean()
        return kto(logprobs_BT, answers, beta=0.5, baseline=baseline)[0].sum()

    gradient = np.array(mx.grad(total)(mx.array(batch[0])))
    baseline = float(np.where(batch[2], batch[0], 0).mean())
    _, expected, _ = computed("kto", batch, {"beta": 0.5, "baseline": baseline})
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert expected.any() and not gradient[batch[4] == 0].any()
    estimate = mx.grad(lambda logprobs_BT: mismatched(logprobs_BT, answers)[0])
    assert not np.array(estimate(mx.array(batch[0]))).any()


def test_units_are_whole_pairs_or_single_judged_answers():
    pair, label, lengths = [1, 1, 2, 3, 3, 4, 4], [1, -1, 1, 1, -1, 0, 0], [3, 3, 3, 3, 0, 3, 3]
    assert count_units(pair, label, lengths, paired=True) == 1
    assert count_units(pair, label, lengths, paired=False) == 4
    assert count_units([], [], [], paired=True) == 0


def test_a_pair_with_two_rejected_answers_is_an_error():
    with pytest.raises(ValueError, match="pair 7: needed one rejected row, got 2"):
        count_units([7, 7, 7], [1, -1, -1], [1, 1, 1], paired=True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"covered_BT": mx.ones((2, 3))}, "of one shape"),
        ({"reference_logprobs_BT": mx.ones((1, 2))}, "needed a reference of shape"),
        ({"label_B": mx.ones((2, 1))}, "needed pairs and labels of shape"),
        ({"pair_B": mx.ones(3)}, "needed pairs and labels of shape"),
    ],
)
def test_arrays_that_do_not_fit_are_an_error(changed, said):
    batch = one_pair([-1, -2], [-3, -1])
    answers = msgspec.structs.replace(answers_of(batch), **changed)
    for name, loss in LOSSES.items():
        more = {"simpo": {"gamma": 1.0}, "kto": {"baseline": 0.0}}.get(name, {})
        with pytest.raises(ValueError, match=said):
            loss(mx.array(batch[0]), answers, beta=0.1, **more)


def test_the_robust_form_needs_labels_that_are_mostly_right():
    batch = one_pair([-1], [-2])
    with pytest.raises(ValueError, match=r"below 0\.5, got 0\.5"):
        dpo(mx.array(batch[0]), answers_of(batch), beta=0.1, label_smoothing=0.5, robust=True)
