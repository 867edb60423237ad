"""Rewards that mean ill: each call has its kind of outcome, nothing forged counts, nothing is left behind."""

import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

from runtime import killable
from runtime.errors import BadInput
from runtime.killable import marked
from runtime.output_log import LARGEST_LOG_BYTES
from runtime.reward_process import RewardCall, RewardProcess
from runtime.tasks.prompt import Verdict
from tests.runtime.hostile_completions import COMPLETIONS, IMPORTS
from tests.runtime.hostile_rewards import BODIES, MEMORY, Hostile

RUNS = """
def reward(prompt, completion, row):
    scope = {"__name__": "hostile"}
    exec(row["source"], scope)
    return scope["reward"](prompt, completion, row)
"""
EVALUATES = """
def reward(prompt, completion, row):
    scope = {"__name__": "completion", "answer": 1}
    exec(completion, scope)
    return float(scope["answer"] is row)
"""
FINE = "def reward(prompt, completion, row): return 1"
LIMIT_S, SHORT_LIMIT_S = 30.0, 0.6
MEMORY_BYTES = 700 << 20

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts processes in /proc")


class Ward:
    """A process for patient calls and one for calls that hang, both kept from test to test."""

    def __init__(self, folder: Path, source: str, **more) -> None:
        self.log = folder / "reward-0.log"
        self._path = folder / "reward.py"
        self._path.write_text(source)
        self._more = more
        self._processes: dict[bool, RewardProcess] = {}

    def call(self, hostile: Hostile, completion: str, source: str) -> Verdict:
        return self.process(hostile.quick).score(
            [RewardCall(prompt="p", completion=completion, row={"source": source})]
        )[0]

    def process(self, quick: bool) -> RewardProcess:
        if quick not in self._processes:
            limit_s = SHORT_LIMIT_S if quick else LIMIT_S
            self._processes[quick] = RewardProcess(self._path, limit_s, log=self.log, **self._more)
        return self._processes[quick]

    def close(self) -> None:
        for process in self._processes.values():
            process.close()
        self._processes.clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("runs"), RUNS)
    yield ward
    ward.close()


@pytest.fixture(scope="module")
def evaluates(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("evaluates"), EVALUATES)
    yield ward
    ward.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("small"), RUNS, memory_bytes=MEMORY_BYTES)
    yield ward
    ward.close()


def outcome(verdict: Verdict) -> object:
    """What a run records; the sentence is one printable line."""
    assert (verdict.reward is None) == (verdict.failure is not None)
    assert verdict.detail.isprintable() and len(verdict.detail) <= 400
    assert verdict.failure is None or verdict.detail
    return verdict.reward if verdict.failure is None else verdict.failure


def expected(hostile: Hostile) -> tuple:
    return hostile.outcome if isinstance(hostile.outcome, tuple) else (hostile.outcome,)


def source_of(hostile: Hostile) -> str:
    return f"def reward(prompt, completion, row):\n{textwrap.indent(hostile.body, '    ')}\n"


def named(hostile: Hostile) -> str:
    return ascii(hostile.name)[1:60]


def test_there_are_more_than_a_hundred():
    assert len({h.body for h in (*BODIES, *COMPLETIONS, *MEMORY, *IMPORTS)}) >= 130


@pytest.mark.parametrize("hostile", BODIES, ids=named)
def test_each_has_its_kind_of_outcome_and_the_next_call_is_judged(runs, hostile):
    assert outcome(runs.call(hostile, "c", source_of(hostile))) in expected(hostile)
    if hostile.stays:
        runs.close()
    assert outcome(runs.call(hostile, "c", FINE)) == 1.0


@pytest.mark.parametrize("hostile", COMPLETIONS, ids=named)
def test_an_evaluated_completion_never_gives_itself_a_reward(evaluates, hostile):
    first = outcome(evaluates.call(hostile, hostile.body, ""))
    assert first in expected(hostile)
    if hostile.stays:
        evaluates.close()
    assert outcome(evaluates.call(hostile, "", "")) == 0.0


@pytest.mark.parametrize("hostile", MEMORY, ids=named)
def test_memory_has_a_limit_and_a_kind_of_its_own(small, hostile):
    if hostile.name.startswith(("shared", "children")) and not Path("/proc").exists():
        pytest.skip("the looks use /proc here")
    assert outcome(small.call(hostile, "c", source_of(hostile))) in expected(hostile)
    assert outcome(small.call(hostile, "c", FINE)) == 1.0


@pytest.mark.parametrize("hostile", IMPORTS, ids=named)
def test_a_file_that_means_ill_when_it_is_imported_is_bad_input(tmp_path, hostile):
    path = tmp_path / "reward.py"
    path.write_text(hostile.body)
    with pytest.raises(BadInput) as caught:
        RewardProcess(path, timeout_s=5, start_timeout_s=30)
    assert hostile.outcome in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_they_all_printed_is_kept_in_bounds(runs):
    sizes = [path.stat().st_size for path in runs.log.parent.glob("reward-0.log*")]
    assert 0 < sum(sizes) <= 2 * LARGEST_LOG_BYTES
    text = "".join(path.read_text() for path in runs.log.parent.glob("reward-0.log*"))
    assert "bytes left out" in text
    assert "\x1b" not in text and "\u202e" not in text


@linux
def test_nothing_that_they_started_is_left(runs, evaluates, small):
    for ward in (runs, evaluates, small):
        ward.close()
    assert marked(killable.MARKER.encode()) == []
    assert not [p for p in commands() if "1000.5" in p]


def commands() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((folder / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return found


@linux
def test_a_guard_that_is_stopped_keeps_nothing_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(killable, "GUARD_ENDS_S", 0.3)
    path = tmp_path / "reward.py"
    path.write_text(
        "import os, time\ndef reward(p, c, r):\n    os.kill(os.getppid(), 19)\n    time.sleep(99)\n"
    )
    process = RewardProcess(path, timeout_s=0.5)
    assert process.score([RewardCall(prompt="", completion="", row={})])[0].failure == "timed_out"
    assert marked(killable.MARKER.encode()) == []


@linux
@pytest.mark.soak
def test_a_fork_bomb_is_ended(tmp_path):
    path = tmp_path / "reward.py"
    path.write_text("import os\ndef reward(p, c, r):\n    while True: os.fork()\n")
    process = RewardProcess(path, timeout_s=5)
    began = time.monotonic()
    verdict = process.score([RewardCall(prompt="", completion="", row={})])[0]
    assert verdict.failure in ("died", "timed_out", "raised")
    process.close()
    assert time.monotonic() - began < 60
    assert os.getpid() not in marked(killable.MARKER.encode()) == []
