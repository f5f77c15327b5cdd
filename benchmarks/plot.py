"""A small plot as SVG text: points and lines, a logarithmic vertical axis, labels that keep out of each
other's way. No library is needed, and the same input gives the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 960, 620
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 62, 64
FONT = 12
LETTER = 0.62 * FONT  # of a sans-serif font, on average
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a98", "#8a5a00")
SHAPES = ("circle", "square", "diamond", "triangle")

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Series:
    """Points of one kind; `joined` draws the line through them from left to right."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False


def svg(title: str, x_title: str, y_title: str, series: Sequence[Series], subtitle: str = "") -> str:
    """The plot. ValueError without points, or for one that has no place on the axes (y must be positive)."""
    points = [point for one in series for point in one.points]
    if not points:
        raise ValueError("no points to plot")
    if not all(math.isfinite(point.x) and math.isfinite(point.y) and point.y > 0 for point in points):
        raise ValueError("a point is not finite, or not positive where the axis is logarithmic")
    axes = _Axes(points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="{FONT}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 26, title, size=17, weight="bold"),
        *([_text(LEFT, 46, subtitle, colour="#555555")] if subtitle else []),
        *axes.grid(),
        _text(LEFT + axes.width / 2, HEIGHT - 16, x_title, anchor="middle", size=13),
        _text(20, TOP + axes.height / 2, y_title, anchor="middle", size=13, rotate=True),
    ]
    taken: list[Box] = [
        _around(axes.x(point.x), axes.y(point.y), 6, 6) for one in series for point in one.points
    ]
    labels: list[str] = []
    for number, one in enumerate(series):
        colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
        places = [(axes.x(point.x), axes.y(point.y)) for point in one.points]
        if one.joined and len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(places))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for point, (x, y) in zip(one.points, places, strict=True):
            hint = f"{one.name}: {point.label} ({point.x:.4g}, {point.y:.3g})"
            parts.append(_marker(shape, x, y, colour, hint))
            labels.append(_label(point.label, x, y, colour, taken))
    legend = _legend(series, axes)
    return "\n".join([*parts, *labels, *legend, "</svg>"]) + "\n"


class _Axes:
    """Horizontal: linear. Vertical: logarithmic."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.width, self.height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        xs, logs = [point.x for point in points], [math.log10(point.y) for point in points]
        margin = 0.08 * (max(xs) - min(xs)) or 1.0
        self.low, self.high = min(xs) - margin, max(xs) + 1.5 * margin  # labels stand on the right
        spread = 0.08 * (max(logs) - min(logs)) or 0.3
        self.bottom, self.top = min(logs) - spread, max(logs) + spread

    def x(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * self.width

    def y(self, value: float) -> float:
        return TOP + (self.top - math.log10(value)) / (self.top - self.bottom) * self.height

    def grid(self) -> list[str]:
        parts = []
        for value in linear_ticks(self.low, self.high):
            x = self.x(value)
            parts.append(_line(x, TOP, x, TOP + self.height, "#eeeeee"))
            parts.append(_text(x, TOP + self.height + 18, f"{value:g}", anchor="middle"))
        for value in log_ticks(10**self.bottom, 10**self.top):
            y = self.y(value)
            parts.append(_line(LEFT, y, LEFT + self.width, y, "#eeeeee"))
            parts.append(_text(LEFT - 8, y + 4, f"{value:g}", anchor="end"))
        parts.append(_line(LEFT, TOP + self.height, LEFT + self.width, TOP + self.height, "#444444"))
        parts.append(_line(LEFT, TOP, LEFT, TOP + self.height, "#444444"))
        return parts


def linear_ticks(low: float, high: float, wanted: int = 8) -> list[float]:
    """Round values between low and high: about `wanted` of them."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between low and high; only the powers where there are many."""
    factors = (1, 2, 5) if math.log10(high / low) < 3.5 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
    return [value for value in found if low <= value <= high]


def _label(text: str, x: float, y: float, colour: str, taken: list[Box]) -> str:
    """The text at the first free place around its point; what it covers is taken from now on."""
    width = LETTER * len(text)
    places = [
        (x + 9, y + 4),
        (x - 9 - width, y + 4),
        (x - width / 2, y - 10),
        (x - width / 2, y + 19),
        (x + 8, y - 9),
        (x + 8, y + 17),
        (x - 8 - width, y - 9),
        (x - 8 - width, y + 17),
        *((x + 9, y + 4 + sign * step) for step in (24, 36, 48, 60) for sign in (-1, 1)),
    ]
    boxes = [_text_box(left, baseline, width) for left, baseline in places]
    best = min(range(len(places)), key=lambda index: (_overlap(boxes[index], taken), index))
    taken.append(boxes[best])
    return _text(places[best][0], places[best][1], text, colour=colour)


def _text_box(x: float, y: float, width: float) -> Box:
    return (x, y - FONT, x + width, y + 3)


def _overlap(box: Box, others: Sequence[Box]) -> float:
    """Area that is covered twice; leaving the plot counts too."""
    inside = (LEFT + 2.0, float(TOP), float(WIDTH - 4), float(HEIGHT - BOTTOM))
    outside = (box[2] - box[0]) * (box[3] - box[1]) - _common(box, inside)
    return 10 * outside + sum(_common(box, other) for other in others)


def _common(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _around(x: float, y: float, dx: float, dy: float) -> Box:
    return (x - dx, y - dy, x + dx, y + dy)


def _legend(series: Sequence[Series], axes: _Axes) -> list[str]:
    width = 40 + LETTER * max(len(one.name) for one in series)
    left, top = LEFT + axes.width - width - 6, TOP + 8.0
    height = 20 * len(series) + 8
    parts = [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" fill="#ffffff" '
        'stroke="#cccccc"/>'
    ]
    for number, one in enumerate(series):
        y = top + 18 + 20 * number
        colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
        parts.append(_marker(shape, left + 16, y - 4, colour, one.name))
        parts.append(_text(left + 30, y, one.name))
    return parts


def _marker(shape: str, x: float, y: float, colour: str, hint: str) -> str:
    tip = f"<title>{escape(hint)}</title>"
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}">{tip}</circle>'
    corners = {
        "square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -6), (5.5, 4.5), (-5.5, 4.5)),
    }[shape]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" fill="{colour}">{tip}</polygon>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = FONT,
    weight: str = "normal",
    colour: str = "#222222",
    rotate: bool = False,
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if rotate else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}"{turn}>{escape(text)}</text>'
    )
