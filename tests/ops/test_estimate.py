"""How much memory a run takes, by arithmetic that can be done by hand."""

import msgspec
import pytest

from configs.schema import Settings
from ops.estimate import (
    GIB,
    RAY_BYTES,
    Estimate,
    Item,
    activation_bytes,
    base_bytes,
    estimate,
    kv_cache_bytes,
    micro_batch,
    trained_parameters,
)
from ops.network import QWEN3, SEEDLING, assumed_network, network_of
from tests.policies.adapters.gains import Gains
from tests.policies.optimizers.sign_descent import SignSettings

QWEN = QWEN3[0.6]
LORA = {"train": {"name": "lora", "rank": 8}}


def settings(**tables: object) -> Settings:
    raw = {"task": {"name": "addition"}, "algorithm": {"name": "grpo"}, **tables}
    return msgspec.convert(raw, Settings)


def sizes(result: Estimate) -> dict[str, int]:
    return {item.what: item.size_bytes for item in result.items}


def test_the_peak_is_what_stays_and_the_largest_phase() -> None:
    items = (Item("always", "a", 10), Item("sampling", "b", 5), Item("learning", "c", 4))
    assert Estimate((*items, Item("learning", "d", 3)), 100).peak_bytes == 17
    assert Estimate(items, 25).verdict == "fits"
    assert Estimate(items, 20).verdict == "tight"
    assert Estimate(items, 18).verdict == "does not fit"


def test_weights_are_counted_as_they_will_be_stored() -> None:
    assert base_bytes(QWEN, settings()) == 2 * QWEN.parameters
    assert base_bytes(QWEN, settings(model={"dtype": "float32"})) == 4 * QWEN.parameters
    quantised = base_bytes(QWEN, settings(model={"quantize_bits": 4, **LORA}))
    assert quantised == pytest.approx(QWEN.parameters * 4.5 / 8)


def test_lora_trains_rank_times_inputs_and_outputs_of_each_module() -> None:
    one = settings(model={"train": {**LORA["train"], "layers": 3, "modules": ["self_attn.k_proj"]}})
    assert trained_parameters(QWEN, one) == 3 * 8 * (1024 + 1024)
    block = 8 * ((1024 + 2048) * 2 + (1024 + 1024) * 2 + (1024 + 3072) * 3)
    assert trained_parameters(QWEN, settings(model=LORA)) == 28 * block
    assert trained_parameters(QWEN, settings()) == QWEN.parameters


def test_full_training_of_half_precision_weights_keeps_sixteen_bytes_a_parameter() -> None:
    found = sizes(estimate(settings(), QWEN, 64 * GIB, 64))
    kept = sum(size for what, size in found.items() if what.startswith("learner: "))
    assert kept == (2 + 4 + 4 + 8) * QWEN.parameters
    assert "learner: adapters" not in found


def test_a_float32_network_is_its_own_master_copy() -> None:
    found = sizes(estimate(settings(), SEEDLING, GIB, 64))
    assert "learner: float32 copy of the weights" not in found


def test_only_a_penalised_full_run_holds_a_second_model_as_reference() -> None:
    kl = {"algorithm": {"name": "grpo", "kl": {"coefficient": 0.1}}}
    reference = "learner: weights of the reference policy"
    assert reference in sizes(estimate(settings(**kl), QWEN, GIB, 64))
    assert reference not in sizes(estimate(settings(**kl, model=LORA), QWEN, GIB, 64))
    assert reference not in sizes(estimate(settings(), QWEN, GIB, 64))


def test_keys_and_values_grow_with_slots_and_length() -> None:
    one = kv_cache_bytes(QWEN, 1, 1000, 2)
    assert one == 1.5 * 1000 * 2 * 28 * 8 * 128 * 2
    assert kv_cache_bytes(QWEN, 64, 1000, 2) == 64 * one


@pytest.mark.parametrize(
    ("shape", "rows", "length", "item", "checkpointing", "measured"),
    [
        # hidden, intermediate, heads, kv heads, head width, layers; peak bytes in MLX 0.32.4
        ((256, 768, 4, 2, 64, 4), 8, 64, 4, False, 64.7e6),
        ((256, 768, 4, 2, 64, 4), 2, 256, 4, False, 75.0e6),
        ((256, 768, 4, 2, 64, 8), 8, 64, 4, False, 111.1e6),
        ((256, 768, 4, 2, 64, 8), 8, 64, 4, True, 39.0e6),
        ((256, 768, 4, 2, 64, 4), 8, 64, 4, True, 39.6e6),
        ((256, 768, 4, 2, 64, 4), 4, 64, 2, False, 16.1e6),
        ((128, 512, 4, 2, 32, 4), 8, 64, 4, False, 43.2e6),
    ],
)
def test_activations_are_what_was_measured_or_somewhat_more(
    shape: tuple[int, ...], rows: int, length: int, item: int, checkpointing: bool, measured: float
) -> None:
    hidden, intermediate, heads, kv_heads, head_dim, layers = shape
    network = msgspec.structs.replace(
        SEEDLING,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=layers,
    )
    guess = activation_bytes(network, rows * length, length, item, checkpointing)
    assert measured <= guess <= 1.15 * measured


def test_a_micro_batch_is_no_larger_than_the_step_and_holds_one_row() -> None:
    assert micro_batch(settings(), 64) == (16 * 8 * 128, 128)
    tiny = settings(algorithm={"name": "sft", "rows_per_step": 2})
    assert micro_batch(tiny, 64) == (256, 128)
    assert micro_batch(settings(actors={"micro_batch_tokens": 100}), 64) == (128, 128)


def test_supervised_training_without_evaluation_has_no_sampler() -> None:
    sft = settings(algorithm={"name": "sft"}, eval={"prompts": 0})
    found = sizes(estimate(sft, SEEDLING, GIB, 64))
    assert not [what for what in found if "sampler" in what or "slots" in what]
    assert found["Ray and Python, an allowance"] > RAY_BYTES


def test_each_sampler_has_its_own_weights() -> None:
    found = sizes(estimate(settings(actors={"samplers": 3}), QWEN, GIB, 64))
    assert found["3 samplers: weights"] == 3 * 2 * QWEN.parameters


@pytest.mark.parametrize(
    ("name", "parameters", "bytes_each", "words"),
    [
        ("Qwen/Qwen3-0.6B", 0.596e9, 2, "0.6 billion parameters in 16 bits in the shape of Qwen3-0.6B"),
        ("mlx-community/Llama-3.2-1B-4bit", 1e9, 4.5 / 8, "1 billion parameters in 4 bits"),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 0.36e9, 2, "0.36 billion parameters"),
        ("org/model-70b", 70e9, 2, "70 billion parameters in 16 bits in the shape of Qwen3-32B"),
    ],
)  # fmt: skip
def test_a_stand_in_is_had_from_a_name_with_a_size(
    name: str, parameters: float, bytes_each: float, words: str
) -> None:
    found = assumed_network(name)
    assert found is not None
    network, assumption = found
    assert network.parameters == pytest.approx(parameters)
    assert network.weight_bytes == pytest.approx(parameters * bytes_each)
    assert words in assumption and name in assumption


def test_a_name_without_a_size_has_no_stand_in() -> None:
    assert assumed_network("org/name") is None
    assert assumed_network("org/v2-base") is None


def test_packed_weights_are_counted_in_parameters() -> None:
    from pathlib import Path

    from runtime.checkpoint_files import CheckpointFiles, Tensor

    config = {
        "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 9,
        "quantization": {"bits": 4, "group_size": 64},
    }  # fmt: skip
    tensors = {"w": Tensor("U32", (64, 8), (0, 2048)), "w.scales": Tensor("F16", (64, 1), (0, 128))}
    network = network_of(CheckpointFiles(Path("x"), config, (), tensors))
    assert network is not None
    assert network.parameters == 64 * 64 + 64
    assert network.weight_bytes == 2176
    assert network.item_bytes == 2
    assert network_of(CheckpointFiles(Path("x"), {"model_type": "mamba"}, (), tensors)) is None


def test_a_teachers_weights_count_where_they_are() -> None:
    def of(**algorithm: object) -> dict[str, int]:
        teachers = {"big": {"name": "local", "path": "/teacher", "quantize_bits": 4}}
        wanted = settings(algorithm={"name": "distill", "teachers": teachers, **algorithm})
        return sizes(estimate(wanted, QWEN, 64 * GIB, 64, {"big": QWEN3[4.0]}))

    hosted, apart = of(), of(signal={"name": "top_k"})
    both = of(learn_from={"name": "teacher"})
    weights = round(4.02e9 * (0.5 + 4 / 64))
    assert hosted["learner: weights of teacher big"] == weights
    assert apart["teacher big: weights"] == weights
    assert "teacher big: weights" not in hosted and "learner: weights of teacher big" not in apart
    assert both["teacher big: weights"] == both["learner: weights of teacher big"] == weights
    assert "logits of teacher and student, a chunk" in hosted
    assert "logits of teacher and student, a chunk" not in of(signal={"name": "sampled"})


def test_an_adapter_and_an_optimiser_from_outside_are_asked_for_their_sizes() -> None:
    plain = settings(algorithm={"name": "grpo", "kl": {"coefficient": 0.1}})
    wanted = msgspec.structs.replace(
        plain,
        model=msgspec.structs.replace(plain.model, train=Gains()),
        optimizer=SignSettings(),
    )
    gains = 28 * 1024
    assert trained_parameters(QWEN, wanted) == gains
    found = sizes(estimate(wanted, QWEN, 64 * GIB, 64))
    assert found["learner: the running mean of sign descent"] == 4 * gains
    assert found["learner: adapters"] == found["learner: gradients"] == 4 * gains
    assert found["sampler: weights"] == base_bytes(QWEN, wanted) + 4 * gains
    assert "learner: weights of the reference policy" not in found
    assert "learner: weights of the reference policy" in sizes(estimate(plain, QWEN, 64 * GIB, 64))
