"""Whole runs in exact mode, as a program: the tests' own process may have loaded OpenBLAS.

Runs every scenario in its own folder under argv[1] and prints one JSON object, by scenario: what
`Scenario` says of it, or an error.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from runtime.blas import load_blas

assert load_blas(exact=True) in ("reference", "metal")

from runtime.rundir import RunDirectory, Status  # noqa: E402
from tests.actors.tiny import (  # noqa: E402
    COARSE,
    Death,
    digests,
    go,
    mortal_fleet,
    new_run,
    settings,
)

Scenario = Callable[[Path], tuple[RunDirectory, Status]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, **changes) -> None:
    """An undisturbed run."""

    def undisturbed(folder: Path):
        run = new_run(folder)
        return run, go(settings(folder, exact=True, **changes), run)

    SCENARIOS[name] = undisturbed


def stopped(name: str, *after: int, damage: str = "", **changes) -> None:
    """A run that is stopped behind each of these many steps, and started again."""

    def restarted(folder: Path):
        run, wanted = new_run(folder), settings(folder, exact=True, **changes)
        for steps in after:
            assert go(wanted, run, stop_after=steps).state == "paused"
        if damage:
            newest = max(run.checkpoints.iterdir())
            (newest / damage).write_bytes((newest / damage).read_bytes()[:-1])
        return run, go(wanted, run)

    SCENARIOS[name] = restarted


def killed(name: str, *deaths: Death, **changes) -> None:
    """A run some of whose actors die."""

    def revived(folder: Path):
        run, wanted = new_run(folder), settings(folder, exact=True, **changes)
        status = go(wanted, run, mortal_fleet(wanted, run, list(deaths)))
        assert all(death.calls >= death.nth for death in deaths), "nobody died"
        return run, status

    SCENARIOS[name] = revived


DYNAMIC = {
    "reward": COARSE,
    "algorithm__resample_rounds": 2,
    "algorithm__prompts_per_step": 4,
    "algorithm__group_size": 2,
}
LAGGING = {"algorithm__max_lag": 1, "algorithm__steps": 6}

scenario("plain")
scenario("plain again")
scenario("another seed", seed=6)
scenario("one sampler", actors={"samplers": 1}, sampling__slots=3)
stopped("stopped behind 1", 1)
stopped("stopped behind 2", 2)
stopped("stopped twice", 1, 2)
stopped("stopped and damaged", 3, damage="optimizer.safetensors")
stopped("stopped before a checkpoint", 2, checkpoint={"every_steps": 3})
stopped("stopped behind a checkpoint", 3, checkpoint={"every_steps": 2})
scenario("lagging", **LAGGING)
stopped("lagging, stopped", 3, **LAGGING)
stopped("lagging, stopped long behind a checkpoint", 5, checkpoint={"every_steps": 3}, **LAGGING)
stopped("lagging, stopped and damaged", 4, damage="weights.safetensors", **LAGGING)
killed("lagging, learner died", Death("learner", "learn", 4), **LAGGING)
scenario("dynamic", **DYNAMIC)
stopped("dynamic, stopped", 2, **DYNAMIC)
scenario("two updates", algorithm__updates_per_step=2)
stopped("two updates, stopped", 2, algorithm__updates_per_step=2)
killed("sampler died", Death("sampler", "generate", 5))
killed("sampler died unheard", Death("sampler", "generate", 5, after=True))
killed("verifier died", Death("verifier", "score", 4))
killed("evaluator died", Death("evaluator", "summarise", 2))
killed("learner died before its work", Death("learner", "learn", 2))
killed("learner died before its checkpoint", Death("learner", "_checkpoint", 2))
killed("learner died behind its checkpoint", Death("learner", "_checkpoint", 2, after=True))
killed("learner died unheard", Death("learner", "learn", 4, after=True))
killed("learner died before any checkpoint", Death("learner", "learn", 1, after=True),
       checkpoint={"every_steps": 3})  # fmt: skip
killed("learner died while it was restored", Death("learner", "restore", 1, after=True))
killed("all died", Death("sampler", "generate", 6), Death("verifier", "score", 3, after=True),
       Death("evaluator", "prompts", 2), Death("learner", "_retire", 3))  # fmt: skip


def main(folder: Path) -> None:
    """Run all, print all."""
    results = {}
    for name, run_it in SCENARIOS.items():
        here = folder / name.replace(" ", "-").replace(",", "")
        here.mkdir()
        try:
            run, status = run_it(here)
            results[name] = {
                "state": status.state,
                "step": status.step,
                "digests": digests(status),
                "ledger": status.ledger,
                "evals": [[e.step, e.score, e.n] for e in status.evals],
                "metrics": run.read_lines("metrics.jsonl"),
                "log": run.trajectories.stat().st_size,
            }
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    print(json.dumps(results))


if __name__ == "__main__":
    os.environ["PIPPIN_HOME"] = str(Path(sys.argv[1]) / "home")
    main(Path(sys.argv[1]))
