"""Kinds are found by the class of their settings, in every file of a package, at the first question."""

import sys
from pathlib import Path

import pytest

from runtime.registry import Registry

FILE = """
from runtime.registry import Registry
from kinds_of_a_test import KINDS
class Settings: pass
KINDS.add(Settings, {answer!r})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    folder = tmp_path / "kinds_of_a_test"
    folder.mkdir()
    source = 'from runtime.registry import Registry\nKINDS = Registry("kinds_of_a_test")\n'
    (folder / "__init__.py").write_text(source)
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text(FILE.format(answer=name))
    monkeypatch.syspath_prepend(tmp_path)
    import kinds_of_a_test  # type: ignore[import-not-found]

    yield kinds_of_a_test
    for name in [name for name in sys.modules if name.startswith("kinds_of_a_test")]:
        del sys.modules[name]


def test_a_file_in_the_package_is_all_that_a_kind_needs(package):
    assert "kinds_of_a_test.one" not in sys.modules  # naming the registry imports nothing
    with pytest.raises(LookupError, match="no file there adds int, only Settings, Settings"):
        package.KINDS.of(3)
    for name in ("one", "two"):
        settings = sys.modules[f"kinds_of_a_test.{name}"].Settings()
        assert package.KINDS.of(settings) == name


def test_a_kind_can_be_added_from_elsewhere(package):
    package.KINDS.add(bytes, "from outside")
    assert package.KINDS.of(b"") == "from outside"


def test_the_same_settings_are_never_two_kinds():
    registry = Registry[str]("tests")
    registry.add(int, "one")
    registry.add(int, "one")
    with pytest.raises(ValueError, match="tests: two kinds for int"):
        registry.add(int, "two")


def test_a_kind_that_is_added_for_a_while_is_forgotten_behind_it(package):
    with package.KINDS.temporarily(int, "for a while"):
        assert package.KINDS.of(3) == "for a while"
        with (
            pytest.raises(ValueError, match="two kinds for int"),
            package.KINDS.temporarily(int, "another"),
        ):
            pass
        assert package.KINDS.of(3) == "for a while"
    with pytest.raises(LookupError, match="no file there adds int"):
        package.KINDS.of(3)
