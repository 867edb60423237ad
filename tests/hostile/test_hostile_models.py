"""Each hostile checkpoint gives one clear sentence or works: no traceback, no hang, no flood."""

import contextlib
import re
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from configs.schema import Settings
from ops import preflight
from ops.check import find_network
from runtime import template_process
from runtime.checkpoint_copy import copy_small_files
from runtime.errors import BadInput
from tests.hostile.models import attacks, write_good

SECRET = "-----BEGIN PRIVATE KEY----- 8c1f"
LIMIT_S = 20
MEMORY_KB = 1_500_000
ATTACKS = attacks()
MUST_FAIL = [name for name in ATTACKS if "pipe" in name or "/dev/zero" in name or "NaN" in name]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write_good(tmp_path_factory.mktemp("good") / "model")
    template_process.close()


@pytest.fixture
def model(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPPIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(preflight, "ENDLESS_CHECKED", 4)
    monkeypatch.setattr(preflight, "end_helpers", lambda: None)
    monkeypatch.setattr(template_process, "RENDER_S", 1.0)
    (tmp_path / "key").write_text(SECRET)
    return Path(shutil.copytree(good, tmp_path / "model"))


class Late(BaseException):
    """Passes through every `except Exception`, and so fails the test wherever the time is up."""


def data_bytes() -> int:
    """Returns the memory that RLIMIT_DATA counts, which Linux enforces; 0 elsewhere."""
    status = Path("/proc/self/status")
    found = re.search(r"VmData:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) << 10 if found else 0


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes too long, and refuses memory to what takes too much: never the whole machine's."""

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if held := data_bytes():
        resource.setrlimit(resource.RLIMIT_DATA, (held + 1024 * MEMORY_KB, hard))
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.signal(signal.SIGALRM, before)
    unit = 1024 if sys.platform == "darwin" else 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit < MEMORY_KB


def launch_checks(folder: Path) -> None:
    raw = {
        "model": {"path": str(folder)},
        "task": {"name": "addition"},
        "algorithm": {"name": "grpo", "steps": 1, "prompts_per_step": 2, "group_size": 2},
        "sampling": {"max_new_tokens": 4},
        "eval": {"prompts": 0},
    }
    preflight.check_run(msgspec.convert(raw, Settings), folder.parent)


def complaint(act, folder: Path) -> str:
    """The sentence that comes of it; "" if it works."""
    try:
        with bounded():
            act(folder)
    except BadInput as error:
        sentence = str(error)
        assert "\n" not in sentence
        assert len(sentence) < 1_000
        assert SECRET not in sentence
        assert sentence.isprintable(), sentence
        return sentence
    return ""


@pytest.mark.skipif(not data_bytes(), reason="the limit is Linux's")
def test_memory_that_a_checkpoint_asks_for_is_refused_before_it_is_the_machine_s() -> None:
    with pytest.raises(MemoryError), bounded():
        bytearray(2 * 1024 * MEMORY_KB)


def test_the_good_one_works(model: Path) -> None:
    assert complaint(launch_checks, model) == ""
    assert complaint(lambda folder: find_network(str(folder)), model) == ""


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_checkpoint_is_one_sentence_or_works(name: str, model: Path) -> None:
    ATTACKS[name](model)
    checked = complaint(lambda folder: find_network(str(folder)), model)
    launched = complaint(launch_checks, model)
    assert launched or not checked  # a launch refuses what `pippin check` refuses
    assert launched or name not in MUST_FAIL
    out = model.parent / "out"
    out.mkdir()
    complaint(lambda folder: copy_small_files(folder, out), model)
    copied = list(out.iterdir())
    assert all(path.is_file() and not path.is_symlink() for path in copied)
    assert sum(path.stat().st_size for path in copied) < 20 << 20
    assert not any(SECRET.encode() in path.read_bytes() for path in copied)
