"""The state of a laptop is read from its own commands and files; an odd or missing answer is no error."""

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from ops import machine
from ops.machine import (
    LinuxMachine,
    Mac,
    Simulated,
    battery_from,
    command_output,
    parse_battery,
    parse_meminfo,
    parse_memory_level,
    parse_speed_limit,
    parse_thermal_level,
    this_machine,
)

NOISE = ["", "\n", "usage: ...", "\x00\xff", "Now drawing from 'Moon'", "CPU_Speed_Limit = fast"]


# ── macOS ────────────────────────────────────────────────────────────────────────────────────────

BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=22872163)\t83%; discharging; 5:41 remaining present: true
"""
CHARGING = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=22872163)\t83%; charging; 1:02 remaining present: true
"""
FULL_LOAD = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=22872163)\t80%; AC attached; not charging present: true
"""
DESKTOP = "Now drawing from 'AC Power'\n"
UPS = """Now drawing from 'UPS Power'
 -Back-UPS ES 700G (id=65536000)\t97%; discharging; 0:43 remaining present: true
"""


@pytest.mark.parametrize(
    ("text", "on_battery"),
    [
        (BATTERY, True), (CHARGING, False), (FULL_LOAD, False), (DESKTOP, None), (UPS, True),
        (None, None), *((noise, None) for noise in NOISE),
    ],
)  # fmt: skip
def test_pmset_says_what_a_mac_draws_from(text, on_battery):
    assert parse_battery(text) is on_battery


@pytest.mark.parametrize(
    ("level", "word"),
    [
        (0, "nominal"), (1, "fair"), (2, "serious"), (3, "critical"), (4, "critical"),
        (5, None), (30, None),
    ],
)  # fmt: skip
def test_notifyutil_gives_the_pressure_as_a_number(level, word):
    assert parse_thermal_level(f"com.apple.system.thermalpressurelevel {level}\n") == word


@pytest.mark.parametrize("text", [None, "com.apple.other 2", "Failed: 9", *NOISE])
def test_no_level_is_an_unknown_one(text):
    assert parse_thermal_level(text) is None


INTEL = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
2026-01-05 14:12:09 +0100 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 12
\tCPU_Speed_Limit \t= {}
"""
APPLE_SILICON = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""


def test_a_slowed_cpu_is_a_hot_one_and_apple_silicon_does_not_say():
    words = {limit: parse_speed_limit(INTEL.format(limit)) for limit in (100, 92, 64, 23)}
    assert words == {100: "nominal", 92: "fair", 64: "serious", 23: "critical"}
    assert [parse_speed_limit(t) for t in (APPLE_SILICON, None, *NOISE)] == [None] * 8


def test_only_critical_memory_counts():
    assert [parse_memory_level(t) for t in ("1\n", "2\n", "4\n")] == [False, False, True]
    assert not any(parse_memory_level(t) for t in (None, "44", *NOISE))


def mac(**answers: str) -> Mac:
    """Returns a Mac with simulated commands: each answers by the first known word in its command line."""
    return Mac(lambda command: next((v for k, v in answers.items() if k in command), None))


def test_a_mac_puts_its_commands_together():
    hot = "com.apple.system.thermalpressurelevel"
    warm = mac(**{"batt": BATTERY, hot: f"{hot} 2\n", "-n": "4\n"})
    assert (warm.on_battery(), warm.thermal_pressure(), warm.memory_pressure()) == (
        True, "serious", True,
    )  # fmt: skip
    assert mac(therm=INTEL.format(70)).thermal_pressure() == "serious"
    assert mac(**{hot: f"{hot} 0\n", "therm": INTEL.format(20)}).thermal_pressure() == "nominal"


def test_a_mac_without_its_commands_knows_nothing():
    nothing = mac()
    assert (nothing.on_battery(), nothing.thermal_pressure(), nothing.memory_pressure()) == (
        None, None, False,
    )  # fmt: skip


# ── Linux ────────────────────────────────────────────────────────────────────────────────────────

MAINS_ON, MAINS_OFF = {"type": "Mains", "online": "1"}, {"type": "Mains", "online": "0"}
MOUSE = {"type": "Battery", "scope": "Device", "status": "Discharging"}


def cell(status: str) -> dict[str, str]:
    return {"type": "Battery", "status": status}


@pytest.mark.parametrize(
    ("supplies", "on_battery"),
    [
        ([], None),
        ([MAINS_ON], None),
        ([MOUSE], None),
        ([MOUSE, MAINS_OFF], None),
        ([cell("Discharging")], True),
        ([cell("Discharging"), MAINS_OFF], True),
        ([cell("Discharging"), MAINS_ON], False),
        ([cell("Charging"), cell("Discharging")], True),
        ([cell("Full"), MAINS_ON, MOUSE], False),
        ([cell("Not charging")], False),
        ([cell("Unknown"), MAINS_OFF], True),
        ([cell("Unknown")], None),
        ([{"type": "Battery"}], None),
        ([cell("Discharging"), MAINS_OFF, {"type": "USB", "online": "1"}], False),
        ([{}], None),
    ],
)
def test_a_linux_laptop_is_on_battery_when_nothing_feeds_it(supplies, on_battery):
    assert battery_from(supplies) is on_battery


def meminfo(total: int, available: int) -> str:
    return (
        f"MemTotal:       {total} kB\nMemFree:          123 kB\n"
        f"MemAvailable:   {available} kB\nBuffers:             4 kB\n"
    )


def test_under_three_per_cent_of_memory_is_pressure():
    assert parse_meminfo(meminfo(16_000_000, 479_999))
    assert not parse_meminfo(meminfo(16_000_000, 480_000))
    assert not any(parse_meminfo(text) for text in (None, "MemTotal: 5 kB", *NOISE))


def linux(root: Path, files: dict[str, str]) -> LinuxMachine:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return LinuxMachine(root)


def test_linux_is_read_from_its_files(tmp_path):
    supply = "sys/class/power_supply"
    laptop = linux(
        tmp_path,
        {
            f"{supply}/AC/type": "Mains\n", f"{supply}/AC/online": "0\n",
            f"{supply}/BAT0/type": "Battery\n", f"{supply}/BAT0/status": "Discharging\n",
            "proc/meminfo": meminfo(1000, 29),
        },
    )  # fmt: skip
    assert (laptop.on_battery(), laptop.memory_pressure()) == (True, True)
    (tmp_path / supply / "AC/online").write_text("1\n")
    assert laptop.on_battery() is False
    assert laptop.thermal_pressure() is None


def test_linux_without_those_files_knows_nothing(tmp_path):
    bare = LinuxMachine(tmp_path)
    assert (bare.on_battery(), bare.thermal_pressure(), bare.memory_pressure()) == (
        None, None, False,
    )  # fmt: skip


# ── simulated ────────────────────────────────────────────────────────────────────────────────────


def test_a_simulated_machine_is_what_its_file_says_now(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"
    monkeypatch.setenv("PIPPIN_SIMULATED_MACHINE", str(path))
    twin = this_machine()
    assert isinstance(twin, Simulated)
    assert (twin.on_battery(), twin.thermal_pressure(), twin.memory_pressure()) == (
        None, None, False,
    )  # fmt: skip
    path.write_text(
        '{"on_battery": true, "thermal": "serious", "memory_pressure": true, "free_disk_bytes": 7}'
    )
    assert (twin.on_battery(), twin.thermal_pressure(), twin.memory_pressure()) == (
        True, "serious", True,
    )  # fmt: skip
    assert twin.free_disk_bytes(tmp_path) == 7
    path.write_text('{"on_batt')  # half-written
    assert twin.on_battery() is True
    path.write_text("{}")
    assert twin.on_battery() is None
    assert (twin.free_disk_bytes(tmp_path) or 0) > 7


@pytest.mark.parametrize("text", ['{"battery": true}', '{"thermal": "hot"}', '{"on_battery": 1}'])
def test_an_impossible_simulated_machine_is_refused(tmp_path, text):
    (tmp_path / "m").write_text(text)
    with pytest.raises(msgspec.ValidationError):
        Simulated(tmp_path / "m").on_battery()


def test_a_simulated_machine_notes_which_process_kept_it_awake(tmp_path):
    twin = Simulated(tmp_path / "m.json")
    with twin.keep_awake(11):
        assert (tmp_path / "m.json.awake").read_text() == "start 11\n"
    with pytest.raises(ZeroDivisionError), twin.keep_awake(12):
        raise ZeroDivisionError
    assert (tmp_path / "m.json.awake").read_text().splitlines() == [
        "start 11", "release 11", "start 12", "release 12",
    ]  # fmt: skip


# ── any machine ──────────────────────────────────────────────────────────────────────────────────


def test_this_machine_answers_whatever_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("PIPPIN_SIMULATED_MACHINE", raising=False)
    here = this_machine()
    assert isinstance(here, Mac if sys.platform == "darwin" else LinuxMachine)
    assert here.on_battery() in (True, False, None)
    assert here.thermal_pressure() in ("nominal", "fair", "serious", "critical", None)
    assert here.memory_pressure() in (True, False)
    assert (here.free_disk_bytes(tmp_path / "not" / "there") or 0) > 0
    with here.keep_awake(os.getpid()):
        pass


def test_a_disk_that_cannot_be_asked_is_unknown(tmp_path, monkeypatch):
    def fail(path):
        raise PermissionError

    monkeypatch.setattr(machine.shutil, "disk_usage", fail)
    assert LinuxMachine().free_disk_bytes(tmp_path) is None


def test_a_command_that_is_not_there_fails_or_hangs_says_nothing(monkeypatch):
    monkeypatch.setattr(machine, "COMMAND_S", 0.3)
    assert command_output([sys.executable, "-c", "print('ä')"]) is not None
    assert command_output(["/nonexistent/pmset"]) is None
    assert command_output([sys.executable, "-c", "print(1); raise SystemExit(1)"]) is None
    began = time.monotonic()
    assert command_output(["/bin/sleep", "30"]) is None
    assert time.monotonic() - began < 10


def test_a_mac_is_kept_awake_by_a_process_that_ends_with_the_block(tmp_path):
    pids = tmp_path / "pids"
    stand_in = ["/bin/sh", "-c", f'echo "$$ $1 $2" > {pids}; exec sleep 60', "caffeinate"]
    with Mac(caffeinate=stand_in).keep_awake(4321):
        while not pids.exists() or not pids.read_text().endswith("\n"):
            time.sleep(0.01)
        pid, *options = pids.read_text().split()
        assert options == ["-w", "4321"]
        os.kill(int(pid), 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_mac_without_caffeinate_or_whose_caffeinate_died_runs_all_the_same():
    with Mac(caffeinate=["/nonexistent/caffeinate"]).keep_awake(1):
        pass
    with Mac(caffeinate=["/bin/sh", "-c", "exit 3"]).keep_awake(1):
        time.sleep(0.2)


@pytest.mark.skipif(sys.platform != "darwin", reason="only a Mac can show it")
def test_caffeinate_is_listed_among_the_assertions_of_a_real_mac():
    with this_machine().keep_awake(os.getpid()):
        time.sleep(0.5)
        listed = subprocess.run(["pmset", "-g", "assertions"], capture_output=True, text=True)
    assert "caffeinate" in listed.stdout
