"""Preference runs in exact mode, as a program: the tests' own process may have loaded OpenBLAS.

Runs each scenario that it is asked for under argv[1]; see `outcomes.answer`. A scenario's name is "kind" for
the undisturbed run, "kind, disturbance" for another that is to end as it does.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runtime.blas import load_blas

assert load_blas(exact=True) in ("reference", "metal")

import policies.update  # noqa: E402
from configs.schema import Settings  # noqa: E402
from policies.reference import ReferenceLogprobs  # noqa: E402
from runtime import failpoints  # noqa: E402
from runtime.pause_request import PauseRequest  # noqa: E402
from runtime.rundir import RunDirectory  # noqa: E402
from runtime.status import Status  # noqa: E402
from tests.actors.outcomes import answer  # noqa: E402
from tests.actors.tiny import (  # noqa: E402
    COARSE,
    Death,
    digests,
    go,
    mortal_actor_system,
    new_run,
    preference,
    reward_file,
)

Disturb = Callable[[Settings, RunDirectory], Status]
Plan = Callable[[Path], tuple[RunDirectory, Status]]
LORA = {"model__train": {"name": "lora", "rank": 4}}
KINDS: dict[str, dict[str, Any]] = {
    "pairs": {},
    "messages": {"rows": "messages"},
    "lora": LORA,
    "kto": {"rows": "labels", "algorithm__loss": {"name": "kto"}},
    "online": {"algorithm__learn_from": {"name": "policy", "group_size": 4}},
}


def stopped(wanted: Settings, run: RunDirectory) -> Status:
    """Paused behind the first step, and behind the one after it."""
    for _ in range(2):
        assert go(wanted, run, stop_after=1).state == "paused"
    return go(wanted, run)


def paused(point: str, *hits: int) -> Disturb:
    """Asked to pause at these hits of a failpoint, each in a process of its own."""

    def run_it(wanted: Settings, run: RunDirectory) -> Status:
        def ask() -> None:
            run.ask_to_pause(PauseRequest(by="user", reason="a test"))

        for nth in hits:
            failpoints.arm(failpoints.Plan(point, nth, ask))
            try:
                assert go(wanted, run).state == "paused"
            finally:
                failpoints.disarm()
        return go(wanted, run)

    return run_it


def killed(*deaths: Death) -> Disturb:
    """Actors die."""

    def run_it(wanted: Settings, run: RunDirectory) -> Status:
        status = go(wanted, run, mortal_actor_system(wanted, run, list(deaths)))
        assert all(death.calls >= death.nth for death in deaths), "nobody died"
        return status

    return run_it


def computed_anew(wanted: Settings, run: RunDirectory) -> Status:
    """No log-probability of the reference is kept."""
    whole = policies.update.ReferenceLogprobs
    policies.update.ReferenceLogprobs = partial(ReferenceLogprobs, limit_bytes=0)  # type: ignore[misc]
    try:
        return go(wanted, run)
    finally:
        policies.update.ReferenceLogprobs = whole


DISTURBANCES: dict[str, Disturb] = {
    "stopped": stopped,
    "paused while it learns": paused("learn.micro_batch", 3, 2),
    "learner died": killed(Death("learner", "_checkpoint", 2)),
    "learner died unheard": killed(Death("learner", "learn", 3, after=True)),
}
OF_DATA = DISTURBANCES | {
    "paused while it compares": paused("eval.prompts", 1, 2),
    "learner died while it compared": killed(Death("learner", "compare", 2)),
    "reader died": killed(Death("reader", "read", 4, after=True)),
    "computed anew": computed_anew,
}
ONLINE = DISTURBANCES | {
    "sampler died": killed(Death("sampler", "generate", 3)),
    "paused while it samples": paused("sample.token", 20, 9),
}


def scenario(
    changes: dict[str, Any], disturb: Disturb, folder: Path
) -> tuple[RunDirectory, Status]:
    """A run to which something happens, in a folder of its own."""
    run = new_run(folder)
    if "algorithm__learn_from" in changes:
        changes = {**changes, "rows": "prompts", "task__reward": str(reward_file(folder, COARSE))}
    return run, disturb(preference(folder, exact=True, **changes), run)


def scenarios() -> dict[str, Plan]:
    """Returns what runs each scenario in a folder."""
    plans: dict[str, Plan] = {}
    for kind, changes in KINDS.items():
        plans[kind] = partial(scenario, changes, go)
        for name, disturb in (ONLINE if kind == "online" else OF_DATA).items():
            plans[f"{kind}, {name}"] = partial(scenario, changes, disturb)
    for samplers in (1, 3):
        changes = {**KINDS["online"], "actors__samplers": samplers}
        plans[f"online, samplers: {samplers}"] = partial(scenario, changes, go)
    often = {"eval": {"prompts": 4, "every_steps": 1}, "checkpoint": {"keep": 1}}
    plans["longer"] = partial(scenario, {"algorithm__steps": 8, **often}, go)
    return plans


def outcome_of(root: Path, name: str) -> dict[str, Any]:
    """Runs a scenario. Returns what two equal runs share, the metrics, and which checkpoints are kept."""
    folder = root / name.replace(" ", "-").replace(",", "").replace(":", "")
    folder.mkdir()
    run, status = scenarios()[name](folder)
    return {
        "state": status.state,
        "step": status.step,
        "digests": digests(status),
        "ledger": status.ledger,
        "evals": [[e.step, e.metric, e.score, e.n] for e in status.evals],
        "noted": [[e["step"], e["metric"], e["score"]] for e in run.read_lines("evals.jsonl")],
        "log": run.trajectories.stat().st_size,
        "metrics": run.read_lines("metrics.jsonl"),
        "roles": sorted({name.rpartition("-")[0] or name for name in status.pids}),
        "kept": sorted(int(path.name[5:11]) for path in run.checkpoints.iterdir()),
        "status": json.loads((run.path / "status.json").read_bytes())["evals"],
    }


if __name__ == "__main__":
    os.environ["PIPPIN_HOME"] = str(Path(sys.argv[1]) / "home")
    answer(partial(outcome_of, Path(sys.argv[1])))
