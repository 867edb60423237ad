"""Pippin's home is its owner's alone, also one that an earlier version left open."""

import stat
from pathlib import Path

import pytest

from ops.cli import main
from runtime.home import is_private, private_folder, tighten, tighten_home
from runtime.lease import Lease
from runtime.teacher_cache import TeacherCache


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def default_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PIPPIN_HOME", raising=False)
    return tmp_path / ".pippin"


def test_every_folder_that_is_made_is_private_and_those_above_stay(tmp_path):
    tmp_path.chmod(0o755)
    assert private_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b"), mode(tmp_path)] == [
        0o700,
        0o700,
        0o755,
    ]
    assert private_folder(tmp_path) == tmp_path


def test_who_comes_first_makes_the_home_private(default_home):
    Lease(default_home / "gpu", 1)
    TeacherCache(limit_bytes=1 << 20)
    assert [mode(path) for path in (default_home, *default_home.iterdir())] == [0o700] * 3


def test_an_open_home_is_closed_with_a_sentence(default_home, capsys, tmp_path):
    default_home.mkdir()
    default_home.chmod(0o755)
    assert main(["runs", "--root", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().err == (
        f"note: {default_home} was open to other users (mode 755); it is its owner's alone now\n"
    )
    assert is_private(default_home)
    assert main(["runs", "--root", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().err == ""


def test_no_home_is_made_only_to_be_closed(default_home):
    assert tighten_home() == "" and not default_home.exists()


def test_a_folder_that_the_caller_chose_as_home_stays_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen").chmod(0o755)
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "chosen"))
    assert tighten_home() == "" and mode(tmp_path / "chosen") == 0o755


def test_a_link_is_no_private_folder(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert is_private(tmp_path / "real") and not is_private(tmp_path / "link")


def test_a_run_folder_that_an_earlier_version_left_open_can_be_closed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    assert tighten(tmp_path / "run").startswith(f"{tmp_path / 'run'} was open to other users")
    assert is_private(tmp_path / "run") and tighten(tmp_path / "run") == ""
    (tmp_path / "file").touch(0o644)
    assert tighten(tmp_path / "file") == tighten(tmp_path / "none") == ""
