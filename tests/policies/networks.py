"""Policies of small random checkpoints, and a few steps of plain descent: for tests of everything about them.

Where two computations may take different matrix products (a fused adapter against one beside its
weights, OpenBLAS by shape), logits are compared within CLOSE, relative to logits of about 1.
"""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from configs.model import Full, Lora, Model
from policies.arrays import flat
from policies.load import load_policy
from policies.policy import Policy
from runtime.errors import BadInput
from tests.policies.checkpoints import FAMILIES

CLOSE = 2e-5


KINDS = [(family, False) for family in FAMILIES] + [("qwen3", True)]


each_kind = pytest.mark.parametrize(("family", "quantized"), KINDS, ids=str)


each_training = pytest.mark.parametrize(
    ("family", "quantized", "how"),
    [(*kind, Lora(rank=2)) for kind in KINDS] + [(family, False, Full()) for family in FAMILIES],
    ids=lambda value: (
        type(value).__name__.lower() if isinstance(value, Lora | Full) else str(value)
    ),
)


TOKENS = mx.array([[5, 77, 31, 8, 100, 2, 64, 9, 30, 31, 32, 33, 120, 1], [7] * 14])


def load(folder: Path, **settings) -> Policy:
    return load_policy(Model(path=str(folder), **settings), folder, seed=4)


def logits(policy: Policy) -> np.ndarray:
    return np.array(policy.model(TOKENS).astype(mx.float32))


def loss(policy: Policy) -> mx.array:
    """Through the split, as a learner computes it."""
    hidden = policy.hidden(TOKENS)
    out = policy.project(hidden.reshape(-1, hidden.shape[-1]), *policy.head_weights())
    return nn.losses.cross_entropy(out[:-1], TOKENS.reshape(-1)[1:], reduction="mean")


def train(policy: Policy, rate: float = 0.5, steps: int = 2) -> dict[str, mx.array]:
    """A few steps of plain descent; returns the first gradients."""
    first: dict[str, mx.array] = {}
    for _ in range(steps):
        _, gradients = nn.value_and_grad(policy.model, lambda: loss(policy))()
        gradients = flat(gradients)
        first = first or gradients
        policy.load_trained({k: w - rate * gradients[k] for k, w in policy.trained().items()})
    mx.eval(first)
    return first


def mlx_lm_loads(folder: Path, adapters: Path | None = None):
    import mlx_lm

    return mlx_lm.load(str(folder), adapter_path=str(adapters) if adapters else None)[:2]


def refusal(folder: Path, **settings) -> str:
    with pytest.raises(BadInput) as caught:
        load(folder, **settings)
    sentence = str(caught.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence
