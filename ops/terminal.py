"""Writes everything that a person reads in a terminal: lines, tables, and a line that is rewritten.

    say("run q in runs/q", err=True)
    say(Table(header=("run", "step"), rows=[("q", "4/4")]))

What is printed may come from a model, a file or a server, so no control character of it reaches the
terminal. rich draws tables and the live line, and is imported when there is one to be drawn. Where
there is no terminal, everything is plain text, a line at a time, as wide as it needs to be.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from ops.table import Table, drawn, wrapped

if TYPE_CHECKING:
    from rich.live import Live

BAR, LEAST_BAR = 24, 5
"""The most and the least characters of a progress bar; with less room there is no bar."""
UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]+")


def say(*parts: str | Table, err: bool = False, wrap: bool = False) -> None:
    """Prints text and tables, each on lines of its own, to standard output or standard error."""
    write(sys.stderr if err else sys.stdout, *parts, wrap=wrap)


def write(out: TextIO, *parts: str | Table, wrap: bool = False) -> None:
    """Writes what `say` prints. Raises OSError where the stream is closed.

    With `wrap` text is broken between words for a terminal. Text that may be copied, such as a path, is
    not broken.
    """
    width = shutil.get_terminal_size().columns if is_terminal(out) else None
    texts = []
    for part in parts:
        text = clean(part) if isinstance(part, str) else drawn(part, clean, width)
        texts.append(wrapped(text, width) if wrap and width and isinstance(part, str) else text)
    encoding = out.encoding or "utf-8"
    text = "\n".join(texts).encode(encoding, "backslashreplace").decode(encoding)
    out.write(text + "\n")
    out.flush()


def clean(text: str) -> str:
    """Returns the text with each character that cannot be printed as the escape of JSON and TOML.

    Line breaks and tabs stay, and so does the meaning of what is JSON or TOML.
    """
    return UNUSUAL.sub(lambda found: "".join(map(_printable, found[0])), text)


def is_terminal(out: TextIO) -> bool:
    """Returns whether what reads `out` understands colours and cursor movements."""
    return out.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class LiveText:
    """Rewrites one line of a terminal, with a bar that gives way to the words.

    A terminal that has gone is not written to again.
    """

    def __init__(self, out: TextIO) -> None:
        self.shown = is_terminal(out)
        """True if there is a terminal: without one nothing is rewritten."""
        self._out = out
        self._live: Live | None = None
        self._last: object = None

    def rewrite(self, words: str, share: float | None) -> None:
        """Shows words, and a bar for the share that is done. Without a share there is no bar."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        words = clean(words).replace("\n", " ").replace("\t", " ")
        width = shutil.get_terminal_size().columns - 1
        if self._last == (words, share, width) or not self.shown:
            return
        self._last = words, share, width
        text = Text(words, no_wrap=True, overflow="ellipsis", end="")
        room = min(BAR, width - text.cell_len - 2)
        line = Grid.grid(padding=(0, 2, 0, 0))
        if share is not None and room >= LEAST_BAR:
            text.truncate(width - room - 2)
            line.add_row(ProgressBar(total=1.0, completed=share, width=room), text)
        else:
            text.truncate(width, overflow="ellipsis")
            line.add_row(text)
        with self._until_it_has_gone():
            self._started().update(line, refresh=True)

    def say(self, text: str) -> None:
        """Prints a line that stays, above the one that is rewritten."""
        if self._live is None:
            write(self._out, text)
            return
        from rich.text import Text

        with self._until_it_has_gone():
            self._live.console.print(Text(clean(text)), soft_wrap=True)

    def end(self, *, keep: bool) -> None:
        """Leaves the line standing, or removes it."""
        if self._live is not None:
            self._live.transient = not keep
            with self._until_it_has_gone():
                self._live.stop()
        self._live, self._last = None, None

    def _started(self) -> "Live":
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._out, force_terminal=True, highlight=False)
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
            console.show_cursor()  # a killed process would leave the terminal without a cursor
        return self._live

    @contextlib.contextmanager
    def _until_it_has_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.shown, self._live = False, None


def _printable(character: str) -> str:
    if character.isprintable() or character == "\N{NO-BREAK SPACE}":
        return character
    code = ord(character)
    if code > 0xFFFF:
        high, low = divmod(code - 0x10000, 0x400)
        return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
    return f"\\u{code:04x}"
