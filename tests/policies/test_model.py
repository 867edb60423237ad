"""Loading, splitting, training and saving checkpoints of each family that Pippin is tried on.

Where two computations may take different matrix products (a fused adapter against one beside its
weights, OpenBLAS by shape), logits are compared within CLOSE, relative to logits of about 1.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.llama import TransformerBlock

from configs.schema import Full, Lora, Model
from policies.arrays import flat, number
from policies.characters import write_tokenizer
from policies.load import load_policy, load_tokens
from policies.policy import Policy
from policies.random_checkpoint import create_checkpoint
from policies.save import save_adapters, save_checkpoint
from runtime.errors import BadInput
from tests.policies.checkpoints import FAMILIES, VOCABULARY, write

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


# ── the split ────────────────────────────────────────────────────────────────────────────────────


@each_kind
def test_trunk_and_head_are_the_whole(tmp_path, family, quantized):
    policy = load(write(tmp_path, family, quantized=quantized), train=Lora(rank=2))
    split = [policy.project(hidden) for hidden in policy.hidden(TOKENS)]
    np.testing.assert_allclose(np.array(mx.stack(split)), logits(policy), atol=CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_head_is_the_embedding_only_where_they_are_tied(tmp_path, family, tied):
    policy = load(write(tmp_path, family, tie_word_embeddings=tied))
    (head,) = policy.head_weights()
    embedding = policy.trained()["model.embed_tokens.weight"]
    assert head.shape == (VOCABULARY, 64)
    assert ("lm_head.weight" in policy.trained()) is not tied
    assert mx.array_equal(head, embedding).item() is tied
    changed = policy.project(policy.hidden(TOKENS)[0], 2 * head)
    np.testing.assert_allclose(np.array(changed), 2 * logits(policy)[0], atol=CLOSE)
    assert mx.array_equal(policy.head_weights()[0], head)  # the given head is not left behind


def test_a_window_shorter_than_the_sequence_is_seen(tmp_path):
    near = load(write(tmp_path / "near", "gemma3_text"))
    far = load(write(tmp_path / "far", "gemma3_text", sliding_window=64))
    assert not np.allclose(logits(near)[0, -1], logits(far)[0, -1], atol=1e-4)
    np.testing.assert_allclose(logits(near)[:, 7], logits(far)[:, 7], atol=CLOSE)


# ── training ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_full_training_reaches_every_weight(tmp_path, family):
    policy = load(write(tmp_path, family))
    gradients = train(policy)
    assert gradients.keys() == policy.trained().keys() == flat(policy.model.parameters()).keys()
    assert all(number(mx.abs(gradient).max()) > 0 for gradient in gradients.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_through_the_split_is_that_of_the_whole(tmp_path, family):
    policy = load(write(tmp_path, family))

    def whole() -> mx.array:
        out = policy.model(TOKENS)
        out = out.reshape(-1, VOCABULARY)
        return nn.losses.cross_entropy(out[:-1], TOKENS.reshape(-1)[1:], reduction="mean")

    _, ours = nn.value_and_grad(policy.model, lambda: loss(policy))()
    _, plain = nn.value_and_grad(policy.model, whole)()
    for name, gradient in flat(plain).items():
        np.testing.assert_allclose(
            np.array(flat(ours)[name]), np.array(gradient), atol=1e-6, rtol=1e-4, err_msg=name
        )


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


def test_a_base_can_be_quantised_when_it_is_loaded(tmp_path):
    policy = load(write(tmp_path, "llama"), train=Lora(rank=2), quantize_bits=8)
    assert any(name.endswith(".scales") for name in flat(policy.model.parameters()))
    train(policy)
    save_checkpoint(policy, tmp_path / "out")
    again, _ = mlx_lm_loads(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]["bits"] == 8
    np.testing.assert_allclose(np.array(again(TOKENS)), logits(policy), atol=CLOSE)


def test_recomputing_blocks_does_not_change_the_gradient(tmp_path, monkeypatch):
    # mlx-lm changes the block's class, for good but for this:
    monkeypatch.setattr(TransformerBlock, "__call__", TransformerBlock.__call__)
    folder = write(tmp_path, "llama")
    plain = train(load(folder), steps=1)
    spare = train(load(folder, gradient_checkpointing=True), steps=1)
    for name, gradient in plain.items():
        np.testing.assert_allclose(np.array(spare[name]), np.array(gradient), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_can_be_held_in_another_precision(tmp_path, dtype):
    policy = load(write(tmp_path, "qwen3"), dtype=dtype)
    assert {str(w.dtype) for w in policy.trained().values()} == {f"mlx.core.{dtype}"}


# ── the reference ────────────────────────────────────────────────────────────────────────────────


@each_training
def test_the_reference_is_the_model_before_training(tmp_path, family, quantized, how):
    policy = load(write(tmp_path, family, quantized=quantized), train=how)
    policy.remember_reference()
    base = logits(policy)
    train(policy)
    trained, weights = logits(policy), policy.trained()
    assert np.abs(trained - base).max() > 1e-2
    with policy.reference():
        assert np.array_equal(logits(policy), base)
    assert np.array_equal(logits(policy), trained)
    assert all(mx.array_equal(w, weights[name]) for name, w in policy.trained().items())


def test_the_trained_weights_come_back_after_an_error_within(tmp_path):
    for how in (Lora(rank=2), Full()):
        policy = load(write(tmp_path / str(how), "qwen3"), train=how)
        policy.remember_reference()
        train(policy)
        trained = logits(policy)
        with pytest.raises(KeyboardInterrupt), policy.reference():
            raise KeyboardInterrupt
        assert np.array_equal(logits(policy), trained)


def test_weights_of_another_shape_are_refused(tmp_path):
    policy = load(write(tmp_path, "qwen3"), train=Lora(rank=2))
    other = load(tmp_path, train=Lora(rank=3))
    with pytest.raises(ValueError, match="do not fit this model: shapes"):
        policy.load_trained(other.trained())
    with pytest.raises(ValueError, match="do not fit this model: surprise"):
        policy.load_trained({**policy.trained(), "surprise": mx.zeros(1)})


# ── saving ───────────────────────────────────────────────────────────────────────────────────────


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


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def refusal(folder: Path, **settings) -> str:
    with pytest.raises(BadInput) as caught:
        load(folder, **settings)
    sentence = str(caught.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence


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


def test_quantised_weights_are_not_trained_whole(tmp_path):
    assert 'use name = "lora"' in refusal(write(tmp_path / "a", "qwen3", quantized=True))
    assert 'use name = "lora"' in refusal(write(tmp_path / "b", "qwen3"), quantize_bits=4)


def test_quantised_weights_keep_their_precision(tmp_path):
    write(tmp_path, "qwen3", quantized=True)
    assert "model.dtype" in refusal(tmp_path, train=Lora(), dtype="bfloat16")


def test_a_damaged_tokenizer_is_refused(tmp_path):
    write(tmp_path, "qwen3")
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"BPE"', '"XYZ"'))
    assert "tokenizer.json" in refusal(tmp_path)


# ── the tokenizer ────────────────────────────────────────────────────────────────────────────────


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


def test_trained_weights_are_sorted_by_name(tmp_path):
    names = list(load(write(tmp_path, "llama")).trained())
    assert names == sorted(names)
