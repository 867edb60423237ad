"""LoRA trains its adapters alone: they change nothing at first, and go where they are asked to."""

import mlx.core as mx
import numpy as np
import pytest

from configs.model import Lora, Model
from policies.arrays import flat, number
from policies.load import load_policy
from runtime.errors import BadInput
from tests.policies.checkpoints import write
from tests.policies.networks import TOKENS, each_kind, load, logits, mlx_lm_loads, train


@each_kind
def test_lora_trains_adapters_and_nothing_else(tmp_path, family, quantized):
    policy = load(write(tmp_path, family, quantized=quantized), train=Lora(rank=2))
    before = flat(policy.model.parameters())
    gradients = train(policy)
    assert gradients.keys() == policy.trained().keys()
    assert {name.rpartition(".")[2] for name in gradients} == {"lora_a", "lora_b"}
    for name, gradient in gradients.items():  # where B is 0, A has no gradient yet
        assert (number(mx.abs(gradient).max()) > 0) is name.endswith("lora_b"), name
    for name, after in flat(policy.model.parameters()).items():
        assert mx.array_equal(after, before[name]).item() is (name not in gradients), name
    assert policy.head_weights() == ()


@each_kind
def test_fresh_adapters_change_nothing(tmp_path, family, quantized):
    folder = write(tmp_path, family, quantized=quantized)
    base = np.array(mlx_lm_loads(folder)[0](TOKENS))
    assert np.array_equal(logits(load(folder, train=Lora(rank=2))), base)


def test_adapters_are_drawn_from_the_seed_alone(tmp_path):
    folder = write(tmp_path, "qwen3")
    settings = Model(path=str(folder), train=Lora())
    one, same, other = (load_policy(settings, folder, seed).trained() for seed in (4, 4, 5))
    assert all(mx.array_equal(one[name], same[name]) for name in one)
    assert not any(mx.array_equal(one[name], other[name]) for name in one if "lora_a" in name)


def test_adapters_go_where_they_are_asked_to(tmp_path):
    folder = write(tmp_path, "llama")
    policy = load(folder, train=Lora(layers=1, modules=["self_attn.v_proj"]))
    module = "model.layers.1.self_attn.v_proj"
    assert list(policy.trained()) == [f"{module}.lora_a", f"{module}.lora_b"]
    with pytest.raises(BadInput, match=r"model\.train\.modules: none of \['q_proj'\]"):
        load(folder, train=Lora(modules=["q_proj"]))
