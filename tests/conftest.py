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
from tests.file_seconds import chain, turn

load_blas(exact=os.environ.get("PIPPIN_EXACT") == "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests of a worker by how long their files take."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: turn(item.nodeid.partition("::")[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps a file's tests, which may share a fixture, on one worker, and those on real Ray together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return chain(nodeid.partition("::")[0])

    return ByFile(config, log)
