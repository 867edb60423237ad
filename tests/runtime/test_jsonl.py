"""Every mistake in a JSONL file gives one sentence with file and line."""

from pathlib import Path

import pytest

from runtime.errors import BadInput
from runtime.jsonl import read_rows

TEXT = {"q": (str,)}


def written(folder: Path, content: bytes) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    return path


def complaint(path: Path, columns: dict = TEXT) -> str:
    with pytest.raises(BadInput) as caught:
        read_rows(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_rows_come_in_order_with_their_lines(tmp_path):
    rows = read_rows(written(tmp_path, b'{"q": "a"}\n\n  \n{"q": "b", "n": 1}\n'), TEXT)
    assert [(row.line, row.values) for row in rows] == [
        (1, {"q": "a"}),
        (4, {"q": "b", "n": 1}),
    ]


def test_a_byte_order_mark_crlf_and_a_missing_last_newline_are_tolerated(tmp_path):
    rows = read_rows(written(tmp_path, b'\xef\xbb\xbf{"q": "a"}\r\n\r\n{"q": "b"}'), TEXT)
    assert [row.values["q"] for row in rows] == ["a", "b"]


def test_a_line_separator_within_a_string_does_not_end_the_row(tmp_path):
    rows = read_rows(written(tmp_path, '{"q": "a\u2028b"}\n'.encode()), TEXT)
    assert rows[0].values["q"] == "a\u2028b"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ["empty file"]),
        (b"\n \r\n", ["empty file"]),
        (b'{"q": "a"}\n{"q": ', ["line 2", "malformed JSON"]),
        (b'{"q": NaN}', ["line 1", "malformed JSON"]),
        (b"[" * 100_000, ["line 1", "malformed JSON"]),
        (b'{"q": "a"}\n["q"]', ["line 2", "needed a JSON object, got a list"]),
        (b'\n{"q": "\xff"}', ["line 2", "needed UTF-8", "0xff at position 8"]),
        ('{"q": "a"}'.encode("utf-16"), ["line 1", "needed UTF-8"]),
        (b'{"p": 1, "r": 2}', ["line 1", 'needed the column "q", got "p", "r"']),
        (b"{}", ["line 1", 'needed the column "q", got none']),
        (b'{"q": 3}', ['column "q": needed a string, got a whole number']),
        (b'{"q": true}', ['column "q": needed a string, got true or false']),
        (b'{"q": null}', ['column "q": needed a string, got null']),
    ],
)
def test_a_bad_file_names_the_line_what_was_needed_and_what_came(tmp_path, content, said):
    message = complaint(written(tmp_path, content))
    for part in said:
        assert part in message


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path):
    assert "nothing of that name" in complaint(tmp_path / "none.jsonl")
    assert "got a directory" in complaint(tmp_path)


def test_a_name_that_no_file_can_have_is_bad_input():
    with pytest.raises(BadInput, match="null"):
        read_rows("a\0b", TEXT)


def test_an_unreadable_file_says_why(tmp_path, monkeypatch):
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)  # root may read everything
    assert "could not read it: Permission denied" in complaint(tmp_path / "rows.jsonl")


def test_a_column_may_have_one_of_several_types(tmp_path):
    columns = {"q": (str, list)}
    assert read_rows(written(tmp_path, b'{"q": []}'), columns)[0].values == {"q": []}
    message = complaint(written(tmp_path, b'{"q": {}}'), columns)
    assert "needed a string or a list, got an object" in message
