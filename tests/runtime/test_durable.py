"""Writing a file leaves the old content or the new one, and a full disk is one clear sentence."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import durable, failpoints
from runtime.durable import GO_ON, full_disk_explained, publish_folder, retire_folder, write_file
from runtime.errors import RunFailed

ROOT = Path(__file__).parents[2]
LIMITED = """
import resource, signal, sys
from pathlib import Path
from runtime.durable import write_file
from runtime.errors import RunFailed
from runtime.journal import Journal, records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
journal = Journal(folder / "log")
journal.append(b"x" * 1000)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
def attempt(work):
    try:
        work()
    except RunFailed as error:
        print(error)
attempt(lambda: write_file(folder / "file", b"n" * 10_000))
attempt(lambda: journal.append(b"y" * 10_000))
journal.append(b"z")
print((folder / "file").read_bytes()[:3], len(list(records(folder / "log"))), len(list(folder.iterdir())))
"""


def test_write_file_replaces_the_whole_content(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"a long first content")
    write_file(path, b"short")
    write_file(path, b"", durable=False)
    write_file(path, b"end", durable=False)
    assert path.read_bytes() == b"end"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["write_bytes", "sync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_file(path, b"old")

    def broken(*_):
        raise OSError(5, "Input/output error")

    place = {"write_bytes": Path, "sync": durable, "replace": os}[step]
    monkeypatch.setattr(place, step, broken)
    with pytest.raises(OSError):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_reader_sees_one_content_or_the_other_while_the_writer_is_killed(tmp_path):
    path = tmp_path / "file"
    contents = [b"a" * 200_000, b"b" * 100_000]
    write_file(path, contents[0])
    code = (
        "import sys; from pathlib import Path; from runtime.durable import write_file\n"
        "while True:\n"
        "    write_file(Path(sys.argv[1]), b'b' * 100_000, durable=False)\n"
        "    write_file(Path(sys.argv[1]), b'a' * 200_000, durable=False)\n"
    )
    for seconds in (0.15, 0.2, 0.25):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert path.read_bytes() in contents
        writer.kill()
        writer.wait()
        assert path.read_bytes() in contents


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path):
    """A limit on the file size stands in for a full disk: the kernel refuses the same way."""
    write_file(tmp_path / "file", b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    of_file, of_log, rest = done.stdout.splitlines()
    assert of_file.startswith(f"{tmp_path / 'file'}: the disk is full (")
    assert of_file.endswith(f" GB free): free at least 0.07 GB, then go on: {GO_ON}")
    assert of_log.startswith(f"{tmp_path / 'log'}: the disk is full")
    assert rest == "b'old' 2 2"


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), full_disk_explained(tmp_path):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(
    ("free", "need", "sentence"),
    [
        (10_000_000, 500_000_000, "(0.01 GB free): free at least 0.56 GB,"),
        (0, 0, "(0.00 GB free): free at least 0.07 GB,"),
        (300_000_000, 300_000_001, "(0.30 GB free): free at least 0.07 GB,"),
        (9_000_000_000, 500_000_000, "(9.00 GB free): free at least 0.57 GB,"),  # a quota
    ],
)
def test_a_full_disk_says_how_much_to_free(tmp_path, monkeypatch, number, free, need, sentence):
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    path = tmp_path / "not" / "there"
    for need_bytes in (need, lambda: need):
        with pytest.raises(RunFailed) as caught, full_disk_explained(path, need_bytes):
            raise OSError(number, os.strerror(number))
        expected = f"{path}: the disk is full {sentence} then go on: {GO_ON}"
        assert str(caught.value) == expected


def test_what_a_failed_sync_left_is_never_trusted(tmp_path, monkeypatch):
    """The kernel marks the pages clean and calls the next sync of the same file a success."""
    path, real = tmp_path / "file", os.fsync
    path.write_bytes(b"perhaps lost")

    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        durable.sync(path)
    monkeypatch.setattr(os, "fsync", real)
    for name in (path, tmp_path / "link"):
        if name != path:
            os.link(path, name)
        with pytest.raises(OSError, match="an earlier sync of it failed"):
            durable.sync(name)
    write_file(tmp_path / "other", b"anew")
    durable._unsure.clear()


def test_a_signal_handler_may_write_the_file_that_is_being_written(tmp_path):
    path = tmp_path / "pause.json"
    failpoints.arm(failpoints.Plan("file.before_rename", 1, lambda: write_file(path, b"inner")))
    try:
        write_file(path, b"outer")
    finally:
        failpoints.disarm()
    assert path.read_bytes() == b"outer"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_files_of_a_dead_writer_are_cleared_and_those_of_a_running_one_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = {f".status.json.{dead.pid}", f".status.json.{os.getpid()}", ".hidden.txt", ".x.١", "a.1"}
    for name in left:
        (tmp_path / name).touch()
    durable.clear_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == left - {f".status.json.{dead.pid}"}


def test_a_folder_is_published_and_retired_by_name(tmp_path):
    aside, target = tmp_path / ".aside", tmp_path / "target"
    aside.mkdir()
    (aside / "file").write_text("x")
    publish_folder(aside, target)
    assert (target / "file").read_text() == "x" and not aside.exists()
    retire_folder(target)
    assert list(tmp_path.iterdir()) == []
