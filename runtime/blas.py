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

_loaded = ""


def load_blas(exact: bool) -> str:
    """Prepare this process for MLX; call it before the first ``import mlx.core``.

    Returns "metal", "reference" or "openblas". In fast mode on Linux without OpenBLAS it is
    "reference": everything works, slowly. The first call decides for the life of the process.
    """
    if platform.system() == "Darwin":
        return "metal"
    global _loaded
    if _loaded:
        return _loaded
    # Compiling costs 0.5 s of g++ for each fused kernel on this backend, and gains nothing.
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    _loaded = "reference" if exact or "mlx.core" in sys.modules else _load_openblas()
    return _loaded


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
