"""The line that is rewritten while a teacher works; a line now and then where there is no terminal."""

import sys
import time
from typing import TextIO

from msgspec import Struct, field

from ops.show import BAR, duration

LIVE_S = 0.2
LOG_S = 30.0


class Counts(Struct):
    """What has come in this call, beside what was there already."""

    total: int = 0
    there: int = 0
    """Answered in an earlier call."""
    answered: int = 0
    passed: int = 0
    judged: int = 0
    failed: int = 0
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)


class Progress:
    """Shows `counts`, which whoever does the work changes."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self.counts = Counts()
        self._out = out
        self._live = out.isatty()
        self._next = time.monotonic() + (0.0 if self._live else LOG_S)
        self._width = 0

    def more(self, total: int, there: int) -> None:
        """So many are to be asked, of which some were answered before."""
        self.counts.total += total
        self.counts.there += there

    def show(self, doing: str = "") -> None:
        """Rewrite the line, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (LIVE_S if self._live else LOG_S)
        line = progress_line(self.counts, now, doing)
        if self._live:
            self._out.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._out.write(line + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.end()
        self._out.write(text + "\n")
        self._out.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._width = 0


def progress_line(counts: Counts, now: float, doing: str = "") -> str:
    """How far it is, how fast, and for how long yet."""
    done = counts.there + counts.answered + counts.failed
    bar = int(BAR * done / max(counts.total, 1))
    parts = [f"[{'█' * bar}{'·' * (BAR - bar)}] {done:,}/{counts.total:,} answered"]
    if counts.judged:
        parts.append(f"{counts.passed:,} of {counts.judged:,} passed")
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    seconds, fresh = now - counts.began, counts.answered + counts.failed
    if counts.tokens and seconds > 0:
        parts.append(f"{counts.tokens / seconds:,.0f} tok/s")
    if fresh and done < counts.total:
        parts.append(f"{duration(seconds / fresh * (counts.total - done))} left")
    return "  ".join([*parts, *([doing] if doing else [])])
