"""Distillations in exact mode, as a program: the tests' own process may have loaded OpenBLAS.

Runs each scenario that it is asked for under argv[1]; see `outcomes.answer`. A scenario's name is "kind" for
the undisturbed run, "kind, disturbance" for another that is to end as it does.
"""

import functools
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runtime.blas import load_blas

assert load_blas(exact=True) in ("reference", "metal")

from configs.schema import Settings  # noqa: E402
from runtime import failpoints  # noqa: E402
from runtime.pause_request import PauseRequest  # noqa: E402
from runtime.rundir import RunDirectory  # noqa: E402
from runtime.status import Status  # noqa: E402
from tests.actors.outcomes import answer  # noqa: E402
from tests.actors.tiny import (  # noqa: E402
    GRADED,
    Death,
    checkpoint,
    digests,
    distilled,
    go,
    mortal_actor_system,
    new_run,
    reward_file,
    teacher,
)

Disturb = Callable[[Settings, RunDirectory], Status]

DATA = {"name": "data"}
TEXT = {"name": "teacher"}
TOP_K = {"name": "top_k", "k": 8}
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "top-k": {"algorithm__signal": TOP_K},
    "sampled": {"algorithm__signal": {"name": "sampled"}},
    "reward to go": {"algorithm__signal": {"name": "sampled", "credit": "reward_to_go", "whiten": True}},
    "data": {"algorithm__learn_from": DATA, "algorithm__signal": TOP_K},
    "mixed": {"algorithm__learn_from": {"name": "mixed"}, "algorithm__signal": TOP_K},
    "text": {"algorithm__learn_from": TEXT, "algorithm__signal": {"name": "text"}},
    "text and full": {"algorithm__learn_from": TEXT},
}  # fmt: skip
HAS_TEACHER = {"top-k", "sampled", "data", "mixed", "text"}


def stopped(*after: int) -> Disturb:
    """Paused behind these steps."""

    def run_it(wanted: Settings, run: RunDirectory) -> Status:
        for steps in after:
            assert go(wanted, run, stop_after=steps).state == "paused"
        return go(wanted, run)

    return run_it


def paused(point: str, *hits: int) -> Disturb:
    """Asked to pause at these hits of a throttle, each in a process of its own."""

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


def disturbances(kind: str) -> dict[str, Disturb]:
    """What happens to a run of this kind."""
    method = "generate" if kind == "text" else "score"
    found = {
        "again": lambda wanted, run: go(wanted, run),
        "stopped": stopped(1, 1),
        "learner died": killed(Death("learner", "_checkpoint", 3)),
        "learner died unheard": killed(Death("learner", "learn", 3, after=True)),
    }
    if kind in ("full", "top-k", "sampled", "mixed"):
        found["sampler died"] = killed(Death("sampler", "generate", 6))
        found["paused while it samples"] = paused("sample.token", 20)
    if kind in HAS_TEACHER:
        found["teacher died"] = killed(Death("teacher", method, 2))
        found["teacher died unheard"] = killed(Death("teacher", method, 3, after=True))
        found["paused while it teaches"] = paused("teach.part", 2, 3)
    return found


def disturbed(
    name: str, disturb: Disturb, changes: dict[str, Any], folder: Path
) -> tuple[RunDirectory, Status]:
    """A run to which something happens. But for "again" there is no cache: what a death or a pause
    loses is made anew.
    """
    hosted = "algorithm__signal" not in changes and changes.get("algorithm__learn_from") != TEXT
    cache = {} if hosted or name == "again" else {"algorithm__cache_gb": 0}
    run = new_run(folder)
    return run, disturb(distilled(folder, exact=True, **changes, **cache), run)


def undisturbed(folder: Path, **changes: Any) -> tuple[RunDirectory, Status]:
    """A run of the tiny distillation."""
    run = new_run(folder)
    return run, go(distilled(folder, exact=True, **changes), run)


def by_itself(folder: Path, **changes: Any) -> tuple[RunDirectory, Status]:
    """With the student's own checkpoint as the teacher."""
    teachers = {"big": {"name": "local", "path": str(checkpoint(folder / "model"))}}
    return undisturbed(folder, algorithm__teachers=teachers, **changes)


def outcome(run: RunDirectory, status: Status) -> dict[str, Any]:
    """What two equal runs share, and the metrics."""
    return {
        "state": status.state,
        "step": status.step,
        "digests": digests(status),
        "ledger": status.ledger,
        "evals": [[e.step, e.score, e.n] for e in status.evals],
        "log": run.trajectories.stat().st_size,
        "metrics": run.read_lines("metrics.jsonl"),
    }


def scenarios() -> dict[str, Callable[[Path], tuple[RunDirectory, Status]]]:
    """Returns what runs each scenario in a folder."""
    plans: dict[str, Callable[[Path], tuple[RunDirectory, Status]]] = {}
    for kind, changes in KINDS.items():
        for name, disturb in disturbances(kind).items():
            plans[f"{kind}, {name}"] = partial(disturbed, name, disturb, changes)
        plans[kind] = partial(undisturbed, **changes)
        if kind in ("full", "top-k", "sampled"):
            plans[f"{kind}, by itself"] = partial(by_itself, **changes)
    plans["rewarded"] = lambda folder: undisturbed(
        folder,
        algorithm__learn_from={"name": "student", "reward": 1.0, "group_size": 4},
        task__reward=str(reward_file(folder, GRADED)),
    )
    return plans


def main(root: Path) -> None:
    """Answers for each scenario. Before the first, each kind's "again" fills the teacher cache, in order."""
    plans = scenarios()

    @functools.cache
    def outcome_of(name: str) -> dict[str, Any]:
        folder = root / name.replace(" ", "-").replace(",", "")
        folder.mkdir()
        teacher(folder)
        return outcome(*plans[name](folder))

    def behind_all_agains(name: str) -> dict[str, Any]:
        for kind in KINDS:
            outcome_of(f"{kind}, again")
        return outcome_of(name)

    answer(behind_all_agains)


if __name__ == "__main__":
    os.environ["PIPPIN_HOME"] = str(Path(sys.argv[1]) / "home")
    main(Path(sys.argv[1]))
