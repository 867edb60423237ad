"""The environment of a run's Ray: a private session that takes nothing from its caller's.

A variable of Ray's that happens to be set where `pippin` is called would win: RAY_AUTH_TOKEN over the run's
own token, others over the loopback address. So all of them are dropped before Ray is imported.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from configs.schema import Settings
from ops.certificates import tls_environment
from runtime.blas import EXACT_VARIABLE
from runtime.proxies import sealed


def seal(settings: Settings, token_path: Path, temp: Path) -> None:
    """Gives this process, and all that it starts, the environment of the run's Ray session."""
    wanted = {**sealed(without_rays(os.environ)), **environment(settings, token_path, temp)}
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    os.environ.update(wanted)


def without_rays(caller: Mapping[str, str]) -> dict[str, str]:
    """Returns the caller's environment without what Ray reads."""
    return {name: value for name, value in caller.items() if not name.upper().startswith("RAY_")}


def environment(settings: Settings, token_path: Path, temp: Path) -> dict[str, str]:
    """Returns what Ray's processes must find in their environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        **tls_environment(temp),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on the loopback address
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "1",  # workers import while Ray and the conductor start
        "RAY_metrics_report_interval_ms": "2000",
        "OPENBLAS_NUM_THREADS": "1",
        "VECLIB_MAXIMUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the launcher has fetched the checkpoint
        EXACT_VARIABLE: "1" if settings.exact else "0",
    }
