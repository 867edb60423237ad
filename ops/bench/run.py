"""`pippin bench NAME`: each benchmark is a module beside this file with a `main()`."""

import subprocess
import sys

from ops.terminal import say
from runtime.errors import BadInput

BENCHMARKS = {
    "quickstart": "held-out pass@1 before and after the quickstart, for three seeds",
    "decoder": "tokens per second against mlx-lm's BatchGenerator, in one process",
    "distill": "greedy accuracy after 100 steps of distillation, by signal, for three seeds",
    "distill_tasks": "students of a tenth: data alone, offline and on-policy at equal processor time",
    "distill_text": "perplexity of Shakespeare: data alone and distilled at equal processor time",
    "preference": "accuracy, margin and pass@1 of each preference loss on the seedling, for three seeds",
    "kills": "fault runs killed again and again against undisturbed ones",
    "pause": "seconds from a pause until the machine is free, and from resume to the next token",
    "loss_memory": "peak memory of the loss against the plain computation",
    "es_learns": "evolution strategies on all sums of two digits, from three weak bases",
    "es_vs_grpo": "evolution strategies, GRPO and rejection sampling at equal time and tokens",
    "population": "a population in one batch against plain decoding and one by one",
    "divergence_memory": "peak memory of distillation's divergence against the plain computation",
}


def run(name: str, options: list[str]) -> int:
    """Runs one benchmark in a process of its own, because its BLAS must be chosen first. Returns its
    exit code.
    """
    name = name.replace("-", "_")
    if name == "list":
        for known, what in BENCHMARKS.items():
            say(f"pippin bench {known:17} {what}")
        return 0
    if name not in BENCHMARKS:
        raise BadInput(f"bench: needs one of {', '.join(BENCHMARKS)}, got {name!r}")
    command = [sys.executable, "-m", f"ops.bench.{name}", *options]
    return subprocess.run(command, check=False).returncode
