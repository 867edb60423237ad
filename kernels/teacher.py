"""What a teacher says about each token: everything, or its k likeliest.

Top-k always comes with the mass of the tail, and that mass is a bucket of its own: renormalised
top-k inflates every kept probability by 1 / (1 − tail) and trains the tail towards nothing.

Shapes: N tokens of a batch (flat), C of a chunk, D hidden width, V vocabulary, K kept ids.
"""

import mlx.core as mx
from msgspec import Struct

from kernels.logprobs import Project, normalise

CHUNK_TOKENS = 128
"""Of two distributions and what is made of them a chunk is some 20 arrays: 1.5 GB at V = 150k."""


class Full(Struct, frozen=True):
    """The whole distribution, as hidden states and the head that is applied to a chunk of them."""

    hidden_ND: mx.array
    project: Project


class TopK(Struct, frozen=True):
    """Log-probabilities [N, K] of distinct ids, and of all the others together [N]."""

    ids_NK: mx.array
    logprobs_NK: mx.array
    tail_N: mx.array
    """−inf where nothing is left over."""
    temperature: float = 1.0
    """Under which these are the log-probabilities: it cannot be changed once the tail is one number."""


Teacher = Full | TopK


def top_k(
    teacher: Full, k: int, *, temperature: float = 1.0, chunk_tokens: int = CHUNK_TOKENS
) -> TopK:
    """The k likeliest ids in falling order, a chunk at a time; the tail is summed, not subtracted.

    Raises ValueError unless k is between 1 and the vocabulary.
    """
    parts, done = [], []
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
        parts.append(done)
    ids, logprobs, tails = (mx.concatenate(list(column)) for column in zip(*parts))
    return TopK(ids, logprobs, tails, temperature)


def buckets(
    shifted_CV: mx.array, log_total_C: mx.array, ids_CK: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Log-mass of each id [C, K] and of the rest together [C], and the rest's conditional [C, V].

    The last are log-probabilities given that the id is none of `ids_CK`. Takes what `normalise` gives.
    """
    kept_CK = mx.take_along_axis(shifted_CV, ids_CK, axis=-1) - log_total_C[:, None]
    nothing_CK = mx.full(ids_CK.shape, -mx.inf, mx.float32)
    rest_CV = mx.put_along_axis(shifted_CV, ids_CK, nothing_CK, axis=-1)
    if ids_CK.shape[-1] == shifted_CV.shape[-1]:
        return kept_CK, nothing_CK[:, 0], rest_CV
    log_rest_C = mx.logsumexp(rest_CV, axis=-1)
    return kept_CK, log_rest_C - log_total_C, rest_CV - log_rest_C[:, None]


def after(value: mx.array, done: list[mx.array]) -> mx.array:
    """The same array, not to be computed before `done` is: one chunk's memory at a time."""
    return mx.depends([value], done)[0] if done else value


def chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    """Slices that cover the tokens."""
    return [slice(i, min(i + chunk_tokens, tokens)) for i in range(0, max(tokens, 1), chunk_tokens)]
