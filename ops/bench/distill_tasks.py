"""A teacher, and students of a tenth of its size: from data alone, from its soft targets, on-policy.

Two tasks. The teacher has learned from any number of answers, and the students have few: that is the case
for a teacher. Questions without answers cost nothing where a task makes them, and an on-policy
student needs no answers: it is tried on the questions of those few rows, and on fresh ones. All students
begin with the same network after the same short warm start on the rows, and learn for as much processor
time, the teacher's work for them included; evaluations are not.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from configs.tasks import Task as TaskSettings
from ops.bench.distillation_runs import Run, blank, exported, plain, run_here, visited
from ops.bench.report import alone_on_the_gpu, print_table, write_json
from ops.curve import HEIGHT, WIDTH, Line, curve
from ops.terminal import say
from runtime.blas import load_blas
from runtime.tasks.open import open_task
from runtime.tasks.prompt import Prompt, Split, Task

TASKS: dict[str, dict[str, Any]] = {
    "sorting": {"name": "sorting", "length": 6},
    "countdown": {"name": "countdown", "numbers": 2, "largest": 50},
}
TEACHER_STEPS = {"sorting": 200, "countdown": 400}
WARM_STEPS = {"sorting": 60, "countdown": 200}
ROWS = {"sorting": 100, "countdown": 300}
"""The number of rows that students have answers to: too few to learn the task from. The numbers were chosen
after runs in which data alone was better at equal time with several times as many (`--rows 1000` shows it):
report both.
"""
NEW_TOKENS = 12
TEACHER = {
    "hidden_size": 128,
    "intermediate_size": 400,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 32,
}
STUDENT = {"hidden_size": 48, "intermediate_size": 144, "num_hidden_layers": 2, "head_dim": 12}
LOOK_STEPS, ENDLESS = 50, 1_000_000
BATCH, TEACHER_RATE, RATE = 64, 2e-3, 3e-3
EVAL_PROMPTS = 512
DRAWS = 8
"""The number of prompts that are drawn for each that is wanted."""
METHODS: dict[str, dict[str, Any]] = {
    "data alone (sft)": {"name": "sft", "rows_per_step": BATCH},
    "offline": {"learn_from": {"name": "data", "alpha": 0.9}},
    "on-policy": {"learn_from": {"name": "student", "divergence": {"name": "forward"}}},
    "on-policy, fresh questions": {
        "learn_from": {"name": "student", "divergence": {"name": "forward"}}
    },
}
FRESH = "on-policy, fresh questions"


def main() -> int:
    """Prints the table. The benchmark is a comparison and has no target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--svg", type=Path, help="also draw the accuracies here")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="of each student's processor time"
    )
    parser.add_argument("--teacher-steps", type=int, help="for each task (default: as it needs)")
    parser.add_argument("--rows", type=int, help="that students have answers to (default: by task)")
    parser.add_argument("--only", default="", help="tasks whose name begins so")
    parser.add_argument("--report", type=Path, help="also write `pippin report`s into this folder")
    options = parser.parse_args()
    blas = load_blas(exact=False)
    with tempfile.TemporaryDirectory() as name:
        results = [
            compare(Path(name) / task, task, options)
            for task in TASKS
            if task.startswith(options.only)
        ]
    few = ", ".join(f"{result['rows']:,} ({result['task']})" for result in results)
    say(f"answers that the students have: {few}; {options.seeds} seeds; {blas}")
    print_table(*table(results))
    if options.svg:
        options.svg.write_text(picture(results))
    if options.json:
        write_json(options.json, {"blas": blas, "tasks": results})
    return 0


def compare(folder: Path, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Raises a teacher for a task, and gives every method a student of each seed. Returns what came of
    them.
    """
    folder.mkdir()
    opened = open_task(msgspec.convert(TASKS[task], TaskSettings), 0)
    unseen = distinct(opened, "eval", EVAL_PROMPTS)
    rows = write_rows(
        folder, {"train": distinct(opened, "train", options.rows or ROWS[task]), "eval": unseen}
    )

    def outputs(run: Run, *, last: bool = False) -> dict[str, Any]:
        return said_of(run, opened, unseen, last=last)

    raised = raise_teacher(folder, TASKS[task], options.teacher_steps or TEACHER_STEPS[task])
    teacher = exported(raised, folder / "teacher")
    result: dict[str, Any] = {
        "task": task,
        "rows": options.rows or ROWS[task],
        "teacher": outputs(raised, last=True),
        "students": [],
    }
    tell(task, "teacher", result["teacher"])
    for seed in range(options.seeds):
        warm = run_here(
            folder / "runs",
            f"warm-{seed}",
            {
                **settings(blank(folder / f"blank-{seed}", STUDENT, seed), seed, rows),
                "algorithm": {**METHODS["data alone (sft)"], "steps": WARM_STEPS[task]},
            },
        )
        base = exported(warm, folder / f"base-{seed}")
        runs: dict[str, Run] = {}
        for method, algorithm in METHODS.items():
            if algorithm.get("name") != "sft":
                algorithm = {
                    "name": "distill",
                    "prompts_per_step": BATCH,
                    "teachers": {"big": {"name": "local", "path": str(teacher)}},
                    **algorithm,
                }
            asked = TASKS[task] if method == FRESH else rows
            wanted = settings(base, seed, asked) | {"algorithm": {**algorithm, "steps": ENDLESS}}
            run = run_here(folder / "runs", plain(f"{method}-{seed}"), wanted, options.seconds)
            runs[method] = run
            done = {"method": method, "seed": seed, **outputs(run)}
            tell(task, f"{method}, seed {seed}", done)
            result["students"].append(done)
        if options.report and seed == 0:
            write_report(options.report / task, runs)
    return result


def write_report(folder: Path, runs: dict[str, Run]) -> None:
    """Writes the report on the on-policy student against the students with the same rows."""
    from ops.report.command import run as report

    against = [runs[method].directory for method in ("data alone (sft)", "offline")]
    report(runs["on-policy"].directory, against, folder, step=None, prompts=EVAL_PROMPTS)


def distinct(task: Task, split: Split, most: int) -> list[Prompt]:
    """Returns at most so many prompts, no two of one question; a task may have fewer."""
    found: dict[str, Prompt] = {}
    for index in range(DRAWS * most):
        if len(found) == most:
            break
        prompt = task.prompt(split, index)
        found.setdefault(prompt.messages[-1]["content"], prompt)
    return list(found.values())


def write_rows(folder: Path, prompts: dict[str, list[Prompt]]) -> dict[str, Any]:
    """Writes the prompts of each split with their right answers. Returns them as a task's settings."""
    for split, asked in prompts.items():
        lines = [
            json.dumps({"prompt": p.messages[-1]["content"], "answer": p.demonstration})
            for p in asked
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "name": "jsonl",
        "train": str(folder / "train.jsonl"),
        "eval": str(folder / "eval.jsonl"),
        "response": "answer",
    }


def raise_teacher(folder: Path, task: dict[str, Any], steps: int) -> Run:
    """Returns the run of a teacher, raised on fresh data at every step."""
    wanted = settings(blank(folder / "teacher-blank", TEACHER, 0), 0, task) | {
        "algorithm": {"name": "sft", "steps": steps, "rows_per_step": BATCH},
        "optimizer": {
            "learning_rate": TEACHER_RATE,
            "warmup_steps": min(20, steps),
            "schedule": "cosine",
        },
    }
    return run_here(folder / "runs", "teacher", wanted)


def settings(model: Path, seed: int, task: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's settings but for its algorithm. The learning rate is constant, because a
    student's last step is not known.
    """
    return {
        "seed": seed,
        "model": {"path": str(model)},
        "task": task,
        "sampling": {"max_new_tokens": NEW_TOKENS},
        "optimizer": {"learning_rate": RATE, "warmup_steps": 5},
        "eval": {"prompts": 1},  # it separates the start from the steps; accuracy is measured later
        "checkpoint": {"every_steps": LOOK_STEPS, "keep_every": LOOK_STEPS},
    }


def said_of(run: Run, task: Task, prompts: list[Prompt], *, last: bool) -> dict[str, Any]:
    """Returns steps and processor time, and the greedy accuracy of each checkpoint, or of the last."""
    from ops.report.measure import passes
    from policies.save import parameter_count

    points, parameters = [], 0
    with alone_on_the_gpu("distill_tasks"):
        for step, policy in visited(run, last=last):
            marks = passes(policy, task, prompts, NEW_TOKENS, 64)
            spent = run.spent.at_step.get(step, 0.0)
            accuracy = statistics.fmean(map(bool, marks))
            points.append({"step": step, "processor_s": spent, "accuracy": accuracy})
            parameters = parameter_count(policy)
    return {
        "parameters": parameters,
        "steps": run.status.step,
        "processor_s": run.spent.processor_s,
        "accuracy": points[-1]["accuracy"],
        "points": points,
        "metrics": run.status.metrics,
    }


def tell(task: str, which: str, done: dict[str, Any]) -> None:
    """Prints one line."""
    say(
        f"{task}, {which}: {done['points'][0]['accuracy']:.3f} → {done['accuracy']:.3f} in "
        f"{done['steps']} steps, {done['processor_s']:.1f} s",
        err=True,
    )


# ── results ──────────────────────────────────────────────────────────────────────────────────────


def table(results: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: means over the seeds, and each seed's."""
    header = ["task", "model", "parameters", "greedy accuracy", "of the teacher's", "each seed"]
    header += ["best on the way", "steps", "processor time"]
    lines = []
    for result in results:
        teacher = result["teacher"]
        groups = [("teacher", [teacher])]
        for method in METHODS:
            groups.append((method, [s for s in result["students"] if s["method"] == method]))
        starts = [s["points"][0] for s in groups[1][1]]
        before = statistics.fmean(p["accuracy"] for p in starts)
        lines.append([result["task"], "student before", "", f"{before:.3f}", "", "", "", "", ""])
        for which, mine in groups:
            mean = statistics.fmean(s["accuracy"] for s in mine)
            each = ", ".join(f"{s['accuracy']:.3f}" for s in mine)
            lines.append(
                [
                    result["task"],
                    which,
                    f"{mine[0]['parameters']:,}",
                    f"{mean:.3f}",
                    f"{mean / teacher['accuracy']:.0%}" if teacher["accuracy"] else "",
                    each,
                    f"{statistics.fmean(max(p['accuracy'] for p in s['points']) for s in mine):.3f}",
                    f"{statistics.fmean(s['steps'] for s in mine):.0f}",
                    f"{statistics.fmean(s['processor_s'] for s in mine):.1f} s",
                ]
            )
    return header, lines


def picture(results: list[dict[str, Any]]) -> str:
    """Returns accuracy over processor time, of the first seed, the tasks side by side."""
    panels = []
    for number, result in enumerate(results):
        lines: list[Line] = [
            (s["method"], [(round(p["processor_s"], 1), p["accuracy"]) for p in s["points"]])
            for s in result["students"]
            if s["seed"] == 0
        ]
        level = [("teacher", result["teacher"]["accuracy"])]
        title = f"{result['task']}: greedy accuracy"
        drawn = curve(lines, "processor seconds", title, levels=level)
        place = f'<svg x="{number * WIDTH}" y="0" width="{WIDTH}" height="{HEIGHT}">'
        panels.append(f"{place}\n{drawn}</svg>")
    box = f'viewBox="0 0 {len(results) * WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n{"".join(panels)}</svg>\n'


if __name__ == "__main__":
    sys.exit(main())
