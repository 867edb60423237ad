"""Peak memory and gradient error of the chunked divergences, against all logits at once.

``python -m ops.bench.divergence_memory [--kinds forward jsd …] [--json FILE]`` measures a forward
and backward pass, with respect to the student's hidden states and head weights, at 8 × 1,024 tokens
and a vocabulary of 32,768; teacher and student have a head each. As in `ops.bench.loss_memory` each
measurement has its own process. Hidden states are narrow, because neither memory nor error is in them.
Both are compared with float64. The gradient of total variation has a sign in it, which no float32 gets
right where p and t nearly agree: its error is shown, and not judged.
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

from ops.bench.report import alone_on_the_gpu, print_table, write_json
from ops.terminal import say
from runtime.blas import load_blas

TOKENS, WIDTH, VOCABULARY = 8 * 1024, 32, 32_768
CONTENDERS = ("kernel", "plain")
EXACT_CHUNK = 256
KINDS = ("forward", "reverse", "jsd", "skewed_forward", "skewed_reverse", "total_variation")
LARGEST_SHARE = 0.25
LARGEST_ERROR = 1e-5


def problem() -> tuple[Any, ...]:
    """Returns hidden states and head of the student, those of the teacher, and the weight of each
    token.
    """
    import mlx.core as mx

    keys = mx.random.split(mx.random.key(0), 5)
    hidden = mx.random.normal((TOKENS, WIDTH), key=keys[0])
    their_hidden = hidden + mx.random.normal((TOKENS, WIDTH), key=keys[2])
    heads = [mx.random.normal((VOCABULARY, WIDTH), scale=WIDTH**-0.5, key=keys[i]) for i in (1, 3)]
    weights = mx.random.uniform(shape=(TOKENS,), key=keys[4])
    mx.eval(hidden, their_hidden, heads, weights)
    return hidden, heads[0], their_hidden, heads[1], weights


def measure(contender: str, kind: Any, chunk_tokens: int, gradients: Path) -> dict[str, Any]:
    """Returns peak bytes and seconds of one contender. Its gradients are written to `gradients`."""
    blas = load_blas(exact=False)
    import mlx.core as mx

    from kernels.divergence import Divergence, per_token, per_token_plain
    from kernels.teacher import Full

    hidden, weight, their_hidden, their_weight, weights = problem()
    divergence = Divergence(kind=kind)

    def project(hidden: mx.array, weight: mx.array) -> mx.array:
        return hidden @ weight.T

    def loss(hidden: mx.array, weight: mx.array) -> mx.array:
        teacher = Full(their_hidden, lambda hidden: project(hidden, their_weight))
        if contender == "plain":
            return (
                weights * per_token_plain(hidden, project, (weight,), teacher, divergence)
            ).sum()
        value, _ = per_token(
            hidden, project, (weight,), teacher, divergence, chunk_tokens=chunk_tokens
        )
        return (weights * value).sum()

    mx.reset_peak_memory()
    start = time.perf_counter()
    value, (to_hidden, to_weight) = mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight)
    mx.eval(value, to_hidden, to_weight)
    seconds = time.perf_counter() - start
    peak = mx.get_peak_memory()
    mx.save_safetensors(str(gradients), {"hidden": to_hidden, "weight": to_weight})
    return {"peak_bytes": peak, "seconds": seconds, "loss": value.item(), "blas": blas}


def exact(kind: str, gradients: Path) -> dict[str, Any]:
    """Returns the gradients in float64, from the papers' formulas."""
    load_blas(exact=False)
    import numpy as np
    from safetensors.numpy import save_file

    from kernels.divergence import Divergence

    hidden, head, their_hidden, their_head, weights = (np.array(a, np.float64) for a in problem())
    a = Divergence(kind=kind).mixture  # type: ignore[arg-type]

    def softmax(z: Any) -> Any:
        e = np.exp(z - z.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    to_hidden, to_head = np.zeros_like(hidden), np.zeros_like(head)
    for start in range(0, TOKENS, EXACT_CHUNK):
        rows = slice(start, start + EXACT_CHUNK)
        p, t = softmax(hidden[rows] @ head.T), softmax(their_hidden[rows] @ their_head.T)
        match kind:
            case "forward":
                g = -t / p
            case "reverse":
                g = np.log(p / t)
            case "jsd":
                g = (1 - a) * np.log(p / (a * t + (1 - a) * p))
            case "skewed_forward":
                g = -(1 - a) * t / (a * t + (1 - a) * p)
            case "skewed_reverse":
                m = (1 - a) * t + a * p
                g = np.log(p / m) - a * p / m
            case _:
                g = 0.5 * np.sign(p - t)
        slope = weights[rows, None] * p * (g - (p * g).sum(-1, keepdims=True))
        to_hidden[rows] = slope @ head
        to_head += slope.T @ hidden[rows]
    save_file({"hidden": to_hidden, "weight": to_head}, gradients)
    return {}


def compare(kind: str, chunk_tokens: int) -> dict[str, Any]:
    """Returns both contenders, with the norm-wise relative errors of their gradients."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {c: _in_own_process(c, kind, chunk_tokens, Path(folder)) for c in CONTENDERS}
        _in_own_process("exact", kind, chunk_tokens, Path(folder))
        for contender, row in rows.items():
            row["gradient_error"] = _errors(Path(folder), contender)
    share = rows["kernel"]["peak_bytes"] / rows["plain"]["peak_bytes"]
    return {"kind": kind, "contenders": rows, "share_of_plain": share}


def main() -> int:
    """Prints the table. Returns 1 if a divergence misses its targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["reverse"])
    parser.add_argument("--chunk-tokens", type=int, default=128)
    parser.add_argument("--measure", choices=(*CONTENDERS, "exact"), help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind = options.kinds[0]
        if options.measure == "exact":
            row = exact(kind, options.gradients)
        else:
            row = measure(options.measure, kind, options.chunk_tokens, options.gradients)
        say(json.dumps(row))
        return 0
    load_blas(exact=False)
    with alone_on_the_gpu("divergence_memory"):  # for the processes that measure
        results = [compare(kind, options.chunk_tokens) for kind in options.kinds]
    if options.json:
        shape = {"tokens": TOKENS, "width": WIDTH, "vocabulary": VOCABULARY}
        chunk = {"chunk_tokens": options.chunk_tokens}
        write_json(options.json, {"shape": shape, **chunk, "divergences": results})
    _print(results)
    missed = max(result["share_of_plain"] for result in results) > LARGEST_SHARE
    judged = [result for result in results if result["kind"] != "total_variation"]
    return int(missed or any(_error(result, "kernel") > LARGEST_ERROR for result in judged))


def _print(results: list[dict[str, Any]]) -> None:
    say(f"{TOKENS:,} tokens, width {WIDTH}, vocabulary {VOCABULARY:,}; forward and backward")
    rows = []
    for result in results:
        kernel, plain = (result["contenders"][c] for c in CONTENDERS)
        rows.append(
            [
                result["kind"],
                *(f"{row['peak_bytes'] / 2**20:,.0f}" for row in (kernel, plain)),
                f"{result['share_of_plain']:.3f}",
                *(f"{row['seconds']:.1f}" for row in (kernel, plain)),
                *(f"{_error(result, c):.1e}" for c in CONTENDERS),
            ]
        )
    columns = ["kernel MiB", "plain MiB", "share", "kernel s", "plain s"]
    columns += ["kernel error", "plain error"]
    print_table(["", *columns], rows)
    say(f"  to reach: share at most {LARGEST_SHARE}, kernel error at most {LARGEST_ERROR:.0e}")


def _in_own_process(contender: str, kind: str, chunk_tokens: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "ops.bench.divergence_memory", "--measure", contender]
    command += ["--gradients", str(folder / f"{contender}.safetensors"), "--kinds", kind]
    command += ["--chunk-tokens", str(chunk_tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _errors(folder: Path, contender: str) -> dict[str, float]:
    from safetensors.numpy import load_file

    a, b = (load_file(folder / f"{name}.safetensors") for name in (contender, "exact"))
    return {k: math.dist(a[k].ravel(), b[k].ravel()) / math.hypot(*b[k].ravel()) for k in b}


def _error(result: dict[str, Any], contender: str) -> float:
    return max(result["contenders"][contender]["gradient_error"].values())


if __name__ == "__main__":
    sys.exit(main())
