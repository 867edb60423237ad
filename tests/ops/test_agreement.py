"""`pippin doctor MODEL` measures how far sampler and learner are apart on a checkpoint in its own dtype."""

import json
from pathlib import Path

import pytest

from ops import agreement, doctor
from tests.policies.checkpoints import write


@pytest.mark.parametrize(
    ("mean_nats", "state", "said"),
    [(0.001, "ok", ""), (0.05, "note", "a run would warn"), (0.2, "bad", "a run would fail")],
)
def test_it_is_judged_as_a_run_judges_it(
    mean_nats: float, state: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = agreement.Agreement(mean_nats, 2 * mean_nats, 99)
    monkeypatch.setattr(agreement, "agreement", lambda *_: found)
    judged, sentence = agreement.judged_model(str(write(tmp_path / "model", "qwen3")))
    assert judged == state and said in sentence and "on 99 tokens" in sentence


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_measured_in_its_own_dtype(dtype: str, tmp_path: Path) -> None:
    import mlx.core as mx

    folder = write(tmp_path / "model", "qwen3")
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    held = {name: array.astype(getattr(mx, dtype)) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), held, {"format": "mlx"})
    policy = agreement.load_frozen(agreement.Model(path=str(folder)), folder)
    assert {str(a.dtype) for a in held.values()} == {f"mlx.core.{dtype}"}
    sequences, _ = agreement.sample(policy, "1+1=")
    assert agreement.agreement(policy, sequences).mean_nats < 1e-4
    sequences[0].logprobs[0] -= 5.0
    found = agreement.agreement(policy, sequences)
    assert found.largest_nats == pytest.approx(5, abs=1e-3)
    assert found.mean_nats == pytest.approx(5 / found.tokens, abs=1e-3)


def test_a_model_that_cannot_be_used_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    folder = write(tmp_path / "model", "qwen3")
    (folder / "config.json").write_text(json.dumps({"model_type": "nothing", "vocab_size": 128}))
    (found,) = doctor._model(str(folder))
    assert found.state == "bad" and "mlx-lm cannot load it" in found.text
