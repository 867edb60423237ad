"""Selected log-probabilities and entropies of a language-model head, a chunk of tokens at a time.

Most memory goes into the vocabulary: [tokens, 150k] float32 logits take 0.6 MB for each token. So at most
one chunk of logits exists at any time: the backward pass computes each chunk's logits again, and
`mx.depends` keeps the scheduler from starting a chunk before the previous one is done.

`normalise` is the one place where logits become probabilities. The sampler calls it too, which is
why its log-probabilities and the learner's are equal bit for bit wherever their logits are.

Shapes: N tokens of a batch (flat), C of a chunk, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

Project = Callable[..., mx.array]
"""``project(hidden_CD, *weights) -> logits_CV``: the head, as a pure function."""


def normalise(logits_CV: mx.array, temperature: float) -> tuple[mx.array, mx.array, mx.array]:
    """Returns scaled logits less their maximum [C, V], their exponentials [C, V], and log of the sum [C].

    A log-probability under softmax(logits / temperature) is ``shifted_CV[target] - log_total_C``.
    All results are float32, whatever the logits' dtype is; `temperature` is above 0.
    """
    scaled_CV = logits_CV.astype(mx.float32)
    if temperature != 1:
        scaled_CV = scaled_CV / temperature
    shifted_CV = scaled_CV - mx.stop_gradient(scaled_CV.max(axis=-1, keepdims=True))
    exp_CV = mx.exp(shifted_CV)
    return shifted_CV, exp_CV, mx.log(exp_CV.sum(axis=-1))


def selected(
    hidden_ND: mx.array,
    project: Project,
    weights: Sequence[mx.array],
    targets_N: mx.array,
    *,
    temperature: float,
    chunk_tokens: int = 512,
    entropy_grad: bool = False,
) -> tuple[mx.array, mx.array]:
    """Returns each target's log-probability and its distribution's entropy, in nats: float32 [N] each.

    Both are differentiable in `hidden_ND` and in `weights`, the arrays that `project` takes after the
    hidden states. A frozen or quantised head holds its own weights and is called with none here. The
    entropy is a constant to the gradient unless `entropy_grad`. Targets are not checked against V.
    """
    steps = _chunks(hidden_ND.shape[0], chunk_tokens)

    def chunk_terms(targets_C: mx.array) -> Callable[..., list[mx.array]]:
        def terms(hidden_CD: mx.array, *weights: mx.array) -> list[mx.array]:
            logits_CV = project(hidden_CD, *weights)
            return _gradient_only(logits_CV, targets_C, temperature, entropy_grad)

        return terms

    def values(hidden_ND: mx.array, *weights: mx.array) -> tuple[mx.array, mx.array]:
        logprobs, entropies, done = [], [], []
        for rows_C in steps:
            hidden_CD = _after(hidden_ND[rows_C], done)
            shifted_CV, exp_CV, log_total_C = normalise(project(hidden_CD, *weights), temperature)
            logprobs.append(_at(shifted_CV, targets_N[rows_C]) - log_total_C)
            entropies.append(_entropy(shifted_CV, exp_CV, log_total_C))
            done = [logprobs[-1], entropies[-1]]
        return mx.concatenate(logprobs), mx.concatenate(entropies)

    def gradient(primals: Any, cotangents_N: Any, _: Any) -> tuple[mx.array, ...]:
        # MLX passes a single primal without a tuple around it.
        hidden_ND, *weights = primals if isinstance(primals, tuple) else (primals,)
        pieces, done = [], []
        totals = [mx.zeros(w.shape, mx.float32) for w in weights]
        for rows_C in steps:
            hidden_CD = _after(hidden_ND[rows_C], done)
            _, (piece_CD, *shares) = mx.vjp(
                chunk_terms(targets_N[rows_C]),
                [hidden_CD, *weights],
                [cotangent_N[rows_C] for cotangent_N in cotangents_N],
            )
            pieces.append(piece_CD)
            totals = [total + share.astype(mx.float32) for total, share in zip(totals, shares)]
            done = [piece_CD, *totals]
        grads = [total.astype(w.dtype) for total, w in zip(totals, weights)]
        return mx.concatenate(pieces), *grads

    function: Any = mx.custom_function(values)
    function.vjp(gradient)
    return function(hidden_ND, *weights)


def score(
    hidden_ND: mx.array,
    project: Project,
    targets_N: mx.array,
    *,
    temperature: float,
    chunk_tokens: int = 512,
) -> mx.array:
    """Returns the log-probabilities of `selected`, bit for bit, without the entropy or a gradient."""
    logprobs, done = [], []
    for rows_C in _chunks(hidden_ND.shape[0], chunk_tokens):
        logits_CV = project(_after(hidden_ND[rows_C], done))
        shifted_CV, _, log_total_C = normalise(logits_CV, temperature)
        logprobs.append(_at(shifted_CV, targets_N[rows_C]) - log_total_C)
        done = [logprobs[-1]]
    return mx.concatenate(logprobs)


def selected_plain(
    hidden_ND: mx.array,
    project: Project,
    weights: Sequence[mx.array],
    targets_N: mx.array,
    *,
    temperature: float,
    entropy_grad: bool = False,
) -> tuple[mx.array, mx.array]:
    """Computes `selected` with all logits at once and gradients by autograd, as a reference for tests."""
    shifted_NV, exp_NV, log_total_N = normalise(project(hidden_ND, *weights), temperature)
    entropy_N = _entropy(shifted_NV, exp_NV, log_total_N)
    if not entropy_grad:
        entropy_N = mx.stop_gradient(entropy_N)
    return _at(shifted_NV, targets_N) - log_total_N, entropy_N


def _gradient_only(
    logits_CV: mx.array, targets_C: mx.array, temperature: float, entropy_grad: bool
) -> list[mx.array]:
    """Stands in for a chunk's log-probabilities and entropies, with their gradient in closed form.

    With p the distribution and H its entropy: d logp[target] = (onehot − p) / T and
    dH = −p (log p + H) / T. Only the gradient is ever evaluated, so the values are placeholders.
    """

    def values(logits_CV: mx.array) -> tuple[mx.array, mx.array]:
        nothing_C = mx.zeros(logits_CV.shape[:1], mx.float32)
        return nothing_C, nothing_C

    def gradient(logits_CV: mx.array, cotangents_C: Any, _: Any) -> mx.array:
        shifted_CV, exp_CV, log_total_C = normalise(logits_CV, temperature)
        to_logprob_C1, to_entropy_C1 = (g_C[:, None] / temperature for g_C in cotangents_C)
        weight = to_logprob_C1
        if entropy_grad:
            entropy_C = _entropy(shifted_CV, exp_CV, log_total_C)
            weight = weight + to_entropy_C1 * (shifted_CV + (entropy_C - log_total_C)[:, None])
        grad_CV = exp_CV * (weight * -mx.exp(-log_total_C)[:, None])
        here_C1 = targets_C[:, None]
        at_target_C1 = mx.take_along_axis(grad_CV, here_C1, axis=-1) + to_logprob_C1
        grad_CV = mx.put_along_axis(grad_CV, here_C1, at_target_C1, axis=-1)
        return grad_CV.astype(logits_CV.dtype)

    function: Any = mx.custom_function(values)
    function.vjp(gradient)
    return list(function(logits_CV))


def _entropy(shifted_CV: mx.array, exp_CV: mx.array, log_total_C: mx.array) -> mx.array:
    return log_total_C - (exp_CV * shifted_CV).sum(axis=-1) * mx.exp(-log_total_C)


def _at(values_CV: mx.array, targets_C: mx.array) -> mx.array:
    return mx.take_along_axis(values_CV, targets_C[:, None], axis=-1)[:, 0]


def _after(value: mx.array, done: list[mx.array]) -> mx.array:
    return mx.depends([value], done)[0] if done else value


def _chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    return [slice(i, min(i + chunk_tokens, tokens)) for i in range(0, max(tokens, 1), chunk_tokens)]
