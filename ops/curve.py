"""A learning curve as SVG: no plotting library for one picture."""

from collections.abc import Sequence

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44
COLOURS = ("#3b7a3b", "#c0392b", "#2c6fbb", "#b8860b", "#6c3483")

Line = tuple[str, Sequence[tuple[float, float]]]
"""A name and its points (x, y)."""


def curve(lines: Sequence[Line], x_title: str, y_title: str) -> str:
    """The lines over a common x from 0, y from 0 to 1 with marks at each fifth."""
    last = max(x for _, points in lines for x, _ in points) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + across * x / last, 1), round(TOP + up * (1 - y), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for fifth in range(6):
        (x0, y0), (x1, _) = at(0, fifth / 5), at(last, fifth / 5)
        parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 8}" y="{y0 + 4}" text-anchor="end">{fifth / 5:.1f}</text>')
    for x in sorted({x for _, points in lines for x, _ in points}):
        place, _ = at(x, 0)
        parts.append(f'<text x="{place}" y="{HEIGHT - 26}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{x_title}</text>')
    parts.append(
        f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{y_title}</text>'
    )
    for number, (name, points) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = HEIGHT - BOTTOM - 12 - 16 * number
        parts.append(f'<text x="{WIDTH - 90}" y="{y}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
