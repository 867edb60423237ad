"""Only the end of a file is read, however large it is."""

import tracemalloc

import pytest

from runtime.file_tail import last_lines, tail


def test_a_small_file_is_read_whole_and_a_large_one_from_a_lines_start(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    assert tail(path) == b"one\ntwo\nthree\n"
    assert tail(path, limit_bytes=8) == b"three\n"
    assert tail(path, since=4) == b"two\nthree\n"
    assert tail(path, since=99) == b""
    assert last_lines(path, 2) == ["two", "three"]
    assert last_lines(path, 0) == []


def test_of_a_line_longer_than_the_limit_the_end_is_given(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100)
    assert tail(path, limit_bytes=10) == b"x" * 10


def test_four_gigabytes_take_no_memory(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(4 << 30)  # sparse
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    tracemalloc.start()
    try:
        assert last_lines(path, 1) == ["the end"]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        tail(tmp_path / "none")
