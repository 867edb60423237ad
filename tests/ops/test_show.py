"""Status lines fit the terminal and begin with the most important numbers."""

import io
import re

from ops.show import LiveLine, duration, eval_line, progress_line, runs_table
from ops.terminal import write
from runtime.status import EvalResult, Status

METRICS = {
    "reward_mean": 0.25,
    "pass_at_1": 0.5,
    "sampler_tokens_per_s": 12345.0,
    "learner_tokens_per_s": 6789.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def running(step: int) -> Status:
    return Status(name="r", state="running", step=step, steps=10, metrics=METRICS, eta_s=61.0)


def result(step: int, score: float | None) -> EvalResult:
    return EvalResult(
        step=step, task="t", metric="pass@1", score=score, n=4, stderr=0.1, mean_tokens=3.0,
        truncated=0.0,
    )  # fmt: skip


def test_the_line_says_step_time_left_and_how_good_before_all_else():
    line = progress_line(running(5))
    assert line.index("5/10") < line.index("1 min 01 s left") < line.index("pass@1 0.500")


def test_a_line_is_rewritten_only_if_it_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    show = LiveLine(out)
    show(running(5))
    show(running(6))
    assert "\n" not in out.getvalue()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).split("\r")
    assert all(len(part) <= 39 for part in lines)
    assert "step 5/10" in lines[0] and "step 6/10" in lines[-1] and "1 min 01 s left" in lines[-1]


def test_without_a_terminal_there_are_whole_lines():
    out = io.StringIO()
    show = LiveLine(out)
    for step in range(1, 11):
        show(running(step))
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert all("\r" not in line and "pass@1" in line for line in lines)


def test_an_evaluation_is_told_against_the_base():
    assert ", +0.250 over the base" in eval_line(result(4, 0.5), result(0, 0.25))
    assert "no answer could be scored" in eval_line(result(0, None), result(0, None))


def test_a_run_without_a_score_has_its_place_in_the_table():
    out = io.StringIO()
    write(
        out,
        runs_table([Status(name="one", state="failed", evals=[result(0, None)], message="why")]),
    )
    table = out.getvalue()
    assert "one" in table and "none" in table and "why" in table


def test_durations_are_said_as_people_say_them():
    assert [duration(s) for s in (5, 65, 3700)] == ["5 s", "1 min 05 s", "1 h 01 min"]


def test_a_run_that_nothing_judges_shows_its_accuracy():
    compared = [
        EvalResult(
            step=step, task="t", metric=metric, score=score, n=4, stderr=0.1, mean_tokens=3.0,
            truncated=0.0,
        )
        for step, metric, score in ((0, "preference_accuracy", 0.5), (0, "reward_margin", 0.0),
                                    (2, "preference_accuracy", 0.875), (2, "reward_margin", 0.25))
    ]  # fmt: skip
    out = io.StringIO()
    write(out, runs_table([Status(name="one", state="finished", evals=compared)]))
    assert re.search(r"0\.500 +0\.875 +preference_accuracy", out.getvalue())
    metrics = {"loss": 0.5, "preference_accuracy": 0.75, "reward_margin": 0.125}
    line = progress_line(Status(name="one", state="running", step=2, steps=4, metrics=metrics))
    assert "accuracy 0.750 margin 0.125" in line
