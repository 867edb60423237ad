"""Cross-entropy on given tokens: supervised fine-tuning, and imitation as one term among others.

Shapes: B sequences, T tokens in each. `weight_BT` is 0 where a token is context only.
"""

import mlx.core as mx


def cross_entropy(logprobs_BT: mx.array, weight_BT: mx.array) -> mx.array:
    """Returns each token's weighted negative log-likelihood, in nats; exactly 0 where the weight is 0."""
    return -weight_BT * mx.where(weight_BT != 0, logprobs_BT, 0.0)
