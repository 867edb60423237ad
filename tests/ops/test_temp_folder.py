"""Where a run's sockets are: a folder that no other user owns, can write into, or has put a link to."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from ops import temp_folder as module
from ops.temp_folder import NO_PROCESS, OWNER, remove, temp_folder
from tests.ops.another_user import UID, as_another_user, needs_root

LONG = "x" * 60


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A stand-in for /tmp, with a short path, and a home whose own path is too long for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="pip", dir="/tmp"))
    folder.chmod(0o1777)
    monkeypatch.setattr(module, "SHORT_PARENT", str(folder), raising=False)
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / LONG))
    yield folder
    shutil.rmtree(folder)


def usual(short: Path) -> Path:
    return short / f"pippin-{os.getuid()}"


def assert_private(folder: Path) -> None:
    found = folder.lstat()
    assert stat.S_ISDIR(found.st_mode)
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o700)


def assert_random(folder: Path, short: Path) -> None:
    """Ray opens its folder to all, so the folder above must be private."""
    assert folder.parent.parent == short and folder.parent != usual(short)
    assert_private(folder.parent)


def test_it_is_ours_alone_and_so_is_the_folder_above(short):
    folder = temp_folder()
    assert folder.parent == usual(short)
    assert_private(folder)
    assert_private(folder.parent)


def test_one_of_ours_that_was_left_open_is_closed(short):
    usual(short).mkdir()
    usual(short).chmod(0o777)
    assert temp_folder().parent == usual(short)
    assert_private(usual(short))


def test_a_link_in_its_place_is_not_followed(short, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    usual(short).symlink_to(tmp_path / "elsewhere")
    folder = temp_folder()
    assert_random(folder, short)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_in_its_place_is_no_obstacle(short):
    usual(short).touch()
    folder = temp_folder()
    assert_random(folder, short)
    remove(folder)
    assert list(short.iterdir()) == [usual(short)]


def test_a_random_one_whose_launcher_is_dead_is_cleared_away(short):
    usual(short).touch()
    dead, alive = temp_folder(), temp_folder()
    (dead / OWNER).write_text(str(NO_PROCESS))
    after = temp_folder()
    assert not dead.parent.exists() and alive.exists() and after.exists()


@needs_root
def test_a_folder_that_another_user_has_made_first_is_not_entered(monkeypatch):
    """The real /tmp: somebody has taken the name that a second user's runs would have."""
    taken = Path(f"/tmp/pippin-{UID}")
    taken.mkdir()
    taken.chmod(0o777)
    monkeypatch.setenv("PIPPIN_HOME", f"/tmp/{LONG}")
    folder = taken
    try:
        folder = Path(as_another_user(lambda: str(temp_folder())))
        assert list(taken.iterdir()) == []
        above = folder.parent
        assert above.parent == Path("/tmp") and above != taken and above.lstat().st_uid == UID
        assert stat.S_IMODE(above.lstat().st_mode) == 0o700
    finally:
        for made in (folder.parent if folder != taken else folder, taken, Path(f"/tmp/{LONG}")):
            shutil.rmtree(made, ignore_errors=True)


@needs_root
def test_a_home_that_is_another_users_is_not_entered(short, monkeypatch):
    home = short / "h"
    (home / "r").mkdir(parents=True)
    os.chown(home / "r", UID, UID)
    monkeypatch.setenv("PIPPIN_HOME", str(home))
    assert temp_folder().parent == usual(short)
    assert list((home / "r").iterdir()) == []
