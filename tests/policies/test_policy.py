"""A network split into trunk and head, its weights replaced, and the model as it was before training."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.llama import TransformerBlock

from configs.model import Full, Lora
from policies.arrays import flat
from tests.policies.checkpoints import FAMILIES, VOCABULARY, write
from tests.policies.networks import (
    CLOSE,
    TOKENS,
    each_kind,
    each_training,
    load,
    logits,
    loss,
    train,
)


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


def test_recomputing_blocks_does_not_change_the_gradient(tmp_path, monkeypatch):
    # mlx-lm changes the block's class, for good but for this:
    monkeypatch.setattr(TransformerBlock, "__call__", TransformerBlock.__call__)
    folder = write(tmp_path, "llama")
    plain = train(load(folder), steps=1)
    spare = train(load(folder, gradient_checkpointing=True), steps=1)
    for name, gradient in plain.items():
        np.testing.assert_allclose(np.array(spare[name]), np.array(gradient), atol=1e-7)


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


def test_trained_weights_are_sorted_by_name(tmp_path):
    names = list(load(write(tmp_path, "llama")).trained())
    assert names == sorted(names)
