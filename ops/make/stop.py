"""Ctrl-C while data is made: the first stops once the work under way is saved, the second stops at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Knows whether a signal has asked to stop. Where nothing is to be finished first, the signal
    raises at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._gentle = ""

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals within the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            for number, handler in before.items():
                if handler is not signal.SIG_IGN:
                    signal.signal(number, self._handle)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def gently(self, what: str) -> Iterator[None]:
        """Lets a first signal only set `asked` within the block, and prints that it waits for `what`."""
        self._gentle = what
        try:
            yield
        finally:
            self._gentle = ""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._gentle and not self.asked:
            self.asked = True
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(2, f"\nstopping: {self._gentle}; once more leaves at once\n".encode())
            return
        self.asked = True
        raise KeyboardInterrupt
