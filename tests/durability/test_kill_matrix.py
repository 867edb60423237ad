"""A run that is killed ends as the undisturbed run does: killed at each failpoint, at random, and in a pause.

Here each failpoint ends a run by SIGKILL, and every fourth one by an abort or an exception too. `make soak`
has every failpoint in every program in all three ways, and a thousand kills at random (`pippin bench kills`).
"""

from itertools import chain

import pytest

from ops.fault_injection.kills import FaultRuns, KillReport, die_at_each, kill_at_random, points_of
from ops.fault_injection.programs import PROGRAMS
from runtime.failpoints import POINTS

OTHERS = ("abort", "raise")
"""The ways to end beside SIGKILL. Every fourth failpoint is tried with one of them."""
RANDOM_KILLS = 18
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
    """Returns the failpoints of each (program, action): the programs that come to a point take turns."""
    found: dict[tuple[str, str], list[str]] = {}
    for number, point in enumerate(sorted(POINTS)):
        able = [program for program in PROGRAMS if point in reached[program]]
        others = OTHERS[number // 4 % len(OTHERS) :][: number % 4 == 0]
        for turn, action in enumerate(("kill", *others)):
            program = able[(number + turn) % len(able)]
            found.setdefault((program, action), []).append(point)
    return found


def test_every_failpoint_is_reached_by_some_program(reached):
    assert set().union(*reached.values()) == set(POINTS)


def test_the_cases_have_each_program_and_action_and_a_kill_at_each_failpoint(cases):
    assert {program for program, _ in cases} == set(PROGRAMS)
    assert {action for _, action in cases} == {"kill", *OTHERS}
    killed = [points for (_, action), points in cases.items() if action == "kill"]
    assert sorted(chain.from_iterable(killed)) == sorted(POINTS)
    assert sum(map(len, cases.values())) == len(POINTS) + -(-len(POINTS) // 4)


def test_ends_at_each_failpoint_change_nothing(servers, cases):
    def dies(fault_runs: FaultRuns, case: tuple[str, str]) -> KillReport:
        return die_at_each(fault_runs, *case, seed=1, points=cases[case])

    reports = servers.map(dies, cases)
    assert {case: report.problems for case, report in reports.items() if report.problems} == {}
    for (program, action), report in reports.items():
        assert report.ends[action] >= len(cases[program, action]), "an action did not happen"
        assert (report.differences, report.lost, report.duplicated) == (0, 0, 0)
    assert sum(report.kills for report in reports.values()) >= len(POINTS) + len(POINTS) // 4


@pytest.mark.soak
def test_kills_at_random_change_nothing(servers):
    each = -(-RANDOM_KILLS // len(PROGRAMS))
    reports = servers.map(
        lambda fault_runs, program: kill_at_random(fault_runs, program, each, 1), PROGRAMS
    )
    assert [report.problems for report in reports.values()] == [[]] * len(PROGRAMS)
    assert sum(report.kills for report in reports.values()) >= RANDOM_KILLS
    assert sum(report.ends.get("kill", 0) for report in reports.values()) >= 3
    assert sum(report.ends.get("abort", 0) for report in reports.values()) >= 3


@pytest.mark.soak
def test_kills_while_a_pause_is_saved_change_nothing(servers):
    def killed(fault_runs: FaultRuns, point: str) -> KillReport:
        """Kills a run twice while it saves a pause: before its first checkpoint, and later."""
        program = ("grpo", "grpo-updates")[SAVING.index(point) % 2]
        run = fault_runs.new(program)
        ends = [fault_runs.start(run, plans=[("sample.token", 5, "pause"), (point, 1, "kill")])]
        ends.append(fault_runs.start(run, plans=[("sample.token", 45, "pause")]))
        ends.append(fault_runs.start(run, plans=[("sample.token", 4, "pause"), (point, 1, "kill")]))
        ends += fault_runs.finish(run)
        return fault_runs.judge(run, program, ends)

    reports = servers.map(killed, SAVING)
    assert [report.problems for report in reports.values()] == [[]] * len(SAVING)
    assert sum(report.ends.get("kill", 0) for report in reports.values()) >= len(SAVING)
