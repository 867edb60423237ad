"""Gradient checkpointing changes memory, nothing else, and only for the policy that asked for it."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from configs.model import Lora, Model
from policies.arrays import flat
from policies.characters import write_tokenizer
from policies.load import load_policy
from policies.policy import Policy
from policies.random_checkpoint import create_checkpoint
from policies.seedling import ARCHITECTURE


@pytest.mark.parametrize("train", [None, Lora(rank=4)])
def test_recomputing_blocks_gives_the_same_gradient_with_less_memory(
    tmp_path: Path, train: Lora | None
) -> None:
    create_checkpoint(tmp_path, {**ARCHITECTURE, "num_hidden_layers": 8}, 0)
    write_tokenizer(tmp_path)
    more = {} if train is None else {"train": train}
    plain = load_policy(Model(path=str(tmp_path), **more), tmp_path, 0)
    saving = load_policy(
        Model(path=str(tmp_path), gradient_checkpointing=True, **more), tmp_path, 0
    )
    one, other = gradient(plain), gradient(saving)
    assert one.gradients.keys() == other.gradients.keys()
    assert all(mx.array_equal(one.gradients[k], other.gradients[k]) for k in one.gradients)
    assert any(mx.abs(g).max().item() > 0 for g in other.gradients.values())
    assert other.peak_bytes < 0.8 * one.peak_bytes
    again = gradient(plain)
    assert again.peak_bytes > 0.9 * one.peak_bytes  # the other policy's blocks were not patched


class Measured:
    def __init__(self, gradients: dict[str, mx.array], peak_bytes: int) -> None:
        self.gradients, self.peak_bytes = gradients, peak_bytes


def gradient(policy: Policy) -> Measured:
    tokens = mx.array([[i % 90 + 6 for i in range(256)]] * 8)

    def loss() -> mx.array:
        return (policy.hidden(tokens).astype(mx.float32) ** 2).mean()

    mx.clear_cache()
    mx.reset_peak_memory()
    _, tree = nn.value_and_grad(policy.model, loss)()
    gradients = flat(tree)
    mx.eval(gradients)
    return Measured(gradients, mx.get_peak_memory())
