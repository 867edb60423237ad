"""Signals to a run's process: the first asks for a pause, the second ends the process."""

import contextlib
import os
import signal

from runtime.errors import PippinError
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hold_back() -> None:
    """Blocks the signals until there is a `Signals`, in this process or in the one that replaces it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class Signals:
    """Takes the first SIGINT, SIGTERM or SIGHUP as a request to pause and end; the second ends this
    process at once.

    A second SIGHUP is ignored: the kernel and the shell both send one when a terminal is closed.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self.request: PauseRequest | None = None
        """The request of a signal; it holds even where the disk is too full to write it down."""
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # a detached run ignores it: its terminal may close
                signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def end(self) -> None:
        """Gives the signals back to their handlers from before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.request is not None:
            if number == signal.SIGHUP:
                return
            _tell(f"\nleft; go on with: pippin resume {self._run.name}\n")
            os._exit(128 + number)  # the watchdog ends what is running
        reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.request = PauseRequest(by="signal", reason=reason, end=True)
        with contextlib.suppress(PippinError, OSError):
            self._run.ask_to_pause(self.request)
        _tell("\npausing; once more leaves at once\n")


def _tell(text: str) -> None:
    """Prints something to the terminal. If the terminal is closed, later output is discarded."""
    try:
        os.write(2, text.encode())
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
