"""Which BLAS MLX computes with on Linux: a choice that can only be made before MLX is imported.

MLX's stock Linux wheel links the reference BLAS: 6 GFLOP/s, but bit-reproducible and independent of
the batch (exact mode). OpenBLAS, loaded into the process first, answers the same symbols at 80–200
GFLOP/s and agrees to 1e-6 (fast mode). On macOS the GPU computes and this file does nothing.
"""

import ctypes
import os
import platform
import sys
from pathlib import Path

LIBRARY = "libopenblas.so.0"


def load_blas(exact: bool) -> str:
    """Prepare this process for MLX; call it before the first ``import mlx.core``.

    Returns "metal", "reference" or "openblas". In fast mode on Linux without OpenBLAS it is
    "reference": everything works, slowly.
    """
    if platform.system() == "Darwin":
        return "metal"
    if "mlx.core" in sys.modules:
        return os.environ.get("PIPPIN_BLAS", "reference")
    # Compiling costs 0.5 s of g++ for each fused kernel on this backend, and gains nothing.
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    name = "reference" if exact else _load_openblas()
    os.environ["PIPPIN_BLAS"] = name
    return name


def _load_openblas() -> str:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    unpacked = Path(sys.prefix, "lib", "openblas").rglob(LIBRARY)
    for candidate in (LIBRARY, *map(str, unpacked)):
        try:
            ctypes.CDLL(candidate, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return "openblas"
    return "reference"
