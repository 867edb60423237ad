"""The norm of a gradient over all arrays, and the factor by which it is scaled down before a step."""

import math

import mlx.core as mx

from policies.arrays import Arrays, number


def norm_and_scale(gradients: Arrays, limit: float) -> tuple[float, float]:
    """Returns the global norm, and the factor that brings it down to `limit` (0: no limit).

    Raises FloatingPointError if the norm is not finite.
    """
    squares = sum(mx.square(g.astype(mx.float32)).sum() for g in gradients.values())
    norm = number(mx.sqrt(mx.array(squares)))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm is {norm}")
    return norm, limit / norm if limit and norm > limit else 1.0
