"""Values of a wrong kind where a table with a name is needed: a sentence, never a traceback."""

from pathlib import Path

import pytest

from configs import SettingsError, load
from ops.cli import main

RECIPE = Path(__file__).parents[2] / "configs" / "quickstart.toml"
KEYS = ["task", "model", "model.train", "algorithm", "algorithm.surrogate", "algorithm.correction"]
VALUES = ["[1]", "[]", "[{ name = 1 }]", "{ name = [1] }", "{ name = { a = 1 } }", "{ name = nan }"]
NAMES = ["task.name", "algorithm.name", "model.train.name", "algorithm.surrogate.name"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_is_no_table_is_named(key, value):
    with pytest.raises(SettingsError, match=f"^--set: .*{key}") as caught:
        load(RECIPE, [f"{key}={value}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("value", ["[1]", "{ a = 1 }", "1", "true", "1979-05-27"])
def test_a_name_that_is_no_text_is_named(key, value):
    with pytest.raises(SettingsError, match=f"^--set: {key} "):
        load(RECIPE, [f"{key}={value}"])


def test_a_runs_name_of_300_characters_is_refused_before_anything_is_written(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    root = tmp_path / "runs"
    assert main(["launch", str(RECIPE), "--name", "x" * 300, "--root", str(root)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pippin: --name: needs ") and "at most 100 in all" in said
    assert not root.exists()
