"""Finds why a recipe does not fit the schema: the first problem in the recipe's order, as a sentence.

msgspec decides what is valid, but its messages contain neither the value that came nor the key that was
meant. This file walks the same schema beside the data and writes the sentence. In a table, an unknown key
is reported before a wrong value, and a wrong value before a missing key: a misspelt key is both unknown
and missing.
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union

import msgspec
from msgspec import Struct
from msgspec import inspect as schema

Key = tuple[str, ...]
Root = type[Struct]


class Problem(Struct, frozen=True):
    """A problem with the value at `key`; the sentence names the key but not the file."""

    key: Key
    sentence: str


def first_problem(raw: Mapping[str, Any], settings: type[Struct]) -> Problem | None:
    """Returns the first problem that keeps `raw` from being `settings`, or None."""
    return next(_problems(schema.type_info(settings), raw, (), settings), None)


# ── the walk ─────────────────────────────────────────────────────────────────────────────────────


def _problems(kind: schema.Type, value: Any, key: Key, root: Root) -> Iterator[Problem]:
    """Yields all problems of `value`, which should be of `kind`."""
    if isinstance(kind, schema.Metadata):
        kind = kind.type
    match kind:
        case schema.StructType():
            yield from _table_problems(kind, value, key, root)
        case schema.UnionType() if variants := _variants(kind):
            yield from _tagged_problems(variants, value, key, root)
        case schema.ListType() if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _problems(kind.item_type, item, (*key[:-1], f"{key[-1]}[{index}]"), root)
        case schema.DictType() if isinstance(value, dict):
            for name, item in value.items():
                yield from _problems(kind.value_type, item, (*key, name), root)
        case _:
            if not _is_valid(kind, value):
                needed = _needed(kind) + _nearest_literal(kind, value)
                yield Problem(key, f"{dotted(key)} needs {needed}, got {_came(value)}")


def _table_problems(kind: schema.StructType, value: Any, key: Key, root: Root) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(key, f"{dotted(key)} needs a table, got {_came(value)}")
        return
    fields = {field.encode_name: field for field in kind.fields}
    allowed = {*fields, *([kind.tag_field] if kind.tag_field else [])}
    if kind.tag_field and (came := value.get(kind.tag_field, kind.tag)) != kind.tag:
        name_key = (*key, kind.tag_field)
        yield Problem(name_key, f'{dotted(name_key)} needs "{kind.tag}", got {_came(came)}')
    for name in value:
        if name not in allowed:
            yield Problem((*key, name), _unknown(kind, sorted(allowed), (*key, name), root))
    for name, item in value.items():
        if name in fields:
            yield from _problems(fields[name].type, item, (*key, name), root)
    for name, field in fields.items():
        if field.required and name not in value:
            yield Problem(key, _missing(kind, field, (*key, name)))


def _tagged_problems(
    variants: dict[str, schema.StructType], value: Any, key: Key, root: Root
) -> Iterator[Problem]:
    names = _listed(variants)
    first = next(iter(variants))
    if not isinstance(value, dict):
        example = _came(value) if _names(value, variants) else f'"{first}"'
        yield Problem(
            key,
            f"{dotted(key)} needs a table such as {{ name = {example} }}, got {_came(value)}",
        )
        return
    name = value.get("name")
    if name is None:
        yield Problem(key, f"{dotted(key)} needs a name: one of {names}")
    elif not _names(name, variants):
        near = difflib.get_close_matches(str(name), variants, 1)
        hint = f' (did you mean "{near[0]}"?)' if near else _named_elsewhere(str(name), root)
        yield Problem(
            (*key, "name"),
            f"{dotted((*key, 'name'))} needs one of {names}{hint}, got {_came(name)}",
        )
    else:
        yield from _table_problems(variants[name], value, key, root)


def _named_elsewhere(name: str, root: Root) -> str:
    """Returns a hint if some other table can have this name: "dpo" is a loss, not an algorithm."""
    for key in _all_keys(root):
        for depth, segment in enumerate(key, 1):
            if segment.endswith(f"={name}"):
                return f' ("{name}" is one of {dotted((*_plain(key[:depth]), "name"))})'
    return ""


def _names(value: Any, variants: Mapping[str, Any]) -> bool:
    return isinstance(value, str) and value in variants


# ── unknown and missing keys ─────────────────────────────────────────────────────────────────────


def _unknown(kind: schema.StructType, allowed: list[str], key: Key, root: Root) -> str:
    start = f'unknown key "{dotted(key)}"'
    owners = [path for path in _all_keys(root) if _plain(path) == key]
    if owners and kind.tag is not None:
        names = " or ".join(dict.fromkeys(f'"{_owner(path)}"' for path in owners))
        return f'{start}: it belongs to {dotted(key[:-1])} {names}, and this one is "{kind.tag}"'
    near = difflib.get_close_matches(key[-1], allowed, 1)
    if near:
        return f'{start} (did you mean "{dotted((*key[:-1], near[0]))}"?)'
    everywhere = {_plain(path) for path in _all_keys(root)}
    leaves = sorted({path[-1] for path in everywhere})
    elsewhere = difflib.get_close_matches(key[-1], leaves, 1, 0.75)
    if elsewhere:
        paths = sorted(dotted(path) for path in everywhere if path[-1] == elsewhere[0])
        return f'{start} (did you mean "{paths[0]}"?)'
    return f"{start}; {dotted(key[:-1]) or 'a recipe'} has {', '.join(allowed)}"


def _missing(kind: schema.StructType, field: schema.Field, key: Key) -> str:
    variants = _variants(field.type)
    if variants:
        return f"needs a table [{dotted(key)}] with a name: one of {_listed(variants)}"
    owner = f'{dotted(key[:-1])} "{kind.tag}"' if kind.tag else "a recipe"
    return f"{dotted(key)} is missing: {owner} needs it ({_needed(field.type)})"


@cache
def _all_keys(root: Root) -> list[Key]:
    """Returns every key of the schema; a tagged table is the segment "table=name"."""

    def walk(kind: schema.Type, key: Key) -> Iterator[Key]:
        for name, variant in _variants(kind).items():
            yield from walk(variant, (*key[:-1], f"{key[-1]}={name}"))
        if isinstance(kind, schema.StructType):
            for field in kind.fields:
                yield (*key, field.encode_name)
                yield from walk(field.type, (*key, field.encode_name))

    return list(walk(schema.type_info(root), ()))


def _plain(key: Key) -> Key:
    return tuple(segment.partition("=")[0] for segment in key)


def _owner(key: Key) -> str:
    return key[-2].partition("=")[2]


# ── values and words ─────────────────────────────────────────────────────────────────────────────


def _variants(kind: schema.Type) -> dict[str, schema.StructType]:
    """Returns the tagged tables of a union by name; empty for any other type."""
    if not isinstance(kind, schema.UnionType):
        return {}
    return {str(t.tag): t for t in kind.types if isinstance(t, schema.StructType)}


def _is_valid(kind: schema.Type, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    try:
        msgspec.convert(value, _annotation(kind))
    except msgspec.ValidationError:
        return False
    return True


def _annotation(kind: schema.Type) -> Any:
    """Returns the Python type that `kind` was made from."""
    limits = {name: getattr(kind, name, None) for name in ("ge", "gt", "le", "lt", "min_length")}
    meta = msgspec.Meta(**{name: v for name, v in limits.items() if v is not None})

    match kind:
        case schema.IntType():
            return Annotated[int, meta]
        case schema.FloatType():
            return Annotated[float, meta]
        case schema.StrType():
            return Annotated[str, meta]
        case schema.BoolType():
            return bool
        case schema.LiteralType():
            return Literal[kind.values]
        case schema.UnionType():
            return Union[tuple(_annotation(t) for t in kind.types)]  # noqa: UP007
        case schema.ListType():
            return list
        case schema.DictType():
            return dict
    raise TypeError(f"the schema has a type that has no words yet: {kind}")


def _needed(kind: schema.Type) -> str:
    match kind:
        case schema.IntType():
            return f"an integer{_limits(kind)}"
        case schema.FloatType():
            return f"a number{_limits(kind)}"
        case schema.StrType():
            return "a text that is not empty" if kind.min_length else "a text"
        case schema.BoolType():
            return "true or false"
        case schema.LiteralType():
            return f"one of {', '.join(_came(value) for value in kind.values)}"
        case schema.ListType():
            return "a list"
        case schema.DictType():
            return "a table"
        case schema.UnionType():
            return " or ".join(_needed(t) for t in kind.types)
    raise TypeError(f"the schema has a type that has no words yet: {kind}")


def _limits(kind: schema.IntType | schema.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {_number(kind.ge)} to {_number(kind.le)}"
    signs = {"≥": kind.ge, ">": kind.gt, "≤": kind.le, "<": kind.lt}
    words = [f"{sign} {_number(limit)}" for sign, limit in signs.items() if limit is not None]
    return f" {' and '.join(words)}" if words else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _nearest_literal(kind: schema.Type, value: Any) -> str:
    if not isinstance(kind, schema.LiteralType) or not isinstance(value, str):
        return ""
    near = difflib.get_close_matches(value, [v for v in kind.values if isinstance(v, str)], 1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _came(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return json.dumps(value if len(value) <= 80 else f"{value[:77]}…", ensure_ascii=False)
        case list():
            return "a list"
        case dict():
            return "a table"
    return f"a {type(value).__name__}"


def dotted(key: Key) -> str:
    """Returns the key in dotted form, as it is written in a recipe."""
    return ".".join(key)
