"""A small chart as SVG text: curves and points on two linear axes. The same input gives the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pomona.errors import PomonaError

WIDTH, HEIGHT = 720, 480
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 48, 60
COLOURS = ("#888888", "#0b6e4f", "#c8553d", "#3d5a98", "#8a5a00")


@dataclass(frozen=True)
class Curve:
    """points: (x, y, what a pointer on it shows). marks: with a dot at every point."""

    name: str
    points: tuple[tuple[float, float, str], ...]
    marks: bool = True


def svg(title: str, x_title: str, y_title: str, curves: Sequence[Curve]) -> str:
    """The chart, with a legend. PomonaError without a point, or for one that is not finite."""
    points = [point for curve in curves for point in curve.points]
    if not points or not all(math.isfinite(x) and math.isfinite(y) for x, y, _ in points):
        raise PomonaError(f"{title}: nothing to draw, or a point that is no number")
    x_low, x_high = _range([x for x, _, _ in points])
    y_low, y_high = _range([y for _, y, _ in points])
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * width,
            TOP + (y_high - y) / (y_high - y_low) * height,
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 28, title, size=16),
        _text(LEFT + width / 2, HEIGHT - 14, x_title, anchor="middle"),
        f'<g transform="rotate(-90 18 {TOP + height / 2:.1f})">'
        + _text(18, TOP + height / 2, y_title, anchor="middle")
        + "</g>",
    ]
    for value in _ticks(x_low, x_high):
        x, _ = place(value, y_low)
        parts.append(_line(x, TOP, x, TOP + height, "#eeeeee"))
        parts.append(_text(x, TOP + height + 18, f"{value:g}", anchor="middle"))
    for value in _ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(_line(LEFT, y, LEFT + width, y, "#eeeeee"))
        parts.append(_text(LEFT - 8, y + 4, f"{value:g}", anchor="end"))
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y, _ in curve.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if curve.marks:
            for (x, y), (_, _, hint) in zip(places, curve.points, strict=True):
                shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
                parts.append(f"{shape}<title>{escape(hint)}</title></circle>")
        top = TOP + 18 + 18 * number
        parts.append(_line(LEFT + 12, top - 4, LEFT + 32, top - 4, colour))
        parts.append(_text(LEFT + 38, top, curve.name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _range(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.06 * (max(values) - min(values)) or 0.5
    return min(values) - margin, max(values) + margin


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222222">'
        f"{escape(text)}</text>"
    )
