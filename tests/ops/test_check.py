import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import load
from ops import check
from ops.estimate import GIB
from runtime.errors import BadInput

RECIPE = """
[task]
name = "jsonl"
train = "train.jsonl"
reward = "reward.py"
[algorithm]
name = "grpo"
prompts_per_step = 32
[model]
path = "{model}"
"""
MOST_MODULES = 260
"""There are 190 now; numpy would add 140, and Ray 600."""


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(check, "machine_memory_bytes", lambda: 16 * GIB)
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "reward.py").write_text("")
    path = tmp_path / "run.toml"
    path.write_text(RECIPE.format(model="Qwen/Qwen3-0.6B"))
    return path


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint of 4 million float32 parameters, all zero."""
    folder.mkdir()
    config = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    entry = {"dtype": "F32", "shape": [1000, 4000], "data_offsets": [0, 16_000_000]}
    header = json.dumps({"model.w": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(16_000_000)
    (folder / "model.safetensors").write_bytes(data)
    return folder


def test_it_prints_the_resolved_settings_as_a_recipe_that_gives_them_back(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.run("run.toml", ["algorithm.steps=7"]) == 0
    toml, _, _ = capsys.readouterr().out.partition("# What the numbers mean")
    Path("again.toml").write_text(toml)
    assert load("again.toml") == load("run.toml", ["algorithm.steps=7"])


def test_it_says_what_the_numbers_mean_and_whether_they_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check.run("run.toml")
    out = capsys.readouterr().out
    assert "- 32 prompts × 8 samples = 256 trajectories = 1 optimiser step (16,384 " in out
    assert "Qwen/Qwen3-0.6B is not on this machine yet: by its name, 0.6 billion" in out
    assert "GiB of this machine's 16.0 GiB" in out
    assert "Prompts of 512 tokens are assumed" in out


@pytest.mark.parametrize(
    ("gib", "verdict"), [(4096, "fits: "), (70, "tight: "), (4, "does not fit: ")]
)
def test_the_verdict_is_against_this_machine(
    gib: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(check, "machine_memory_bytes", lambda: gib * GIB)
    check.run("run.toml")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"Verdict: {verdict}")
    assert ("Try model.gradient_checkpointing = true" in last) == (verdict != "fits: ")


def test_a_local_checkpoint_is_measured_by_its_headers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "small")
    assert check.run("run.toml", [f"model.path={folder}"]) == 0
    out = capsys.readouterr().out
    assert f"from the headers in {folder}: 4.0 million parameters" in out
    assert "15.3 MiB  learner: weights" in out
    assert "30.5 MiB  learner: AdamW's two moments" in out


def test_a_checkpoint_in_the_hub_cache_is_measured_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "hub" / "models--Qwen--Qwen3-0.6B"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    write_checkpoint(repository / "snapshots" / "abc")
    check.run("run.toml")
    assert "snapshots/abc: 4.0 million parameters" in capsys.readouterr().out


def test_a_name_without_a_size_gives_no_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.run("run.toml", ["model.path=org/name"]) == 0
    out = capsys.readouterr().out
    assert "Checkpoint: unknown: org/name is not on this machine yet and its name says no" in out
    assert "Verdict" not in out


def test_the_seedling_is_assumed_until_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    check.run("run.toml", ["model.path=seedling"])
    assert "the seedling is not made yet" in capsys.readouterr().out


def test_a_bad_recipe_prints_nothing_but_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        BadInput, match=r"^--set: algorithm\.group_size needs an integer from 2 to 4096, got"
    ):
        check.run("run.toml", ["algorithm.group_size=1"])
    with pytest.raises(BadInput, match=r"^run\.toml: eval\.samples = 4 needs eval\.temperature"):
        check.run("run.toml", ["eval.samples=4"])
    assert capsys.readouterr().out == ""


def test_missing_data_and_a_damaged_checkpoint_are_named_after_all_else_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "small")
    (folder / "model.safetensors").write_bytes(b"short")
    Path("reward.py").unlink()
    with pytest.raises(BadInput) as caught:
        check.run("run.toml", [f"model.path={folder}"])
    assert str(caught.value).splitlines() == [
        f"{folder}/model.safetensors: file ends early: needs 8 bytes, has 5",
        f"run.toml: task.reward needs a file, {tmp_path}/reward.py is missing",
    ]
    assert "# What the numbers mean" in capsys.readouterr().out


def test_nothing_heavy_and_little_at_all_is_imported() -> None:
    """So the answer is quick: it comes in a twentieth of a second on an idle machine."""
    code = (
        "import sys; from ops import check; check.run('run.toml')\n"
        "heavy = {'ray', 'mlx', 'numpy', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(len(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout.splitlines()[-1]) < MOST_MODULES


def test_the_memory_of_this_machine_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert check.machine_memory_bytes() > GIB // 4
