"""Every failpoint × {kill, abort, raise}, and kills at random: a run ends as if nothing had happened."""

import pytest

from ops.fault_injection.kills import FaultRuns, KillReport, die_at_each, kill_at_random, points_of
from ops.fault_injection.programs import PROGRAMS
from runtime.failpoints import POINTS

WHOLE = [("grpo", "kill"), ("sft", "kill")]
"""All failpoints of the program."""
SHARED = ("abort", "raise")
"""Each failpoint in one of the other programs, by turns; `make soak` has all for all."""
RANDOM_KILLS = 90
SAVING = [
    "file.before_rename", "log.after_sync", "checkpoint.begin", "checkpoint.files",
    "checkpoint.manifest", "checkpoint.before_rename", "checkpoint.after_rename",
    "checkpoint.published", "checkpoint.retire_renamed", "checkpoint.retired", "pause.saved",
]  # fmt: skip


@pytest.fixture(scope="module")
def reached(servers) -> dict[str, dict[str, int]]:
    return servers.map(points_of, PROGRAMS)


@pytest.fixture(scope="module")
def cases(reached) -> dict[tuple[str, str], list[str]]:
    """The failpoints of each program and action."""
    found = {case: sorted(reached[case[0]]) for case in WHOLE}
    programs = [program for program in PROGRAMS if program not in dict(WHOLE)]
    for first, action in enumerate(SHARED):
        for number, point in enumerate(sorted(POINTS), start=first):
            able = [program for program in programs if point in reached[program]]
            found.setdefault((able[number % len(able)], action), []).append(point)
    return found


def test_every_failpoint_is_reached_by_some_program(reached):
    assert set().union(*reached.values()) == set(POINTS)


def test_ends_at_each_failpoint_change_nothing(servers, cases):
    def dies(fault_runs: FaultRuns, case: tuple[str, str]) -> KillReport:
        return die_at_each(fault_runs, *case, seed=1, points=cases[case])

    reports = servers.map(dies, cases)
    assert {case: report.problems for case, report in reports.items() if report.problems} == {}
    for (program, action), report in reports.items():
        assert report.ends[action] >= len(cases[program, action]), "an action did not happen"
        assert (report.differences, report.lost, report.duplicated) == (0, 0, 0)
    assert sum(report.kills for report in reports.values()) >= 150


def test_kills_at_random_change_nothing(servers):
    each = -(-RANDOM_KILLS // len(PROGRAMS))
    reports = servers.map(
        lambda fault_runs, program: kill_at_random(fault_runs, program, each, 1), PROGRAMS
    )
    assert [t.problems for t in reports.values()] == [[]] * len(PROGRAMS)
    assert sum(t.kills for t in reports.values()) >= RANDOM_KILLS
    assert all(t.ends["kill"] and t.ends["abort"] for t in reports.values())


def test_kills_while_a_pause_is_saved_change_nothing(servers):
    def killed(fault_runs: FaultRuns, point: str) -> KillReport:
        """Twice: with nothing but the base behind it, and with a checkpoint and rows that wait."""
        program = ("grpo", "grpo-updates")[SAVING.index(point) % 2]
        run = fault_runs.new(program)
        ends = [fault_runs.start(run, plans=[("sample.token", 5, "pause"), (point, 1, "kill")])]
        ends.append(fault_runs.start(run, plans=[("sample.token", 45, "pause")]))
        ends.append(fault_runs.start(run, plans=[("sample.token", 4, "pause"), (point, 1, "kill")]))
        ends += fault_runs.finish(run)
        return fault_runs.judge(run, program, ends)

    reports = servers.map(killed, SAVING)
    assert [t.problems for t in reports.values()] == [[]] * len(SAVING)
    assert sum(t.ends.get("kill", 0) for t in reports.values()) >= len(SAVING)
