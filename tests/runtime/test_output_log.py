"""What a user's code prints is kept in bounds: the beginning and end of a call, in a log that rotates."""

from runtime.output_log import FIRST_BYTES, LARGEST_LOG_BYTES, LAST_BYTES, OutputLog


def test_a_call_that_prints_little_is_kept_whole(tmp_path):
    log = OutputLog(tmp_path / "reward-0.log")
    log.take(b"half a ")
    log.take("lïne\n".encode())
    log.end_call()
    log.end_call()
    log.take(b"no newline")
    log.end_call()
    assert (tmp_path / "reward-0.log").read_text() == "half a lïne\nno newline\n"


def test_of_a_call_that_prints_much_the_first_and_last_bytes_are_kept_and_the_rest_is_counted(
    tmp_path,
):
    log = OutputLog(tmp_path / "log")
    log.take(b"first\n")
    for _ in range(1000):
        log.take(b"x" * 65536)
    log.take(b"\nlast\n")
    log.end_call()
    text = (tmp_path / "log").read_text()
    left_out = 6 + 65536 * 1000 + 6 - FIRST_BYTES - LAST_BYTES
    assert text.startswith("first\nxxx")
    assert text.endswith("xxx\nlast\n")
    assert f"\n… {left_out:,} bytes left out …\n" in text
    assert len(text) < FIRST_BYTES + LAST_BYTES + 100


def test_the_log_rotates_once_and_never_grows_beyond_two_files(tmp_path):
    log = OutputLog(tmp_path / "log")
    for number in range(600):
        log.take(b"%d\n" % number + b"y" * 20_000)
        log.end_call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    for path in tmp_path.iterdir():
        assert 0 < path.stat().st_size <= LARGEST_LOG_BYTES
    assert "\n599\n" in (tmp_path / "log").read_text()


def test_what_is_printed_cannot_steer_the_terminal_of_a_person_that_reads_the_log(tmp_path):
    log = OutputLog(tmp_path / "log")
    log.take(b"\x1b[2Jred\xff\r\n\xe2\x80\xae\n")
    log.end_call()
    assert (tmp_path / "log").read_text() == "\\x1b[2Jred\ufffd\\r\n\\u202e\n"


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    log = OutputLog(tmp_path / "no folder" / "log")
    log.take(b"x")
    log.end_call()
    OutputLog(None).end_call()
    assert list(tmp_path.iterdir()) == []
