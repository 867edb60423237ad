"""The first prompt as the model reads it, printed by `pippin check --prompt`."""

from pathlib import Path

import pytest

from ops import check
from runtime import template_process
from tests.policies.checkpoints import write

RECIPE = """
[task]
name = "jsonl"
train = "train.jsonl"
reward = "reward.py"
[algorithm]
name = "grpo"
[model]
path = "{model}"
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "1+1="}\n')
    (tmp_path / "reward.py").write_text("raise SystemExit('nobody runs this')")
    path = tmp_path / "run.toml"
    path.write_text(RECIPE.format(model=write(tmp_path / "model", "qwen3")))
    return path


def test_each_token_is_on_a_line_with_special_ones_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check.run("run.toml", prompt=True) == 0
    _, _, shown = capsys.readouterr().out.partition("# The first prompt\n")
    lines = [line.split(maxsplit=1) for line in shown.splitlines() if line.startswith("  ")]
    assert [piece for _, piece in lines] == [
        "'<user>'", "'1'", "'+'", "'1'", "'='", "'<end>'", "'<assistant>'",
    ]  # fmt: skip
    assert "train.jsonl, line" in shown and "7 tokens, by the checkpoint's chat template" in shown
    assert "An answer in data ends with token 2, '<end>'." in shown
    assert "Sampling stops at 2 '<end>'." in shown
    assert template_process._shared._process is None


def test_it_is_not_printed_unless_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    check.run("run.toml")
    assert "# The first prompt" not in capsys.readouterr().out


def test_a_checkpoint_that_is_not_here_is_said_to_be_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check.run("run.toml", ["model.path=Qwen/Qwen3-0.6B"], prompt=True) == 0
    assert "unknown: Qwen/Qwen3-0.6B is not on this machine yet" in capsys.readouterr().out


def test_a_long_prompt_is_cut_in_its_middle(capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.jsonl").write_text(('{"prompt": "' + "x" * 300 + '"}\n') * 2)
    check.run("run.toml", prompt=True)
    assert "\n  103 more\n" in capsys.readouterr().out
