"""A status comes back as it was, and tells the truth about a run whose writer is gone."""

import pytest

from runtime.status import EvalResult, Status
from tests.runtime.complaints import complaint


@pytest.mark.parametrize("state", ["finished", "failed", "interrupted"])
def test_a_run_that_ended_with_a_word_has_not_died(run, state):
    run.write_status(Status(name="demo", state=state, message="why"))
    assert (run.read_status().state, run.read_status().message) == (state, "why")


def test_a_status_comes_back_as_it_was(run):
    score = {"task": "addition", "metric": "pass@1", "stderr": 0.0, "mean_tokens": 1.5}
    status = Status(
        name="demo", state="finished", step=3, steps=3, metrics={"loss": -0.5}, pids={"learner": 7},
        evals=[
            EvalResult(step=0, score=0.25, n=4, truncated=0.5, **score),
            EvalResult(step=3, score=None, n=0, truncated=0.0, failed=4, **score),
        ],
    )  # fmt: skip
    run.write_status(status)
    assert run.read_status() == status


def test_a_damaged_status_is_named(run):
    (run.path / "status.json").write_text('{"name": "demo", "step": "x"}')
    assert complaint(run.read_status).startswith(f"{run.path / 'status.json'}: is damaged: ")


def test_a_run_without_a_status_has_not_begun_or_has_died(run):
    assert run.read_status().state == "died"
    run.lock()
    assert run.read_status().state == "starting"
    run.unlock()
