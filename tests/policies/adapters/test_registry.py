"""An adapter is one file and its settings: everything else asks it, and none asks which kind it is."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from configs.model import Full, Lora, Model
from policies.adapters.lora import LoraAdapter
from policies.adapters.registry import ADAPTERS, adapter_for
from policies.arrays import flat
from policies.load import load_policy
from policies.save import parameter_count, save_adapters, save_checkpoint, weights_bytes
from tests.policies.adapters.gains import Gains
from tests.policies.checkpoints import config, write
from tests.policies.networks import CLOSE, TOKENS, load, logits, mlx_lm_loads, train

KINDS = [Full(), Lora(rank=2), Lora(rank=3, layers=1, modules=["mlp.up_proj"]), Gains()]
each = pytest.mark.parametrize("how", KINDS, ids=lambda how: str(how.__struct_config__.tag))


class Shape(NamedTuple):
    parameters: int
    layers: int

    def linears(self) -> dict[str, tuple[int, int]]:
        raw = config("qwen3")
        hidden, inner = raw["hidden_size"], raw["intermediate_size"]
        queries = raw["num_attention_heads"] * raw["head_dim"]
        keys = raw["num_key_value_heads"] * raw["head_dim"]
        return {
            "self_attn.q_proj": (hidden, queries),
            "self_attn.k_proj": (hidden, keys),
            "self_attn.v_proj": (hidden, keys),
            "self_attn.o_proj": (queries, hidden),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }


@each
def test_it_trains_as_many_parameters_as_it_says_beforehand(tmp_path, how):
    folder = write(tmp_path, "qwen3")
    policy = load_policy(Model(path=str(folder), train=how), folder, seed=4)
    shape = Shape(parameter_count(policy), policy.layer_count())
    assert adapter_for(how).parameter_count(shape) == sum(a.size for a in policy.trained().values())


@each
def test_weights_of_its_own_count_neither_as_the_network_s_nor_in_its_size(tmp_path, how):
    folder = write(tmp_path, "qwen3")
    plain = load_policy(Model(path=str(folder)), folder, seed=4)
    policy = load_policy(Model(path=str(folder), train=how), folder, seed=4)
    assert parameter_count(policy) == parameter_count(plain)
    assert weights_bytes(policy) == weights_bytes(plain)
    own = policy.trained().keys() - flat(plain.model.parameters()).keys()
    assert bool(own) is adapter_for(how).adds_weights


def test_a_kind_from_outside_trains_is_undone_and_is_saved(tmp_path):
    policy = load(write(tmp_path / "in", "qwen3"), train=Gains())
    assert set(policy.trained()) == {f"model.layers.{i}.mlp.down_proj.gain" for i in (0, 1)}
    policy.remember_reference()
    base = logits(policy)
    train(policy, rate=200.0)  # a gain moves little in so small a random network
    trained = logits(policy)
    assert np.abs(trained - base).max() > 1e-2
    with policy.reference():
        assert np.array_equal(logits(policy), base)
    save_adapters(policy, tmp_path / "gains")
    assert set(mx.load(str(tmp_path / "gains" / "gains.safetensors"))) == set(policy.trained())
    save_checkpoint(policy, tmp_path / "out")
    again, _ = mlx_lm_loads(tmp_path / "out")
    np.testing.assert_allclose(np.array(again(TOKENS)), trained, atol=CLOSE)


def test_two_kinds_cannot_have_the_same_settings():
    with pytest.raises(ValueError, match=r"policies\.adapters: two kinds for Full"):
        ADAPTERS.add(Full, LoraAdapter)
    ADAPTERS.add(Lora, LoraAdapter)  # the same once more changes nothing
    assert isinstance(adapter_for(Lora()), LoraAdapter)
    assert not isinstance(adapter_for(Full()), LoraAdapter)
