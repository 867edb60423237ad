"""Divergences against textbook formulas in double precision and autograd, and where they must be 0."""

import math

import mlx.core as mx
import numpy as np
import pytest

from kernels.divergence import Divergence, per_token, per_token_plain
from kernels.teacher import Full, TopK, top_k
from tests.pairs import pairs_first

N, D, V = 23, 16, 61
KINDS = [
    Divergence(kind="forward"),
    Divergence(kind="reverse"),
    Divergence(kind="jsd", beta=0.1),
    Divergence(kind="jsd", beta=0.5),
    Divergence(kind="jsd", beta=0.9),
    Divergence(kind="skewed_forward"),
    Divergence(kind="skewed_reverse", skew=0.3),
    Divergence(kind="total_variation"),
]


def named(value: object) -> str | None:
    """The test id of a divergence; None, pytest's own, of anything else."""
    return f"{value.kind}-{value.mixture}" if isinstance(value, Divergence) else None


each_kind = pytest.mark.parametrize("divergence", KINDS, ids=named)


def at_temperature(divergence: Divergence, temperature: float) -> Divergence:
    return Divergence(
        kind=divergence.kind,
        beta=divergence.beta,
        skew=divergence.skew,
        temperature=temperature,
    )


def linear(hidden: mx.array, weight: mx.array) -> mx.array:
    return hidden @ weight.T


def capped(hidden: mx.array, weight: mx.array) -> mx.array:
    """A head with a soft cap, as Gemma's: its gradient needs its own output."""
    return 3 * mx.tanh(hidden @ weight.T / 3)


def arrays(n: int = N, v: int = V, dtype: mx.Dtype = mx.float32):
    keys = mx.random.split(mx.random.key(0), 5)
    hidden = mx.random.normal((n, D), key=keys[0]).astype(dtype)
    weight = mx.random.normal((v, D), key=keys[1]).astype(dtype)
    theirs = mx.random.normal((v, D), key=keys[2]).astype(dtype)
    return hidden, weight, theirs, mx.random.normal((n,), key=keys[3])


def full(hidden: mx.array, weight: mx.array, project=linear) -> Full:
    return Full(hidden, lambda h: project(h, weight))


def given(logits: mx.array) -> Full:
    return Full(logits, lambda chunk: chunk)


def identity(hidden: mx.array) -> mx.array:
    return hidden


def gradients(function, teacher, project=linear, n=N, v=V, dtype=mx.float32):
    hidden, weight, _, pull = arrays(n, v, dtype)

    def loss(hidden, weight):
        value = function(hidden, project, (weight,), teacher)
        return (pull * (value[0] if isinstance(value, tuple) else value)).sum()

    value, grads = mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight)
    return value.item(), *grads


def slope(logits: mx.array, teacher, divergence: Divergence, **options):
    """Divergences and their gradient in the student's logits."""

    def total(logits):
        return per_token(logits, identity, (), teacher, divergence, **options)[0].sum()

    return np.array(per_token(logits, identity, (), teacher, divergence, **options)[0]), np.array(
        mx.grad(total)(logits)
    )


def error(ours: mx.array, theirs: mx.array) -> float:
    a, b = np.array(ours.astype(mx.float32)), np.array(theirs.astype(mx.float32))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def double_precision(divergence: Divergence, student, teacher):
    """From logits, as the papers write it."""

    def softmax(z):
        e = np.exp(z / divergence.temperature - (z / divergence.temperature).max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def kl(a, b):
        return (a * np.log(a / b)).sum(-1)

    p, t = softmax(np.array(student, np.float64)), softmax(np.array(teacher, np.float64))
    x = divergence.mixture
    value = {
        "forward": kl(t, p),
        "reverse": kl(p, t),
        "jsd": x * kl(t, x * t + (1 - x) * p) + (1 - x) * kl(p, x * t + (1 - x) * p),
        "skewed_forward": kl(t, x * t + (1 - x) * p),
        "skewed_reverse": kl(p, (1 - x) * t + x * p),
        "total_variation": np.abs(p - t).sum(-1) / 2,
    }[divergence.kind]
    return value * divergence.scale


@each_kind
@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_values_are_those_of_double_precision(divergence, temperature):
    divergence = at_temperature(divergence, temperature)
    hidden, weight, theirs, _ = arrays()
    value, usable = per_token(hidden, linear, (weight,), full(hidden, theirs), divergence)
    expected = double_precision(divergence, linear(hidden, weight), linear(hidden, theirs))
    np.testing.assert_allclose(np.array(value), expected, rtol=2e-5, atol=2e-5)
    assert value.dtype == mx.float32 and usable.dtype == mx.bool_ and usable.all().item()


@pytest.mark.parametrize(
    ("divergence", "project", "chunk_tokens"),
    pairs_first(KINDS, [linear, capped], [1, 5, 512]),
    ids=named,
)
def test_gradients_equal_the_plain_ones(divergence, project, chunk_tokens):
    hidden, _, theirs, _ = arrays()
    teacher = full(hidden * 0.5, theirs, project)
    value, *ours = gradients(
        lambda h, f, w, t: per_token(h, f, w, t, divergence, chunk_tokens=chunk_tokens),
        teacher,
        project,
    )
    expected, *plain = gradients(
        lambda h, f, w, t: per_token_plain(h, f, w, t, divergence), teacher, project
    )
    assert value == pytest.approx(expected, rel=1e-5)
    assert max(map(error, ours, plain)) < 1e-5


@each_kind
def test_gradients_match_finite_differences(divergence):
    keys = mx.random.split(mx.random.key(3), 2)
    student, teacher = (mx.random.normal((2, 5), key=key) for key in keys)
    _, found = slope(student, given(teacher), divergence)
    for row, column in ((0, 0), (1, 3)):
        nudge = np.zeros((2, 5))
        nudge[row, column] = 1e-5
        above, below = (
            double_precision(divergence, np.array(student, np.float64) + sign * nudge, teacher)
            for sign in (1, -1)
        )
        assert found[row, column] == pytest.approx((above - below)[row] / 2e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("divergence", "k", "temperature"),
    pairs_first(KINDS, [None, 1, 7, V], [1.0, 3.0]),
    ids=named,
)
def test_an_identical_teacher_gives_exactly_zero(divergence, k, temperature):
    divergence = at_temperature(divergence, temperature)
    hidden, weight, _, _ = arrays()
    teacher = full(hidden, weight)
    if k:
        teacher = top_k(teacher, k, temperature=temperature)

    def function(h, f, w, t):
        return per_token(h, f, w, t, divergence, chunk_tokens=7)

    value, *grads = gradients(function, teacher)
    assert value == 0
    assert all(mx.abs(grad).max().item() == 0 for grad in grads)


@each_kind
def test_another_teacher_gives_a_gradient(divergence):
    hidden, _, theirs, _ = arrays()
    value, *grads = gradients(
        lambda h, f, w, t: per_token(h, f, w, t, divergence), full(hidden, theirs)
    )
    assert value != 0
    assert all(np.array(grad).any() for grad in grads)


@each_kind
def test_extreme_logits_are_survived(divergence):
    student = mx.array([[500.0, 0.0, -500.0], [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    teacher = mx.array([[-500.0, 0.0, 500.0], [-1e4, 1e4, 0.0], [3e4, -3e4, 0.0]])
    value, grad = slope(student, given(teacher), divergence)
    assert np.isfinite(value).all() and np.isfinite(grad).all()
    assert value.min() >= 0


@each_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_teacher_that_is_not_finite_is_flagged_and_trains_nothing(divergence, bad):
    hidden, weight, theirs, _ = arrays()
    logits = linear(hidden, theirs)
    logits[4, 9] = bad
    function = per_token(hidden, linear, (weight,), given(logits), divergence, chunk_tokens=5)
    assert np.flatnonzero(~np.array(function[1])).tolist() == [4]
    assert function[0][4].item() == 0 and mx.isfinite(function[0]).all().item()
    good = mx.where(mx.arange(N)[:, None] == 4, linear(hidden, weight), logits)
    ours, same = (
        gradients(lambda h, f, w, t: per_token(h, f, w, t, divergence, chunk_tokens=5), given(z))
        for z in (logits, good)
    )
    assert ours[0] == same[0]
    assert all(mx.array_equal(a, b).item() for a, b in zip(ours[1:], same[1:]))


@each_kind
def test_the_gradient_keeps_its_scale_at_any_temperature(divergence):
    keys = mx.random.split(mx.random.key(1), 2)
    student, teacher = (mx.random.normal((200, 50), key=key) for key in keys)

    def norm(temperature: float) -> float:
        at = at_temperature(divergence, temperature)
        return float(np.linalg.norm(slope(student, given(teacher), at)[1]))

    scale = norm(1.0)
    for temperature in (2.0, 4.0, 8.0):
        assert 0.5 < norm(temperature) / scale < 2, temperature


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_gradients_stay_in_its_rounding(dtype):
    hidden, _, theirs, _ = arrays(dtype=dtype)
    teacher, divergence = full(hidden, theirs), Divergence()
    _, *ours = gradients(
        lambda h, f, w, t: per_token(h, f, w, t, divergence, chunk_tokens=5), teacher, dtype=dtype
    )
    _, *plain = gradients(
        lambda h, f, w, t: per_token_plain(h, f, w, t, divergence), teacher, dtype=dtype
    )
    assert all(grad.dtype == dtype for grad in ours)
    assert max(map(error, ours, plain)) < 1e-2


def test_a_frozen_head_closes_over_its_weights_and_one_token_is_enough():
    hidden, weight, theirs, _ = arrays(1)
    teacher, divergence = full(hidden, theirs), Divergence()

    def loss(hidden, function):
        value = function(hidden, lambda h: linear(h, weight), (), teacher, divergence)
        return (value[0] if function is per_token else value).sum()

    assert error(mx.grad(loss)(hidden, per_token), mx.grad(loss)(hidden, per_token_plain)) < 1e-5


def test_the_teacher_gets_no_gradient_even_if_it_is_the_student():
    hidden, weight, theirs, _ = arrays()

    def loss(hidden):
        return per_token(hidden, linear, (weight,), full(2 * hidden, theirs), Divergence())[0].sum()

    def constant(hidden, teacher=2 * hidden):
        return per_token(hidden, linear, (weight,), full(teacher, theirs), Divergence())[0].sum()

    assert mx.array_equal(mx.grad(loss)(hidden), mx.grad(constant)(hidden)).item()


def test_memory_is_that_of_chunks_not_of_all_tokens():
    n, v = 512, 4096
    hidden, weight, theirs, pull = arrays(n, v)
    teacher = full(hidden, theirs)
    mx.eval(hidden, weight, theirs, pull)

    def peak(function):
        def loss(hidden, weight):
            return (function(hidden, weight) * pull).sum()

        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight))
        return mx.get_peak_memory() - before

    kernel = peak(
        lambda h, w: per_token(h, linear, (w,), teacher, Divergence(), chunk_tokens=32)[0]
    )
    assert kernel < 0.25 * peak(
        lambda h, w: per_token_plain(h, linear, (w,), teacher, Divergence())
    )


# ── vocabularies of two sizes ────────────────────────────────────────────────────────────────────


def test_student_ids_that_the_teacher_lacks_have_no_mass_in_forward_kl():
    hidden, weight, theirs, _ = arrays()
    value, _ = per_token(
        hidden, linear, (weight,), full(hidden, theirs[:50]), Divergence(kind="forward")
    )
    z, u = (np.array(linear(hidden, w), np.float64) for w in (weight, theirs[:50]))
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    log_t = u - np.log(np.exp(u).sum(-1, keepdims=True))
    expected = (np.exp(log_t) * (log_t - log_p[:, :50])).sum(-1)
    np.testing.assert_allclose(np.array(value), expected, rtol=1e-5)


@each_kind
def test_extra_student_ids_are_pushed_down_and_the_gradient_is_the_value_s(divergence):
    keys = mx.random.split(mx.random.key(3), 2)
    student, teacher = (
        mx.random.normal((2, 7), key=keys[0]),
        given(mx.random.normal((2, 5), key=keys[1])),
    )
    _, found = slope(student, teacher, divergence)
    assert (found[:, 5:] > 0).all()
    step = 2e-2
    for column in range(7):
        nudge = mx.zeros((2, 7)).at[:, column].add(step)
        above, below = (slope(student + s * nudge, teacher, divergence)[0] for s in (1, -1))
        np.testing.assert_allclose((above - below) / (2 * step), found[:, column], atol=2e-3)


@each_kind
def test_teacher_ids_that_the_student_lacks_are_left_out(divergence):
    hidden, weight, theirs, _ = arrays()
    wide = per_token(hidden, linear, (weight[:50],), full(hidden, theirs), divergence)[0]
    same = per_token(hidden, linear, (weight[:50],), full(hidden, theirs[:50]), divergence)[0]
    assert mx.array_equal(wide, same).item()


# ── a teacher's top-k ────────────────────────────────────────────────────────────────────────────


def test_top_k_is_the_likeliest_with_the_mass_of_the_rest():
    hidden, _, theirs, _ = arrays()
    said = top_k(full(hidden, theirs), 7, temperature=0.7, chunk_tokens=5)
    z = np.array(linear(hidden, theirs), np.float64) / 0.7
    log_t = z - np.log(np.exp(z).sum(-1, keepdims=True))
    order = np.argsort(-log_t, axis=-1)
    np.testing.assert_array_equal(np.array(said.ids_NK), order[:, :7])
    np.testing.assert_allclose(
        np.array(said.logprobs_NK), np.take_along_axis(log_t, order[:, :7], -1), atol=2e-5
    )
    rest = np.log(np.exp(np.take_along_axis(log_t, order[:, 7:], -1)).sum(-1))
    np.testing.assert_allclose(np.array(said.tail_N), rest, atol=2e-5)


@each_kind
def test_top_k_of_the_whole_vocabulary_is_the_full_divergence(divergence):
    hidden, _, theirs, _ = arrays()
    teacher = full(hidden, theirs)
    whole = top_k(teacher, V)
    assert (whole.tail_N == -mx.inf).all().item()

    def function(h, f, w, t):
        return per_token(h, f, w, t, divergence, chunk_tokens=7)

    value, *ours = gradients(function, whole)
    expected, *same = gradients(function, teacher)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert max(map(error, ours, same)) < 1e-5


@each_kind
def test_the_tail_is_one_more_outcome(divergence):
    keys = mx.random.split(mx.random.key(3), 2)
    student, logits = (2 * mx.random.normal((4, 9), key=key) for key in keys)
    said = top_k(given(logits), 3)
    value, found = slope(student, said, divergence)

    def merged(z):
        p = np.exp(np.array(z, np.float64))
        p /= p.sum(-1, keepdims=True)
        kept = np.take_along_axis(p, np.array(said.ids_NK), -1)
        return np.log(np.concatenate([kept, 1 - kept.sum(-1, keepdims=True)], -1))

    expected = double_precision(divergence, merged(student), merged(logits))
    np.testing.assert_allclose(value, expected, atol=2e-6)
    for column in range(9):
        nudge = np.zeros((4, 9))
        nudge[:, column] = 1e-5
        above, below = (
            double_precision(
                divergence, merged(np.array(student, np.float64) + s * nudge), merged(logits)
            )
            for s in (1, -1)
        )
        np.testing.assert_allclose(found[:, column], (above - below) / 2e-5, atol=1e-5)


def test_descending_a_top_k_divergence_leaves_the_kept_masses_right():
    """A renormalised one would inflate them by 1 / (1 − tail)."""
    said = top_k(given(mx.random.normal((1, 40), key=mx.random.key(2))), 5)
    logits = mx.zeros((1, 40))
    for _ in range(400):
        grad = mx.array(slope(logits, said, Divergence(kind="forward"))[1])
        logits = logits - 2 * grad
        mx.eval(logits)
    found = mx.take_along_axis(mx.softmax(logits, axis=-1), said.ids_NK, axis=-1)
    np.testing.assert_allclose(np.array(found), np.exp(np.array(said.logprobs_NK)), atol=2e-3)


@each_kind
def test_a_student_without_a_tail_learns_from_a_teacher_with_one(divergence):
    student = mx.array([[200.0, 0.0, 0.0, 0.0]])
    value, grad = slope(student, top_k(given(mx.zeros((1, 4))), 1), divergence)
    assert np.isfinite(value).all() and np.isfinite(grad).all()
    backwards = top_k(given(student), 1)
    value, grad = slope(mx.zeros((1, 4)), backwards, divergence)
    assert np.isfinite(value).all() and np.isfinite(grad).all()


def test_damaged_top_k_is_flagged_and_trains_nothing():
    hidden, weight, theirs, _ = arrays(8)
    said = top_k(full(hidden, theirs), 5)
    ids, logprobs, tail = np.array(said.ids_NK), np.array(said.logprobs_NK), np.array(said.tail_N)
    ids[0, 2] = V
    ids[1, 2] = -1
    ids[2, 2] = ids[2, 1]
    logprobs[3, 0] = np.nan
    logprobs[4, 4] = -np.inf
    logprobs[5, 0] = 0.5
    tail[6] = np.nan
    damaged = TopK(mx.array(ids), mx.array(logprobs), mx.array(tail))
    value, usable = per_token(hidden, linear, (weight,), damaged, Divergence())
    assert np.array(usable).tolist() == [False] * 7 + [True]
    assert np.array(value)[:7].tolist() == [0] * 7 and np.array(value)[7] > 0

    def loss(hidden):
        return per_token(hidden, linear, (weight,), damaged, Divergence())[0].sum()

    grad = np.array(mx.grad(loss)(hidden))
    assert not grad[:7].any() and grad[7].any()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"kind": "jsd", "beta": 0.0}, "beta: needed a number in [0.1, 0.9], got 0.0"),
        ({"kind": "jsd", "beta": 1.0}, "beta: needed"),
        ({"kind": "jsd", "beta": math.nan}, "beta: needed"),
        ({"kind": "forward", "beta": 0.5}, "beta: needed only by jsd, got 0.5 for forward"),
        ({"kind": "skewed_forward", "skew": 0.0}, "skew: needed a number in (0, 1), got 0.0"),
        ({"kind": "skewed_reverse", "skew": 1.0}, "skew: needed"),
        ({"kind": "reverse", "skew": 0.1}, "skew: needed only by skewed"),
        ({"kind": "kl"}, "kind: needed one of forward, reverse"),
        ({"temperature": 0.0}, "temperature: needed a number above 0, got 0.0"),
        ({"temperature": math.inf}, "temperature: needed"),
        ({"temperature": math.nan}, "temperature: needed"),
    ],
)
def test_degenerate_parameters_are_refused(parameters, sentence):
    with pytest.raises(ValueError) as caught:
        Divergence(**parameters)
    assert str(caught.value).startswith(sentence)


def test_what_does_not_fit_the_teacher_is_refused():
    teacher = given(mx.zeros((2, 3)))
    with pytest.raises(ValueError, match="k: needed 1 to 3"):
        top_k(teacher, 4)
    with pytest.raises(ValueError, match="k: needed 1 to 3"):
        top_k(teacher, 0)
    with pytest.raises(ValueError, match="temperature: needed the 1 at which"):
        per_token(mx.zeros((2, 3)), identity, (), top_k(teacher, 2), Divergence(temperature=2.0))
    with pytest.raises(ValueError, match="at most the student's vocabulary of 2"):
        per_token(mx.zeros((2, 2)), identity, (), top_k(teacher, 3), Divergence())
