"""What is saved is what was trained, for mlx-lm and for the next run."""

import contextlib
import io
import json

import numpy as np
import pytest

from configs.model import Lora
from policies.arrays import flat
from policies.save import save_adapters, save_checkpoint
from runtime.errors import BadInput
from tests.policies.checkpoints import write
from tests.policies.networks import (
    CLOSE,
    TOKENS,
    each_kind,
    each_training,
    load,
    logits,
    mlx_lm_loads,
    train,
)


@each_training
def test_a_saved_checkpoint_is_the_policy(tmp_path, family, quantized, how):
    policy = load(write(tmp_path / "in", family, quantized=quantized), train=how)
    base = logits(policy)
    train(policy)
    trained = logits(policy)
    save_checkpoint(policy, tmp_path / "out")
    again, tokenizer = mlx_lm_loads(tmp_path / "out")
    saved = np.array(again(TOKENS))
    if quantized:  # fusing rounds the adapters into 4 bits: nearer to the policy than the base is
        assert np.abs(saved - trained).mean() < 0.7 * np.abs(saved - base).mean()
    else:
        np.testing.assert_allclose(saved, trained, atol=CLOSE)
    assert tokenizer.eos_token_id == 2
    assert generates(again, tokenizer)


def test_a_quantised_policy_can_be_saved_in_full_precision(tmp_path):
    policy = load(write(tmp_path / "in", "qwen3", quantized=True), train=Lora(rank=2))
    train(policy)
    trained = logits(policy)
    save_checkpoint(policy, tmp_path / "out", dequantize=True)
    assert "quantization" not in json.loads((tmp_path / "out" / "config.json").read_text())
    again, _ = mlx_lm_loads(tmp_path / "out")
    np.testing.assert_allclose(np.array(again(TOKENS)), trained, atol=CLOSE)


def test_a_base_can_be_quantised_when_it_is_loaded(tmp_path):
    policy = load(write(tmp_path, "llama"), train=Lora(rank=2), quantize_bits=8)
    assert any(name.endswith(".scales") for name in flat(policy.model.parameters()))
    train(policy)
    save_checkpoint(policy, tmp_path / "out")
    again, _ = mlx_lm_loads(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["bits"] == 8
    np.testing.assert_allclose(np.array(again(TOKENS)), logits(policy), atol=CLOSE)


@each_kind
def test_saved_adapters_are_the_policy(tmp_path, family, quantized):
    base = write(tmp_path / "in", family, quantized=quantized)
    policy = load(base, train=Lora(rank=2, layers=1))
    train(policy)
    save_adapters(policy, tmp_path / "adapters")
    again, tokenizer = mlx_lm_loads(base, tmp_path / "adapters")
    np.testing.assert_allclose(np.array(again(TOKENS)), logits(policy), atol=CLOSE)
    assert generates(again, tokenizer)


def test_a_fully_trained_model_has_no_adapters_to_save(tmp_path):
    policy = load(write(tmp_path / "in", "qwen3"))
    with pytest.raises(BadInput, match="--adapters"):
        save_adapters(policy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_saved_checkpoint_is_loaded_and_trained_again(tmp_path):
    policy = load(write(tmp_path / "in", "gemma3_text"), train=Lora(rank=2))
    train(policy)
    trained = logits(policy)
    save_checkpoint(policy, tmp_path / "out")
    again = load(tmp_path / "out", train=Lora(rank=3))
    np.testing.assert_allclose(logits(again), trained, atol=CLOSE)
    train(again)


def generates(model, tokenizer) -> bool:
    import mlx_lm

    with contextlib.redirect_stdout(io.StringIO()):
        text = mlx_lm.generate(model, tokenizer, prompt="1+1=", max_tokens=5, verbose=True)
    return isinstance(text, str)
