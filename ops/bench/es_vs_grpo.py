"""Evolution strategies, GRPO and rejection sampling from one base, at equal time and at equal tokens.

All three take turns in one process, so that other work of the machine slows all of them. Time is
that of learning (sampling, scoring, updating), by the clock and by the processor; evaluation is not
counted. What stands at a time or a number of tokens is read off between the two evaluations around it.
"""

import argparse
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from configs import load
from configs.run import Optimizer
from configs.schema import Settings, algorithm
from ops.bench.report import alone_on_the_gpu, print_table, write_json
from ops.curve import HEIGHT, WIDTH, Line, curve
from ops.seed import ensure_seedling
from ops.terminal import say
from runtime.blas import load_blas

RECIPES = Path(__file__).parents[2] / "configs"
EVAL_PROMPTS, EVAL_SAMPLES = 256, 2
REJECTION_RATE = 6e-4
"""The learning rate of rejection sampling."""
POINTS = 12
"""The number of evaluations of each contender, besides the base."""
METHODS = ("ES", "GRPO", "rejection")
AXES = {"clock_s": "seconds", "processor_s": "processor seconds", "tokens": "sampled tokens"}
MODES = ("greedy", "sampled")

Point = dict[str, float]
"""One evaluation: the time and tokens until then, and the accuracies with their standard errors."""


def settings_of(method: str, seed: int, base: Path) -> Settings:
    """Returns a method's settings for a base. GRPO's recipe is the quickstart, which rejection sampling
    shares.
    """
    recipe = RECIPES / ("es.toml" if method == "ES" else "quickstart.toml")
    settings = load(recipe, [f"seed={seed}", f'model.path="{base}"'])
    if method != "rejection":
        return settings
    return msgspec.structs.replace(
        settings,
        algorithm=algorithm(name="sft", steps=settings.algorithm.steps),
        optimizer=Optimizer(learning_rate=REJECTION_RATE),
    )


def measure(seed: int, base: Path, seconds: float) -> dict[str, list[Point]]:
    """Returns every method's evaluations. The methods take turns until each has learned for so much
    processor time.
    """
    from ops.bench.contenders import Contender

    contenders = {name: Contender(settings_of(name, seed, base)) for name in METHODS}
    questions = contenders[METHODS[0]].held_out(EVAL_PROMPTS)

    def evaluate(contender: Contender) -> Point:
        found = contender.accuracy(questions, EVAL_SAMPLES)
        return {**msgspec.structs.asdict(contender.spent), **msgspec.structs.asdict(found)}

    points = {name: [evaluate(contender)] for name, contender in contenders.items()}
    for turn in range(1, POINTS + 1):
        for name, contender in contenders.items():
            while contender.spent.processor_s < seconds * turn / POINTS:
                contender.step()
            points[name].append(evaluate(contender))
            say(progress(seed, name, points[name][-1]), err=True)
    return points


def progress(seed: int, name: str, point: Point) -> str:
    """Returns one line."""
    return (
        f"seed {seed}, {name}: step {point['steps']:.0f}, {point['clock_s']:.0f} s "
        f"({point['processor_s']:.0f} s of processor), {point['tokens']:,.0f} tokens, "
        f"greedy {point['greedy']:.3f}, sampled {point['sampled']:.3f}"
    )


def standing(points: list[Point], axis: str, at: float, what: str) -> float:
    """Returns a number at a place of an axis, linearly between the evaluations around it."""
    for before, after in pairwise(points):
        if at <= after[axis]:
            share = (at - before[axis]) / (after[axis] - before[axis])
            return before[what] + share * (after[what] - before[what])
    return points[-1][what]


def common_end(runs: list[dict[str, list[Point]]], axis: str) -> float:
    """Returns the place of an axis that every method reached in every run."""
    return min(points[-1][axis] for run in runs for points in run.values())


def summary(runs: list[dict[str, list[Point]]]) -> list[dict[str, Any]]:
    """Returns, for each axis, method and mode, every seed's accuracy at the common end, and the gain
    over its base.
    """
    found = []
    for axis in AXES:
        end = common_end(runs, axis)
        for method in METHODS:
            row: dict[str, Any] = {"axis": axis, "at": end, "method": method}
            for mode in MODES:
                each = [standing(run[method], axis, end, mode) for run in runs]
                gains = [e - run[method][0][mode] for e, run in zip(each, runs)]
                row[mode] = {
                    "seeds": each,
                    "stderr_of_a_seed": [run[method][-1][f"{mode}_stderr"] for run in runs],
                    "mean": statistics.fmean(each),
                    "gain": statistics.fmean(gains),
                    "gain_stderr": spread(gains),
                }
            found.append(row)
    return found


def spread(values: list[float]) -> float:
    """Returns the standard error of the mean over the seeds; 0 for one seed."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def picture(runs: list[dict[str, list[Point]]]) -> str:
    """Returns the means over the seeds: greedy and sampled, over time and over tokens, as one SVG."""
    panels = []
    for row, mode in enumerate(MODES):
        for column, axis in enumerate(("processor_s", "tokens")):
            unit = 1000 if axis == "tokens" else 1
            grid = [common_end(runs, axis) * i / 6 for i in range(7)]
            lines: list[Line] = [
                (
                    method,
                    [
                        (
                            round(x / unit),
                            statistics.fmean(standing(run[method], axis, x, mode) for run in runs),
                        )
                        for x in grid
                    ],
                )
                for method in METHODS
            ]
            title = "thousand sampled tokens" if unit > 1 else AXES[axis]
            place = (
                f'<svg x="{column * WIDTH}" y="{row * HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
            )
            panels.append(f"{place}\n{curve(lines, title, f'{mode} accuracy')}</svg>")
    box = f'viewBox="0 0 {2 * WIDTH} {2 * HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n{"".join(panels)}</svg>\n'


def main() -> int:
    """Prints the table. The benchmark is a comparison and has no target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--svg", type=Path, help="also draw the curves here")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="of processor time to learn in, for each"
    )
    options = parser.parse_args()
    blas = load_blas(exact=False)
    bases = [ensure_seedling(seed)[0] for seed in range(options.seeds)]
    with alone_on_the_gpu("es_vs_grpo"):
        runs = [measure(seed, base, options.seconds) for seed, base in enumerate(bases)]
    table = summary(runs)
    say(f"{EVAL_PROMPTS} held-out prompts, {options.seeds} bases; {blas}")
    print_table(
        ["at equal", "method", *(f"{mode}{what}" for mode in MODES for what in ("", ", gain"))],
        [
            [
                f"{AXES[row['axis']]} ({row['at']:,.0f})",
                row["method"],
                *(text for mode in MODES for text in cells(row[mode])),
            ]
            for row in table
        ],
    )
    if options.svg:
        options.svg.write_text(picture(runs))
    if options.json:
        write_json(options.json, {"blas": blas, "summary": table, "runs": runs})
    return 0


def cells(result: dict[str, Any]) -> tuple[str, str]:
    """Returns the cells of one mode in the table."""
    return f"{result['mean']:.3f}", f"{result['gain']:+.3f} ± {result['gain_stderr']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
