"""The journal gives back whole records, whatever byte a crash stopped at, and never skips damage."""

from itertools import pairwise

import pytest

from runtime import failpoints
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


def test_damage_in_the_middle_is_reported_at_every_bit(path):
    whole, last = path.read_bytes(), boundaries()[-2]
    for bit in range(8 * last):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
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


def frames(path) -> list[bytes]:
    whole = path.read_bytes()
    return [whole[a:b] for a, b in pairwise(boundaries())]


@pytest.mark.parametrize(
    ("order", "noticed_at"),
    [
        ([1, 2, 3, 4], 0), ([0, 2, 3, 4], 1), ([0, 1, 2, 4], 3),  # lost
        ([0, 0, 1, 2, 3, 4], 1), ([0, 1, 2, 3, 4, 4], 5), ([0, 1, 2, 3, 4, 2], 5),  # repeated
        ([1, 0, 2, 3, 4], 0), ([0, 1, 2, 4, 3], 3), ([4, 3, 2, 1, 0], 0),  # out of place
    ],
)  # fmt: skip
def test_whole_records_that_are_lost_repeated_or_out_of_place_are_noticed(path, order, noticed_at):
    all_frames = frames(path)
    path.write_bytes(b"".join(all_frames[i] for i in order))
    at = sum(len(all_frames[i]) for i in order[:noticed_at])
    sentence = f"log: the record at byte {at} does not follow the one before it"
    with pytest.raises(Damaged, match=sentence):
        list(records(path))
    for keep in (None, path.stat().st_size):
        with pytest.raises(Damaged, match=sentence):
            Journal(path, keep)


def test_records_of_another_journal_are_noticed_even_if_they_say_the_same(path, tmp_path):
    other = Journal(tmp_path / "other")
    other.append(b"another start")
    start = other.size
    for payload in PAYLOADS[1:]:
        other.append(payload)
    other.close()
    tail = (tmp_path / "other").read_bytes()[start:]
    assert len(tail) == boundaries()[-1] - boundaries()[1]
    path.write_bytes(path.read_bytes()[: boundaries()[1]] + tail)
    with pytest.raises(Damaged, match=f"byte {boundaries()[1]} does not follow"):
        list(records(path))


def test_opening_at_a_length_goes_back_and_appending_goes_on_from_there(path):
    journal = Journal(path, keep=boundaries()[3])
    journal.append(b"anew")
    journal.close()
    assert list(records(path)) == [*PAYLOADS[:3], b"anew"]
    journal = Journal(path, keep=0)
    journal.append(b"first of all")
    journal.close()
    assert list(records(path)) == [b"first of all"]


def test_damage_of_what_was_acknowledged_is_no_torn_tail_and_nothing_is_cut(path):
    whole = path.read_bytes()
    for keep, at in [
        (boundaries()[-1], boundaries()[-1] - 1),
        (boundaries()[-1] - 1, None),
        (3, None),
    ]:
        broken = bytearray(whole)
        if at is not None:
            broken[at] ^= 1
        path.write_bytes(broken)
        with pytest.raises(Damaged, match=r"the record at byte \d+ is damaged"):
            Journal(path, keep)
        assert path.read_bytes() == broken


def test_a_journal_of_another_history_is_not_gone_on_with(path):
    keep, whole = boundaries()[3], path.read_bytes()
    Journal(path, boundaries()[-1], PAYLOADS[-1][:3]).close()
    for beginning in (PAYLOADS[-1][:3], PAYLOADS[2] + b"!"):
        with pytest.raises(Damaged, match=f"before byte {keep} is of another history"):
            Journal(path, keep, beginning)
        with pytest.raises(Damaged, match="before byte 0"):
            Journal(path, 0, beginning)
    assert path.read_bytes() == whole
    Journal(path, keep, PAYLOADS[2]).close()
    assert list(records(path)) == PAYLOADS[:3]


def test_what_stops_an_append_half_way_leaves_no_half_record(path, tmp_path):
    journal, whole = Journal(path), path.read_bytes()
    for point in ("disk.write", "log.mid_record"):
        for nth in (1, 2) if point == "disk.write" else (1,):
            failpoints.arm(failpoints.Plan(point=point, nth=nth, action="raise"))
            with pytest.raises(failpoints.Injected):
                journal.append(b"torn")
            failpoints.disarm()
            assert path.read_bytes() == whole
    journal.append(b"after it")
    journal.close()
    assert list(records(path)) == [*PAYLOADS, b"after it"]


def test_half_of_a_record_is_there_in_its_middle(path):
    journal, seen = Journal(path), []
    before = path.stat().st_size
    look = failpoints.Plan(
        point="log.mid_record", nth=1, action=lambda: seen.append(path.stat().st_size - before)
    )
    failpoints.arm(look)
    try:
        whole = journal.append(b"x" * 1000) - before
    finally:
        failpoints.disarm()
        journal.close()
    assert seen == [whole // 2]


def test_the_first_sync_makes_the_file_s_name_last_too(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("runtime.journal.sync", synced.append)
    journal = Journal(tmp_path / "log")
    for _ in range(2):
        journal.append(b"x")
        journal.sync()
    journal.close()
    assert synced == [tmp_path / "log", tmp_path, tmp_path / "log"]


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
