"""What MLX computes on here, and the lease that goes with it."""

import os

import mlx.core as mx

from runtime.home import home
from runtime.lease import Lease


def gpu_lease() -> Lease:
    """This machine's: one process at once on a GPU, as many as there are cores on the CPU backend.

    Whoever computes holds it: actors for each phase, and export, doctor and benchmarks as well.
    """
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    return Lease(home() / "gpu", 1 if on_gpu else os.cpu_count() or 1)
