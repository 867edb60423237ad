"""What a teacher says about each token: everything, its k likeliest, or a few draws.

Top-k always comes with the mass of the tail, and that mass is a bucket of its own: renormalised
top-k inflates every kept probability by 1 / (1 − tail) and trains the tail towards nothing. Draws
carry importance weights instead, and are unbiased (Anshumann 2025, 2503.16870).

Shapes: N tokens of a batch (flat), C of a chunk, D hidden width, V vocabulary, K kept ids, M draws.
"""

import mlx.core as mx
from msgspec import Struct

from kernels.logprobs import Project, normalise
from kernels.sampling import invert

CHUNK_TOKENS = 128
"""Of two distributions and what is made of them a chunk is some 20 arrays: 1.5 GB at V = 150k."""
SMALLEST_TAIL = 1e-7
"""Of a tail that is known only as 1 − Σ, in float32."""


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


class Draws(Struct, frozen=True):
    """Ids drawn with replacement from some proposal q, their log-probabilities t and weights.

    A weight is t / (M q), so that Σ weight · f(id) estimates Σ t · f without bias.
    """

    ids_NM: mx.array
    logprobs_NM: mx.array
    weights_NM: mx.array
    temperature: float = 1.0


Teacher = Full | TopK | Draws


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


def draw(
    teacher: Full,
    uniform_N: mx.array,
    draws: int,
    *,
    temperature: float = 1.0,
    flatness: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Draws:
    """Systematic draws from q ∝ t^flatness: one uniform in [0, 1) a token places all M of them.

    A `flatness` below 1 draws rare ids more often and weighs them less.
    """
    if draws < 1:
        raise ValueError(f"draws: needed at least 1, got {draws}")
    if not 0 < flatness <= 1:
        raise ValueError(f"flatness: needed a number in (0, 1], got {flatness}")
    parts, done = [], []
    for rows_C in chunks(teacher.hidden_ND.shape[0], chunk_tokens):
        logits_CV = teacher.project(after(teacher.hidden_ND[rows_C], done))
        shifted_CV, exp_CV, log_total_C = normalise(logits_CV, temperature)
        flat_CV = shifted_CV if flatness == 1 else shifted_CV * flatness
        mass_CV = exp_CV if flatness == 1 else mx.exp(flat_CV)
        places = [(uniform_N[rows_C] + place) / draws for place in range(draws)]
        # Rounding up to 1 would ask for more than all of the mass.
        ids_CM = mx.stack([invert(mass_CV, mx.minimum(u, 1 - 2**-24)) for u in places], axis=-1)
        logprobs_CM = mx.take_along_axis(shifted_CV, ids_CM, axis=-1) - log_total_C[:, None]
        proposal_CM = mx.take_along_axis(flat_CV, ids_CM, axis=-1)
        proposal_CM = proposal_CM - mx.log(mass_CV.sum(axis=-1, keepdims=True))
        done = [ids_CM, logprobs_CM, mx.exp(logprobs_CM - proposal_CM) / draws]
        parts.append(done)
    ids, logprobs, weights = (mx.concatenate(list(column)) for column in zip(*parts))
    return Draws(ids, logprobs, weights, temperature)


def tail_of(logprobs_NK: mx.array) -> mx.array:
    """log(1 − Σ) [N], for a teacher that names its top-k only."""
    rest_N = 1 - mx.exp(logprobs_NK.astype(mx.float32)).sum(axis=-1)
    return mx.log(mx.maximum(rest_N, SMALLEST_TAIL))


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
