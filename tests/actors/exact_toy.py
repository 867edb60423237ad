"""Runs of the toy algorithm in exact mode, as a program: the tests' own process may have loaded OpenBLAS.

Each scenario begins as `pippin launch` begins a run and goes on as `pippin resume` does: from the recipe in
its directory. Prints one JSON object, by scenario: how it ended, or an error.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runtime.blas import load_blas

if __name__ == "__main__":  # before anything imports MLX
    assert load_blas(exact=True) in ("reference", "metal")

from configs import load
from ops.launch import prepare
from ops.preflight import check_same_run
from runtime import failpoints
from runtime.checkpoint import newest as newest_checkpoint
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory
from runtime.status import Status
from tests.actors.outcomes import answer
from tests.actors.tiny import (
    GRADED,
    Death,
    checkpoint,
    digests,
    go,
    mortal_actor_system,
    prompts,
    reward_file,
)
from tests.actors.toy_algorithm import known

STEPS, PROMPTS, ANSWERS = 4, 3, 4
RECIPE = f"""# Best-of-group imitation, so small that a test can have many.
seed = 5
exact = true

[model]
path = "./model"

[task]
name = "jsonl"
train = "prompts.jsonl"
reward = "{{reward}}"
pass_at = 0.5

[algorithm]
name = "best_of_group"
steps = {STEPS}
prompts_per_step = {PROMPTS}
group_size = {ANSWERS}

[sampling]
max_new_tokens = 6
slots = 8

[optimizer]
learning_rate = 1e-2

[eval]
prompts = 3

[actors]
samplers = 2
"""
"""The folder has the model, the prompts and the reward beside it."""
PAUSES = {9: "unfinished-eval-000000.arrow", 13: "unfinished-sample-000001.arrow"}
"""A token between two of which a run pauses, counted from where it goes on, and the answers that it keeps."""


def recipe(folder: Path) -> Path:
    """Writes the recipe with all that it names; returns its path."""
    checkpoint(folder / "model")
    prompts(folder)
    path = folder / "toy.toml"
    path.write_text(RECIPE.format(reward=reward_file(folder, GRADED).name))
    return path


def gone_on(run: RunDirectory, stop_after: int | None = None) -> Status:
    """Goes on with a run as a process that has only its directory."""
    settings = load(run.recipe)
    check_same_run(run, settings)
    return go(settings, run, stop_after=stop_after)


def whole(run: RunDirectory) -> Status:
    """Nothing happens to it."""
    return gone_on(run)


def stopped(run: RunDirectory) -> Status:
    """It pauses behind its second step."""
    assert gone_on(run, stop_after=2).state == "paused"
    return gone_on(run)


def paused_in_a_step(run: RunDirectory) -> Status:
    """It pauses between two tokens of the first evaluation's answers, and of its first step's."""

    def ask() -> None:
        run.ask_to_pause(PauseRequest(by="user", reason="a test"))

    for hit, kept in PAUSES.items():
        failpoints.arm(failpoints.Plan("sample.token", hit, ask))
        try:
            status = gone_on(run)
        finally:
            failpoints.disarm()
        assert (status.state, status.step) == ("paused", 0)
        newest, _ = newest_checkpoint(run.checkpoints)
        assert newest and [p.name for p in newest.path.glob("unfinished-*")] == [kept]
    return gone_on(run)


def bereaved(run: RunDirectory) -> Status:
    """A sampler dies, and the learner before it has said that a step is learned."""
    settings = load(run.recipe)
    deaths = [Death("sampler", "generate", 5), Death("learner", "learn", 3, after=True)]
    status = go(settings, run, mortal_actor_system(settings, run, deaths))
    assert all(death.calls >= death.nth for death in deaths), "nobody died"
    return status


SCENARIOS: dict[str, Callable[[RunDirectory], Status]] = {
    "whole": whole,
    "stopped": stopped,
    "paused in a step": paused_in_a_step,
    "bereaved": bereaved,
}


def outcome_of(root: Path, name: str) -> dict[str, Any]:
    """Runs a scenario. Returns what two equal runs share, and where the run is."""
    run, _ = prepare(str(recipe(root)), [], name.replace(" ", "-"), root / "runs")
    status = SCENARIOS[name](run)
    return {
        "state": status.state,
        "step": status.step,
        "digests": digests(status),
        "ledger": status.ledger,
        "evals": [[e.step, e.score, e.n] for e in status.evals],
        "metrics": run.read_lines("metrics.jsonl"),
        "path": str(run.path),
    }


if __name__ == "__main__":
    root = Path(sys.argv[1])
    os.environ["PIPPIN_HOME"] = str(root / "home")
    with known():
        answer(partial(outcome_of, root))
