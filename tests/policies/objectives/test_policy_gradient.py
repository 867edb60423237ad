"""The surrogates: published examples, what bounds do, and when all are the same.

Shapes: B sequences, T tokens in each, V outcomes.
"""

import mlx.core as mx
import numpy as np
import pytest

from configs.losses import Cispo, Clip, DppoTv, Gspo, Reinforce
from policies.objectives.normalise import denominators, reduce
from policies.objectives.policy_gradient import (
    cispo,
    clip,
    dppo_tv,
    gspo,
    reinforce,
    surrogate,
)

SURROGATES = [Clip(), Cispo(), Gspo(), DppoTv(), Reinforce()]
NAMES = ["clip", "cispo", "gspo", "dppo_tv", "reinforce"]
every_surrogate = pytest.mark.parametrize("settings", SURROGATES, ids=NAMES)


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Double precision, which finite differences need, exists on the CPU only."""
    with mx.stream(mx.cpu):
        yield


def row(*values: float) -> mx.array:
    return mx.array([values], mx.float64)


def ratios(*values: float) -> tuple[mx.array, mx.array]:
    """Log-probabilities with these ratios to their anchor."""
    anchor = mx.full((1, len(values)), -2.0, mx.float64)
    return anchor + mx.log(row(*values)), anchor


def ragged(seed: int = 0, spread: float = 0.3):
    """Three sequences of 2, 6 and 4 tokens, padded to 6."""
    generator = np.random.default_rng(seed)
    sampled = np.arange(6) < np.array([[2], [6], [4]])
    logprobs = generator.normal(-2, 0.5, (3, 6))
    anchor = logprobs + generator.normal(0, spread, (3, 6))
    advantages = np.broadcast_to(generator.normal(size=(3, 1)), (3, 6))
    return [
        mx.array(a.astype(np.float64), mx.float64) for a in (logprobs, anchor, advantages)
    ], sampled


def total(settings, logprobs, anchor, advantages, sampled):
    return surrogate(settings, logprobs, anchor, advantages, sampled)[0].sum()


def gradient(settings, arrays, sampled) -> np.ndarray:
    logprobs, *others = arrays
    return np.array(
        mx.grad(lambda logprobs: total(settings, logprobs, *others, mx.array(sampled)))(logprobs)
    )


# ── published examples ───────────────────────────────────────────────────────────────────────────


def test_clip_as_in_nemo():
    losses, bounded = clip(*ratios(0.5, 1, 1.5), row(1, -1, 2), row(1, 1, 1), low=0.2, high=0.2)
    np.testing.assert_allclose(losses, [[-0.5, 1, -2.4]])
    assert losses.mean().item() == pytest.approx(-0.6333, abs=1e-4)
    assert bounded.tolist() == [[False, False, True]]


def test_dual_clip_as_in_skyrl():
    losses, bounded = clip(
        *ratios(0.5, 1, 10), row(1, -1, -4), row(1, 1, 1), low=0.2, high=0.2, dual=3
    )
    np.testing.assert_allclose(losses, [[-0.5, 1, 12]])
    assert bounded.tolist() == [[False, False, True]]


def test_cispo_as_in_skyrl_where_its_lower_bound_does_not_bind():
    logprobs, anchor = row(-1.69315, -1, -0.69741), row(-1, -1, -1)
    losses, _ = cispo(logprobs, anchor, row(1, -1, -4), row(1, 1, 1), max_ratio=1.2)
    np.testing.assert_allclose(losses, [[0.5 * 1.69315, -1, -3.34757]], rtol=1e-5)


def test_cispo_coefficients_as_in_slime():
    logprobs, anchor = ratios(1, 3, 9, 0.4)

    def loss(logprobs):
        return cispo(logprobs, anchor, row(1, 1, 1, 1), row(1, 1, 1, 1), max_ratio=5)[0].sum()

    np.testing.assert_allclose(mx.grad(loss)(logprobs), [[-1, -3, -5, -0.4]])


def test_separate_bounds():
    losses, _ = clip(
        *ratios(1.25, 1.25, 0.75, 0.75), row(1, -1, 1, -1), row(1, 1, 1, 1), low=0.2, high=0.28
    )
    np.testing.assert_allclose(losses, [[-1.25, 1.25, -0.75, 0.8]])


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


def test_clipping_removes_the_gain_not_the_penalty():
    arrays = [*ratios(2, 0.5, 2, 0.5), row(1, -1, -1, 1)]
    result = gradient(Clip(dual=0), arrays, [[1, 1, 1, 1]])
    np.testing.assert_allclose(result, [[0, 0, 2, -0.5]])


def test_dual_clip_bounds_the_penalty():
    arrays = [*ratios(2.9, 3.1), row(-1, -1)]
    np.testing.assert_allclose(gradient(Clip(dual=3), arrays, [[1, 1]]), [[2.9, 0]])


def test_no_token_loses_its_gradient_in_cispo():
    arrays = [*ratios(1e-3, 1, 100, 1e4), row(1, -1, 1, -1)]
    assert np.all(gradient(Cispo(), arrays, [[1, 1, 1, 1]]) != 0)


def test_dppo_drops_only_what_moved_too_far_with_its_advantage():
    anchor, now = mx.log(row(0.3, 0.3, 0.3, 0.7, 0.7)), mx.log(row(0.6, 0.6, 0.4, 0.4, 0.4))
    arrays, sampled = (now, anchor, row(1, -1, 1, -1, 1)), row(1, 1, 1, 1, 1)
    losses, bounded = dppo_tv(*arrays, sampled, delta=0.2, max_ratio=20)
    assert bounded.tolist() == [[True, False, False, True, False]]
    expected = -np.array(mx.exp(now - anchor) * arrays[2] * now)
    expected[0, [0, 3]] = 0
    np.testing.assert_allclose(losses, expected)


def test_a_rare_token_may_multiply_its_probability_in_dppo_but_not_in_clip():
    arrays = (mx.log(row(0.01)), mx.log(row(0.001)), row(1))
    assert gradient(Clip(), arrays, [[1]]) == 0
    assert gradient(DppoTv(), arrays, [[1]]) == pytest.approx(-10)


def test_reinforce_ignores_the_anchor():
    losses, bounded = reinforce(row(-2, -3), row(mx.nan, mx.nan), row(1, -2), row(1, 1))
    assert losses.tolist() == [[2, -6]]
    assert not bounded.any()


@pytest.mark.parametrize("spread", [1e-4, 0.3])
def test_gspo_token_equals_the_sequence_form(spread):
    (logprobs, anchor, advantages), sampled = ragged(spread=spread)
    covered, step = mx.array(sampled), denominators(sampled.sum(-1), 6)
    low, high = 3e-4, 4e-4

    def token_form(logprobs):
        losses, _ = gspo(logprobs, anchor, advantages, covered, low=low, high=high)
        return reduce("sequence_mean", losses, covered, step)

    def sequence_form(logprobs):
        mean = (covered * (logprobs - anchor)).sum(-1) / covered.sum(-1)
        s, a = mx.exp(mean), advantages[:, 0]
        return mx.maximum(-a * s, -a * mx.clip(s, 1 - low, 1 + high)).mean()

    ours, theirs = (mx.value_and_grad(f)(logprobs) for f in (token_form, sequence_form))
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-12)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-12)
    assert np.abs(ours[1]).max() > 0


# ── every surrogate ──────────────────────────────────────────────────────────────────────────────


@every_surrogate
def test_zero_advantage_gives_exactly_zero_gradient(settings):
    (logprobs, anchor, advantages), sampled = ragged()
    assert not gradient(settings, (logprobs, anchor, mx.zeros_like(advantages)), sampled).any()


@every_surrogate
def test_an_advantage_gives_a_gradient_of_its_sign_on_policy(settings):
    (logprobs, _, advantages), sampled = ragged()
    result = gradient(settings, (logprobs, logprobs, advantages), sampled)
    assert (np.sign(result)[sampled] == -np.sign(advantages)[sampled]).all()


@every_surrogate
@pytest.mark.parametrize("normalizer", ["token_mean", "sequence_mean", "constant"])
def test_on_policy_all_have_the_gradient_of_reinforce(settings, normalizer):
    if isinstance(settings, Gspo) and normalizer != "sequence_mean":
        pytest.skip("GSPO is defined under the sequence mean")
    (logprobs, _, advantages), sampled = ragged()
    covered, step = mx.array(sampled), denominators(sampled.sum(-1), 6)

    def loss(logprobs_, settings):
        losses, _ = surrogate(settings, logprobs_, logprobs, advantages, covered)
        return reduce(normalizer, losses, covered, step)

    ours, theirs = (mx.grad(loss)(logprobs, s) for s in (settings, Reinforce()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@every_surrogate
def test_what_stands_on_other_tokens_has_no_effect(settings):
    arrays, sampled = ragged()
    dirty = [mx.where(mx.array(sampled), a, mx.nan) for a in arrays]
    ours, theirs = gradient(settings, dirty, sampled), gradient(settings, arrays, sampled)
    np.testing.assert_array_equal(ours, theirs)
    assert not theirs[~sampled].any()
    losses, _ = surrogate(settings, *dirty, mx.array(sampled))
    assert not np.array(losses)[~sampled].any()


@every_surrogate
def test_padding_changes_nothing(settings):
    arrays, sampled = ragged()
    padded = [mx.pad(a, [(0, 0), (0, 5)]) for a in arrays]
    ours = gradient(settings, padded, np.pad(sampled, [(0, 0), (0, 5)]))
    np.testing.assert_array_equal(ours[:, :6], gradient(settings, arrays, sampled))
    assert not ours[:, 6:].any()


@every_surrogate
def test_nothing_sampled_gives_zero(settings):
    arrays, sampled = ragged()
    assert total(settings, *arrays, mx.zeros(sampled.shape)).item() == 0
    assert not gradient(settings, arrays, np.zeros(sampled.shape)).any()


@every_surrogate
def test_extreme_ratios_stay_finite(settings):
    anchor, sampled = row(-1e4, -1e-4, -50, -0.1), [[1, 1, 1, 1]]
    arrays = (row(-1e-4, -1e4, -0.1, -50), anchor, row(1, 1, -1, -1))
    assert np.isfinite(total(settings, *arrays, mx.array(sampled)).item())
    assert np.isfinite(gradient(settings, arrays, sampled)).all()


def log_softmax_at(logits: mx.array, targets: mx.array) -> mx.array:
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return mx.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]


def frozen(settings, logits, anchor, advantages, targets):
    """The surrogate again, in numpy: a function of the logits whose slope is its gradient.

    What the surrogate stops the gradient of is held at its value at `logits`.
    """

    def at(logits):
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]

    held = at(logits)
    ratio = np.exp(held - anchor)
    moved = (np.exp(held) - np.exp(anchor)) * np.sign(advantages)

    def clipped(ratio, advantages, low, high):
        bounded = np.clip(ratio, 1 - low, 1 + high)
        return np.maximum(-advantages * ratio, -advantages * bounded)

    def function(logits):
        logprobs = at(logits)
        match settings:
            case Clip(low=low, high=high, dual=dual):
                losses = clipped(np.exp(logprobs - anchor), advantages, low, high)
                dual_losses = np.minimum(losses, -advantages * dual)
                return np.where(advantages < 0, dual_losses, losses).sum()
            case Gspo(low=low, high=high):
                sequence = np.exp((logprobs - anchor).mean(-1))
                return clipped(sequence, advantages[:, 0], low, high).sum() * anchor.shape[1]
            case Cispo(max_ratio=cap):
                weights = np.minimum(ratio, cap)
            case DppoTv(delta=delta, max_ratio=cap):
                weights = np.where(moved > delta, 0.0, np.minimum(ratio, cap))
            case Reinforce():
                weights = np.ones_like(ratio)
        return -(weights * advantages * logprobs).sum()

    return function


@every_surrogate
@pytest.mark.parametrize("seed", range(5))
def test_gradients_match_finite_differences(settings, seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(2, 3, 4))
    targets = generator.integers(0, 4, (2, 3))
    advantages = generator.normal(size=(2, 1)) * np.ones((1, 3))
    now = np.array(log_softmax_at(mx.array(logits, mx.float64), mx.array(targets)))
    drift = 3e-4 if isinstance(settings, Gspo) else 0.5
    anchor = now + generator.normal(0, drift, (2, 3))

    def loss(logits):
        logprobs = log_softmax_at(logits, mx.array(targets))
        others = (mx.array(a, mx.float64) for a in (anchor, advantages))
        return total(settings, logprobs, *others, mx.ones((2, 3)))

    result = np.array(mx.grad(loss)(mx.array(logits, mx.float64)))
    function, step = frozen(settings, logits, anchor, advantages, targets), 1e-6
    for place in np.ndindex(logits.shape):
        nudge = np.zeros_like(logits)
        nudge[place] = step
        slope = (function(logits + nudge) - function(logits - nudge)) / (2 * step)
        assert slope == pytest.approx(result[place], abs=2e-6)
