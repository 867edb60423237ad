"""A request to pause: a file in the run directory, so that asking needs no connection to a process.

    pause.json            a person asks, or a signal
    pause-machine.json    a condition of [power] asks, and takes it back by itself

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
    """"user", "signal", or "machine" for a condition of [power], which is withdrawn by itself."""
    reason: str
    end: bool = False
    """The run's process is to end as well; otherwise it waits until the request is withdrawn."""


class PauseRequests:
    """The requests that lie in one run directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = (str(folder / "pause.json"), str(folder / "pause-machine.json"))

    def ask(self, request: PauseRequest) -> None:
        """Leaves a request for the run's process, durably."""
        file = Path(self._files[request.by == "machine"])
        write_file(file, msgspec.json.encode(request))

    def is_asked(self) -> bool:
        """Returns whether there is a request. It costs a microsecond or two: cheap enough for every token."""
        return any(map(os.path.exists, self._files))

    def read(self) -> PauseRequest | None:
        """Returns the request, a person's before the machine's; None if there is none.

        One that cannot be read counts as the user's: it was meant.
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
        """Removes the requests, or the machine's alone: a person's then stays."""
        for file in self._files[of_machine:]:
            Path(file).unlink(missing_ok=True)
        sync(self._folder)
