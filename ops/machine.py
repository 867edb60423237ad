"""The one port to the laptop: its battery, heat, memory and disk, and the way to keep it awake.

Answers are advice, so an answer that cannot be found out is None or False, never an error: a run must not
end because a command of the operating system did. Tests put a simulated machine in its place:

    PIPPIN_SIMULATED_MACHINE=machine.json    {"on_battery": true, "thermal": "serious"}
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from runtime.durable import nearest_existing

Thermal = Literal["nominal", "fair", "serious", "critical"]

VARIABLE = "PIPPIN_SIMULATED_MACHINE"
COMMAND_S = 2.0
"""The seconds that a command may take; they answer in milliseconds."""
LEAST_MEMORY_SHARE = 0.03
"""Linux: with less of its memory available a machine is about to kill processes."""
PRESSURE: dict[int, Thermal] = {
    0: "nominal", 1: "fair", 2: "serious", 3: "critical", 4: "critical",
}  # fmt: skip
"""The names of macOS's own levels: nominal, moderate, heavy, trapping, sleeping. It throttles from heavy
on.
"""
CRITICAL_MEMORY = 4
"""macOS's critical level: 1 is normal, 2 a warning, 4 critical."""
CAFFEINATE = ("/usr/bin/caffeinate", "-i")

Ask = Callable[[Sequence[str]], str | None]
"""A function that returns what a command printed, or None if it failed."""


class Machine(Protocol):
    """Answers what a run wants to know of the machine that it runs on."""

    def on_battery(self) -> bool | None:
        """Returns whether no mains feeds the machine; None where there is no battery, or it is not
        known.
        """
        ...

    def thermal_pressure(self) -> Thermal | None:
        """Returns how hot the machine is; None if it is not known."""
        ...

    def memory_pressure(self) -> bool:
        """Returns whether the machine is about to run out of memory."""
        ...

    def free_disk_bytes(self, folder: Path) -> int | None:
        """Returns the free bytes on the disk of `folder`, which need not exist yet; None if they are
        not known.
        """
        ...

    def keep_awake(self, pid: int) -> contextlib.AbstractContextManager[None]:
        """Keeps the machine awake within the block, and while process `pid` lives: it does not fall
        asleep by idling.
        """
        ...


def this_machine() -> Machine:
    """Returns the simulated machine if a test asks for it, otherwise the real one."""
    if path := os.environ.get(VARIABLE):
        return Simulated(Path(path))
    return Mac() if sys.platform == "darwin" else LinuxMachine()


# ── macOS ────────────────────────────────────────────────────────────────────────────────────────


class Mac:
    """Asks the commands that come with macOS. None needs an administrator."""

    def __init__(self, ask: Ask | None = None, caffeinate: Sequence[str] = CAFFEINATE) -> None:
        self._ask = ask or command_output
        self._caffeinate = caffeinate

    def on_battery(self) -> bool | None:
        """Returns what the power manager says of the source that the machine draws from."""
        return parse_battery(self._ask(["/usr/bin/pmset", "-g", "batt"]))

    def thermal_pressure(self) -> Thermal | None:
        """Returns the level that macOS notifies of, or else one from how far macOS slows the CPU down."""
        level = self._ask(["/usr/bin/notifyutil", "-g", "com.apple.system.thermalpressurelevel"])
        return parse_thermal_level(level) or parse_speed_limit(
            self._ask(["/usr/bin/pmset", "-g", "therm"])
        )

    def memory_pressure(self) -> bool:
        """Returns whether the kernel's own level is critical."""
        name = "kern.memorystatus_vm_pressure_level"
        return parse_memory_level(self._ask(["/usr/sbin/sysctl", "-n", name]))

    def free_disk_bytes(self, folder: Path) -> int | None:
        """Returns what the file system says: what macOS could purge is not counted."""
        return free_disk_bytes(folder)

    @contextlib.contextmanager
    def keep_awake(self, pid: int) -> Iterator[None]:
        """Runs `caffeinate -i -w PID`, which ends with the process, whatever death that dies."""
        try:
            process = subprocess.Popen(
                [*self._caffeinate, "-w", str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # it must outlive Ctrl-C until the run is saved
            )
        except OSError:
            yield
            return
        try:
            yield
        finally:
            process.kill()
            process.wait()


def parse_battery(text: str | None) -> bool | None:
    """Returns the answer of `pmset -g batt`: None for a Mac without a battery."""
    source = re.search(r"Now drawing from '(.+?)'", text or "")
    if source is None or text is None:
        return None
    if source[1] == "AC Power":
        return False if "Battery" in text else None
    return True if source[1] in ("Battery Power", "UPS Power") else None


def parse_thermal_level(text: str | None) -> Thermal | None:
    """Returns the level of `notifyutil -g com.apple.system.thermalpressurelevel`."""
    found = re.fullmatch(r"com\.apple\.system\.thermalpressurelevel\s+(\d+)", (text or "").strip())
    return PRESSURE.get(int(found[1])) if found else None


def parse_speed_limit(text: str | None) -> Thermal | None:
    """Returns a level from `pmset -g therm`, in per cent of full speed. Macs without an Intel CPU do
    not print it.
    """
    found = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text or "")
    if found is None:
        return None
    limit = int(found[1])
    if limit >= 100:
        return "nominal"
    return "fair" if limit >= 80 else "serious" if limit >= 50 else "critical"


def parse_memory_level(text: str | None) -> bool:
    """Returns whether `sysctl -n kern.memorystatus_vm_pressure_level` is critical."""
    return (text or "").strip() == str(CRITICAL_MEMORY)


# ── Linux ────────────────────────────────────────────────────────────────────────────────────────


class LinuxMachine:
    """Reads what the kernel shows as files below `root`."""

    def __init__(self, root: Path = Path(os.sep)) -> None:
        self._root = root

    def on_battery(self) -> bool | None:
        """Returns what the power supplies say."""
        folder = self._root / "sys/class/power_supply"
        try:
            supplies = [_supply(path) for path in sorted(folder.iterdir())]
        except OSError:
            return None
        return battery_from(supplies)

    def thermal_pressure(self) -> Thermal | None:
        """Returns None: Linux shows temperatures, whose limits differ from machine to machine."""
        return None

    def memory_pressure(self) -> bool:
        """Returns whether the share of memory that is available is too small."""
        return parse_meminfo(_text(self._root / "proc/meminfo"))

    def free_disk_bytes(self, folder: Path) -> int | None:
        """Returns what the file system says."""
        return free_disk_bytes(folder)

    @contextlib.contextmanager
    def keep_awake(self, pid: int) -> Iterator[None]:
        """Does nothing: on Linux the program that keeps a machine awake depends on its desktop."""
        yield


def battery_from(supplies: Sequence[dict[str, str]]) -> bool | None:
    """Returns the answer of the attributes of each power supply: None without a battery, or if none
    says.

    A battery that discharges although mains is there, as under full load, is not "on battery":
    unplugging is what the setting is about, and macOS sees it the same way.
    """
    own = [s for s in supplies if s.get("scope") != "Device"]  # not that of a mouse
    batteries = [s for s in own if s.get("type") == "Battery"]
    mains = [s.get("online") for s in own if s.get("type") in ("Mains", "USB")]
    if not batteries:
        return None
    if any(online not in (None, "0") for online in mains):
        return False
    statuses = {s.get("status") for s in batteries}
    if "Discharging" in statuses:
        return True
    if statuses & {"Charging", "Full", "Not charging"}:
        return False
    return True if "0" in mains else None


def parse_meminfo(text: str | None) -> bool:
    """Returns whether /proc/meminfo says that too little of the memory is available."""
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", text or "", re.M))
    if len(sizes) < 2:
        return False
    return int(sizes["MemAvailable"]) < LEAST_MEMORY_SHARE * int(sizes["MemTotal"])


def _supply(folder: Path) -> dict[str, str]:
    names = ("type", "scope", "online", "status")
    return {n: text.strip() for n in names if (text := _text(folder / n)) is not None}


# ── simulated ────────────────────────────────────────────────────────────────────────────────────


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds the content of a simulated machine's file."""

    on_battery: bool | None = None
    thermal: Thermal | None = None
    memory_pressure: bool = False
    free_disk_bytes: int | None = None
    """The free bytes; None for those of the real disk."""


class Simulated:
    """Simulates a machine from a JSON file. The file FILE.awake lists the processes that it was kept
    awake for, in order.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = Reading()

    def on_battery(self) -> bool | None:
        """Returns what the file says."""
        return self._read().on_battery

    def thermal_pressure(self) -> Thermal | None:
        """Returns what the file says."""
        return self._read().thermal

    def memory_pressure(self) -> bool:
        """Returns what the file says."""
        return self._read().memory_pressure

    def free_disk_bytes(self, folder: Path) -> int | None:
        """Returns what the file says, or the real disk's free bytes."""
        told = self._read().free_disk_bytes
        return free_disk_bytes(folder) if told is None else told

    @contextlib.contextmanager
    def keep_awake(self, pid: int) -> Iterator[None]:
        """Writes the lines "start PID" and "release PID". If the second is missing, the process died in
        between.
        """
        self._note(f"start {pid}")
        try:
            yield
        finally:
            self._note(f"release {pid}")

    def _read(self) -> Reading:
        """Returns the file's content, or the content before where the file is absent or half written.

        Raises msgspec.ValidationError for a key or value that a machine does not have: the test is
        wrong.
        """
        try:
            self._last = msgspec.json.decode(self._path.read_bytes(), type=Reading)
        except msgspec.ValidationError:
            raise
        except (OSError, msgspec.DecodeError):
            pass
        return self._last

    def _note(self, line: str) -> None:
        with Path(f"{self._path}.awake").open("a") as file:
            file.write(line + "\n")


# ── inside ───────────────────────────────────────────────────────────────────────────────────────


def command_output(command: Sequence[str]) -> str | None:
    """Returns what a command prints; None if it does not exist, fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def free_disk_bytes(folder: Path) -> int | None:
    """Returns the bytes that are free for us on the disk of `folder`, or of the nearest folder above it
    that exists.
    """
    try:
        return shutil.disk_usage(nearest_existing(folder)).free
    except OSError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
