"""The device that MLX computes on: its lease, and the bound of MLX's cache of freed memory."""

import os

import mlx.core as mx

from configs.schema import Settings
from runtime.home import home
from runtime.lease import Lease

CACHE_BYTES = 2 << 30
"""Freed memory that MLX may keep within a phase, in bytes; at the end of a phase it is given back."""
LEASE_SHARE = 0.9
"""Share of a call's deadline after which the wait for the lease ends: before the conductor's wait for the
whole call, so that the user sees the error that names the holder."""


def patience_s(settings: Settings, limit_s: float) -> float:
    """Returns how long a call with the deadline `limit_s` waits for the lease, in seconds.

    The wait is longer with a duty cycle below 1, because the lease's holders are throttled too.
    """
    return LEASE_SHARE * limit_s / settings.power.duty_cycle


def bound_cache() -> None:
    """Bounds MLX's cache in this process; by default it may grow past the machine's memory."""
    mx.set_cache_limit(CACHE_BYTES)


def gpu_lease() -> Lease:
    """Returns this machine's lease: for one process at once on a GPU, one for each core on the CPU backend.

    Every process holds it while it computes: actors for each phase, and export, doctor and benchmarks too.
    """
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    return Lease(home() / "gpu", 1 if on_gpu else os.cpu_count() or 1)
