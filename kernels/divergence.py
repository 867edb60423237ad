"""Divergences between a teacher's and a student's next token, a chunk of tokens at a time.

As in `kernels.logprobs`, at most one chunk of logits exists at a time, of student and of teacher: the
backward pass computes them again, and its gradients are in closed form (`kernels.divergence_kinds`).

Vocabularies of two sizes share their first ids. The teacher gives no mass to ids that it lacks. So the
distributions are compared on the shared ids, the student's conditional on them, and −log of the
student's mass on the shared ids is added. For forward KL this is the plain definition; the plain reverse
KL would be infinite. Ids that the student lacks are left out of the teacher's distribution.

Shapes: N tokens of a batch (flat), C of a chunk, D hidden width, V vocabulary, K kept ids,
W outcomes that are compared: V ids, or K ids and a tail.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from kernels.divergence_kinds import Divergence, Given, Softmax, slope, value
from kernels.logprobs import Project, normalise
from kernels.teacher import CHUNK_TOKENS, Full, Teacher, TopK, after, buckets, chunks

MASS_TOLERANCE = 5e-3
"""Largest distance from 1 of the sum of a teacher's top-k and tail, which are stored in half precision."""
SMALLEST_LOG_TAIL = -80.0
"""The log-mass of a tail without mass, so that every divergence is finite."""

Form = Callable[[mx.array, slice], tuple[mx.array, mx.array, Callable[[], mx.array]]]
"""(student's logits [C, V], chunk's slice) → divergence [C], usable [C], its gradient [C, V] on demand."""


def per_token(
    hidden_ND: mx.array,
    project: Project,
    weights: Sequence[mx.array],
    teacher: Teacher,
    divergence: Divergence,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[mx.array, mx.array]:
    """Returns each token's divergence, float32 [N], and whether its teacher output was usable, bool [N].

    The result is differentiable in the student's `hidden_ND` and in `weights`, as `logprobs.selected` is;
    the teacher is a constant. A teacher output with NaN, an infinity, an id out of range or twice, or
    masses that do not add up to 1 is not usable: divergence and gradient of that token are exactly 0.

    Raises ValueError if a teacher's top-k was made at another temperature.
    """
    form = _form(teacher, divergence)
    steps = chunks(hidden_ND.shape[0], chunk_tokens)

    def values(hidden_ND: mx.array, *weights: mx.array) -> tuple[mx.array, mx.array]:
        divergences, flags, done = [], [], []
        for rows_C in steps:
            logits_CV = project(after(hidden_ND[rows_C], done), *weights)
            value_C, usable_C, _ = form(logits_CV, rows_C)
            divergences.append(mx.where(usable_C, value_C * divergence.scale, 0.0))
            flags.append(usable_C.astype(mx.float32))
            done = [divergences[-1], flags[-1]]
        return mx.concatenate(divergences), mx.concatenate(flags)

    def gradient(primals: Any, cotangents_N: Any, _: Any) -> tuple[mx.array, ...]:
        # MLX passes a single primal without a tuple around it.
        hidden_ND, *weights = primals if isinstance(primals, tuple) else (primals,)
        pull_N = cotangents_N[0] * (divergence.scale / divergence.temperature)
        pieces, done = [], []
        totals = [mx.zeros(w.shape, mx.float32) for w in weights]
        for rows_C in steps:
            hidden_CD = after(hidden_ND[rows_C], done)
            _, (piece_CD, *shares) = mx.vjp(
                _chunk(project, form, rows_C), [hidden_CD, *weights], [pull_N[rows_C]]
            )
            pieces.append(piece_CD)
            totals = [total + share.astype(mx.float32) for total, share in zip(totals, shares)]
            done = [piece_CD, *totals]
        grads = [total.astype(w.dtype) for total, w in zip(totals, weights)]
        return mx.concatenate(pieces), *grads

    function: Any = mx.custom_function(values)
    function.vjp(gradient)
    divergence_N, flag_N = function(hidden_ND, *weights)
    return divergence_N, mx.stop_gradient(flag_N) > 0


def per_token_plain(
    hidden_ND: mx.array,
    project: Project,
    weights: Sequence[mx.array],
    teacher: Full,
    divergence: Divergence,
) -> mx.array:
    """Computes `per_token` on equal vocabularies by textbook formulas, with all logits at once.

    It is the reference for tests.
    """
    a = divergence.mixture

    def log_softmax(logits_NV: mx.array) -> mx.array:
        shifted_NV, _, log_total_N = normalise(logits_NV, divergence.temperature)
        return shifted_NV - log_total_N[:, None]

    def kl(log_a_NV: mx.array, log_b_NV: mx.array) -> mx.array:
        return (mx.exp(log_a_NV) * (log_a_NV - log_b_NV)).sum(axis=-1)

    def mixed(share: float) -> mx.array:
        return mx.logaddexp(log_t_NV + math.log(share), log_p_NV + math.log(1 - share))

    log_p_NV = log_softmax(project(hidden_ND, *weights))
    log_t_NV = mx.stop_gradient(log_softmax(teacher.project(teacher.hidden_ND)))
    match divergence.kind:
        case "forward":
            value_N = kl(log_t_NV, log_p_NV)
        case "reverse":
            value_N = kl(log_p_NV, log_t_NV)
        case "jsd":
            value_N = a * kl(log_t_NV, mixed(a)) + (1 - a) * kl(log_p_NV, mixed(a))
        case "skewed_forward":
            value_N = kl(log_t_NV, mixed(a))
        case "skewed_reverse":
            value_N = kl(log_p_NV, mixed(1 - a))
        case "total_variation":
            value_N = 0.5 * mx.abs(mx.exp(log_p_NV) - mx.exp(log_t_NV)).sum(axis=-1)
    return value_N * divergence.scale


def _chunk(project: Project, form: Form, rows_C: slice) -> Callable[..., list[mx.array]]:
    """Stands in for a chunk's divergences: only their gradient is ever evaluated."""

    def gradient(logits_CV: mx.array, pull_C: mx.array, _: Any) -> mx.array:
        _, usable_C, slope_CV = form(logits_CV, rows_C)
        counts_C1 = (usable_C & (pull_C != 0))[:, None]
        return mx.where(counts_C1, slope_CV() * pull_C[:, None], 0.0).astype(logits_CV.dtype)

    def terms(hidden_CD: mx.array, *weights: mx.array) -> list[mx.array]:
        function: Any = mx.custom_function(lambda logits: mx.zeros(logits.shape[:1], mx.float32))
        function.vjp(gradient)
        return [function(project(hidden_CD, *weights))]

    return terms


# ── the comparison for each kind of teacher ──────────────────────────────────────────────────────


def _form(teacher: Teacher, divergence: Divergence) -> Form:
    match teacher:
        case Full():
            return _full(teacher, divergence)
        case TopK():
            _check_temperature(teacher.temperature, divergence)
            return _top_k(teacher, divergence)


def _check_temperature(made_at: float, divergence: Divergence) -> None:
    if made_at != divergence.temperature:
        raise ValueError(
            f"temperature: needed the {made_at:g} at which the teacher's log-probabilities were made, "
            f"got {divergence.temperature:g}"
        )


def _full(teacher: Full, divergence: Divergence) -> Form:
    hidden_ND = mx.stop_gradient(teacher.hidden_ND)

    def form(logits_CV: mx.array, rows_C: slice):
        # The teacher's chunk waits for the student's, which waits for the previous chunk.
        theirs_CV = teacher.project(after(hidden_ND[rows_C], [logits_CV]))
        shared = min(logits_CV.shape[-1], theirs_CV.shape[-1])
        p = Softmax(logits_CV[:, :shared], divergence.temperature)
        t = Softmax(theirs_CV[:, :shared], divergence.temperature)
        value_C = value(divergence, p, t)
        if shared == logits_CV.shape[-1]:
            return value_C, t.finite_C, lambda: slope(divergence, p, t)
        extra = Softmax(logits_CV[:, shared:], divergence.temperature)
        odds_C = extra.log_mass_C - p.log_mass_C

        def slope_CV() -> mx.array:
            outside_C1 = mx.sigmoid(odds_C)[:, None]
            inside_CV = slope(divergence, p, t) - outside_C1 * p.mass_CW
            return mx.concatenate([inside_CV, outside_C1 * extra.mass_CW], axis=-1)

        return value_C + mx.logaddexp(odds_C, mx.zeros_like(odds_C)), t.finite_C, slope_CV

    return form


def _top_k(teacher: TopK, divergence: Divergence) -> Form:
    def form(logits_CV: mx.array, rows_C: slice):
        vocabulary, k = logits_CV.shape[-1], teacher.ids_NK.shape[-1]
        if k > vocabulary:
            raise ValueError(
                f"ids: needed at most the student's vocabulary of {vocabulary}, got {k}"
            )
        ids_CK, usable_C = _checked_ids(teacher.ids_NK[rows_C], vocabulary)
        logprobs_CK = teacher.logprobs_NK[rows_C].astype(mx.float32)
        tail_C = teacher.tail_N[rows_C].astype(mx.float32)
        whole = k == vocabulary
        mass_C = mx.exp(logprobs_CK).sum(axis=-1) + (0.0 if whole else mx.exp(tail_C))
        usable_C = usable_C & _distinct(ids_CK) & mx.isfinite(logprobs_CK.sum(axis=-1))
        usable_C = usable_C & (mx.abs(mass_C - 1) < MASS_TOLERANCE)  # false for NaN
        shifted_CV, _, log_total_C = normalise(logits_CV, divergence.temperature)
        kept_CK, rest_C, conditional_CV = buckets(shifted_CV, log_total_C, ids_CK)
        if whole:
            p, t = Given(kept_CK), Given(logprobs_CK)
        else:
            p, t = (
                Given(mx.concatenate([a_CK, mx.maximum(b_C, SMALLEST_LOG_TAIL)[:, None]], axis=-1))
                for a_CK, b_C in ((kept_CK, rest_C), (logprobs_CK, tail_C))
            )

        def slope_CV() -> mx.array:
            slope_CW = slope(divergence, p, t)
            spread_CV = mx.exp(conditional_CV) * slope_CW[:, -1:]
            return mx.put_along_axis(spread_CV, ids_CK, slope_CW[:, :k], axis=-1)

        return value(divergence, p, t), usable_C, slope_CV

    return form


def _checked_ids(ids_CK: mx.array, vocabulary: int) -> tuple[mx.array, mx.array]:
    """Returns ids that are safe to gather (MLX does not check), and whether all were in range, [C]."""
    inside_CK = (ids_CK >= 0) & (ids_CK < vocabulary)
    return mx.where(inside_CK, ids_CK, 0).astype(mx.int32), inside_CK.all(axis=-1)


def _distinct(ids_CK: mx.array) -> mx.array:
    sorted_CK = mx.sort(ids_CK, axis=-1)
    return (sorted_CK[:, 1:] != sorted_CK[:, :-1]).all(axis=-1)
