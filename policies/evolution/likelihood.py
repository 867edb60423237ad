"""Fitness without sampling: the log-likelihood of given answers under each row's member.

Shapes: N rows, T tokens, D hidden width, C positions of a chunk.
"""

import mlx.core as mx
import numpy as np

from kernels.logprobs import normalise
from policies.evolution.population import Population
from policies.policy import Policy

CHUNK_LOGITS = 1 << 24
"""Number of logits that exist at once."""


def log_likelihoods(
    policy: Policy,
    population: Population | None,
    members_N: np.ndarray,
    tokens_NT: mx.array,
    answer_NT: mx.array,
) -> mx.array:
    """Returns Σ over tokens of answer·log p(token | earlier tokens), float32 [N], evaluated.

    `answer_NT` is 1.0 on the answers' tokens and 0.0 on prompts and on the padding at the right.
    """
    if population is not None:
        population.rows(members_N)
    hidden_NTD = policy.hidden(tokens_NT[:, :-1])
    rows, length, width = hidden_NTD.shape
    positions = max(1, CHUNK_LOGITS // (rows * policy.vocabulary))
    total_N = mx.zeros(rows)
    for first in range(0, length, positions):
        chunk = slice(first, first + positions)
        # Rows stay the first axis, because the head adds each row's own noise.
        logits_CV = policy.project(hidden_NTD[:, chunk].reshape(-1, width))
        shifted_CV, _, log_total_C = normalise(logits_CV, 1.0)
        targets_NC = tokens_NT[:, 1:][:, chunk]
        chosen_C = mx.take_along_axis(shifted_CV, targets_NC.reshape(-1, 1), axis=-1)[:, 0]
        logprobs_NC = (chosen_C - log_total_C).reshape(rows, -1)
        total_N = total_N + (logprobs_NC * answer_NT[:, 1:][:, chunk]).sum(axis=1)
        mx.eval(total_N)
    return total_N
