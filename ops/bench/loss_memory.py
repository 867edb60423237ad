"""Peak memory and gradient error of the chunked log-probability kernel, against all logits at once.

``python -m ops.bench.loss_memory [--json FILE]`` measures a forward and backward pass, with
respect to hidden states and head weights, at 8 × 1,024 tokens and a vocabulary of 32,768. Each
measurement has its own process: a peak then belongs to one contender. "lean" is the best that
autograd does without a kernel: log-sum-exp, and no entropy.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from ops.bench.report import alone_on_the_gpu, print_table, write_json
from ops.terminal import say
from runtime.blas import load_blas

TOKENS, WIDTH, VOCABULARY = 8 * 1024, 256, 32_768
CONTENDERS = ("kernel", "plain", "lean")
LARGEST_SHARE = 0.25
LARGEST_ERROR = 1e-5


def measure(contender: str, chunk_tokens: int, gradients: Path) -> dict[str, Any]:
    """Returns peak bytes and seconds of one contender. Its gradients are written to `gradients`."""
    blas = load_blas(exact=False)
    import mlx.core as mx

    from kernels.logprobs import selected, selected_plain

    keys = mx.random.split(mx.random.key(0), 5)
    hidden = mx.random.normal((TOKENS, WIDTH), key=keys[0])
    weight = mx.random.normal((VOCABULARY, WIDTH), scale=WIDTH**-0.5, key=keys[1])
    targets = mx.random.randint(0, VOCABULARY, (TOKENS,), key=keys[2])
    advantages = mx.random.normal((TOKENS,), key=keys[3])

    def project(hidden: mx.array, weight: mx.array) -> mx.array:
        return hidden @ weight.T

    def loss(hidden: mx.array, weight: mx.array) -> mx.array:
        if contender == "lean":
            logits = project(hidden, weight)
            chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            return (advantages * (chosen - mx.logsumexp(logits, axis=-1))).sum()
        chunked = partial(selected, chunk_tokens=chunk_tokens)
        function = chunked if contender == "kernel" else selected_plain
        logprobs, entropy = function(hidden, project, (weight,), targets, temperature=1.0)
        return (advantages * logprobs).sum() + 0.0 * entropy.sum()

    mx.eval(hidden, weight, targets, advantages)
    mx.reset_peak_memory()
    start = time.perf_counter()
    value, (to_hidden, to_weight) = mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight)
    mx.eval(value, to_hidden, to_weight)
    seconds = time.perf_counter() - start
    peak = mx.get_peak_memory()
    mx.save_safetensors(str(gradients), {"hidden": to_hidden, "weight": to_weight})
    return {"peak_bytes": peak, "seconds": seconds, "loss": value.item(), "blas": blas}


def compare(chunk_tokens: int) -> dict[str, Any]:
    """Returns all contenders, and the norm-wise relative error of the kernel's gradients."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {c: _in_own_process(c, chunk_tokens, Path(folder)) for c in CONTENDERS}
        errors = _errors(Path(folder, "kernel.safetensors"), Path(folder, "plain.safetensors"))
    return {
        "shape": {"tokens": TOKENS, "width": WIDTH, "vocabulary": VOCABULARY},
        "chunk_tokens": chunk_tokens,
        "contenders": rows,
        "share_of_plain": rows["kernel"]["peak_bytes"] / rows["plain"]["peak_bytes"],
        "gradient_error": errors,
    }


def main() -> int:
    """Prints the table. Returns 1 if the kernel misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        say(json.dumps(measure(options.measure, options.chunk_tokens, options.gradients)))
        return 0
    load_blas(exact=False)
    with alone_on_the_gpu("loss_memory"):  # for the processes that measure
        result = compare(options.chunk_tokens)
    if options.json:
        write_json(options.json, result)
    _print(result)
    missed = result["share_of_plain"] > LARGEST_SHARE
    return int(missed or max(result["gradient_error"].values()) > LARGEST_ERROR)


def _print(result: dict[str, Any]) -> None:
    say(f"{TOKENS:,} tokens, width {WIDTH}, vocabulary {VOCABULARY:,}; forward and backward")
    print_table(
        ["", "peak MiB", "seconds", "BLAS"],
        [
            [name, f"{row['peak_bytes'] / 2**20:,.0f}", f"{row['seconds']:.1f}", row["blas"]]
            for name, row in result["contenders"].items()
        ],
    )
    say(f"  kernel / plain: {result['share_of_plain']:.3f} (at most {LARGEST_SHARE})")
    for name, error in result["gradient_error"].items():
        say(f"  gradient of {name}: relative error {error:.1e} (at most {LARGEST_ERROR:.0e})")


def _in_own_process(contender: str, chunk_tokens: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ops.bench.loss_memory", "--measure", contender]
    command += ["--gradients", str(folder / f"{contender}.safetensors")]
    command += ["--chunk-tokens", str(chunk_tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _errors(ours: Path, theirs: Path) -> dict[str, float]:
    from safetensors.numpy import load_file

    a, b = load_file(ours), load_file(theirs)
    return {k: math.dist(a[k].ravel(), b[k].ravel()) / math.hypot(*b[k].ravel()) for k in b}


if __name__ == "__main__":
    sys.exit(main())
