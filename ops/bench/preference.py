"""What each preference loss does to the seedling: accuracy, margin and pass@1 before and after, three seeds.

Each seed is a run of the recipe in `configs`, with its actors as plain objects of this process. Pairs are
held out; pass@1 is of sampled answers. Target: the margin rises in each run, the accuracy is at least 0.95 at
the end, and a recipe's mean pass@1 does not fall by more than its standard error.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ops.bench.distillation_runs import run_here
from ops.bench.report import print_table, write_json
from ops.terminal import say
from runtime.blas import load_blas
from runtime.status import PASS_AT_1, PREFERENCE_ACCURACY, REWARD_MARGIN, EvalResult

CONFIGS = Path(__file__).parents[2] / "configs"
CASES: dict[str, tuple[str, list[str]]] = {
    "dpo": ("dpo.toml", []),
    "ipo": ("dpo.toml", ['algorithm.loss={ name = "ipo", beta = 1.0, nll_weight = 1.0 }']),
    "simpo": ("simpo.toml", []),
    "orpo": ("orpo.toml", []),
    "kto": ("kto.toml", []),
    "dpo-online": ("dpo-online.toml", []),
}
"""The recipe of each case, and what is set on top."""
ACCURACY = 0.95
HEADER = ["", "accuracy", "margin", "pass@1", "gain of each seed", "processor time"]


def measure(case: str, seed: int, root: Path, overrides: list[str]) -> dict[str, Any]:
    """Returns a run's first and last evaluations by metric, and the processor seconds that it took."""
    from configs import load
    from ops.seed import ensure_seedling

    recipe, changes = CASES[case]
    model, _ = ensure_seedling()
    settings = load(CONFIGS / recipe, [*changes, f"model.path={model}", f"seed={seed}", *overrides])
    began = time.process_time()
    run = run_here(root, f"{case}-{seed}", msgspec.to_builtins(settings))
    return {
        "case": case,
        "seed": seed,
        "processor_s": time.process_time() - began,
        "evals": first_and_last(run.status.evals),
    }


def first_and_last(evals: list[EvalResult]) -> dict[str, dict[str, float]]:
    """Returns score and standard error of each metric's first and last evaluation."""
    found: dict[str, dict[str, float]] = {}
    for one in evals:
        score = math.nan if one.score is None else one.score
        ends = found.setdefault(one.metric, {"base": score, "base_stderr": one.stderr})
        ends.update(final=score, stderr=one.stderr, n=one.n)
    return found


def missed(runs: list[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each target that a case's runs miss."""
    found = []
    case = runs[0]["case"]
    for run in runs:
        margin, accuracy = (run["evals"].get(m) for m in (REWARD_MARGIN, PREFERENCE_ACCURACY))
        if margin and not margin["final"] > margin["base"]:
            found.append(f"{case}, seed {run['seed']}: {REWARD_MARGIN} did not rise")
        if accuracy and accuracy["final"] < ACCURACY:
            found.append(f"{case}, seed {run['seed']}: {PREFERENCE_ACCURACY} is below {ACCURACY}")
    gains = [run["evals"][PASS_AT_1] for run in runs]
    variance = sum(e["stderr"] ** 2 + e["base_stderr"] ** 2 for e in gains) / len(gains) ** 2
    if float(np.mean([e["final"] - e["base"] for e in gains])) < -math.sqrt(variance):
        found.append(f"{case}: {PASS_AT_1} fell")
    return found


def row(runs: list[dict[str, Any]]) -> list[str]:
    """Returns a line of the table: means over a case's seeds."""
    metrics = (PREFERENCE_ACCURACY, REWARD_MARGIN, PASS_AT_1)
    passed = [run["evals"][PASS_AT_1] for run in runs]
    return [
        runs[0]["case"],
        *(between(runs, metric) for metric in metrics),
        ", ".join(f"{ends['final'] - ends['base']:+.2f}" for ends in passed),
        f"{np.mean([run['processor_s'] for run in runs]):.0f} s",
    ]


def between(runs: list[dict[str, Any]], metric: str) -> str:
    """Returns a metric's means before and after; nothing where it was not taken."""
    ends = [run["evals"][metric] for run in runs if metric in run["evals"]]
    if not ends:
        return ""
    means = (np.mean([e[end] for e in ends]) for end in ("base", "final"))
    return " → ".join(f"{mean:.3f}" for mean in means)


def main() -> int:
    """Prints the table; returns 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CASES), help="comma-separated names")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    cases = options.only.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"--only: needs of {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    load_blas(exact=False)
    results: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            seeds = range(options.seeds)
            results.append([measure(case, seed, Path(folder), options.set) for seed in seeds])
            say("  ".join(row(results[-1])), err=True)
    print_table(HEADER, [row(runs) for runs in results])
    if options.json:
        write_json(options.json, {"runs": [run for runs in results for run in runs]})
    problems = [sentence for runs in results for sentence in missed(runs)]
    for sentence in problems:
        say(f"missed: {sentence}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
