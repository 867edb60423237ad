"""What an actor would refuse of a checkpoint is said by the launch, with nothing written."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ops import launch
from ops.check_model import check_models
from policies import load, policy
from runtime import finite_weights, template_process
from runtime.errors import BadInput
from runtime.finite_weights import check_finite
from tests.actors.tiny import checkpoint, distilled, settings, teacher
from tests.policies.checkpoints import write


def in_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_nan(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.norm.weight"] = weights["model.norm.weight"] * mx.nan
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


@pytest.mark.parametrize(
    ("changes", "damage", "sentence"),
    [
        ({"train": {"name": "lora", "modules": ["nothing"]}}, None, "model.train.modules: none of"),
        ({}, with_nan, "model.norm.weight has NaN or infinite weights"),
        ({}, {"rope_theta": "x"}, "mlx-lm cannot run it: "),
        ({}, {"rope_scaling": {"type": "nothing"}}, "mlx-lm cannot load it: "),
        ({}, {"model_type": "mamba"}, "mlx-lm cannot load it: "),
        ({}, {"tie_word_embeddings": False}, "Missing 1 parameters: lm_head.weight"),
        ({}, {"eos_token_id": 5000}, None),
    ],
)
def test_a_launch_refuses_it_and_leaves_no_folder(
    changes: dict[str, Any], damage: Any, sentence: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    folder = checkpoint(tmp_path / "model")
    wanted = settings(tmp_path, model={"path": str(folder), **changes})
    if isinstance(damage, dict):
        in_config(folder, **damage)
        if "eos_token_id" in damage:
            (folder / "generation_config.json").unlink()
            sentence = (
                f"eos_token_id needs ids below vocab_size, {model_vocabulary(folder)}, got 5000"
            )
    elif callable(damage):
        damage(folder)
    monkeypatch.setattr(launch, "load", lambda *_: wanted)
    with pytest.raises(BadInput) as caught:
        launch.prepare("run.toml", [], None, tmp_path / "runs")
    assert sentence is not None and sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def model_vocabulary(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def test_quantised_weights_are_not_trained_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "qwen3", quantized=True)
    wanted = settings(tmp_path, model={"path": str(folder)})
    with pytest.raises(BadInput, match="quantised weights cannot be trained"):
        check_models(wanted)
    check_models(settings(tmp_path, model={"path": str(folder), "train": {"name": "lora"}}))
    with pytest.raises(BadInput, match=r"model\.dtype: .* is quantised"):
        check_models(
            settings(
                tmp_path,
                model={"path": str(folder), "train": {"name": "lora"}, "dtype": "float32"},
            )
        )


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text"])
def test_good_ones_pass_and_only_one_block_is_computed(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    folder = write(tmp_path / "model", family)
    computed: list[int] = []
    real = load._check_split

    def counted(built: policy.Policy, *, whole: bool = True) -> None:
        computed.append(built.layer_count())
        real(built, whole=whole)

    monkeypatch.setattr(load, "_check_split", counted)
    check_models(settings(tmp_path, model={"path": str(folder)}))
    assert computed == [1]


def test_a_head_that_cannot_be_split_off_is_found_by_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    wanted = settings(tmp_path)
    real = policy.Policy.project
    monkeypatch.setattr(policy.Policy, "project", lambda self, hidden: 2 * real(self, hidden))
    with pytest.raises(BadInput, match="cannot be split into trunk and head"):
        check_models(wanted)


def test_evolution_strategies_refuse_what_their_noise_does_not_fit(tmp_path: Path) -> None:
    es = {
        "name": "es",
        "steps": 1,
        "population": 4,
        "perturbation": {"name": "low_rank", "rank": 999},
    }
    with pytest.raises(BadInput, match=r"algorithm\.perturbation\.rank = 999"):
        check_models(settings(tmp_path, algorithm=es, optimizer={}))


def test_a_teacher_is_checked_under_its_name(tmp_path: Path) -> None:
    wanted = distilled(tmp_path)
    check_models(wanted)
    in_config(teacher(tmp_path), rope_theta="x")
    with pytest.raises(BadInput, match=r"^algorithm\.teachers\.big: .*cannot run it"):
        check_models(wanted)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_each_kind_of_no_number_is_found_in_each_dtype(
    dtype: mx.Dtype, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(finite_weights, "CHUNK_BYTES", 64)
    good = mx.array([65504.0, -1e-7, 0.0] * 50).astype(dtype)
    shard = tmp_path / "model.safetensors"
    mx.save_safetensors(str(shard), {"a": good, "b": mx.array([1, 2])})
    check_finite(shard)
    bad = mx.concatenate([good, mx.array([value]).astype(dtype)])
    mx.save_safetensors(str(shard), {"a": good, "c": bad})
    with pytest.raises(BadInput, match="c has NaN or infinite weights"):
        check_finite(shard)


def test_a_file_that_was_found_good_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    shard = tmp_path / "model.safetensors"
    mx.save_safetensors(str(shard), {"a": mx.ones(3)})
    check_finite(shard)

    def refuse(*_: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(finite_weights, "_finite", refuse)
    check_finite(shard)
    mx.save_safetensors(str(shard), {"a": mx.ones(4)})
    with pytest.raises(AssertionError):
        check_finite(shard)


def test_no_process_of_the_checks_outlives_them(tmp_path: Path) -> None:
    from ops.preflight import check_run

    check_run(settings(tmp_path), tmp_path)
    assert template_process._shared._process is None
