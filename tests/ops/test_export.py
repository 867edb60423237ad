"""Export takes a whole checkpoint, and names a damaged one."""

import json
import re
from pathlib import Path

import pytest

from configs import load
from configs.dump import to_toml
from ops.export import export
from ops.export_check import difference, trained_answers
from policies import weights
from policies.load import load_policy
from runtime.errors import BadInput, Damaged
from runtime.rundir import RunDirectory
from tests.actors.tiny import checkpoint, go, settings


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> RunDirectory:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    wanted = settings(tmp_path, eval={"prompts": 0})
    made = RunDirectory(tmp_path / "runs", "one")
    made.create(to_toml(wanted), {})
    go(wanted, made)
    return made


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def test_the_newest_checkpoint_is_exported_whole(run: RunDirectory, tmp_path: Path):
    assert export(run, tmp_path / "out", step=None, adapters=False) == 4
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    with pytest.raises(BadInput, match="is there already"):
        export(run, tmp_path / "out", step=None, adapters=False)


def test_a_damaged_checkpoint_is_passed_over_unless_it_was_asked_for(
    run: RunDirectory, tmp_path: Path
):
    flip_a_bit(run.checkpoints / "step-000004" / "weights.safetensors")
    with pytest.raises(Damaged, match=r"step-000004/weights\.safetensors"):
        export(run, tmp_path / "out", step=4, adapters=False)
    assert not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out", step=None, adapters=False) == 3


def test_a_checkpoint_that_is_retired_while_it_is_read_gives_way_to_the_newest(
    run: RunDirectory, tmp_path: Path, monkeypatch
):
    real, asked = weights.load, []

    def load_once(path: Path, expected: str):
        asked.append(path.parent.name)
        if len(asked) == 1:  # the run has gone on: this folder was renamed away
            path.parent.rename(path.parent.with_name(".trash"))
        return real(path, expected)

    monkeypatch.setattr(weights, "load", load_once)
    assert export(run, tmp_path / "out", step=None, adapters=False) == 3
    assert asked == ["step-000004", "step-000003"]


def test_a_step_without_a_checkpoint_is_refused_with_those_there_are(
    run: RunDirectory, tmp_path: Path
):
    with pytest.raises(BadInput, match=r"--step: one has checkpoints of steps 2, 3, 4, none of 9"):
        export(run, tmp_path / "out", step=9, adapters=False)


def test_a_link_in_the_model_s_folder_is_not_exported(run: RunDirectory, tmp_path: Path):
    (tmp_path / "key").write_text("-----BEGIN PRIVATE KEY-----")
    (tmp_path / "model" / "vocab.txt").symlink_to(tmp_path / "key")
    with pytest.raises(BadInput, match=r"vocab\.txt: a link that leads out of the checkpoint"):
        export(run, tmp_path / "out", step=None, adapters=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "model" / "vocab.txt").unlink()
    (tmp_path / "model" / "notes.txt").symlink_to(tmp_path / "key")
    (tmp_path / "model" / "notes.json").write_text("{}")
    export(run, tmp_path / "out", step=None, adapters=False)
    assert not {"notes.txt", "notes.json"} & {p.name for p in (tmp_path / "out").iterdir()}


@pytest.fixture
def quantised(tmp_path: Path, monkeypatch) -> RunDirectory:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    checkpoint(tmp_path / "model")
    model = {
        "path": str(tmp_path / "model"),
        "quantize_bits": 4,
        "train": {"name": "lora", "rank": 4},
    }
    wanted = settings(tmp_path, eval={"prompts": 0}, model=model, optimizer={"learning_rate": 0.02})
    made = RunDirectory(tmp_path / "runs", "one")
    made.create(to_toml(wanted), {})
    go(wanted, made)
    return made


def kl(told: list[str]) -> float:
    (sentence,) = told
    found = re.search(r"KL\(trained ‖ exported\) is (\S+) nats a token", sentence)
    assert found, sentence
    return float(found[1])


def test_adapters_on_a_quantised_base_are_exported_without_a_loss_unless_it_is_asked_for(
    quantised: RunDirectory, tmp_path: Path
):
    losses = {}
    for name, how in {
        "full": {},
        "again": {"quantize": True},
        "adapters": {"adapters": True},
    }.items():
        told: list[str] = []
        how = {"adapters": False, **how}
        export(quantised, tmp_path / name, step=None, tell=told.append, **how)
        losses[name] = kl(told)
        if name != "again":
            assert re.search(r"all \d+ greedy tokens are the trained policy's", told[0])
    assert losses["full"] < 1e-5 and losses["adapters"] < 1e-9 and losses["again"] > 1e-4
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert not [key for key in config if key.startswith("quantiz")]
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization"]["bits"] == 4


def test_every_export_says_how_far_it_is_from_what_was_trained(run: RunDirectory, tmp_path: Path):
    told: list[str] = []
    export(run, tmp_path / "out", step=None, adapters=False, tell=told.append)
    assert kl(told) < 1e-9 and "held-out prompts: all" in told[0]


def test_an_export_that_is_another_model_is_said_to_be(run: RunDirectory, tmp_path: Path):
    wanted = load(run.recipe, [])
    policy = load_policy(wanted.model, Path(wanted.model.path), 0)
    before, unchecked = trained_answers(wanted, policy)
    assert before and not unchecked
    moved = {name: array * 1.5 + 0.1 for name, array in policy.trained().items()}
    policy.load_trained(moved)
    said = difference(before, policy)
    assert kl([said]) > 0.01 and "up to the first other one" in said


def test_an_export_without_the_task_s_data_says_that_it_was_not_checked(
    run: RunDirectory, tmp_path: Path
):
    Path(load(run.recipe, []).task.train).unlink()  # type: ignore[union-attr]
    told: list[str] = []
    assert export(run, tmp_path / "out", step=None, adapters=False, tell=told.append) == 4
    assert told[0].startswith("not checked on held-out prompts: ")


def test_what_is_not_quantised_is_not_quantised_again(run: RunDirectory, tmp_path: Path):
    with pytest.raises(BadInput, match="--quantize: the run's base is not quantised"):
        export(run, tmp_path / "out", step=None, adapters=False, quantize=True)
