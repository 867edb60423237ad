"""Preference losses against float64 formulas of the papers, one unit at a time, and at their edges.

The oracle has no gradient of its own: it is differentiated by complex steps, which lose no digits.

Shapes: B rows, T tokens in each.
"""

from functools import partial

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from policies.objectives.answers import count_units
from policies.objectives.preference import FACTS, report
from tests.policies.objectives.judged import LOSSES, VARIANTS, answers_of, computed, micro_batch

BATCHES = 84
"""Random micro-batches of each of the twelve variants: 1,008 in all."""
every_variant = pytest.mark.parametrize(("name", "settings"), VARIANTS.values(), ids=VARIANTS)


# ── the oracle: one unit's loss from its tokens, as the papers write it ──────────────────────────


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dpo_unit(
    w, lo, ref_w, ref_lo, beta, label_smoothing=0.0, robust=False, length_normalized=False
):
    scale_w, scale_lo = (len(w), len(lo)) if length_normalized else (1, 1)
    m = beta * np.sum(w - ref_w) / scale_w - beta * np.sum(lo - ref_lo) / scale_lo
    right, wrong, s = -np.log(sigmoid(m)), -np.log(sigmoid(-m)), label_smoothing
    if robust:
        return ((1 - s) * right - s * wrong) / (1 - 2 * s)
    return (1 - s) * right + s * wrong


def ipo_unit(w, lo, ref_w, ref_lo, beta, length_normalized=True):
    if length_normalized:
        return (np.mean(w) - np.mean(lo) - np.mean(ref_w) + np.mean(ref_lo) - 0.5 / beta) ** 2
    return (np.sum(w) - np.sum(lo) - (np.sum(ref_w) - np.sum(ref_lo)) - 0.5 / beta) ** 2


def simpo_unit(w, lo, ref_w, ref_lo, beta, gamma):
    return -np.log(sigmoid(beta / len(w) * np.sum(w) - beta / len(lo) * np.sum(lo) - gamma))


def orpo_unit(w, lo, ref_w, ref_lo, beta):
    p_w, p_lo = np.exp(np.sum(w) / len(w)), np.exp(np.sum(lo) / len(lo))
    odds_ratio = (p_w / (1 - p_w)) / (p_lo / (1 - p_lo))
    return -np.log(p_w) - beta * np.log(sigmoid(np.log(odds_ratio)))


def kto_unit(y, ref, label, beta, baseline, desirable_weight=1.0, undesirable_weight=1.0):
    r = np.sum(y) - np.sum(ref)
    if label > 0:
        return desirable_weight * (1 - sigmoid(beta * (r - baseline)))
    return undesirable_weight * (1 - sigmoid(beta * (baseline - r)))


UNITS = {"dpo": dpo_unit, "ipo": ipo_unit, "simpo": simpo_unit, "orpo": orpo_unit}


def oracle(name, batch, settings, nll_weight=0.0):
    """The losses per row and the gradient of their sum, in double precision."""
    logprobs, reference, covered, pair, label = batch
    losses, gradient = np.zeros(len(label)), np.zeros(logprobs.shape)

    def tokens(array, row):
        return array[row, np.flatnonzero(covered[row])].astype(np.complex128)

    for row in range(len(label)):
        if not FACTS[name].paired:
            if label[row] == 0 or not covered[row].any():
                continue
            rows = [row]
            ref = tokens(reference, row)
            loss = partial(kto_unit, ref=ref, label=label[row], **settings)
        else:
            partners = [
                r for r in range(len(label)) if pair[r] == pair[row] and label[r] < 0 < label[row]
            ]
            rows = [row, *partners]
            if len(rows) < 2 or not all(covered[r].any() for r in rows):
                continue
            refs = [tokens(reference, r) for r in rows]

            def loss(w, lo, refs=refs):
                return UNITS[name](w, lo, *refs, **settings) - nll_weight * np.mean(w)

        answers = [tokens(logprobs, r) for r in rows]
        losses[row] = loss(*answers).real
        for r, answer in zip(rows, answers):
            for i, column in enumerate(np.flatnonzero(covered[r])):
                answer[i] += 1e-30j
                gradient[r, column] = loss(*answers).imag / 1e-30
                answer[i] -= 1e-30j
    return losses, gradient


# ── every loss ───────────────────────────────────────────────────────────────────────────────────


@every_variant
def test_losses_and_gradients_are_those_of_the_papers(name, settings):
    generator = np.random.default_rng(list(map(ord, name + str(settings))))
    for _ in range(BATCHES):
        batch = micro_batch(generator)
        drawn = {**settings, "beta": float(np.exp(generator.uniform(np.log(0.02), np.log(3))))}
        plain = {k: v for k, v in drawn.items() if k != "nll_weight"}
        losses, gradient, _ = computed(name, batch, drawn)
        expected, expected_gradient = oracle(name, batch, plain, drawn.get("nll_weight", 0.0))
        for ours, theirs in ((losses, expected), (gradient, expected_gradient)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
            assert not ours[theirs == 0].any()


@every_variant
def test_micro_batches_add_up_to_the_step(name, settings):
    generator = np.random.default_rng(1)
    batch, settings = micro_batch(generator, pairs=6), {**settings, "beta": 0.3}
    pair, label = batch[3], batch[4]
    whole = computed(name, batch, settings)
    parts, gradient = [], np.zeros_like(whole[1])
    for third in range(3):
        rows = np.flatnonzero(pair % 3 == third)
        parts.append(computed(name, [a[rows] for a in batch], settings))
        gradient[rows] = parts[-1][1]
    np.testing.assert_allclose(sum(p[0].sum() for p in parts), whole[0].sum(), rtol=1e-6)
    np.testing.assert_array_equal(gradient, whole[1])
    for metric, value in whole[2].items():
        assert sum(p[2][metric] for p in parts) == pytest.approx(value, rel=1e-5, abs=1e-6)
    units = count_units(pair, label, batch[2].sum(axis=1), paired=FACTS[name].paired)
    assert whole[2]["units"] == units == (6 if FACTS[name].paired else 13)


@every_variant
@pytest.mark.parametrize("filling", [np.nan, np.inf, -7.0])
def test_what_padding_holds_has_no_effect(name, settings, filling):
    batch, settings = micro_batch(np.random.default_rng(2), pairs=3), {**settings, "beta": 0.3}
    losses, gradient, metrics = computed(name, batch, settings)
    wider = [np.pad(a, ((0, 2), (0, 3))) for a in batch[:3]] + [
        np.pad(a, (0, 2)) for a in batch[3:]
    ]
    for array in wider[:2]:
        array[~wider[2]] = filling
    wide_losses, wide_gradient, wide_metrics = computed(name, wider, settings)
    np.testing.assert_array_equal(wide_losses, np.pad(losses, (0, 2)))
    np.testing.assert_allclose(wide_gradient, np.pad(gradient, ((0, 2), (0, 3))), rtol=1e-6)
    assert wide_metrics == pytest.approx(metrics, rel=1e-6)
    assert np.isfinite(list(metrics.values())).all() and not wide_gradient[~wider[2]].any()


@every_variant
def test_without_cover_everything_is_zero(name, settings):
    batch = micro_batch(np.random.default_rng(3))
    batch[2] = np.zeros_like(batch[2])
    losses, gradient, metrics = computed(name, batch, {**settings, "beta": 0.3})
    assert not losses.any() and not gradient.any() and not any(metrics.values())
    assert report(metrics) == {"units": 0}


@every_variant
def test_with_labels_swapped_margins_change_their_sign(name, settings):
    batch, settings = micro_batch(np.random.default_rng(5), pairs=4), {**settings, "beta": 0.3}
    *_, metrics = computed(name, batch, settings)
    batch[4] = -batch[4]
    *_, swapped = computed(name, batch, settings)
    assert metrics["margin"] and swapped["margin"] == pytest.approx(-metrics["margin"], rel=1e-6)
    assert swapped["accuracy"] == metrics["units"] - metrics["accuracy"]
    for metric in ("reward", "logprob"):
        assert swapped[f"chosen_{metric}"] == pytest.approx(metrics[f"rejected_{metric}"])


@every_variant
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_added_up_in_single(name, settings, dtype):
    batch = micro_batch(np.random.default_rng(6))
    for i in (0, 1):
        batch[i] = np.array(mx.array(batch[i]).astype(dtype).astype(mx.float32))
    half_BT = mx.array(batch[1]).astype(dtype)
    answers = msgspec.structs.replace(answers_of(batch), reference_logprobs_BT=half_BT)
    losses_B, _ = LOSSES[name](mx.array(batch[0]).astype(dtype), answers, **settings, beta=0.3)
    assert losses_B.dtype == mx.float32
    np.testing.assert_array_equal(losses_B, computed(name, batch, {**settings, "beta": 0.3})[0])
