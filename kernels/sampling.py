"""Row-keyed sampling: one uniform number for each row decides, so rows are independent of each other.

The sampler inverts the cumulative distribution instead of adding Gumbel noise. That takes one draw for each
row instead of V, and uses the exponentials that the log-probability needs anyway. The caller passes the
uniform numbers (`runtime.keys.uniform`), so no random generator of MLX is used.

Shapes: S rows (slots), V vocabulary. All arithmetic is in float32.
"""

import math

import mlx.core as mx
import numpy as np

from kernels.logprobs import normalise


def sample(
    logits_SV: mx.array,
    uniform_S: mx.array,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[mx.array, mx.array]:
    """Returns tokens [S] int32, and log-probabilities [S] float32 under the distribution sampled from.

    `uniform_S` is in [0, 1). Temperature 0 takes the likeliest token, with log-probability 0, since the
    distribution sampled from has all its mass there. Truncation keeps a set of tokens (the `top_k`
    likeliest; the fewest with mass `top_p`, Holtzman 2020; those with at least `min_p` of the largest
    probability, 2407.01082), and the log-probability is the one within the kept set.
    """
    if temperature == 0:
        tokens_S = mx.argmax(logits_SV, axis=-1).astype(mx.int32)
        return tokens_S, mx.zeros(tokens_S.shape, mx.float32)
    shifted_SV, exp_SV, log_total_S = normalise(logits_SV, temperature)
    if top_k or top_p < 1 or min_p:
        exp_SV = mx.where(kept(exp_SV, top_k, top_p, min_p), exp_SV, 0.0)
        log_total_S = mx.log(exp_SV.sum(axis=-1))
    tokens_S = invert(exp_SV, uniform_S)
    chosen_S = mx.take_along_axis(shifted_SV, tokens_S[:, None], axis=-1)[:, 0]
    return tokens_S, chosen_S - log_total_S


def invert(mass_SV: mx.array, uniform_S: mx.array) -> mx.array:
    """Returns each row's first token at which the cumulative mass exceeds `uniform_S` times the total, [S].

    A token of mass zero is never returned, even if the rounding of a GPU's parallel sum raises the
    cumulative mass there.
    """
    cumulative_SV = mx.cumsum(mass_SV, axis=-1)
    threshold_S1 = uniform_S[:, None] * cumulative_SV[:, -1:]
    return mx.argmax((cumulative_SV > threshold_S1) & (mass_SV > 0), axis=-1).astype(mx.int32)


def kept(exp_SV: mx.array, top_k: int, top_p: float, min_p: float) -> mx.array:
    """Returns which tokens truncation keeps: bool [S, V]. Ties at the edge are all kept."""
    largest_S1 = exp_SV.max(axis=-1, keepdims=True)
    keep_SV = exp_SV >= min_p * largest_S1
    vocabulary = exp_SV.shape[-1]
    if 0 < top_k < vocabulary:
        edge_S1 = mx.topk(exp_SV, top_k, axis=-1).min(axis=-1, keepdims=True)
        keep_SV = keep_SV & (exp_SV >= edge_S1)
    if top_p < 1:
        descending_SV = -mx.sort(-mx.where(keep_SV, exp_SV, 0.0), axis=-1)
        before_SV = mx.cumsum(descending_SV, axis=-1) - descending_SV
        inside_SV = before_SV < top_p * descending_SV.sum(axis=-1, keepdims=True)
        edge_S1 = mx.where(inside_SV, descending_SV, largest_S1).min(axis=-1, keepdims=True)
        keep_SV = keep_SV & (exp_SV >= edge_S1)
    return keep_SV


def sample_plain(
    logits_SV: mx.array, uniform_S: mx.array, *, temperature: float
) -> tuple[list[int], list[float]]:
    """Samples each row by itself in Python floats, as a reference for tests."""
    tokens, logprobs = [], []
    for row, uniform in zip(np.array(logits_SV.astype(mx.float32)), np.array(uniform_S)):
        scaled = [float(z) / temperature for z in row]
        largest = max(scaled)
        mass = [math.exp(z - largest) for z in scaled]
        total = math.fsum(mass)
        running = 0.0
        token = len(mass) - 1
        for candidate, share in enumerate(mass):
            running += share
            if running > uniform * total:
                token = candidate
                break
        tokens.append(token)
        logprobs.append(math.log(mass[token] / total))
    return tokens, logprobs
