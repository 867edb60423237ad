"""Chooses the BLAS that MLX computes with on Linux, which is possible only before MLX is imported.

MLX's stock Linux wheel links the reference BLAS: 6 GFLOP/s, but bit-reproducible and independent of
the batch (exact mode). OpenBLAS, loaded into the process first, provides the same symbols at 80–200
GFLOP/s and agrees to 1e-6 (fast mode). On macOS the GPU computes and this file does nothing.
"""

import ctypes
import os
import platform
import sys
from pathlib import Path

LIBRARY = "libopenblas.so.0"

EXACT_VARIABLE = "PIPPIN_EXACT"
"""Environment variable that is 1 for worker processes in exact mode; their parent process sets it."""

_loaded = ""


def load_blas(exact: bool) -> str:
    """Prepares this process for MLX; it must be called before the first ``import mlx.core``.

    Returns "metal", "reference" or "openblas". In fast mode on Linux without OpenBLAS it is
    "reference": everything works, but slowly. The first call decides for the life of the process.
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


def load_for_worker() -> None:
    """Calls `load_blas` in a worker process with its parent's choice of mode; does nothing in others."""
    if EXACT_VARIABLE in os.environ:
        load_blas(os.environ[EXACT_VARIABLE] == "1")


def _load_openblas() -> str:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if _opened(LIBRARY):
        return "openblas"
    unpacked = Path(sys.prefix, "lib", "openblas")  # where the set-up puts it without root
    for needed in ("libquadmath.so.0", "libgfortran.so.5"):
        any(_opened(str(file)) for file in unpacked.rglob(needed))
    found = any(_opened(str(file)) for file in unpacked.rglob(LIBRARY))
    return "openblas" if found else "reference"


def _opened(library: str) -> bool:
    try:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
