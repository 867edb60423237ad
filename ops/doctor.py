"""`pippin doctor`: is this machine fit, and does MLX compute here what Pippin relies on?

The self-tests run on a small model that is made for them. On a Mac they show what no other machine
can: how far the GPU's sampler and learner are apart, whether rows depend on their neighbours.
"""

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

from ops.terminal import say
from runtime.blas import load_blas
from runtime.durable import nearest_existing
from runtime.errors import BadInput
from runtime.home import home

MISMATCH_LIMIT = 1e-4
LEASE_S = 600.0
OUR_PACKAGES = ("actors", "configs", "kernels", "ops", "policies", "runtime")


class Finding(Struct, frozen=True):
    """One line of the examination."""

    state: str
    """"ok", "note" (works, but), "bad"."""
    text: str


def examine(durability: bool = False, model: str = "") -> bool:
    """Print all findings, of a checkpoint as well if one is given; True if none is bad."""
    blas = load_blas(exact=False)
    good = True
    checks = [_python, _packages, lambda: _backend(blas), _machine, _self_tests]
    if durability:
        checks.append(_durability)
    if model:
        checks.append(lambda: _model(model))
    for check in checks:
        for finding in _guarded(check):
            mark = {"ok": "✓", "note": "!", "bad": "✗"}[finding.state]
            say(f" {mark} {finding.text}")
            good &= finding.state != "bad"
    say("fit" if good else "not fit: see the lines with ✗")
    return good


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a check that cannot even run is a finding, not a traceback
        yield Finding(
            "bad", f"{getattr(check, '__name__', 'a check')}: {type(error).__name__}: {error}"
        )


def _python() -> Iterator[Finding]:
    fit = sys.version_info >= (3, 11)
    yield Finding(
        "ok" if fit else "bad",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
    )
    checkout = Path(__file__).parent.parent
    for name in OUR_PACKAGES:
        found = importlib.util.find_spec(name)
        where = Path(found.origin).parent.parent if found and found.origin else None
        if where != checkout:
            yield Finding("bad", f"the package {name!r} comes from {where}, not from {checkout}")


def _packages() -> Iterator[Finding]:
    names = ("mlx", "mlx-lm", "ray", "pyarrow", "numpy", "msgspec")
    yield Finding("ok", ", ".join(f"{name} {version(name)}" for name in names))


def _backend(blas: str) -> Iterator[Finding]:
    import mlx.core as mx

    if mx.metal.is_available():
        info = mx.device_info()
        size = int(info.get("max_recommended_working_set_size", 0)) / 2**30
        yield Finding("ok", f"MLX on Metal: {info.get('device_name')}, {size:.1f} GiB for the GPU")
        if os.environ.get("MLX_ENABLE_TF32") != "0":
            yield Finding(
                "note", "float32 products may be TF32 on M5 and later: MLX_ENABLE_TF32=0 is exact"
            )
        return
    speed = _gflops()
    if blas == "openblas":
        yield Finding("ok", f"MLX on the CPU with OpenBLAS: {speed:.0f} GFLOP/s on one core")
    else:
        yield Finding(
            "note",
            f"MLX on the CPU with its reference BLAS: {speed:.0f} GFLOP/s; OpenBLAS gives about 15 times "
            "that (`make setup` installs it)",
        )


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding(
        "ok" if memory >= 8 else "note", f"{memory:.0f} GiB of memory, {os.cpu_count()} cores"
    )
    existing = nearest_existing(home())
    free = shutil.disk_usage(existing).free / 1e9
    writable = os.access(existing, os.W_OK)
    yield Finding(
        "ok" if writable and free > 5 else "note" if writable else "bad",
        f"{home()}: {'can' if writable else 'cannot'} be written, {free:.0f} GB free",
    )
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free < 512 << 20:
        yield Finding("note", "/dev/shm has under 512 MB: Ray will keep its objects on disk")


def _durability() -> Iterator[Finding]:
    from ops.endurance import findings

    return (Finding(state, text) for state, text in findings())


def _model(path: str) -> Iterator[Finding]:
    from ops.agreement import judged_model
    from policies.device import gpu_lease

    try:
        with gpu_lease().hold("pippin doctor", LEASE_S):
            yield Finding(*judged_model(path))
    except BadInput as error:
        yield Finding("bad", str(error))


def _self_tests() -> Iterator[Finding]:
    from configs.model import Lora, Model
    from ops.agreement import agreement, sample
    from policies.device import gpu_lease
    from policies.load import load_policy
    from policies.seedling import write_blank

    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(temporary)
        stack.enter_context(gpu_lease().hold("pippin doctor", LEASE_S))
        write_blank(folder, 0)
        policy = load_policy(Model(path=str(folder)), folder, 0)
        sequences, alone = sample(policy, "31425")
        found = agreement(policy, sequences)
        worst = found.largest_nats
        yield Finding(
            "ok" if worst < MISMATCH_LIMIT else "note",
            f"sampler and learner agree to {worst:.1e} nats on {found.tokens} tokens"
            + ("" if worst < MISMATCH_LIMIT else ": use a decoupled correction (truncate or mask)"),
        )
        same = sum(a.tokens == b.tokens for a, b in zip(sequences, alone))
        yield Finding(
            "ok" if same == len(alone) else "note",
            f"{same} of {len(alone)} sequences are the same alone as among {len(sequences)}",
        )
        for bits in (0, 4):
            settings = Model(path=str(folder), train=Lora(rank=4), quantize_bits=bits)
            size = _adapter_gradient(load_policy(settings, folder, 0))
            name = "QLoRA (4 bit)" if bits else "LoRA"
            yield Finding("ok" if 0 < size < 1e6 else "bad", f"{name} gradient: norm {size:.3g}")


def _adapter_gradient(policy) -> float:
    import mlx.core as mx
    import mlx.nn as nn

    from policies.arrays import flat, number

    tokens = mx.array([[4, 20, 21, 22, 2, 5, 22, 21]])

    def loss() -> mx.array:
        logits = policy.model(tokens[:, :-1])
        return nn.losses.cross_entropy(logits, tokens[:, 1:]).mean()

    _, gradients = nn.value_and_grad(policy.model, loss)()
    total = sum((mx.square(g).sum() for g in flat(gradients).values()), mx.array(0.0))
    return number(mx.sqrt(total))


def _gflops() -> float:
    import mlx.core as mx

    a = mx.ones((256, 256))
    mx.eval(a @ a)
    began = time.perf_counter()
    for _ in range(5):
        mx.eval(a @ a)
    return 5 * 2 * 256**3 / (time.perf_counter() - began) / 1e9
