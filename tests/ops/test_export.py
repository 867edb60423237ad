"""Export takes a whole checkpoint, and names a damaged one."""

from pathlib import Path

import pytest

from configs.dump import to_toml
from ops.export import export
from policies import weights
from runtime.errors import BadInput, Damaged
from runtime.rundir import RunDirectory
from tests.actors.tiny import go, settings


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
    assert export(run, tmp_path / "out", step=None, adapters=False, dequantize=False) == 4
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    with pytest.raises(BadInput, match="is there already"):
        export(run, tmp_path / "out", step=None, adapters=False, dequantize=False)


def test_a_damaged_checkpoint_is_passed_over_unless_it_was_asked_for(
    run: RunDirectory, tmp_path: Path
):
    flip_a_bit(run.checkpoints / "step-000004" / "weights.safetensors")
    with pytest.raises(Damaged, match=r"step-000004/weights\.safetensors"):
        export(run, tmp_path / "out", step=4, adapters=False, dequantize=False)
    assert not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out", step=None, adapters=False, dequantize=False) == 3


def test_a_checkpoint_that_is_retired_while_it_is_read_gives_way_to_the_newest(
    run: RunDirectory, tmp_path: Path, monkeypatch
):
    real, asked = weights.load, []

    def load(path: Path, expected: str):
        asked.append(path.parent.name)
        if len(asked) == 1:  # the run has gone on: this folder was renamed away
            path.parent.rename(path.parent.with_name(".trash"))
        return real(path, expected)

    monkeypatch.setattr(weights, "load", load)
    assert export(run, tmp_path / "out", step=None, adapters=False, dequantize=False) == 3
    assert asked == ["step-000004", "step-000003"]


def test_a_step_without_a_checkpoint_is_refused_with_those_there_are(
    run: RunDirectory, tmp_path: Path
):
    with pytest.raises(BadInput, match=r"--step: one has checkpoints of steps 2, 3, 4, none of 9"):
        export(run, tmp_path / "out", step=9, adapters=False, dequantize=False)


def test_a_link_in_the_model_s_folder_is_not_exported(run: RunDirectory, tmp_path: Path):
    (tmp_path / "key").write_text("-----BEGIN PRIVATE KEY-----")
    (tmp_path / "model" / "vocab.txt").symlink_to(tmp_path / "key")
    with pytest.raises(BadInput, match=r"vocab\.txt: a link that leads out of the checkpoint"):
        export(run, tmp_path / "out", step=None, adapters=False, dequantize=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "model" / "vocab.txt").unlink()
    (tmp_path / "model" / "notes.txt").symlink_to(tmp_path / "key")
    (tmp_path / "model" / "notes.json").write_text("{}")
    export(run, tmp_path / "out", step=None, adapters=False, dequantize=False)
    assert not {"notes.txt", "notes.json"} & {p.name for p in (tmp_path / "out").iterdir()}
