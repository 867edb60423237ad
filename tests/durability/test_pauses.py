"""A run that was paused ends as the undisturbed run does and samples nothing twice, at whatever moment and
however often it was paused.
"""

import re

import pytest

from ops.fault_injection.facts import Facts, differences
from ops.fault_injection.kills import MOST_STARTS, FaultRuns, untoward
from ops.fault_injection.programs import PROGRAMS
from ops.host import DONE, PAUSED
from runtime import checkpoint
from runtime.keys import Stream
from runtime.rundir import RunDirectory

AT_POINTS, AT_TIMES = 4, 2
"""How often each program is paused: at a drawn hit of a failpoint, and at a drawn time from outside."""
soak = pytest.mark.soak
POINTS = ("sample.token", "verify.row", "learn.micro_batch", "eval.prompts", "teach.part")
FROM_DATA = ("sft", "distill-text", "preference", "preference-kto")
"""The programs whose students sample in evaluations only."""
SAMPLING = [program for program in PROGRAMS if program not in FROM_DATA]


def finished(fault_runs: FaultRuns, run: RunDirectory, program: str, *jobs: dict) -> Facts:
    """Starts the run once for each job, which pauses it, and then to its end. Returns its facts."""
    ends = [fault_runs.start(run, **job) for job in jobs]
    assert {ended.code for ended in ends} <= {PAUSED, DONE}, ends
    for path in run.checkpoints.glob("*/unfinished-*.arrow"):
        purpose, _, step = path.stem.removeprefix("unfinished-").rpartition("-")
        stands_at = int(path.parent.name[5:11])
        assert int(step) in range(stands_at + (purpose == "sample"), stands_at + 3), path
    ends.append(fault_runs.start(run))
    assert (ends[-1].code, [s for ended in ends for s in untoward(ended)]) == (DONE, [])
    facts = fault_runs.examine(run)
    expected = fault_runs.undisturbed(program).facts
    assert facts.problems + differences(facts, expected) == []
    # All starts together sampled each token of the log and of the evaluations once.
    assert facts.sampled_tokens == expected.sampled_tokens
    by_teacher = facts.tokens - facts.sampled_tokens
    assert by_teacher == 0 or program == "distill-text"
    return facts


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=soak)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_pause_at_any_moment_changes_nothing(servers, program, half):
    stream = Stream(1, "pauses", program)
    alone = servers.first.undisturbed(program)
    points = ["sample.token", *(p for p in POINTS if p in alone.reached)][-AT_POINTS:]
    jobs: list[tuple] = [(p, stream.integer(1, alone.reached[p])) for p in points]
    jobs += [("", stream.integer(0, int(900 * alone.seconds))) for _ in range(AT_TIMES)]

    def paused(fault_runs: FaultRuns, job: tuple) -> None:
        point, nth = job
        when = {"plans": [(point, nth, "pause")]} if point else {"after_s": nth / 1000}
        finished(
            fault_runs,
            fault_runs.new(program),
            program,
            when if point else {**when, "then": "pause"},
        )

    servers.map(paused, set(jobs[half::2]))


@pytest.mark.parametrize(
    ("program", "tokens"), [("grpo", 4), pytest.param("grpo-lagging", 7, marks=soak)]
)
def test_a_run_that_is_paused_at_every_few_tokens_gets_to_its_end(servers, program, tokens):
    fault_runs, ends = servers.first, []
    run = fault_runs.new(program)
    while len(ends) < MOST_STARTS and (not ends or ends[-1].code == PAUSED):
        ends.append(fault_runs.start(run, plans=[("sample.token", tokens, "pause")]))
    assert ends[-1].code == DONE, ends[-1]
    finished(fault_runs, run, program)
    assert len(ends) >= 20


@pytest.mark.parametrize(
    "program", [pytest.param(p, marks=[soak] * (i % 2)) for i, p in enumerate(SAMPLING)]
)
def test_a_pause_within_a_resumed_step_goes_on_with_the_same_answers(servers, program):
    """The run is paused twice while it samples its first step, and twice while it learns from it."""
    fault_runs = servers.first
    run, lengths = fault_runs.new(program), []
    assert fault_runs.start(run, plans=[("eval.noted", 1, "pause")]).code == PAUSED
    for point, nth in (("sample.token", 3), ("sample.token", 2), ("learn.micro_batch", 2),
                       ("learn.micro_batch", 1)):  # fmt: skip
        assert fault_runs.start(run, plans=[(point, nth, "pause")]).code == PAUSED
        newest, _ = checkpoint.newest(run.checkpoints)
        assert newest is not None
        lengths.append(sum(f.stat().st_size for f in newest.path.glob("unfinished-*")))
    assert lengths[0] and lengths == sorted(lengths), "a later pause kept less than an earlier one"
    finished(fault_runs, run, program)


def test_a_pause_in_the_middle_of_an_evaluation_keeps_its_answers(servers):
    fault_runs = servers.first
    run = fault_runs.new("sft")  # it samples in evaluations only
    assert fault_runs.start(run, plans=[("sample.token", 3, "pause")]).code == PAUSED
    newest, _ = checkpoint.newest(run.checkpoints)
    assert newest is not None and (newest.path / "unfinished-eval-000000.arrow").exists()
    finished(fault_runs, run, "sft")


@pytest.mark.parametrize("samplers", [1, pytest.param(3, marks=soak)])
def test_another_number_of_samplers_goes_on_with_the_same_answers(servers, samplers):
    fault_runs = servers.first
    run = fault_runs.new("grpo")
    assert fault_runs.start(run, plans=[("sample.token", 40, "pause")]).code == PAUSED
    recipe = run.recipe.read_text()
    run.recipe.write_text(re.sub(r"^samplers = 2$", f"samplers = {samplers}", recipe, flags=re.M))
    assert run.recipe.read_text() != recipe
    finished(fault_runs, run, "grpo")
