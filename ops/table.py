"""Tables and text for a terminal: rich draws them; this module narrows columns to the terminal.

No number is ever cut: words and histograms are shortened, and left out where nothing readable would
remain. A line that does not fit even then is wrapped by the terminal.
"""

import io
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

LEAST = 8
"""The least characters of a column that gives way; with fewer it is left out, unless it is the first."""


class Table(Struct, frozen=True, kw_only=True):
    """Holds columns under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    """Columns that are aligned to the left, by number; the others are aligned to the right."""
    gives_way: Sequence[int] = (0,)
    """Columns that are cut, one after the other, where a terminal is too narrow."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """The colours of cells, by their text."""
    indent: int = 0


def drawn(table: Table, clean: Callable[[str], str], width: int | None) -> str:
    """Returns the lines of a table: fitted and coloured for a terminal of that width, plain without
    one.

    `clean` is applied to the text of the cells.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    def cell(text: str) -> Text:
        return Text(" ".join(clean(text).split()), style=table.colours.get(text, ""))

    lines = [[cell(text) for text in row] for row in (table.header, *table.rows)]
    gap, widths = _fitting(table, lines, width)
    grid = Grid(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for column, room in widths.items():
        grid.add_column(
            lines[0][column],
            justify="left" if column in table.left else "right",
            width=room,
            overflow="ellipsis",
            no_wrap=column in table.gives_way,
        )
    for row in lines[1:]:
        grid.add_row(*(row[column] for column in widths))
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=width is not None,
        width=table.indent + sum(widths.values()) + gap * len(widths),
    )
    console.print(Padding(grid, (0, 0, 0, table.indent)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def wrapped(text: str, width: int) -> str:
    """Returns text whose lines are broken between words. Continued lines are indented."""
    from rich.console import Console
    from rich.text import Text

    console, lines = Console(file=io.StringIO(), width=width), []
    for line in text.splitlines():
        words = line.lstrip(" ")
        indent = len(line) - len(words)
        if Text(line).cell_len <= width:
            lines.append(line)
            continue
        broken = Text(words).wrap(console, max(width - indent - 2, 1))
        lines += [
            " " * (indent + 2 * bool(i)) + piece.plain.rstrip() for i, piece in enumerate(broken)
        ]
    return "\n".join(lines)


def _fitting(table: Table, lines: list, width: int | None) -> tuple[int, dict[int, int]]:
    """Returns the gap between columns, and each column's width. A column without a width is left out."""
    gap = 2
    widths = {i: max(line[i].cell_len for line in lines) for i in range(len(table.header))}

    def excess() -> int:
        return table.indent + sum(widths.values()) + gap * (len(widths) - 1) - (width or 10**9)

    if excess() <= 0:
        return gap, widths
    gap = 1
    for i in widths:
        if i not in table.gives_way:  # a header may be broken between its words
            words = [*map(len, table.header[i].split()), *(line[i].cell_len for line in lines[1:])]
            widths[i] = max(words, default=0)
    whole = dict(widths)
    for i in table.gives_way:
        widths[i] = max(widths[i] - max(excess(), 0), min(LEAST, widths[i]))
    for i in table.gives_way:
        if excess() > 0 and i:
            del widths[i]
    for i in reversed(table.gives_way):  # the remaining columns get the free width
        if i in widths and excess() < 0:
            widths[i] = min(whole[i], widths[i] - excess())
    return gap, widths
