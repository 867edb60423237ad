"""The teacher cache gives back what was stored, keeps within its size, and survives processes that die."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from runtime.errors import BadInput
from runtime.teacher_cache import TeacherCache, entry_key

ROOT = Path(__file__).parents[2]
SETTINGS = {"top_k": 4, "temperature": 1.0}


def batch(number: int, values: int = 100) -> pa.RecordBatch:
    ids = np.arange(values, dtype=np.int32) + number
    return pa.record_batch({"ids": ids, "logprobs": (ids / 7).astype(np.float16)})


def key(number: int) -> str:
    return entry_key("a" * 64, [number, 2, 3], SETTINGS)


def cache(folder: Path, limit_bytes: int = 10**6) -> TeacherCache:
    return TeacherCache(limit_bytes=limit_bytes, folder=folder)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*"))


def test_what_was_put_is_got_back_and_what_was_not_is_missed(tmp_path):
    store = cache(tmp_path)
    assert store.get(key(1)) is None
    assert store.put(key(1), batch(1))
    assert store.get(key(1)).equals(batch(1))  # type: ignore[union-attr]
    assert store.get(key(2)) is None
    found = store.counts
    assert (found.hits, found.misses, found.damaged, found.stored) == (1, 2, 0, 1)


def test_another_run_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path))
    TeacherCache(limit_bytes=10**6).put(key(1), batch(1))
    assert TeacherCache(limit_bytes=10**6).get(key(1)) is not None
    assert (tmp_path / "teacher-cache").stat().st_mode & 0o077 == 0


def test_a_key_is_teacher_tokens_and_settings():
    settings = {"top_k": 4, "name": "x", "tail": True, "seed": None}
    one = entry_key("a", [1, 2], settings)
    assert one == entry_key("a", np.array([1, 2], np.int32), dict(reversed(settings.items())))
    others = [
        entry_key("b", [1, 2], settings),
        entry_key("a", [2, 1], settings),
        entry_key("a", [1, 2, 0], settings),
        entry_key("a", [], settings),
        entry_key("a", [1, 2], settings | {"top_k": 5}),
        entry_key("a", [1, 2], settings | {"top_k": "4"}),
        entry_key("a", [1, 2], settings | {"tail": None}),
    ]
    assert len({one, *others}) == 8 and all(len(k) == 64 for k in others)


def test_the_second_put_of_a_key_costs_nothing(tmp_path):
    store = cache(tmp_path)
    store.put(key(1), batch(1))
    (path,) = entries(tmp_path)
    before = path.stat().st_ino
    assert store.put(key(1), batch(1))
    assert path.stat().st_ino == before and store.counts.stored == 1


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "another", "header"])
def test_a_damaged_entry_is_a_miss_and_is_stored_anew(tmp_path, damage):
    store = cache(tmp_path)
    store.put(key(1), batch(1))
    (path,) = entries(tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2
    store.put(key(2), batch(2))
    (other,) = set(entries(tmp_path)) - {path}
    path.write_bytes(
        {
            "torn": content[:-1],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
            "another": other.read_bytes(),
            "header": b"x" + content[1:],
        }[damage]
    )
    assert store.get(key(1)) is None
    assert (store.counts.misses, store.counts.damaged) == (1, 1)
    assert not path.exists()
    assert store.put(key(1), batch(1))
    assert store.get(key(1)).equals(batch(1))  # type: ignore[union-attr]


def test_what_was_used_longest_ago_goes_first_and_the_bound_holds(tmp_path):
    store = cache(tmp_path)
    store.put(key(0), batch(0))
    size = store.bytes
    store = cache(tmp_path, limit_bytes=10 * size)
    for number in range(1, 10):
        store.put(key(number), batch(number))
        os.utime(store._path(key(number)), ns=(number, number))
    os.utime(store._path(key(0)), ns=(0, 0))
    assert store.counts.evicted == 0 and store.bytes == 10 * size
    assert store.get(key(0)) is not None  # used now: not the first to go any more
    store.put(key(10), batch(10))
    left = [number for number in range(11) if store._path(key(number)).exists()]
    assert left == [0, 3, 4, 5, 6, 7, 8, 9, 10]
    assert store.counts.evicted == 2
    assert store.bytes == sum(p.stat().st_size for p in entries(tmp_path)) <= 10 * size


def test_a_smaller_limit_holds_from_the_start(tmp_path):
    store = cache(tmp_path)
    for number in range(10):
        store.put(key(number), batch(number))
    smaller = cache(tmp_path, limit_bytes=store.bytes // 2)
    assert len(entries(tmp_path)) == 5 and smaller.bytes <= store.bytes


def test_an_entry_larger_than_the_cache_is_refused_and_counted(tmp_path):
    store = cache(tmp_path, limit_bytes=2000)
    store.put(key(1), batch(1))
    assert not store.put(key(2), batch(2, values=10_000))
    assert store.counts.refused == 1 and store.get(key(1)) is not None


def test_a_disk_that_takes_no_more_ends_no_run(tmp_path, monkeypatch):
    store = cache(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.teacher_cache.write_file", full)
    assert not store.put(key(1), batch(1))
    assert store.counts.refused == 1 and store.get(key(1)) is None


def test_what_a_dead_process_left_behind_is_cleared_away(tmp_path):
    store = cache(tmp_path)
    store.put(key(1), batch(1))
    (path,) = entries(tmp_path)
    aside = path.with_name(f".{path.name}.12345")
    aside.write_bytes(b"half")
    (tmp_path / "size").write_bytes(b"not a number")
    assert store.put(key(2), batch(2))
    again = cache(tmp_path)
    assert not aside.exists()
    assert again.bytes == sum(p.stat().st_size for p in entries(tmp_path))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_cache_has_room(tmp_path, limit):
    with pytest.raises(ValueError, match="limit_bytes: needed a number above 0"):
        cache(tmp_path, limit_bytes=limit)


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="needed a folder for the teacher cache"):
        cache(tmp_path / "file" / "below")


WORKER = """
import sys
from pathlib import Path
from tests.runtime.test_teacher_cache import batch, cache, key
store = cache(Path(sys.argv[1]), int(sys.argv[2]))
for turn in range(3):
    for number in range(40):
        found = store.get(key(number))
        assert found is None or found.equals(batch(number)), number
        store.put(key(number), batch(number))
assert store.counts.damaged == 0 and store.counts.refused == 0, store.counts
"""


def test_processes_and_threads_share_it_within_its_bound(tmp_path):
    limit = 20 * 1500
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(limit)], cwd=ROOT)
        for _ in range(3)
    ]
    store, broken = cache(tmp_path, limit), []

    def use(start: int) -> None:
        for number in range(start, start + 60):
            found = store.get(key(number % 40))
            if found is not None and not found.equals(batch(number % 40)):
                broken.append(number)
            store.put(key(number % 40), batch(number % 40))

    threads = [threading.Thread(target=use, args=(start,)) for start in (0, 13, 26)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert broken == [] and store.counts.damaged == 0
    size = sum(path.stat().st_size for path in entries(tmp_path))
    assert 0 < size <= limit and store.bytes == size
    assert not [path for path in entries(tmp_path) if path.name.startswith(".")]


KILLED = """
import os, sys
from pathlib import Path
import runtime.durable
from tests.runtime.test_teacher_cache import batch, cache, key
store = cache(Path(sys.argv[1]))
store.put(key(1), batch(1))
os.replace = lambda *_: os._exit(9)
store.put(key(2), batch(2))
"""


def test_a_death_between_writing_and_renaming_loses_that_entry_alone(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    assert done.returncode == 9
    assert any(path.name.startswith(".") for path in entries(tmp_path))
    store = cache(tmp_path)
    assert store.get(key(1)) is not None and store.get(key(2)) is None
    assert store.counts.damaged == 0
    assert store.bytes == sum(path.stat().st_size for path in entries(tmp_path))
    assert store.put(key(2), batch(2))
