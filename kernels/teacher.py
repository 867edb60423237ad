"""Teacher outputs for each token: the whole distribution, or the k likeliest ids.

Top-k always comes with the mass of the tail, which is compared as one bucket. Renormalising the top-k
instead would inflate every kept probability by 1 / (1 − tail) and train the tail towards zero.

Shapes: N tokens of a batch (flat), C of a chunk, D hidden width, V vocabulary, K kept ids.
"""

import mlx.core as mx
from msgspec import Struct

from kernels.logprobs import Project, normalise

CHUNK_TOKENS = 128
"""Tokens of a chunk. A chunk of two distributions needs about 20 arrays [C, V]: 1.5 GB at V = 150k."""


class Full(Struct, frozen=True):
    """The whole distribution, as hidden states and the head that is applied to a chunk of them."""

    hidden_ND: mx.array
    project: Project


class TopK(Struct, frozen=True):
    """Log-probabilities [N, K] of distinct ids, and the log-probability [N] of all other ids together."""

    ids_NK: mx.array
    logprobs_NK: mx.array
    tail_N: mx.array
    """Log-probability of all other ids; −inf if there are none."""
    temperature: float = 1.0
    """Temperature of the log-probabilities; it cannot be changed later, since the tail is one number."""


Teacher = Full | TopK


def top_k(
    teacher: Full, k: int, *, temperature: float = 1.0, chunk_tokens: int = CHUNK_TOKENS
) -> TopK:
    """Returns the k likeliest ids in falling order, computed a chunk at a time.

    The tail is the sum of all other ids' mass, not 1 less the mass of the kept ones. Raises ValueError
    unless k is between 1 and the vocabulary.
    """
    pieces, done = [], []
    for rows_C in chunks(teacher.hidden_ND.shape[0], chunk_tokens):
        logits_CV = teacher.project(after(teacher.hidden_ND[rows_C], done))
        vocabulary = logits_CV.shape[-1]
        if not 1 <= k <= vocabulary:
            raise ValueError(f"k: needed 1 to {vocabulary} ids of the vocabulary, got {k}")
        shifted_CV, _, log_total_C = normalise(logits_CV, temperature)
        ids_CK = mx.argpartition(-shifted_CV, min(k, vocabulary - 1), axis=-1)[:, :k]
        order_CK = mx.argsort(-mx.take_along_axis(shifted_CV, ids_CK, axis=-1), axis=-1)
        ids_CK = mx.take_along_axis(ids_CK, order_CK, axis=-1).astype(mx.int32)
        kept_CK, tail_C, _ = buckets(shifted_CV, log_total_C, ids_CK)
        done = [ids_CK, kept_CK, tail_C]
        pieces.append(done)
    ids, logprobs, tails = (mx.concatenate(list(column)) for column in zip(*pieces))
    return TopK(ids, logprobs, tails, temperature)


def buckets(
    shifted_CV: mx.array, log_total_C: mx.array, ids_CK: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Returns the log-mass of each id [C, K] and of the rest together [C], and the rest's conditional [C, V].

    The conditional holds log-probabilities given that the id is none of `ids_CK`. `shifted_CV` and
    `log_total_C` are results of `normalise`.
    """
    kept_CK = mx.take_along_axis(shifted_CV, ids_CK, axis=-1) - log_total_C[:, None]
    nothing_CK = mx.full(ids_CK.shape, -mx.inf, mx.float32)
    rest_CV = mx.put_along_axis(shifted_CV, ids_CK, nothing_CK, axis=-1)
    if ids_CK.shape[-1] == shifted_CV.shape[-1]:
        return kept_CK, nothing_CK[:, 0], rest_CV
    log_rest_C = mx.logsumexp(rest_CV, axis=-1)
    return kept_CK, log_rest_C - log_total_C, rest_CV - log_rest_C[:, None]


def after(value: mx.array, done: list[mx.array]) -> mx.array:
    """Returns the same array, computed only after `done`, so that one chunk's memory is used at a time."""
    return mx.depends([value], done)[0] if done else value


def chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    """Returns slices of `chunk_tokens` that cover the tokens."""
    return [slice(i, min(i + chunk_tokens, tokens)) for i in range(0, max(tokens, 1), chunk_tokens)]
