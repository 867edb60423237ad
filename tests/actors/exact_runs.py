"""Whole runs in exact mode, as a program: the tests' own process may have loaded OpenBLAS.

Runs each scenario that it is asked for in a folder of its own under argv[1]; see `outcomes.answer`.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runtime.blas import load_blas

assert load_blas(exact=True) in ("reference", "metal")

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
        status = go(wanted, run, mortal_actor_system(wanted, run, list(deaths)))
        assert all(death.calls >= death.nth for death in deaths), "nobody died"
        return run, status

    SCENARIOS[name] = revived


def paused(name: str, *tokens: int, **changes) -> None:
    """A run that is asked to pause at each of these hits of the samplers' throttle, and started again."""

    def resumed(folder: Path):
        run, wanted = new_run(folder), settings(folder, exact=True, **changes)
        for nth in tokens:
            failpoints.arm(failpoints.Plan("sample.token", nth, lambda: ask(run)))
            try:
                assert go(wanted, run).state == "paused"
            finally:
                failpoints.disarm()
        return run, go(wanted, run)

    SCENARIOS[name] = resumed


def ask(run: RunDirectory) -> None:
    """As `pippin pause` does."""
    run.ask_to_pause(PauseRequest(by="user", reason="a test"))


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


def evolution(samplers: int = 2, **changes) -> dict[str, Any]:
    """Evolution strategies: six members, three prompts, five generations."""
    algorithm = {"name": "es", "steps": 5, "prompts_per_step": 3, "population": 6, "sigma": 0.05,
                 "update": {"name": "plain", "alpha": 0.05}} | changes  # fmt: skip
    return {"algorithm": algorithm, "optimizer": {}, "eval": {"prompts": 3, "sampled": True},
            "actors": {"samplers": samplers, "verifiers": 2}}  # fmt: skip


FULL_RANK = evolution(
    perturbation={"name": "full_rank"}, noise="uniform", temperature=1.0, antithetic=False
)
ON_DATA = evolution(fitness="log_likelihood", update={"name": "adamw"}) | {
    "task__response": "answer", "optimizer": {"learning_rate": 1e-2},
}  # fmt: skip
OF_RANK_2 = {"name": "low_rank", "rank": 2}
ADAPTERS = evolution(noise="normal", shaping="centered_ranks", perturbation=OF_RANK_2) | {
    "model__train": {"name": "lora", "rank": 4}, "model__quantize_bits": 4,
}  # fmt: skip

scenario("es", **evolution())
scenario("es, longer", **evolution(steps=12, population=16, prompts_per_step=6, sigma=0.02,
                                   update={"name": "plain", "alpha": 0.02}))  # fmt: skip
scenario("es, one sampler", **evolution(samplers=1), sampling__slots=5)
scenario("es, three samplers", **evolution(samplers=3))
stopped("es, stopped twice", 1, 2, **evolution())
stopped("es, stopped before a checkpoint", 2, checkpoint={"every_steps": 3}, **evolution())
stopped("es, stopped and damaged", 3, damage="lineage.json", **evolution())
paused("es, paused mid-generation", 40, 30, **evolution())
killed("es, a sampler joined late", Death("sampler", "generate", 14), **evolution())
killed("es, sampler died unheard", Death("sampler", "generate", 8, after=True), **evolution())
killed("es, learner died before its checkpoint", Death("learner", "_checkpoint", 3), **evolution())
killed("es, learner died unheard", Death("learner", "learn", 3, after=True), **evolution())
killed("es, learner died before any checkpoint", Death("learner", "learn", 2, after=True),
       checkpoint={"every_steps": 3}, **evolution())  # fmt: skip
killed("es, all died", Death("sampler", "generate", 9), Death("verifier", "score", 5, after=True),
       Death("learner", "_retire", 3), **evolution())  # fmt: skip
for kind, changes, tokens in (
    ("full rank", FULL_RANK, 35), ("on data", ON_DATA, 30), ("adapters", ADAPTERS, 35),
):  # fmt: skip
    scenario(f"es, {kind}", **changes)
    stopped(f"es, {kind}, stopped", 3, **changes)
    paused(f"es, {kind}, paused mid-generation", tokens, **changes)
    killed(f"es, {kind}, actors died", Death("sampler", "generate", 10),
           Death("learner", "learn", 4, after=True), **changes)  # fmt: skip


def outcome_of(root: Path, name: str) -> dict[str, Any]:
    """Runs a scenario. Returns what two equal runs share, and the metrics."""
    here = root / name.replace(" ", "-").replace(",", "")
    here.mkdir()
    run, status = SCENARIOS[name](here)
    return {
        "state": status.state,
        "step": status.step,
        "digests": digests(status),
        "ledger": status.ledger,
        "evals": [[e.step, e.score, e.n] for e in status.evals],
        "metrics": run.read_lines("metrics.jsonl"),
        "log": run.trajectories.stat().st_size,
    }


if __name__ == "__main__":
    root = Path(sys.argv[1])
    os.environ["PIPPIN_HOME"] = str(root / "home")
    answer(partial(outcome_of, root))
