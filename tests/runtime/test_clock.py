"""A time-out counts only time in which the process ran, not sleep, a frozen process or a clock that jumps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.clock import LONGEST_TICK_S, Deadline

ROOT = Path(__file__).parents[2]


class FakeClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


def looks_until_expired(deadline: Deadline, clock: FakeClock, every_s: float) -> int:
    for look in range(1, 10_000):
        clock.now += every_s
        if deadline.expired():
            return look
    pytest.fail("it never expired")


@pytest.mark.parametrize(("every_s", "looks"), [(0.5, 20), (1.0, 10), (LONGEST_TICK_S, 5)])
def test_looking_often_enough_gives_the_limit_exactly(clock, every_s, looks):
    assert looks_until_expired(Deadline(10, clock), clock, every_s) == looks


def test_time_left_shrinks_with_the_clock_and_never_below_nothing(clock):
    deadline = Deadline(5, clock)
    assert deadline.left_s() == 5
    clock.now += 1.5
    assert deadline.left_s() == deadline.left_s() == 3.5
    for _ in range(9):
        clock.now += 2
    deadline.left_s()
    clock.now += 2
    deadline.left_s()
    clock.now += 2
    assert deadline.left_s() == 0 and deadline.expired()


@pytest.mark.parametrize("gone_s", [5.0, 100.0, 86_400.0, 1e9])
def test_a_sleep_of_any_length_costs_one_tick(clock, gone_s):
    deadline = Deadline(10, clock)
    clock.now += gone_s
    assert deadline.left_s() == 10 - LONGEST_TICK_S


@pytest.mark.parametrize("limit_s", [0.1, 0.5, 1.0, 3.0])
def test_no_single_sleep_uses_up_a_short_limit(clock, limit_s):
    deadline = Deadline(limit_s, clock)
    clock.now += 100
    assert deadline.left_s() == pytest.approx(limit_s / 2)
    assert looks_until_expired(deadline, clock, limit_s / 10) <= 6


def test_a_clock_that_goes_back_neither_fires_nor_gives_time(clock):
    deadline = Deadline(3, clock)
    clock.now -= 86_400
    assert deadline.left_s() == 3
    clock.now += 1
    assert deadline.left_s() == 2


def test_a_day_s_jump_between_ordinary_looks_fires_nothing(clock):
    deadline = Deadline(60, clock)
    for second in range(50):
        clock.now += 86_400 if second == 25 else 1
        assert not deadline.expired()


def test_a_limit_of_nothing_has_expired(clock):
    assert Deadline(0, clock).expired()


# ── the same with real processes ─────────────────────────────────────────────────────────────────

ASKER = """
import sys
from runtime.reward_process import RewardCall, RewardProcess
process = RewardProcess(sys.argv[1], timeout_s=3)
verdict = process.score([RewardCall(prompt="p", completion="c", row={})])[0]
process.close()
print(verdict.reward, verdict.failure, flush=True)
"""
REWARD = """
import os, time
from pathlib import Path
here = Path(__file__).parent
def reward(prompt, completion, row):
    (here / "aside").write_text(str(os.getpid()))
    (here / "aside").rename(here / "began")
    while not (here / "go").exists():
        time.sleep(0.02)
    return 0.75
"""


def test_a_frozen_tree_is_not_late_when_it_thaws(tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    asker = subprocess.Popen(
        [sys.executable, "-c", ASKER, tmp_path / "reward.py"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        patience = Deadline(60)
        while not (tmp_path / "began").exists() and not patience.expired():
            time.sleep(0.01)
        tree = [asker.pid, int((tmp_path / "began").read_text())]
        for pid in tree:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(5)  # longer than the limit of 3 s
        for pid in reversed(tree):
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.2)  # a time-out by the clock on the wall would fire here
        (tmp_path / "go").touch()
        assert asker.communicate(timeout=30)[0] == "0.75 None\n"
    finally:
        asker.kill()
        asker.wait()
