"""Chooses one BLAS for the test process, before anything imports MLX, and shares the tests among workers.

OpenBLAS is the default; ``PIPPIN_EXACT=1`` keeps the stock BLAS. Tests of exact mode start a process of
their own, where no OpenBLAS is loaded.
"""

import os
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # there are as many workers as cores
os.environ["MLX_DISABLE_COMPILE"] = "1"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback only; read when ray is imported

from runtime.blas import load_blas

load_blas(exact=os.environ.get("PIPPIN_EXACT") == "1")

ALONE = (
    "tests/ops/test_supervise.py",
    "tests/ops/test_crash_loops.py",
    "tests/actors/test_ray.py",
)
"""The tests on real Ray. They look for ports and shared memory left over, so one worker has them all."""
LONGEST_FIRST = (
    *ALONE,
    "tests/durability/test_kill_matrix.py",
    "tests/durability/test_pauses.py",
    "tests/actors/test_exact_mode.py",
    "tests/durability/test_full_disk.py",
    "tests/durability/test_damaged_run.py",
    "tests/actors/test_distillation.py",
    "tests/policies/evolution/test_population.py",
    "tests/runtime/tasks/test_procedural.py",
)
"""Files that begin first, so that no worker is left with a long one when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests of a worker by LONGEST_FIRST."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = {name: place for place, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps a file's tests, which may share a fixture, on one worker, and those of ALONE together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "real Ray" if file in ALONE else file

    return ByFile(config, log)
