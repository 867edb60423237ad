"""Loads the recipe of a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.consistency import problems
from configs.errors import SettingsError
from configs.explain import Key
from configs.read import Resolve, absolute, read
from configs.schema import Settings, plain, settings_type

FILE_KEYS: tuple[Key, ...] = (("task", "train"), ("task", "eval"), ("task", "reward"))
NOT_FOLDERS = ("seedling", "seedling-grown")
"""Names of Pippin's own checkpoints; they take precedence over a folder of the same name."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Returns the settings of the recipe at `path` with `overrides` ("algorithm.steps=5") on top.

    Raises SettingsError with one sentence: the file or "--set", the key, what it needs, what came.
    """
    settings = plain(read(path, overrides, settings_type(), _paths))
    for sentence in problems(settings):
        raise SettingsError(f"{path}: {sentence}")
    return settings


def checkpoint(value: str, base: Path) -> str:
    """Returns a checkpoint's absolute folder; returns a hub id or a name in NOT_FOLDERS unchanged."""
    if value in NOT_FOLDERS:
        return value
    is_path = value.startswith((".", "/", "~")) or (base / value).is_dir()
    return absolute(value, base) if is_path else value


def _paths(raw: dict[str, Any]) -> Iterator[tuple[Key, Resolve]]:
    for key in FILE_KEYS:
        yield key, absolute
    yield ("model", "path"), checkpoint
    for name in raw["algorithm"].get("teachers", {}):
        yield ("algorithm", "teachers", name, "path"), checkpoint
