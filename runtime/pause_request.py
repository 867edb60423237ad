"""A request to pause: a file in the run directory, so that asking needs no connection to a process.

    pause.json            a request by the user, or by a signal
    pause-machine.json    a request by a condition of [power], which withdraws it by itself

Two files, so that neither request overwrites the other.
"""

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from runtime.durable import sync, write_file


class PauseRequest(Struct, frozen=True, kw_only=True):
    """The content of a request's file."""

    by: str
    """The origin: "user", "signal", or "machine" for a condition of [power], which withdraws it by itself."""
    reason: str
    end: bool = False
    """True if the run's process is to end; otherwise it waits until the request is withdrawn."""


class PauseRequests:
    """The requests to pause in one run directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = (str(folder / "pause.json"), str(folder / "pause-machine.json"))

    def ask(self, request: PauseRequest) -> None:
        """Writes a request for the run's process, durably."""
        file = Path(self._files[request.by == "machine"])
        write_file(file, msgspec.json.encode(request))

    def is_asked(self) -> bool:
        """Returns whether there is a request; it takes one to two microseconds, so each token can check."""
        return any(map(os.path.exists, self._files))

    def read(self) -> PauseRequest | None:
        """Returns the request, the user's before the machine's; None if there is none.

        A request that cannot be read counts as the user's.
        """
        for file in self._files:
            try:
                return msgspec.json.decode(Path(file).read_bytes(), type=PauseRequest)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, RecursionError):
                return PauseRequest(by="user", reason="asked to")
        return None

    def withdraw(self, *, of_machine: bool = False) -> None:
        """Removes all requests, or only the machine's."""
        for file in self._files[of_machine:]:
            Path(file).unlink(missing_ok=True)
        sync(self._folder)
