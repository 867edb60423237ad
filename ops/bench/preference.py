"""What each preference loss does to the seedling: accuracy, margin and pass@1 before and after, for three seeds.

Each seed is a run of its own through the command line, as a person would start it, of the recipe that is in
`configs`. Pairs are held out; pass@1 is of sampled answers. Target: accuracy and margin rise in each run, and
the mean pass@1 of no recipe falls by more than its standard error.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ops.bench.report import print_table, write_json
from runtime.status import PASS_AT_1, PREFERENCE_ACCURACY, REWARD_MARGIN

CONFIGS = Path(__file__).parents[2] / "configs"
PIPPIN = [sys.executable, "-m", "ops.cli"]
CASES: dict[str, tuple[str, list[str]]] = {
    "dpo": ("dpo.toml", []),
    "ipo": (
        "dpo.toml",
        ["--set", 'algorithm.loss={ name = "ipo", nll_weight = 0.5 }'],
    ),
    "simpo": ("simpo.toml", []),
    "orpo": ("orpo.toml", []),
    "kto": ("kto.toml", []),
    "dpo-online": ("dpo-online.toml", []),
}
"""The recipe of each case, and what is set beside it."""


def measure(case: str, seed: int, root: Path, options: list[str]) -> dict[str, Any]:
    """Returns a run's first and last evaluations by metric, and its seconds from command to prompt."""
    recipe, changes = CASES[case]
    name = f"{case}-{seed}"
    launch = ["launch", str(CONFIGS / recipe), "--root", str(root), "--name", name]
    began = time.perf_counter()
    subprocess.run(
        [*PIPPIN, *launch, "--set", f"seed={seed}", *changes, *options],
        check=True,
    )
    seconds = time.perf_counter() - began
    asked = [*PIPPIN, "status", name, "--root", str(root), "--json"]
    status = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
    return {
        "case": case,
        "seed": seed,
        "seconds": seconds,
        "evals": first_and_last(status["evals"]),
    }


def first_and_last(evals: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns score and standard error of each metric's first and last evaluation."""
    found: dict[str, dict[str, float]] = {}
    for one in evals:
        ends = found.setdefault(one["metric"], {"base": one["score"], "base_stderr": one["stderr"]})
        ends |= {"final": one["score"], "stderr": one["stderr"], "n": one["n"]}
    return found


def missed(runs: list[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each target that a case's runs miss."""
    found = []
    case = runs[0]["case"]
    for metric in (PREFERENCE_ACCURACY, REWARD_MARGIN):
        for run in runs:
            ends = run["evals"].get(metric)
            if ends and not ends["final"] > ends["base"]:
                found.append(f"{case}, seed {run['seed']}: {metric} did not rise")
    gains = [run["evals"][PASS_AT_1] for run in runs]
    variance = sum(e["stderr"] ** 2 + e["base_stderr"] ** 2 for e in gains) / len(gains) ** 2
    if float(np.mean([e["final"] - e["base"] for e in gains])) < -math.sqrt(variance):
        found.append(f"{case}: {PASS_AT_1} fell")
    return found


def row(runs: list[dict[str, Any]]) -> list[str]:
    """Returns a line of the table: means over a case's seeds."""
    return [
        runs[0]["case"],
        *(between(runs, metric) for metric in (PREFERENCE_ACCURACY, REWARD_MARGIN, PASS_AT_1)),
        ", ".join(
            f"{r['evals'][PASS_AT_1]['final'] - r['evals'][PASS_AT_1]['base']:+.2f}" for r in runs
        ),
        f"{np.mean([run['seconds'] for run in runs]):.0f} s",
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
    extra = [word for text in options.set for word in ("--set", text)]
    subprocess.run([*PIPPIN, "seed"], check=True)  # not part of a run's time
    with tempfile.TemporaryDirectory() as folder:
        results = [
            [measure(case, seed, Path(folder), extra) for seed in range(options.seeds)]
            for case in cases
        ]
    header = ["preference", "accuracy", "margin", "pass@1", "gain of each seed", "run time"]
    print_table(header, [row(runs) for runs in results])
    if options.json:
        write_json(options.json, {"runs": [run for runs in results for run in runs]})
    problems = [sentence for runs in results for sentence in missed(runs)]
    for sentence in problems:
        print(f"  missed: {sentence}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
