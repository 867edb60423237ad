"""The docs say what is there: the list of metrics, the recipes, the commands."""

import re
from pathlib import Path

from ops.cli import build_parser
from runtime.metrics import METRICS

ROOT = Path(__file__).parent.parent


def test_every_metric_is_documented_under_its_name() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
    assert dict(rows) == METRICS


def test_every_recipe_in_the_readme_exists_and_the_other_way_round() -> None:
    named = set(re.findall(r"`([\w-]+\.toml)`", (ROOT / "README.md").read_text()))
    there = {path.name for path in (ROOT / "configs").glob("*.toml")} - {
        "seedling.toml", "seedling-grown.toml"
    }  # fmt: skip
    assert named - {"pyproject.toml"} == there


def test_every_command_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?:^|`)pippin ([\w-]+)", text, re.M))
    commands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert named
    assert named <= set(commands)


def test_every_test_that_a_security_promise_rests_on_exists() -> None:
    text = (ROOT / "docs/security.md").read_text()
    files = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    names = set(re.findall(r"`(test_\w+)`", text))
    assert len(files) > 3 and len(names) > 8
    assert [file for file in files if not (ROOT / file).is_file()] == []
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in names if f"def {name}(" not in sources] == []
