"""The line that is rewritten while a teacher works; a line now and then where there is no terminal."""

import sys
import time
from typing import TextIO

from msgspec import Struct, field

from ops.show import duration
from ops.terminal import LiveText, write

LIVE_S = 0.2
LOG_S = 30.0


class Counts(Struct):
    """Counts what has come in this call, beside what was there already."""

    total: int = 0
    there: int = 0
    """The number that was answered in an earlier call."""
    answered: int = 0
    passed: int = 0
    judged: int = 0
    failed: int = 0
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)


class Progress:
    """Shows `counts`, which are changed where the work is done."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.counts = Counts()
        self._out = out or sys.stderr
        self._live = LiveText(self._out)
        self._at_terminal = self._live.shown
        self._next = time.monotonic() + (0.0 if self._at_terminal else LOG_S)

    def more(self, total: int, there: int) -> None:
        """Adds so many questions, of which some were answered before."""
        self.counts.total += total
        self.counts.there += there

    def show(self, doing: str = "") -> None:
        """Rewrites the line, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (LIVE_S if self._at_terminal else LOG_S)
        line = progress_line(self.counts, now, doing)
        if self._at_terminal:
            self._live.rewrite(line, _done(self.counts) / max(self.counts.total, 1))
        else:
            write(self._out, line)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._live.say(text)

    def end(self) -> None:
        """Clears the line."""
        self._live.end(keep=False)


def progress_line(counts: Counts, now: float, doing: str = "") -> str:
    """Returns how far the work is, its speed, and the time left."""
    done = _done(counts)
    parts = [f"{done:,}/{counts.total:,} answered"]
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


def _done(counts: Counts) -> int:
    return counts.there + counts.answered + counts.failed
