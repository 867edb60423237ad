"""Two zygotes, which keep two cores busy, and the undisturbed runs that all is compared with."""

from collections.abc import Iterator

import pytest

from ops.trials.crew import Crew


@pytest.fixture(scope="session")
def crew(tmp_path_factory) -> Iterator[Crew]:
    with Crew(tmp_path_factory.mktemp("trials"), size=2) as crew:
        yield crew
