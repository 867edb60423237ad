"""Two fork servers, which keep two cores busy, and the undisturbed runs that all is compared with."""

from collections.abc import Iterator

import pytest

from ops.fault_injection.server_pool import ForkServerPool


@pytest.fixture(scope="session")
def servers(tmp_path_factory) -> Iterator[ForkServerPool]:
    with ForkServerPool(tmp_path_factory.mktemp("fault_runs"), size=2) as servers:
        yield servers
