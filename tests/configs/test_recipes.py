import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields

from configs import load
from configs.algorithms.grpo import Grpo
from configs.dump import to_toml
from configs.schema import Settings
from configs.tasks import Jsonl

FOLDER = Path(__file__).parents[2] / "configs"
RECIPES = sorted(FOLDER.glob("*.toml"))
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def restated(raw: dict[str, Any], settings: msgspec.Struct) -> list[str]:
    """Keys of the recipe whose value is what it would be without them."""
    found = []
    defaults = {field.name: field.default for field in fields(settings)}
    for name, value in raw.items():
        if isinstance(inner := getattr(settings, name, None), msgspec.Struct):
            found += [f"{name}.{key}" for key in restated(value, inner)]
        elif name in defaults and value == defaults[name]:
            found.append(name)
    return found


@each_recipe
def test_a_recipe_decodes_and_is_consistent(path: Path) -> None:
    assert isinstance(load(path), Settings)


PINNED = {"seedling", "seedling-grown"}
"""Spelled out, because what it makes is kept: it must not change when a default does."""


@each_recipe
def test_a_recipe_holds_only_what_differs_from_the_defaults(path: Path) -> None:
    if path.stem in PINNED:
        return
    assert restated(tomllib.loads(path.read_text()), load(path)) == []


@each_recipe
def test_a_recipe_says_first_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@each_recipe
def test_a_recipe_survives_being_resolved(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "resolved.toml"
    copy.write_text(to_toml(load(path)))
    assert load(copy) == load(path)


def test_the_presets_differ_in_what_their_papers_differ_in() -> None:
    def preset(name: str) -> Grpo:
        algorithm = load(FOLDER / f"{name}.toml").algorithm
        assert isinstance(algorithm, Grpo)
        return algorithm

    def kind(name: str) -> tuple[str, str, str]:
        grpo = preset(name)
        return (
            grpo.advantage,
            str(grpo.surrogate.__struct_config__.tag),
            grpo.normalizer,
        )

    assert kind("grpo") == ("group_std", "clip", "sequence_mean")
    assert kind("dr_grpo") == ("group_mean", "clip", "constant")
    assert kind("dapo") == ("group_std", "clip", "token_mean")
    assert kind("gspo") == ("group_std", "gspo", "sequence_mean")
    assert kind("cispo") == ("group_std", "cispo", "token_mean")
    assert preset("grpo").kl.coefficient > 0
    assert preset("dapo").resample_rounds > 0 and preset("dapo").overlong.penalty_tokens > 0


def test_the_example_of_one_s_own_task_has_its_files_and_its_reward_works() -> None:
    import runpy

    task = load(FOLDER / "own-task.toml").task
    assert isinstance(task, Jsonl)
    rows = [msgspec.json.decode(line) for line in Path(task.train).read_bytes().splitlines()]
    reward = runpy.run_path(task.reward)["reward"]
    assert len(rows) >= 8 + 4
    for row in rows:
        assert reward(row[task.prompt], f"{row['answer'].capitalize()}.", row) == 1.0
        assert reward(row[task.prompt], f"It is {row['answer']}" + " and" * 40, row) == 0.5
        assert reward(row[task.prompt], "I do not know", row) == 0.0
