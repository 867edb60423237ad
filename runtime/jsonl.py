"""Reads and checks the user's JSONL files: one object per line.

Any fault of a file is one `BadInput` sentence with file, line, what was needed and what came. A byte-order
mark, CRLF and blank lines are accepted, because editors write them.
"""

import codecs
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from runtime.errors import BadInput
from runtime.plain_text import printable

NAMES = {
    str: "a string",
    list: "a list",
    dict: "an object",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
"""Names in messages for the types that JSON decodes to."""

COLUMNS_SHOWN = 8
LONGEST_NAME = 60
LONGEST_SENTENCE = 800


class Row(Struct, frozen=True):
    """One object of a file, with its file and line."""

    path: str
    line: int
    values: dict[str, Any]

    def bad(self, sentence: str) -> BadInput:
        """Returns the error that names this row; control characters from the row are escaped."""
        place = f"{printable(self.path)}, line {self.line}"
        return BadInput(f"{place}: {printable(sentence, LONGEST_SENTENCE)}")


def read_rows(path: str | Path, columns: Mapping[str, Collection[type]]) -> list[Row]:
    """Returns the rows of a file in order, each with at least `columns` of one of the given types.

    Raises BadInput if the file cannot be read, holds no row, or a row lacks a column or has another type.
    """
    rows = []
    for number, line in enumerate(_bytes(path).split(b"\n"), start=1):
        if line.strip():
            row = Row(str(path), number, {})
            row = msgspec.structs.replace(row, values=_object(row, line))
            _check(row, columns)
            rows.append(row)
    if not rows:
        raise BadInput(f"{path}: needed one JSON object per line, got an empty file")
    return rows


def kind(value: object) -> str:
    """Returns the name in messages for the type of a JSON value."""
    return NAMES.get(type(value), type(value).__name__)


def _bytes(path: str | Path) -> bytes:
    needed = f"{path}: needed a JSONL file"
    try:
        return Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise BadInput(f"{needed}, found nothing of that name") from None
    except IsADirectoryError:
        raise BadInput(f"{needed}, got a directory") from None
    except OSError as error:
        raise BadInput(f"{needed}, could not read it: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the name
        raise BadInput(f"{str(path)!r}: needed the name of a JSONL file, got {error}") from None


def _object(row: Row, line: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(line.decode())
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
        raise row.bad(f"needed UTF-8 text, got {byte}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise row.bad(f"needed a JSON object, got malformed JSON ({error})") from None
    if not isinstance(value, dict):
        raise row.bad(f"needed a JSON object, got {kind(value)}")
    return value


def _check(row: Row, columns: Mapping[str, Collection[type]]) -> None:
    for name, types in columns.items():
        if name not in row.values:
            came = [f'"{printable(key, LONGEST_NAME)}"' for key in list(row.values)[:COLUMNS_SHOWN]]
            more = ", …" if len(row.values) > COLUMNS_SHOWN else ""
            raise row.bad(f'needed the column "{name}", got {", ".join(came) or "none"}{more}')
        if type(row.values[name]) not in types:
            needed = " or ".join(NAMES[t] for t in types)
            raise row.bad(f'column "{name}": needed {needed}, got {kind(row.values[name])}')
