"""A rotating log of the output of a user's code, with the beginning and the end of each call's output.

A reward function that prints in a loop writes gigabytes in a minute; its pipe is still read to the end,
because the function would block otherwise. With a path the log is PATH, and PATH.1 for older output; without
a path nothing is kept.
"""

import contextlib
import os
from pathlib import Path

from runtime.plain_text import printable_lines

FIRST_BYTES = LAST_BYTES = 4096
"""Bytes that are kept of the beginning and of the end of each call's output; those between are counted."""
LARGEST_LOG_BYTES = 1 << 20
"""Size at which the log is renamed to PATH.1, which replaces the old PATH.1."""


class OutputLog:
    """The log of one process, written at the end of each call."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._first, self._last, self._size = b"", b"", 0

    def take(self, output: bytes) -> None:
        """Takes the next output of the process."""
        self._size += len(output)
        room = FIRST_BYTES - len(self._first)
        if room > 0:
            self._first += output[:room]
            output = output[room:]
        if output:
            self._last = (self._last + output)[-LAST_BYTES:]

    def end_call(self) -> None:
        """Writes the call's output to the log, and drops it if the disk is full."""
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
