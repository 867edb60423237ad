"""Writes settings as a TOML recipe: every key with its resolved value, which `load` reads back."""

import json
import re
from typing import Any

from msgspec import Struct, structs

from configs.schema import Settings

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(settings: Settings) -> str:
    """Returns the settings as TOML, in the order of the schema."""
    return "\n".join(_table(settings, ())).strip() + "\n"


def _table(record: Struct, key: tuple[str, ...]) -> list[str]:
    """Returns a table's lines, its own values first: after a sub-table's header TOML reads the sub-table."""
    values = {name: getattr(record, name) for name in _names(record)}
    config = record.__struct_config__
    lines = ["", f"[{'.'.join(key)}]"] if key else []
    if config.tag_field is not None:
        lines.append(f"{config.tag_field} = {_value(config.tag)}")
    lines += [f"{n} = {_value(v)}" for n, v in values.items() if not _tables(v)]
    if key and lines[-1].startswith("["):
        lines = []
    for name, value in values.items():
        for inner, table in _tables(value).items():
            lines += _table(table, (*key, name, *inner))
    return lines


def _names(record: Struct) -> list[str]:
    """Returns a record's fields in the order in which they are written down, a base's before its own."""
    fields = {field.name for field in structs.fields(record)}
    written = [
        name
        for kind in reversed(type(record).__mro__)
        for name in vars(kind).get("__annotations__", {})
    ]
    return [name for name in dict.fromkeys(written) if name in fields]


def _tables(value: Any) -> dict[tuple[str, ...], Struct]:
    """Returns a record, or the records of a dictionary, by the names that they add to the key."""
    if isinstance(value, Struct):
        return {(): value}
    if not isinstance(value, dict):
        return {}
    return {(_key(name),): item for name, item in value.items() if isinstance(item, Struct)}


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(map(_value, value))}]"
        case dict():
            pairs = ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
    raise TypeError(f"a setting cannot be of {type(value)}")


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else _value(name)
