"""What a checkpoint must be to be loaded, in which precision it is held, and its tokenizer."""

import json
from typing import Any

import mlx.core as mx
import pytest

from configs.model import Lora, Model
from policies.characters import write_tokenizer
from policies.load import load_tokens
from policies.random_checkpoint import create_checkpoint
from tests.policies.checkpoints import VOCABULARY, write
from tests.policies.networks import load, refusal


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_can_be_held_in_another_precision(tmp_path, dtype):
    policy = load(write(tmp_path, "qwen3"), dtype=dtype)
    assert {str(w.dtype) for w in policy.trained().values()} == {f"mlx.core.{dtype}"}


def test_pickles_are_refused(tmp_path):
    write(tmp_path, "qwen3")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "a pickle, which can run code" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["auto_map", "model_file"])
def test_code_that_comes_with_a_checkpoint_is_refused(tmp_path, key):
    evil: dict[str, Any] = {key: "evil.py"}
    write(tmp_path, "qwen3", **evil)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert f"{key} asks for Python code" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_truncated_weights_are_refused(tmp_path):
    write(tmp_path, "qwen3")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "file ends early" in refusal(tmp_path)


def test_weights_that_are_not_the_architectures_are_refused(tmp_path):
    write(tmp_path, "qwen3")
    weights = mx.load(str(tmp_path / "model.safetensors"))
    weights.pop("model.norm.weight")  # type: ignore[union-attr]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)  # type: ignore[arg-type]
    assert "mlx-lm cannot load it" in refusal(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path):
    write(tmp_path, "qwen3")
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"qwen3"', '"perceptron"'))
    assert "perceptron" in refusal(tmp_path)


def test_a_network_without_attention_is_refused(tmp_path):
    mamba = {
        "model_type": "mamba",
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "state_size": 4,
        "num_hidden_layers": 1,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 2,
    }
    create_checkpoint(tmp_path, mamba, seed=1)
    write_tokenizer(tmp_path)
    assert "mamba is not a dense attention model" in refusal(tmp_path)


def test_quantised_weights_keep_their_precision(tmp_path):
    write(tmp_path, "qwen3", quantized=True)
    assert "model.dtype" in refusal(tmp_path, train=Lora(), dtype="bfloat16")


def test_a_damaged_tokenizer_is_refused(tmp_path):
    write(tmp_path, "qwen3")
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"BPE"', '"XYZ"'))
    assert "tokenizer.json" in refusal(tmp_path)


def test_a_chat_ends_where_the_assistant_begins(tmp_path):
    write(tmp_path, "qwen3")
    tokens = load_tokens(Model(path=str(tmp_path), system="Be brief."), tmp_path)
    ids = tokens.prompt([{"role": "user", "content": "1+1="}])
    assert len(ids) == 1 + 9 + 1 + 1 + 4 + 1 + 1
    assert tokens.encode("1+1=") == ids[12:16]
    assert tokens.decode(ids) == "Be brief.1+1="
    assert tokens.stop_tokens == {tokens.stop_token()} == {2}


def test_every_end_token_that_the_checkpoint_names_ends_an_answer(tmp_path):
    write(tmp_path, "qwen3", eos_token_id=7)  # as base and instruct models differ in theirs
    (tmp_path / "generation_config.json").unlink()
    assert load_tokens(Model(), tmp_path).stop_tokens == {2, 7}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    tokens = load_tokens(Model(), tmp_path)
    assert (tokens.stop_tokens, tokens.stop_token()) == ({2, 9}, 2)
