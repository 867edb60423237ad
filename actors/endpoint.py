"""An endpoint as one of a run's teachers: its settings, and what a pause does to requests under way."""

import threading

from configs.teachers import EndpointTeacher
from runtime.endpoint import Client, Endpoint
from runtime.rundir import RunDirectory

GRACE_S = 3.0
"""The seconds in which requests under way may still be answered: fewer than a pause waits for the teacher."""
LOOK_S = 0.1


def endpoint_of(teacher: EndpointTeacher) -> Endpoint:
    """Returns a teacher's settings as the client takes them."""
    return Endpoint(
        url=teacher.url,
        model=teacher.model,
        key_variable=teacher.key_variable,
        concurrency=teacher.concurrency,
        attempts=teacher.attempts,
        timeout_s=teacher.timeout_s,
    )


class EndedByAPause:
    """Ends a client's requests some seconds after a pause is asked for. Answers that came by then are
    kept.
    """

    def __init__(self, client: Client, run: RunDirectory) -> None:
        self._client, self._run = client, run
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
                    self._client.close()
                return
