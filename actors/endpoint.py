"""Ends the requests under way of an endpoint when a pause is asked for."""

import threading

from policies.generators.endpoint import EndpointGenerator
from runtime.rundir import RunDirectory

GRACE_S = 3.0
"""The seconds in which requests under way may still be answered: fewer than a pause waits for the teacher."""
LOOK_S = 0.1


class EndedByAPause:
    """Ends a generator's requests some seconds after a pause is asked for. Earlier answers are kept."""

    def __init__(self, generator: EndpointGenerator, run: RunDirectory) -> None:
        self._generator, self._run = generator, run
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            if self._run.pause_asked():
                if not self._over.wait(GRACE_S):
                    self._generator.close()
                return
