"""What was appended comes back whole, whatever byte a crash stopped at; damage is never skipped."""

import pytest

from runtime.errors import Damaged
from runtime.journal import HEADER, MAGIC, Journal, records

PAYLOADS = [b"first", b"", b"PIPN in the text", bytes(range(256)), b"last one"]


@pytest.fixture
def path(tmp_path):
    journal = Journal(tmp_path / "log")
    for payload in PAYLOADS:
        journal.append(payload)
    journal.sync()
    journal.close()
    return tmp_path / "log"


def boundaries() -> list[int]:
    ends = [0]
    for payload in PAYLOADS:
        ends.append(ends[-1] + HEADER.size + len(payload))
    return ends


def test_records_come_back_in_order(path):
    assert list(records(path)) == PAYLOADS


def test_append_returns_the_offset_behind_the_record(tmp_path):
    journal = Journal(tmp_path / "log")
    assert [journal.append(p) for p in PAYLOADS] == boundaries()[1:]
    assert journal.size == boundaries()[-1] == (tmp_path / "log").stat().st_size


def test_a_missing_or_empty_file_has_no_records(tmp_path):
    assert list(records(tmp_path / "none")) == []
    (tmp_path / "empty").touch()
    assert list(records(tmp_path / "empty")) == []


def test_a_torn_tail_is_cut_at_every_byte_and_all_before_it_survives(path):
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = sum(end <= length for end in boundaries()[1:])
        assert list(records(path)) == PAYLOADS[:kept]
        journal = Journal(path)
        assert journal.size == boundaries()[kept]
        journal.append(b"after the crash")
        journal.close()
        assert list(records(path)) == [*PAYLOADS[:kept], b"after the crash"]


def test_a_tail_of_zeros_or_of_noise_is_cut(path):
    # A file system may have made the file longer without the data having arrived.
    whole = path.read_bytes()
    for tail in (bytes(50), MAGIC, MAGIC + b"\xff" * 20, b"noise" * 9):
        path.write_bytes(whole + tail)
        assert list(records(path)) == PAYLOADS
        Journal(path).close()
        assert path.read_bytes() == whole


def test_damage_in_the_middle_is_reported_at_every_byte(path):
    whole, last = path.read_bytes(), boundaries()[-2]
    for at in range(last):
        broken = bytearray(whole)
        broken[at] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(Damaged, match=r"log: the record at byte \d+ is damaged"):
            list(records(path))
        with pytest.raises(Damaged):
            Journal(path)
        assert path.read_bytes() == broken  # nothing is cut where something was lost


def test_records_before_the_damage_are_still_given(path):
    broken = bytearray(path.read_bytes())
    broken[boundaries()[2] + HEADER.size] ^= 1
    path.write_bytes(broken)
    given = []
    with pytest.raises(Damaged, match=f"byte {boundaries()[2]}"):
        for record in records(path):
            given.append(record)
    assert given == PAYLOADS[:2]


def test_cut_goes_back_and_appending_goes_on_from_there(path):
    journal = Journal(path)
    journal.cut(boundaries()[3])
    journal.append(b"anew")
    journal.cut(journal.size)
    journal.close()
    assert list(records(path)) == [*PAYLOADS[:3], b"anew"]


def test_cut_refuses_what_is_not_there(path):
    journal = Journal(path)
    with pytest.raises(Damaged, match="needs at least"):
        journal.cut(journal.size + 1)
    assert list(records(path)) == PAYLOADS
    journal.cut(0)
    assert list(records(path)) == []


def test_what_was_never_acknowledged_is_dropped_unread(tmp_path):
    path = tmp_path / "log"
    journal = Journal(path)
    kept = journal.append(b"one")
    journal.append(b"two" * 50)
    journal.append(b"three")
    journal.close()
    content = bytearray(path.read_bytes())
    content[kept + 20] ^= 1  # damage behind what a checkpoint knows, with a whole record after it
    path.write_bytes(content)
    with pytest.raises(Damaged):
        Journal(path)
    assert Journal(path, keep=kept).size == kept
    assert list(records(path)) == [b"one"]
    with pytest.raises(Damaged, match=f"needs at least {kept + 1} bytes, has {kept}"):
        Journal(path, keep=kept + 1)
