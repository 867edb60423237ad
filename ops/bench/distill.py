"""Measures how far 100 steps of distillation take a weak base, by signal, on a task that can be enumerated.

All 100 sums of two digits, answered greedily: the accuracy of a student is known exactly. Teacher and bases
are warmed up here, on the data. Target: on-policy with the whole distribution, at least 0.75 for each seed,
by forward KL: each sum has one right answer, and reverse KL gives up answers that the base hardly samples.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ops.bench.distillation_runs import Run, blank, exported, run_here
from ops.bench.report import print_table, write_json
from runtime.blas import load_blas

TARGET = 0.75
STEPS = 100
STUDENT = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 8}
TEACHER = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 16}
TEACHER_STEPS, BASE_STEPS, LOOK_STEPS = 300, 150, 10
WEAK = 0.25
"""The accuracy of a base: the base is the first of its warm start's evaluations that is so good. A fixed
number of steps would give bases anywhere between 0.1 and 0.6.
"""
WARM_RATE, RATE, PROMPTS = 3e-3, 3e-3, 64
VARIANTS: dict[str, dict[str, Any]] = {
    "on-policy, full, forward": {
        "learn_from": {"name": "student", "divergence": {"name": "forward"}}
    },
    "on-policy, full, reverse": {},
    "on-policy, top 8, reverse": {"signal": {"name": "top_k", "k": 8}},
    "on-policy, sampled token": {"signal": {"name": "sampled"}},
    "on-policy, reward to go": {"signal": {"name": "sampled", "credit": "reward_to_go"}},
    "mixed, full, jsd": {"learn_from": {"name": "mixed"}},
    "offline, full, forward": {"learn_from": {"name": "data"}},
    "teacher's text": {"learn_from": {"name": "teacher"}, "signal": {"name": "text"}},
    "data alone (sft)": {"name": "sft", "rows_per_step": 64},
}


def main() -> int:
    """Prints the table. Returns 1 if a seed misses the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="variants whose name begins so")
    options = parser.parse_args()
    load_blas(exact=False)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_tasks(folder)
        teacher = _warmed_up(folder, "teacher", TEACHER, TEACHER_STEPS, seed=0, least=1.0)
        for seed in range(options.seeds):
            base = _warmed_up(folder, f"base-{seed}", STUDENT, BASE_STEPS, seed=seed, least=WEAK)
            for variant, algorithm in VARIANTS.items():
                if variant.startswith(options.only):
                    results.append(_distilled(folder, variant, algorithm, base, teacher, seed))
    rows = []
    for variant in dict.fromkeys(result["variant"] for result in results):
        mine = [result for result in results if result["variant"] == variant]
        scores = [f"{r['before']:.2f} → {r['after']:.2f}" for r in mine]
        rows.append([variant, *scores, f"{sum(r['seconds'] for r in mine) / len(mine):.1f} s"])
    seeds = [f"seed {seed}" for seed in range(options.seeds)]
    print_table([f"greedy accuracy, {STEPS} steps", *seeds, "run time"], rows)
    if options.json:
        write_json(options.json, {"steps": STEPS, "runs": results})
    aim = next(iter(VARIANTS))
    return int(any(r["variant"] == aim and r["after"] < TARGET for r in results))


def _write_tasks(folder: Path) -> None:
    """Writes the same sums twice: all of them to train on, and all of them to be asked."""
    lines = [
        json.dumps({"prompt": f"{a}+{b}=", "answer": str(a + b)})
        for a in range(10)
        for b in range(10)
    ]
    for name in ("train.jsonl", "all.jsonl"):
        (folder / name).write_text("\n".join(lines) + "\n")


def _warmed_up(
    folder: Path, name: str, shape: dict[str, int], steps: int, seed: int, least: float
) -> Path:
    """Returns the folder of a network of this shape as it first was so good in supervised steps, or
    after the last.
    """
    algorithm = {"name": "sft", "steps": steps, "rows_per_step": 64}
    warm = {
        "optimizer": {"learning_rate": WARM_RATE, "warmup_steps": 5},
        "eval": {"prompts": 100, "every_steps": LOOK_STEPS},
        "checkpoint": {"every_steps": LOOK_STEPS, "keep_every": LOOK_STEPS},
    }
    start = blank(folder / f"{name}-blank", shape, seed)
    run = _run(folder, f"warm-{name}", start, algorithm, seed, **warm)
    return exported(run, folder / name, run.first_as_good_as(least))


def _distilled(
    folder: Path, variant: str, algorithm: dict[str, Any], base: Path, teacher: Path, seed: int
) -> dict[str, Any]:
    teachers = {"teachers": {"big": {"name": "local", "path": str(teacher)}}}
    wanted = {
        "name": "distill",
        "steps": STEPS,
        "prompts_per_step": PROMPTS,
        **teachers,
        **algorithm,
    }
    if wanted["name"] == "sft":
        wanted = {"steps": STEPS, **algorithm}
    name = f"{variant}-{seed}".replace(" ", "-").replace(",", "").replace("'", "")
    name = name.replace("(", "").replace(")", "")
    began = time.perf_counter()
    run = _run(folder, name, base, wanted, seed)
    return {
        "variant": variant,
        "seed": seed,
        "before": run.status.evals[0].score,
        "after": run.status.evals[-1].score,
        "seconds": time.perf_counter() - began,
        "processor_s": run.spent.processor_s,
        "metrics": run.status.metrics,
    }


def _run(
    folder: Path, name: str, model: Path, algorithm: dict[str, Any], seed: int, **tables: Any
) -> Run:
    """Returns a run on the sums, with this benchmark's settings."""
    settings = {
        "seed": seed,
        "model": {"path": str(model)},
        "task": {
            "name": "jsonl",
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "all.jsonl"),
            "response": "answer",
        },
        "algorithm": algorithm,
        "sampling": {"max_new_tokens": 4},
        "optimizer": {"learning_rate": RATE, "warmup_steps": 5, "schedule": "cosine"},
        "eval": {"prompts": 100},
        "checkpoint": {"every_steps": 1000},
        **tables,
    }
    return run_here(folder / "runs", name, settings)


if __name__ == "__main__":
    sys.exit(main())
