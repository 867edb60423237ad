"""Evolution strategies on a task that can be enumerated: all 100 sums of two digits, before and after.

Greedy answers are few enough here to be counted instead of estimated. The bases are the seedling's network
after a short supervised start, three seeds of it. Target: at least +0.04 in 40 generations of 32 members,
for each.
"""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from configs.model import Model
from configs.run import Optimizer, Sampling
from configs.schema import Settings, algorithm
from configs.tasks import Addition
from ops.bench.report import alone_on_the_gpu, print_table, write_json
from ops.terminal import say
from runtime.blas import load_blas
from runtime.tasks.prompt import Prompt

GENERATIONS, POPULATION, PROMPTS = 40, 32, 64
SIGMA = 0.01
STEPS, ROWS = 100, 16
"""The steps and rows of the supervised start: afterwards answers are right now and then, and far from
always.
"""
SAMPLES = 16
GAIN = 0.04
TASK = Addition(digits=1)


def raise_base(folder: Path, seed: int) -> None:
    """Trains a weak base in `folder`."""
    from policies import weights
    from policies.load import load_policy
    from policies.rows import from_data
    from policies.seedling import write_blank
    from policies.trainer import trainer_for
    from runtime.tasks.open import open_task
    from runtime.trajectory import to_batch

    write_blank(folder, seed)
    settings = Settings(
        seed=seed,
        model=Model(path=str(folder)),
        task=TASK,
        algorithm=algorithm(name="sft", steps=STEPS, rows_per_step=ROWS),
        optimizer=Optimizer(learning_rate=3e-3, warmup_steps=10),
    )
    policy = load_policy(settings.model, folder, seed)
    trainer, task = trainer_for(policy, settings), open_task(TASK, seed)
    for step in range(STEPS):
        prompts = [task.prompt("train", step * ROWS + i) for i in range(ROWS)]
        rows = from_data(policy.tokenizer, prompts, step=step + 1, limit=policy.context_length)
        trainer.step(trainer.annotated(to_batch(rows)))
    weights.save(folder / "model.safetensors", policy.trained())


def questions() -> list[Prompt]:
    """Returns all questions there are."""
    return [
        Prompt(
            task="addition",
            index=i,
            messages=[{"role": "user", "content": f"{a}+{b}="}],
            truth=str(a + b),
        )
        for i, (a, b) in enumerate(product(range(10), repeat=2))
    ]


def measure(seed: int, base: Path) -> dict[str, Any]:
    """Returns the accuracies before, on the way and after."""
    from ops.bench.contenders import Contender

    settings = Settings(
        seed=seed,
        model=Model(path=str(base)),
        task=TASK,
        algorithm=algorithm(
            name="es",
            steps=GENERATIONS,
            population=POPULATION,
            prompts_per_step=PROMPTS,
            sigma=SIGMA,
            update={"name": "plain", "alpha": SIGMA},
        ),
        sampling=Sampling(max_new_tokens=4, slots=256),
    )
    contender, everything = Contender(settings), questions()
    curve = [contender.accuracy(everything, SAMPLES)]
    while contender.spent.steps < GENERATIONS:
        contender.step()
        if contender.spent.steps % 10 == 0:
            curve.append(contender.accuracy(everything, SAMPLES))
    return {
        "seed": seed,
        "greedy": [found.greedy for found in curve],
        "sampled": [found.sampled for found in curve],
        "gain": curve[-1].greedy - curve[0].greedy,
        "clock_s": contender.spent.clock_s,
        "processor_s": contender.spent.processor_s,
        "tokens": contender.spent.tokens,
    }


def main() -> int:
    """Prints the table. Returns 1 if a base misses the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    blas, results = load_blas(exact=False), []
    with alone_on_the_gpu("es_learns"), tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            base = Path(folder) / str(seed)
            raise_base(base, seed)
            results.append(measure(seed, base))
    say(f"{GENERATIONS} generations of {POPULATION} members; all 100 sums; {blas}")
    print_table(
        ["base", "greedy", "after", "gain", "sampled", "after", "time"],
        [
            [
                f"seed {r['seed']}",
                f"{r['greedy'][0]:.2f}",
                f"{r['greedy'][-1]:.2f}",
                f"{r['gain']:+.2f}",
                f"{r['sampled'][0]:.3f}",
                f"{r['sampled'][-1]:.3f}",
                f"{r['clock_s']:.0f} s ({r['processor_s']:.0f} s of processor)",
            ]
            for r in results
        ],
    )
    if options.json:
        write_json(options.json, {"blas": blas, "runs": results})
    return int(any(r["gain"] < GAIN for r in results))


if __name__ == "__main__":
    sys.exit(main())
