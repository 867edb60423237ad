"""Kills fault runs thousands of times and says whether anything was lost: `make soak`.

Every program dies at each of its failpoints in each way, and then at random; each run that comes through is
compared with the undisturbed one, bit for bit. Fails if anything differs.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from ops.bench.report import print_table, write_json
from ops.fault_injection.kills import FaultRuns, KillReport, die_at_each, kill_at_random
from ops.fault_injection.programs import PROGRAMS
from ops.fault_injection.server_pool import ForkServerPool
from ops.terminal import say

ACTIONS = ("kill", "abort", "raise")
PORTION = 50
"""The number of random kills that one server does at a time."""


def measure(
    servers: ForkServerPool, programs: list[str], kills: int, seed: int
) -> dict[str, KillReport]:
    """Returns the outcome of each program's runs: the failpoints first, then `kills` at random over
    all.
    """
    tasks: list[tuple[str, str, int, int]] = [
        (program, action, 0, seed) for program in programs for action in ACTIONS
    ]
    for number in range(-(-kills // PORTION)):
        count = min(PORTION, kills - number * PORTION)
        tasks.append((programs[number % len(programs)], "", count, seed + number))

    def done(fault_runs: FaultRuns, task: tuple[str, str, int, int]) -> KillReport:
        program, action, count, of_seed = task
        if action:
            return die_at_each(fault_runs, program, action, of_seed)
        return kill_at_random(fault_runs, program, count, of_seed)

    reports = {program: KillReport(program=program) for program in programs}
    for (program, *_), report in servers.map(done, tasks).items():
        reports[program].add(report)
    return reports


def row(report: KillReport) -> list[str]:
    """Returns a line of the table."""
    ends = [str(report.ends.get(how, 0)) for how in (*ACTIONS, "pause")]
    counts = (report.runs, report.differences, report.lost, report.duplicated)
    return [report.program, *ends, *map(str, counts), f"{report.seconds:.0f} s"]


def main() -> int:
    """Prints the table. Returns 1 if a run did not come through as promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="at random (default 1000)")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="comma-separated names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    programs = options.programs.split(",")
    if unknown := set(programs) - set(PROGRAMS):
        parser.error(f"--programs: needs of {', '.join(PROGRAMS)}, got {', '.join(unknown)}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ForkServerPool(Path(folder)) as servers:
        reports = measure(servers, programs, options.kills, options.seed)
    seconds = time.monotonic() - began
    total = KillReport(program="all")
    for report in reports.values():
        total.add(report)
    header = ["program", *ACTIONS, "pause", "runs", "differ", "lost", "twice", "work"]
    print_table(header, [row(report) for report in (*reports.values(), total)])
    for problem in total.problems:
        say(problem)
    say(f"{total.kills} kills in {seconds:.0f} s: {verdict(total)}")
    if options.json:
        write_json(options.json, result(reports, seconds))
    return 1 if total.problems else 0


def verdict(total: KillReport) -> str:
    """Returns the result in a sentence."""
    if total.problems:
        return f"{total.differences} runs differ, {len(total.problems)} problems"
    return f"each of {total.runs} runs ended as the undisturbed one, bit for bit"


def result(reports: dict[str, KillReport], seconds: float) -> dict[str, Any]:
    """Returns the result for the JSON file."""
    ends = sum((Counter(report.ends) for report in reports.values()), Counter())
    programs = {name: msgspec.to_builtins(report) for name, report in reports.items()}
    return {"seconds": seconds, "ends": dict(ends), "programs": programs}


if __name__ == "__main__":
    sys.exit(main())
