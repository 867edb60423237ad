"""What MLX computes on here: the lease that goes with it, and how much memory may lie unused."""

import os

import mlx.core as mx

from configs.schema import Settings
from runtime.home import home
from runtime.lease import Lease

CACHE_BYTES = 2 << 30
"""What MLX may keep of freed memory within a phase; a phase ends by giving it back."""
LEASE_SHARE = 0.9
"""Of a call's deadline: a wait for the lease ends a little before the conductor's wait for the whole
call, so that the error that is seen is the one that names the holder."""


def patience_s(settings: Settings, limit_s: float) -> float:
    """How long a call with this deadline waits for the lease, whose holders rest as often as it would."""
    return LEASE_SHARE * limit_s / settings.power.duty_cycle


def bound_cache() -> None:
    """Bound MLX's cache, once in a process: by default it may grow past the machine's memory."""
    mx.set_cache_limit(CACHE_BYTES)


def gpu_lease() -> Lease:
    """This machine's: one process at once on a GPU, as many as there are cores on the CPU backend.

    Whoever computes holds it: actors for each phase, and export, doctor and benchmarks as well.
    """
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    return Lease(home() / "gpu", 1 if on_gpu else os.cpu_count() or 1)
