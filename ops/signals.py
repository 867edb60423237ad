"""What a person or the system asks of a run's process by a signal: once is a pause, twice is to leave."""

import contextlib
import os
import signal

from runtime.errors import PippinError
from runtime.pause_request import PauseRequest
from runtime.rundir import RunDirectory

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hold_back() -> None:
    """Until there is a `Signals`, in this process or in what it becomes, let them wait for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


class Signals:
    """The first SIGINT, SIGTERM or SIGHUP asks to pause and end, the second ends this process at once.

    A second SIGHUP says nothing new: the kernel and the shell both send one when a terminal is closed.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self.request: PauseRequest | None = None
        """What a signal has asked for; it holds even where the disk is too full to write it down."""
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # of a detached run, whose terminal may close
                signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def end(self) -> None:
        """Leaves them to whoever had them before."""
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
    """Says something to the terminal; if it is closed, whatever is said from now on goes nowhere."""
    try:
        os.write(2, text.encode())
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
