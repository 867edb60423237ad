"""What a user's code prints, kept in bounds: the beginning and the end of each call, in a log that rotates.

A reward that prints in a loop writes gigabytes in a minute; its pipe is read to the end all the same, or it
would block. With a path the log is PATH and, before it, PATH.1; without one nothing is kept.
"""

import contextlib
import os
from pathlib import Path

from runtime.plain_text import printable_lines

FIRST_BYTES = LAST_BYTES = 4096
"""Kept of each call; what lies between is counted."""
LARGEST_LOG_BYTES = 1 << 20
"""Then the log becomes PATH.1, in place of the one before."""


class OutputLog:
    """The log of one process, written at the end of each call."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._first, self._last, self._size = b"", b"", 0

    def take(self, output: bytes) -> None:
        """Take what the process printed next."""
        self._size += len(output)
        room = FIRST_BYTES - len(self._first)
        if room > 0:
            self._first += output[:room]
            output = output[room:]
        if output:
            self._last = (self._last + output)[-LAST_BYTES:]

    def end_call(self) -> None:
        """Write what the call printed. What a full disk has no room for is dropped."""
        first, last = self._first, self._last
        left_out = self._size - len(first) - len(last)
        self._first, self._last, self._size = b"", b"", 0
        if not first or self._path is None:
            return
        gap = f"\n… {left_out:,} bytes left out …\n".encode() if left_out else b""
        text = printable_lines((first + gap + last).decode(errors="replace").removesuffix("\n"))
        with contextlib.suppress(OSError):
            _append(self._path, text.encode() + b"\n")


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as log:
        if log.tell() + len(content) > LARGEST_LOG_BYTES:
            os.replace(path, f"{path}.1")
            with path.open("wb") as fresh:
                fresh.write(content)
        else:
            log.write(content)
