"""From a data recipe and ``--set`` overrides to settings, as `configs.load` does for a run's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from configs.data_consistency import problems
from configs.data_schema import DataSettings
from configs.errors import SettingsError
from configs.explain import _problems
from configs.load import (
    FILE_KEYS,
    Key,
    _absolute,
    _is_overridden,
    _model,
    _override,
    _read,
    _source,
)

TEACHER_KEY: Key = ("teacher", "path")


def load_data(path: str | Path, overrides: Sequence[str] = ()) -> DataSettings:
    """The settings of the data recipe at `path` with `overrides` ("method.samples=8") on top.

    Raises SettingsError with one sentence: the file or "--set", the key, what it needs, what came.
    """
    raw = _read(path)
    overridden: set[Key] = set()
    for text in overrides:
        _override(raw, text, overridden)
    found = next(_problems(msgspec.inspect.type_info(DataSettings), raw, ()), None)
    if found is not None:
        raise SettingsError(f"{_source(path, found.key, overridden)}: {found.sentence}")
    _resolve(raw, Path(path).absolute().parent, overridden)
    try:
        settings = msgspec.convert(raw, DataSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from None
    for sentence in problems(settings):
        raise SettingsError(f"{path}: {sentence}")
    return settings


def _resolve(raw: dict[str, Any], recipe_folder: Path, overridden: set[Key]) -> None:
    for key in (*FILE_KEYS, TEACHER_KEY):
        table = raw.get(key[0], {})
        value = table.get(key[1])
        if not isinstance(value, str) or not value:
            continue
        base = Path.cwd() if _is_overridden(key, overridden) else recipe_folder
        table[key[1]] = _model(value, base) if key == TEACHER_KEY else _absolute(value, base)
