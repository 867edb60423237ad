"""Reads any recipe: TOML, with ``--set`` overrides on top, becomes settings of a given type or an error.

A relative path in a recipe starts from the recipe's folder, and one in an override from the current
folder. Settings hold absolute paths, so that a run can be resumed from any folder.
"""

import os.path
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from configs.errors import SettingsError
from configs.explain import Key, first_problem

S = TypeVar("S", bound=Struct)

BAREWORD_STOPS = tuple("\"'[{")
LINE = re.compile(r"(?P<what>.*) \(at (?:(?P<where>line \d+, column \d+)|end of document)\)$")


def read(
    path: str | Path,
    overrides: Sequence[str],
    kind: type[S],
    paths: Callable[[dict[str, Any]], Iterable[tuple[Key, "Resolve"]]],
) -> S:
    """Returns the settings of the recipe at `path` with `overrides` ("algorithm.steps=5") on top.

    `paths` gives the keys of a decoded recipe that hold paths, each with the function that makes it absolute.
    Raises SettingsError with one sentence: the file or "--set", the key, what it needs, what came.
    """
    raw = _read(path)
    overridden: set[Key] = set()
    for text in overrides:
        _override(raw, text, overridden)
    problem = first_problem(raw, kind)
    if problem is not None:
        raise SettingsError(f"{_source(path, problem.key, overridden)}: {problem.sentence}")
    folder = Path(path).absolute().parent
    for key, resolve in paths(raw):
        table = raw
        for name in key[:-1]:
            table = table.get(name, {})
        value = table.get(key[-1])
        if isinstance(value, str) and value:
            base = Path.cwd() if _is_overridden(key, overridden) else folder
            table[key[-1]] = resolve(value, base)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from None


Resolve = Callable[[str, Path], str]
"""Makes a path absolute: the text of the setting, and the folder from which it starts."""


def absolute(value: str, base: Path) -> str:
    """Returns a file's absolute path; symbolic links, such as one to the newest data, are not resolved."""
    return os.path.normpath(base / Path(value).expanduser())


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def _read(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise SettingsError(f"{path}: needs a recipe in TOML, there is no such file") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: needs a recipe in TOML, this is a folder") from None
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path}: needs UTF-8 text, byte {error.start} is something else"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"{path}: cannot be read: {reason}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {_toml_reason(error)}") from None
    except RecursionError:
        raise SettingsError(f"{path}: not valid TOML: nested too deeply") from None


def _toml_reason(error: tomllib.TOMLDecodeError) -> str:
    match = LINE.match(str(error))
    if match is None:
        return str(error)
    return f"{match['where'] or 'end of file'}: {match['what'][0].lower()}{match['what'][1:]}"


# ── overrides ────────────────────────────────────────────────────────────────────────────────────


def _override(raw: dict[str, Any], text: str, overridden: set[Key]) -> None:
    """Writes one ``a.b=value`` into `raw`, and adds the keys that it wrote or created to `overridden`."""
    name, equals, value = text.partition("=")
    key = tuple(segment.strip() for segment in name.split("."))
    if not equals or not all(key):
        raise SettingsError(f"--set: needs key=value such as algorithm.steps=5, got {text!r}")
    table = raw
    for depth, segment in enumerate(key[:-1], 1):
        if segment not in table:
            table[segment] = {}
            overridden.add(key[:depth])
        table = table[segment]
        if not isinstance(table, dict):
            where = ".".join(key[:depth])
            raise SettingsError(f"--set: {name.strip()}: {where} is a value, not a table")
    table[key[-1]] = _value(name.strip(), value.strip())
    overridden.add(key)


def _value(name: str, text: str) -> Any:
    """Returns `text` as a TOML value; text that is none, such as a bare word or a path, as a string."""
    try:
        table = tomllib.loads(f"value = {text}") if "\n" not in text else {}
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if text.startswith(BAREWORD_STOPS):
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise SettingsError(f"--set: {name} needs a TOML value, got {text}: {reason}") from None
        return text
    value = table.get("value", text)
    return value if isinstance(value, bool | int | float | str | list | dict) else text


def _source(path: str | Path, key: Key, overridden: set[Key]) -> str:
    return "--set" if _is_overridden(key, overridden) else str(path)


def _is_overridden(key: Key, overridden: set[Key]) -> bool:
    return any(key[: len(written)] == written for written in overridden)
