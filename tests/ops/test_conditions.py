"""A run pauses by itself at once, says why, and does not pause and resume again and again near a limit."""

import contextlib
from datetime import datetime
from pathlib import Path

import pytest

from configs.run import Power
from ops import conditions
from ops.conditions import GB, POLL_S, QUIET_POLLS, Conditions, other_disks, outside, short_of_disk
from ops.machine import Thermal

CAREFUL = Power(on_battery="pause", on_thermal_pressure="pause")


class FakeMachine:
    """A machine whose answers a test sets; `asked` counts the questions."""

    def __init__(self) -> None:
        self.battery: bool | None = False
        self.thermal: Thermal | None = None
        self.memory = False
        self.free: int | None = int(100 * GB)
        self.asked: list[str] = []

    def on_battery(self) -> bool | None:
        self.asked.append("battery")
        return self.battery

    def thermal_pressure(self) -> Thermal | None:
        self.asked.append("thermal")
        return self.thermal

    def memory_pressure(self) -> bool:
        self.asked.append("memory")
        return self.memory

    def free_disk_bytes(self, folder: Path) -> int | None:
        self.asked.append("disk")
        return self.free

    def keep_awake(self, pid: int):
        return contextlib.nullcontext()


class World:
    """Conditions on a fake machine, with clocks that a test moves."""

    def __init__(self, power: Power = CAREFUL, need: int = int(GB)) -> None:
        self.machine = FakeMachine()
        self.need = need
        self.seconds = 500.0
        self.time = datetime(2026, 3, 4, 12, 0)
        self.conditions = Conditions(
            power, self.machine, Path(), lambda: self.need,
            now=lambda: self.time, clock=lambda: self.seconds,
        )  # fmt: skip

    def reason(self, after_polls: int = 1) -> str | None:
        said = None
        for _ in range(after_polls):
            self.seconds += POLL_S
            said = self.conditions.reason()
        return said


@pytest.fixture
def world():
    return World()


def test_a_machine_that_is_well_has_no_reason(world):
    assert world.reason() is None


def test_each_condition_says_what_it_is_and_which_setting_it_comes_from():
    said = {}
    for name, value in {
        "battery": True, "thermal": "serious", "memory": True, "free": int(0.31 * GB),
    }.items():  # fmt: skip
        world = World(need=int(0.52 * GB))
        setattr(world.machine, name, value)
        said[name] = world.reason()
    assert said == {
        "battery": "on battery (power.on_battery)",
        "thermal": "thermal pressure is serious (power.on_thermal_pressure)",
        "memory": "memory is running out",
        "free": "the disk has 0.31 GB left, the next checkpoints need 0.52 GB: free 0.21 GB",
    }


def test_what_a_person_lets_run_runs_and_is_not_even_asked():
    world = World(Power())
    world.machine.battery, world.machine.thermal = True, "critical"
    assert world.reason() is None
    assert set(world.machine.asked) == {"memory", "disk"}


def test_an_unknown_value_pauses_nothing(world):
    world.machine.battery = world.machine.thermal = world.machine.free = None
    assert world.reason(5) is None


@pytest.mark.parametrize(
    ("level", "pauses"), [("nominal", False), ("fair", False), ("serious", True), ("critical", True)]
)  # fmt: skip
def test_heat_counts_from_serious_on(world, level, pauses):
    world.machine.thermal = level
    assert (world.reason() is not None) is pauses


def test_the_machine_is_asked_once_a_poll_however_often_the_reason_is(world):
    for _ in range(100):
        world.conditions.reason()
        world.seconds += POLL_S / 10
    assert world.machine.asked.count("disk") == world.machine.asked.count("battery") == 10


def test_a_clock_that_jumps_back_does_not_stop_the_polls(world):
    world.reason()
    world.machine.battery = True
    world.seconds -= 1e6
    assert world.conditions.reason() == "on battery (power.on_battery)"


def test_battery_switches_at_once_both_ways(world):
    world.machine.battery = True
    assert world.reason()
    world.machine.battery = False
    assert world.reason() is None


def test_one_answer_that_failed_does_not_start_a_run_on_battery(world):
    world.machine.battery = True
    world.reason()
    world.machine.battery = None
    assert world.reason(QUIET_POLLS - 1)
    assert world.reason() is None


@pytest.mark.parametrize(
    ("name", "on", "off"), [("thermal", "serious", "fair"), ("memory", True, False)]
)
def test_heat_and_memory_hold_until_some_polls_in_a_row_were_without_them(world, name, on, off):
    setattr(world.machine, name, on)
    reason = world.reason()
    assert reason
    setattr(world.machine, name, off)
    assert world.reason(QUIET_POLLS - 1) == reason
    setattr(world.machine, name, on)
    assert world.reason() == reason
    setattr(world.machine, name, off)
    assert world.reason(QUIET_POLLS - 1) == reason
    assert world.reason() is None
    setattr(world.machine, name, on)
    assert world.reason() == reason


def test_asking_more_often_does_not_shorten_the_quiet(world):
    world.machine.memory = True
    world.reason()
    world.machine.memory = False
    assert world.reason()
    assert all(world.conditions.reason() for _ in range(50))


def test_heat_is_told_as_it_is_now(world):
    world.machine.thermal = "serious"
    world.reason()
    world.machine.thermal = "critical"
    assert "critical" in (world.reason() or "")


def test_a_disk_with_room_to_spare_goes_on_at_once_and_one_with_just_enough_a_little_later(world):
    world.machine.free = int(0.9 * GB)
    assert world.reason()
    world.machine.free = int(1.2 * GB)
    assert world.reason() is None
    world.machine.free = int(0.9 * GB)
    assert world.reason()
    world.machine.free = int(1.1 * GB)
    assert world.reason(QUIET_POLLS - 1)
    assert world.reason() is None


def test_a_need_that_grows_pauses_and_one_that_shrinks_goes_on(world):
    world.need = int(101 * GB)
    assert world.reason()
    world.need = int(GB)
    assert world.reason() is None


@pytest.mark.parametrize("free", [0, 1, 123_456_789, 314_000_000, 519_999_999])
def test_freeing_what_the_sentence_says_is_enough(free):
    need = 520_000_000
    said = short_of_disk(free, need)
    assert said is not None
    assert free + float(said.split()[-2]) * GB >= need - 1  # in binary 0.01 is a little less
    assert short_of_disk(need, need) is None


# ── hours ────────────────────────────────────────────────────────────────────────────────────────


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-04T{clock}")


@pytest.mark.parametrize(
    ("clock", "within"),
    [
        ("22:00", True), ("21:59:59", False), ("23:59:59", True), ("00:00", True),
        ("06:59:59", True), ("07:00", False), ("12:00", False),
    ],
)  # fmt: skip
def test_a_span_may_wrap_midnight_and_ends_before_its_end(clock, within):
    reason = outside(["22:00-07:00"], at(clock))
    assert reason == (None if within else "outside power.hours 22:00-07:00")


def test_several_spans_are_all_good_and_none_is_always():
    spans = ["08:00-09:00", "20:00-00:00"]
    assert [outside(spans, at(c)) is None for c in ("08:30", "09:30", "23:59", "00:00")] == [
        True, False, True, False,
    ]  # fmt: skip
    assert outside(spans, at("12:00")) == "outside power.hours 08:00-09:00, 20:00-00:00"
    assert outside([], at("12:00")) is None


def test_hours_switch_at_once_without_asking_the_machine():
    world = World(Power(hours=["09:00-12:30"]))
    assert world.reason() is None
    asked = len(world.machine.asked)
    world.time = at("12:30")
    assert world.conditions.reason() == "outside power.hours 09:00-12:30"
    world.time = at("09:00")
    assert world.conditions.reason() is None
    assert len(world.machine.asked) == asked


class Disks(FakeMachine):
    """A machine with several disks."""

    def __init__(self, free: dict[str, int | None]) -> None:
        super().__init__()
        self.by_name = free

    def free_disk_bytes(self, folder: Path) -> int | None:
        return self.by_name[folder.name]


def test_each_disk_that_is_written_to_is_watched_once(monkeypatch):
    devices = {"run": 1, "home": 2, "ray": 2, "same": 1, "gone": None}
    monkeypatch.setattr(conditions, "_device", lambda folder: devices[folder.name])
    folders = [Path(name) for name in devices]
    assert other_disks(Path("run"), folders) == [Path("home")]


def test_a_full_disk_of_the_teacher_cache_or_of_ray_pauses_the_run_and_is_named(monkeypatch):
    monkeypatch.setattr(conditions, "_device", lambda folder: hash(folder.name))
    machine = Disks({"run": int(9 * GB), "home": int(9 * GB), "ray": int(9 * GB)})
    seconds = iter(range(0, 1000, 10))
    watched = Conditions(
        CAREFUL, machine, Path("run"), lambda: int(GB), lambda: (Path("home"), Path("ray")),
        clock=lambda: next(seconds),
    )  # fmt: skip
    assert watched.reason() is None
    machine.by_name["ray"] = int(0.1 * GB)
    assert watched.reason() == (
        "the disk of ray has 0.10 GB left, the run needs 0.27 GB: free 0.17 GB"
    )
    machine.by_name["run"] = 0
    assert "the next checkpoints need 1.00 GB" in (watched.reason() or "")
    machine.by_name |= {"run": int(9 * GB), "ray": int(9 * GB)}
    assert watched.reason() is None
    machine.by_name["home"] = None  # nobody knows
    assert watched.reason() is None


def test_the_device_is_that_of_the_nearest_folder_that_exists(tmp_path):
    assert other_disks(tmp_path, [tmp_path / "not" / "yet", tmp_path]) == []
