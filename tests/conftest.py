"""One BLAS for the whole test process, chosen before anything imports MLX.

Fast by default; ``PIPPIN_EXACT=1`` keeps the stock one. Tests of exact mode start a process of their
own (no OpenBLAS is loaded there).
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLX_DISABLE_COMPILE"] = "1"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback only; read when ray is imported

from runtime.blas import load_blas

load_blas(exact=os.environ.get("PIPPIN_EXACT") == "1")
