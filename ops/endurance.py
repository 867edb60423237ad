"""`pippin doctor --durability`: tries what a run's survival rests on, on this machine.

It measures what syncing costs here (F_FULLFSYNC on a Mac), checks whether fault runs that are killed end as
the undisturbed one does, and prints what the machine says of battery, heat, memory and disk. Only the
machine itself, such as a Mac, can give this evidence.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ops.fault_injection.fork_server import FORKS, ForkServer
from ops.fault_injection.kills import FaultRuns, KillReport, die_at_each, kill_at_random
from ops.machine import Machine, this_machine
from runtime import checkpoint
from runtime.durable import nearest_existing, sync
from runtime.home import home

SYNCS, SYNC_BYTES = 20, 1 << 20
CHECKPOINT_BYTES = 64 << 20
KILLS = 30 if FORKS else 10
"""The number of kills: a start costs milliseconds where a process can be forked, else seconds."""
PROGRAMS = ("grpo", "sft", "es")
AWAKE_S = 0.5

Line = tuple[str, str]
"""A finding's state ("ok", "note", "bad") and its text."""


def findings() -> Iterator[Line]:
    """Yields a line for each thing that can be tried."""
    folder = nearest_existing(home())
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pippin-doctor-") as made:
        yield from _disk(Path(made))
        yield from _fault_runs(Path(made))
    yield from _machine(this_machine(), folder)


def _disk(folder: Path) -> Iterator[Line]:
    how = "F_FULLFSYNC" if sys.platform == "darwin" else "fsync"
    file, seconds = folder / "sync", []
    for _ in range(SYNCS):
        file.write_bytes(os.urandom(SYNC_BYTES))
        began = time.perf_counter()
        sync(file)
        seconds.append(time.perf_counter() - began)
    median, longest = 1e3 * statistics.median(seconds), 1e3 * max(seconds)
    yield "ok", f"{how} of 1 MiB: median {median:.1f} ms, longest {longest:.0f} ms"
    root = folder / "checkpoints"
    root.mkdir()
    began = time.perf_counter()
    for step in (1, 2):
        checkpoint.publish(root, step, {}, lambda aside: _fill(aside / "weights.safetensors"))
    took_s = (time.perf_counter() - began) / 2
    found, passed_over = checkpoint.newest(root)
    fine = found is not None and found.step == 2 and not passed_over
    yield (
        "ok" if fine else "bad",
        f"a checkpoint of 64 MiB is durable and verified in {took_s:.2f} s",
    )


def _fill(path: Path) -> None:
    path.write_bytes(os.urandom(1 << 20) * (CHECKPOINT_BYTES >> 20))


def _fault_runs(folder: Path) -> Iterator[Line]:
    with ForkServer() as server:
        fault_runs = FaultRuns(server, folder)
        for program in PROGRAMS:
            yield _verdict(
                kill_at_random(fault_runs, program, KILLS, seed=0), "killed at random moments"
            )
        if FORKS:
            yield _verdict(
                die_at_each(fault_runs, "grpo", "kill", seed=0), "killed at every failpoint"
            )


def _verdict(report: KillReport, how: str) -> Line:
    starts = sum(report.ends.values())
    text = f"{report.program}: {report.runs} fault runs {how} ({starts} starts, {report.seconds:.0f} s)"
    if report.problems:
        return "bad", f"{text}: {len(report.problems)} problems, the first: {report.problems[0]}"
    return "ok", f"{text}: each ended as the undisturbed one, bit for bit, every trajectory once"


def _machine(machine: Machine, folder: Path) -> Iterator[Line]:
    battery, heat = machine.on_battery(), machine.thermal_pressure()
    power = "unknown here" if battery is None else "battery" if battery else "mains"
    yield "note" if battery is None else "ok", f"power: {power} (power.on_battery)"
    yield "note" if heat is None else "ok", f"thermal pressure: {heat or 'unknown here'}"
    yield "ok", f"memory is {'' if machine.memory_pressure() else 'not '}about to run out"
    free = machine.free_disk_bytes(folder)
    yield "note" if free is None else "ok", f"disk: {(free or 0) / 1e9:.1f} GB free"
    if sys.platform == "darwin":
        with machine.keep_awake(os.getpid()):
            time.sleep(AWAKE_S)
            printed = subprocess.run(
                ["/usr/bin/pmset", "-g", "assertions"], capture_output=True, text=True, check=False
            ).stdout
        held = "caffeinate" in printed
        yield (
            "ok" if held else "bad",
            f"caffeinate {'holds' if held else 'does not hold'} its assertion",
        )
