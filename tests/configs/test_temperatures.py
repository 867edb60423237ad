"""A temperature that float32 cannot divide by is refused where it is written."""

from pathlib import Path

import pytest

from configs import SettingsError, load

RECIPE = '[task]\nname = "addition"\n[algorithm]\nname = "grpo"\n[{table}]\ntemperature = {value}\n'


@pytest.mark.parametrize("value", ["1e-40", "1e-3", "1e39"])
@pytest.mark.parametrize("table", ["sampling", "eval"])
def test_it_is_named(table: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RECIPE.format(table=table, value=value))
    with pytest.raises(SettingsError, match=rf"{table}\.temperature needs .*0\.01"):
        load(str(path), [])


@pytest.mark.parametrize(("table", "value"), [("sampling", "0.01"), ("eval", "0"), ("eval", "100")])
def test_the_bounds_are_inside(table: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RECIPE.format(table=table, value=value))
    load(str(path), [])
