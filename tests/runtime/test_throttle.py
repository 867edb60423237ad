"""The throttle rests in proportion to the work between two calls. Sleep under a closed lid is not work."""

import pytest

from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.throttle import FIRST_S, LONGER, LOOK_S, Throttle


class Day:
    """A clock that the test moves by working, sleeping or closing the lid."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rested = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= LOOK_S
        self.now += seconds
        self.rested += seconds

    def rest_after(self, throttle: Throttle, seconds: float) -> float:
        """How long the throttle rests after so much work."""
        self.rested = 0.0
        self.now += seconds
        assert throttle.may_continue()
        return self.rested


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path, "run")
    run.create("", {})
    return run


def throttle_of(run: RunDirectory, duty_cycle: float) -> tuple[Day, Throttle]:
    day = Day()
    return day, Throttle(run, "sample.token", duty_cycle, day.clock, day.sleep)


@pytest.mark.parametrize(
    ("duty_cycle", "rests"), [(1.0, 0.0), (0.5, 0.2), (0.25, 0.6), (0.8, 0.05)]
)
def test_work_gets_its_share_of_the_time(run, duty_cycle, rests):
    day, throttle = throttle_of(run, duty_cycle)
    for _ in range(3):
        assert day.rest_after(throttle, 0.2) == pytest.approx(rests)


def test_long_work_gets_its_share_from_the_second_time_on(run):
    day, throttle = throttle_of(run, 0.5)
    assert day.rest_after(throttle, 3.0) == pytest.approx(FIRST_S)
    assert day.rest_after(throttle, 3.0) == pytest.approx(3.0)


@pytest.mark.parametrize("closed_s", [8.0, 100.0, 8 * 3600.0, 86_400.0])
def test_a_closed_lid_is_not_rested_from(run, closed_s):
    day, throttle = throttle_of(run, 0.5)
    assert day.rest_after(throttle, closed_s) == pytest.approx(FIRST_S)  # before the first token
    day, throttle = throttle_of(run, 0.5)
    day.rest_after(throttle, 0.5)
    assert day.rest_after(throttle, closed_s) == pytest.approx(LONGER * 0.5)
    assert day.rest_after(throttle, 0.5) == pytest.approx(0.5)


def test_a_request_to_pause_ends_the_rest(run):
    day = Day()

    def sleep(seconds: float) -> None:
        day.sleep(seconds)
        run.ask_to_pause(PauseRequest(by="user", reason="test"))

    throttle = Throttle(run, "sample.token", 0.5, day.clock, sleep)
    day.now += 0.8
    assert not throttle.may_continue()
    assert day.rested == LOOK_S
