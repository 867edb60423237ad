"""The fork servers that start the fault runs, in one folder: each undisturbed run is made once."""

import os
from collections.abc import Iterator

import pytest

from ops.fault_injection.server_pool import ForkServerPool


@pytest.fixture(scope="session")
def servers(tmp_path_factory) -> Iterator[ForkServerPool]:
    # Two keep two cores busy. Where pytest has several workers, the workers do.
    size = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
    with ForkServerPool(tmp_path_factory.mktemp("fault_runs"), size) as servers:
        yield servers
