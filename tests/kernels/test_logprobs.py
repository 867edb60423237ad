"""The chunked kernel against its plain reference, and its promises about bits and memory."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kernels.logprobs import normalise, score, selected, selected_plain
from tests.pairs import pairs_first

N, D, V = 37, 16, 97
ROOT = Path(__file__).parents[2]


def arrays(n: int = N, v: int = V, dtype: mx.Dtype = mx.float32):
    keys = mx.random.split(mx.random.key(0), 4)
    hidden = mx.random.normal((n, D), key=keys[0]).astype(dtype)
    weight = mx.random.normal((v, D), key=keys[1]).astype(dtype)
    targets = mx.random.randint(0, v, (n,), key=keys[2])
    return hidden, weight, targets, mx.random.normal((2, n), key=keys[3])


def linear(hidden: mx.array, weight: mx.array) -> mx.array:
    return hidden @ weight.T


def capped(hidden: mx.array, weight: mx.array) -> mx.array:
    """A head with a soft cap, as Gemma's: its gradient needs its own output."""
    return 3 * mx.tanh(hidden @ weight.T / 3)


def gradients(function, project, n=N, temperature=1.0, dtype=mx.float32, **options):
    hidden, weight, targets, pulls = arrays(n, dtype=dtype)

    def loss(hidden, weight):
        logprobs, entropy = function(
            hidden, project, (weight,), targets, temperature=temperature, **options
        )
        return (logprobs * pulls[0] + entropy * pulls[1]).sum()

    value, grads = mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight)
    return value.item(), *grads


def error(ours: mx.array, theirs: mx.array) -> float:
    a, b = np.array(ours.astype(mx.float32)), np.array(theirs.astype(mx.float32))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_normalise_gives_log_probabilities():
    logits = arrays()[0]
    shifted, exp, log_total = normalise(logits, 0.7)
    z = np.array(logits, np.float64) / 0.7
    expected = z - np.log(np.exp(z).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.array(shifted - log_total[:, None]), expected, atol=1e-5)
    assert np.array_equal(np.array(exp), np.array(mx.exp(shifted)))


def test_normalise_survives_large_logits():
    shifted, _, log_total = normalise(mx.array([[3e4, 0.0, -3e4]]), 1.0)
    assert (shifted - log_total[:, None]).tolist() == [[0.0, -3e4, -6e4]]


def test_values_are_those_of_double_precision():
    hidden, weight, targets, _ = arrays()
    logprobs, entropy = selected(hidden, linear, (weight,), targets, temperature=0.7)
    z = np.array(hidden, np.float64) @ np.array(weight, np.float64).T / 0.7
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    np.testing.assert_allclose(np.array(logprobs), logp[np.arange(N), np.array(targets)], atol=2e-5)
    np.testing.assert_allclose(np.array(entropy), -(np.exp(logp) * logp).sum(-1), atol=2e-5)
    assert logprobs.dtype == entropy.dtype == mx.float32


@pytest.mark.parametrize(
    ("project", "temperature", "entropy_grad", "chunk_tokens"),
    pairs_first([linear, capped], [1.0, 0.7], [False, True], [1, 5, 37, 512]),
)
def test_gradients_equal_the_plain_ones(project, temperature, entropy_grad, chunk_tokens):
    options = {"temperature": temperature, "entropy_grad": entropy_grad}
    value, *ours = gradients(selected, project, chunk_tokens=chunk_tokens, **options)
    expected, *theirs = gradients(selected_plain, project, **options)
    assert value == pytest.approx(expected, rel=1e-5)
    assert max(map(error, ours, theirs)) < 1e-6


def test_one_token_is_enough():
    _, *ours = gradients(selected, linear, n=1, temperature=0.7, entropy_grad=True)
    _, *theirs = gradients(selected_plain, linear, n=1, temperature=0.7, entropy_grad=True)
    assert max(map(error, ours, theirs)) < 1e-6


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_gradients_stay_in_its_rounding(dtype):
    _, *ours = gradients(selected, linear, dtype=dtype, chunk_tokens=5)
    _, *theirs = gradients(selected_plain, linear, dtype=dtype)
    assert all(grad.dtype == dtype for grad in ours)
    assert max(map(error, ours, theirs)) < 1e-2


def test_entropy_is_a_constant_unless_asked_for():
    hidden, weight, targets, _ = arrays()

    def entropy(hidden):
        return selected(hidden, linear, (weight,), targets, temperature=1.0)[1].sum()

    assert mx.abs(mx.grad(entropy)(hidden)).max().item() == 0


def test_a_frozen_head_closes_over_its_weights():
    hidden, weight, targets, _ = arrays()

    def loss(hidden, function):
        return function(hidden, lambda h: linear(h, weight), (), targets, temperature=1.0)[0].sum()

    assert error(mx.grad(loss)(hidden, selected), mx.grad(loss)(hidden, selected_plain)) < 1e-6


def test_a_quantised_head_passes_its_gradient_to_the_hidden_states():
    hidden, _, targets, _ = arrays()
    wide = mx.concatenate([hidden] * 4, axis=-1)
    packed = mx.quantize(mx.random.normal((V, 4 * D), key=mx.random.key(9)), bits=4)

    def loss(hidden, function):
        def project(h):
            return mx.quantized_matmul(h, *packed, transpose=True, bits=4)

        return function(hidden, project, (), targets, temperature=1.0)[0].sum()

    assert error(mx.grad(loss)(wide, selected), mx.grad(loss)(wide, selected_plain)) < 1e-6


def test_gradients_match_finite_differences():
    hidden, weight = arrays(3, 7)[:2]
    targets, step = mx.array([0, 3, 6]), 1e-2

    def loss(hidden):
        logprobs, entropy = selected(
            hidden, linear, (weight,), targets, temperature=0.7, entropy_grad=True, chunk_tokens=2
        )
        return (logprobs + 0.5 * entropy).sum()

    gradient = np.array(mx.grad(loss)(hidden))
    for i in range(3):
        nudge = mx.zeros((3, D)).at[i, i].add(step)
        slope = (loss(hidden + nudge) - loss(hidden - nudge)).item() / (2 * step)
        assert slope == pytest.approx(gradient[i, i], abs=5e-3)


def test_scoring_agrees_with_selecting():
    hidden, weight, targets, _ = arrays()
    logprobs, _ = selected(hidden, linear, (weight,), targets, temperature=0.7)
    scored = score(hidden, lambda h: linear(h, weight), targets, temperature=0.7)
    assert mx.array_equal(scored, logprobs)


def test_memory_is_that_of_chunks_not_of_all_tokens():
    n, v = 512, 4096
    hidden, weight, targets, pulls = arrays(n, v)
    mx.eval(hidden, weight, targets, pulls)

    def peak(function, **options):
        def loss(hidden, weight):
            logprobs, _ = function(hidden, linear, (weight,), targets, temperature=1.0, **options)
            return (logprobs * pulls[0]).sum()

        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight))
        return mx.get_peak_memory() - before

    assert peak(selected, chunk_tokens=32) < 0.25 * peak(selected_plain)


EXACT = """
from runtime.blas import load_blas
assert load_blas(exact=True) in ("reference", "metal")
import mlx.core as mx
from kernels.logprobs import score, selected
keys = mx.random.split(mx.random.key(1), 3)
for dtype in (mx.float32, mx.bfloat16):
    for v in (97, 4096):
        hidden = mx.random.normal((11, 32), key=keys[0]).astype(dtype)
        weight = mx.random.normal((v, 32), key=keys[1]).astype(dtype)
        targets = mx.random.randint(0, v, (11,), key=keys[2])
        project = lambda h: h @ weight.T
        whole = selected(hidden, project, (), targets, temperature=0.7)
        for chunk in (1, 2, 3, 10):
            part = selected(hidden, project, (), targets, temperature=0.7, chunk_tokens=chunk)
            assert all(mx.array_equal(a, b) for a, b in zip(whole, part)), (dtype, v, chunk)
        for i in range(11):
            alone = score(hidden[i : i + 1], project, targets[i : i + 1], temperature=0.7)
            assert mx.array_equal(alone, whole[0][i : i + 1]), (dtype, v, i)
print("equal")
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="exact mode is a promise of the stock CPU wheel"
)
def test_in_exact_mode_a_row_does_not_depend_on_its_batch_or_chunk():
    command = [sys.executable, "-c", EXACT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "equal\n", done.stderr
