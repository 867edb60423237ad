"""Decides whether a run should work now, and why it had better pause: power, heat, hours, memory, disks.

The supervisor asks several times a second; the machine is asked once in POLL_S, because its answers
are processes and files. A reason that can fluctuate about its limit (heat, memory, disk) lasts until
several polls in a row were without it, so that a run does not start and stop all the time. Plugging in
and the time of day act at once.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from configs.consistency import minutes
from configs.run import Power
from ops.machine import Machine
from runtime.durable import nearest_existing

POLL_S = 2.0
QUIET_POLLS = 3
"""The number of polls in a row without a reason after which a condition that fluctuates ends."""
ROOM = 1.2
"""The free disk space, in multiples of the need, that ends a full disk at once."""
SPARE_ELSEWHERE_BYTES = 256 << 20
"""The bytes that must be free on another disk than the run's: teachers' outputs and Ray's files grow
slowly.
"""
HOT = ("serious", "critical")
GB = 1e9


class Conditions:
    """Gives the reason to pause, if there is one. `need_bytes` returns the bytes that the next
    checkpoints take on the disk of `folder`; `elsewhere` returns the other folders that the run writes
    to, each of which is watched if it is on a disk of its own.
    """

    def __init__(
        self,
        power: Power,
        machine: Machine,
        folder: Path,
        need_bytes: Callable[[], int],
        elsewhere: Callable[[], Iterable[Path]] = tuple,
        now: Callable[[], datetime] = datetime.now,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._power = power
        self._machine = machine
        self._folder = folder
        self._need_bytes = need_bytes
        self._elsewhere = elsewhere
        self._now = now
        self._poll_s = poll_s
        self._clock = clock
        self._polled: float | None = None
        self._battery, self._thermal, self._memory, self._disk = (Latch() for _ in range(4))

    def reason(self) -> str | None:
        """Returns why the run should be paused now, as a fragment of a sentence; None if it may go on."""
        self._poll_if_due()
        return (
            self._battery.reason
            or self._thermal.reason
            or outside(self._power.hours, self._now())
            or self._memory.reason
            or self._disk.reason
        )

    def _poll_if_due(self) -> None:
        now = self._clock()
        if self._polled is not None and 0 <= now - self._polled < self._poll_s:
            return
        self._polled = now
        power, machine = self._power, self._machine
        if power.on_battery == "pause":
            battery = machine.on_battery()
            self._battery.poll(
                "on battery (power.on_battery)" if battery else None, over=battery is False
            )
        if power.on_thermal_pressure == "pause":
            level = machine.thermal_pressure()
            hot = f"thermal pressure is {level} (power.on_thermal_pressure)"
            self._thermal.poll(hot if level in HOT else None)
        self._memory.poll("memory is running out" if machine.memory_pressure() else None)
        self._poll_disks()

    def _poll_disks(self) -> None:
        """Polls the run's own disk first, then the others. The first that lacks space is the reason."""
        needs = [(self._folder, self._need_bytes())]
        others = other_disks(self._folder, self._elsewhere())
        needs += [(folder, SPARE_ELSEWHERE_BYTES) for folder in others]
        reason, over = None, True
        for folder, need in needs:
            free = self._machine.free_disk_bytes(folder)
            if free is None:
                over = False
                continue
            reason = reason or short_of_disk(free, need, None if folder is self._folder else folder)
            over = over and free >= ROOM * need
        self._disk.poll(reason, over=over)


class Latch:
    """Holds a reason at once, and until QUIET_POLLS polls in a row were without it."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._quiet = 0

    def poll(self, reason: str | None, *, over: bool = False) -> None:
        """Takes a poll's reason, if it has one; `over` ends the held reason without waiting."""
        self._quiet = 0 if reason else self._quiet + 1
        if reason or over or self._quiet >= QUIET_POLLS:
            self.reason = reason


def outside(hours: list[str], now: datetime) -> str | None:
    """Returns the reason if `now` is in none of the spans. A span includes its start and excludes its
    end, and may wrap midnight. Without spans a run may always work.
    """
    minute = 60 * now.hour + now.minute
    for start, end in filter(None, map(minutes, hours)):
        # The minutes since the start of the span, counted on past midnight.
        if (minute - start) % 1440 < (end - start) % 1440:
            return None
    return f"outside power.hours {', '.join(hours)}" if hours else None


def other_disks(folder: Path, elsewhere: Iterable[Path]) -> list[Path]:
    """Returns those of `elsewhere` that are not on the disk of `folder`, one for each disk."""
    seen, found = {_device(folder)}, []
    for other in elsewhere:
        device = _device(other)
        if device is not None and device not in seen:
            seen.add(device)
            found.append(other)
    return found


def _device(folder: Path) -> int | None:
    try:
        return os.stat(nearest_existing(folder)).st_dev
    except OSError:
        return None


def short_of_disk(free: int, need: int, at: Path | None = None) -> str | None:
    """Returns the reason if a disk lacks space, the run's own or that of `at`. The number is rounded
    up, so that freeing that much is enough.
    """
    if free >= need:
        return None
    free_gb, need_gb = math.floor(free * 100 / GB) / 100, math.ceil(need * 100 / GB) / 100
    whose, what = (
        ("", "the next checkpoints need") if at is None else (f" of {at}", "the run needs")
    )
    return (
        f"the disk{whose} has {free_gb:.2f} GB left, {what} {need_gb:.2f} GB: "
        f"free {need_gb - free_gb:.2f} GB"
    )
