"""A file is the old one or the new one, and a full disk is explained."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import durable
from runtime.durable import full_disk_explained, publish_folder, retire_folder, write_file
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
    assert of_file.endswith(" GB free); free some space and start again")
    assert of_log.startswith(f"{tmp_path / 'log'}: the disk is full")
    assert rest == "b'old' 2 2"


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), full_disk_explained(tmp_path):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(RunFailed, match="disk is full"), full_disk_explained(tmp_path / "new"):
        raise OSError(28, "No space left on device")


def test_a_folder_is_published_and_retired_by_name(tmp_path):
    aside, target = tmp_path / ".aside", tmp_path / "target"
    aside.mkdir()
    (aside / "file").write_text("x")
    publish_folder(aside, target)
    assert (target / "file").read_text() == "x" and not aside.exists()
    retire_folder(target)
    assert list(tmp_path.iterdir()) == []
