"""Full training moves every weight, and none that is quantised."""

import mlx.core as mx
import pytest

from policies.arrays import flat, number
from tests.policies.checkpoints import FAMILIES, write
from tests.policies.networks import load, refusal, train


@pytest.mark.parametrize("family", FAMILIES)
def test_full_training_reaches_every_weight(tmp_path, family):
    policy = load(write(tmp_path, family))
    gradients = train(policy)
    assert gradients.keys() == policy.trained().keys() == flat(policy.model.parameters()).keys()
    assert all(number(mx.abs(gradient).max()) > 0 for gradient in gradients.values())


def test_quantised_weights_are_not_trained_whole(tmp_path):
    assert 'use name = "lora"' in refusal(write(tmp_path / "a", "qwen3", quantized=True))
    assert 'use name = "lora"' in refusal(write(tmp_path / "b", "qwen3"), quantize_bits=4)
