"""Learning curves and bars as SVG: no plotting library for one picture."""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44
COLOURS = ("#3b7a3b", "#c0392b", "#2c6fbb", "#b8860b", "#6c3483")
MOST_MARKS = 12
"""The most marks of the x axis at points; with more points the marks are at round numbers."""
MOST_DOTS = 60
BAR, GAP, NAMES = 18, 12, 170

Line = tuple[str, Sequence[tuple[float, float]]]
"""A name and its points (x, y)."""


def curve(
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    y_range: tuple[float, float] = (0.0, 1.0),
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """Returns the lines over a common x from 0 as SVG, with marks at each fifth of the y range.

    `levels` are named heights, drawn as dashes across. The legend is placed away from the falling
    lines, if most fall.
    """
    low, high = y_range
    xs = sorted({x for _, points in lines for x, _ in points})
    last = (xs[-1] if xs else 0) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        share = (y - low) / (high - low)
        return round(LEFT + across * x / last, 1), round(TOP + up * (1 - share), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for fifth in range(6):
        y = low + (high - low) * fifth / 5
        (x0, y0), (x1, _) = at(0, y), at(last, y)
        parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}" stroke="#ddd"/>')
        text = f"{y:.1f}" if high - low <= 10 else f"{y:.0f}"
        parts.append(f'<text x="{x0 - 8}" y="{y0 + 4}" text-anchor="end">{text}</text>')
    for x in marks(xs, last):
        place, _ = at(x, low)
        parts.append(f'<text x="{place}" y="{HEIGHT - 26}" text-anchor="middle">{x:g}</text>')
    titles = escape(x_title), escape(y_title)
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{titles[0]}</text>')
    parts.append(
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{titles[1]}</text>'
    )
    for name, y in levels:
        (x0, y0), (x1, _) = at(0, y), at(last, y)
        parts.append(
            f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}" stroke="#555" stroke-dasharray="5 4"/>'
        )
        parts.append(f'<text x="{x0 + 6}" y="{y0 - 4}" fill="#555">{escape(name)}</text>')
    falling = sum(points[-1][1] < points[0][1] for _, points in lines if points) * 2 > len(lines)
    for number, (name, points) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(*point) for point in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(places) <= MOST_DOTS:
            parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in places]
        y = TOP + 16 * (number + 1) if falling else HEIGHT - BOTTOM - 12 - 16 * number
        x = WIDTH - RIGHT - 6
        parts.append(
            f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="end">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def marks(xs: Sequence[float], last: float) -> list[float]:
    """Returns the marks of the x axis: at the points, or at round numbers if points would crowd."""
    near = WIDTH / MOST_MARKS * last / (WIDTH - LEFT - RIGHT)
    if all(b - a >= near * 0.6 for a, b in pairwise(xs)):
        return list(xs)
    rough = last / (MOST_MARKS / 2)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    return [step * i for i in range(int(last / step) + 1)]


Bars = tuple[str, Sequence[tuple[float | None, float, str]]]
"""A title, and for each row its value (None: not known), half the length of its whisker, and its text."""


def bars(names: Sequence[str], columns: Sequence[Bars]) -> str:
    """Returns columns of horizontal bars as SVG, a row for each name. Each column has a scale of its
    own from 0.
    """
    width = (WIDTH - NAMES) / len(columns)
    height = TOP + 20 + len(names) * (BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for row, name in enumerate(names):
        y = TOP + 20 + row * (BAR + GAP) + BAR - 5
        parts.append(f'<text x="{NAMES - 10}" y="{y}" text-anchor="end">{escape(name)}</text>')
    for column, (title, values) in enumerate(columns):
        left, room = NAMES + column * width, width - 70
        most = max((v + w for v, w, _ in values if v is not None), default=0) or 1
        parts.append(f'<text x="{left:.1f}" y="{TOP}" font-weight="bold">{escape(title)}</text>')
        for row, (value, whisker, text) in enumerate(values):
            y, colour = TOP + 20 + row * (BAR + GAP), COLOURS[row % len(COLOURS)]
            end = left + room * ((value or 0.0) / most)
            if value is not None:
                parts.append(
                    f'<rect x="{left:.1f}" y="{y}" width="{end - left:.1f}" height="{BAR}" '
                    f'fill="{colour}"/>'
                )
            reach = room * whisker / most
            if reach:
                middle = y + BAR / 2
                parts.append(
                    f'<line x1="{max(end - reach, left):.1f}" y1="{middle}" x2="{end + reach:.1f}" '
                    f'y2="{middle}" stroke="black"/>'
                )
            parts.append(f'<text x="{end + reach + 5:.1f}" y="{y + BAR - 5}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
