"""Loads the recipe of `pippin make-data`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.data_consistency import problems
from configs.data_schema import DataSettings
from configs.errors import SettingsError
from configs.explain import Key
from configs.load import FILE_KEYS, checkpoint
from configs.read import Resolve, absolute, read


def load_data(path: str | Path, overrides: Sequence[str] = ()) -> DataSettings:
    """Returns the settings of the data recipe at `path` with `overrides` ("method.samples=8") on top.

    Raises SettingsError with one sentence: the file or "--set", the key, what it needs, what came.
    """
    settings = read(path, overrides, DataSettings, _paths)
    for sentence in problems(settings):
        raise SettingsError(f"{path}: {sentence}")
    return settings


def _paths(raw: dict[str, Any]) -> Iterator[tuple[Key, Resolve]]:
    for key in FILE_KEYS:
        yield key, absolute
    yield ("teacher", "path"), checkpoint
