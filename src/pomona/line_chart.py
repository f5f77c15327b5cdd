"""Lines as an SVG picture, without a library: curves of a run, losses over rates, calibration. The same input
gives the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import compress, repeat

WIDTH, HEIGHT = 880, 480
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 56, 56
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a98", "#8a5a00", "#6a4c93", "#444444")


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order of x. dots: mark each of them; hints: what a pointer on a dot shows; dashed: for
    a line beside the main one."""

    name: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False
    dashed: bool = False
    hints: tuple[str, ...] = ()


def line_chart(title: str, x_title: str, y_title: str, lines: Sequence[Line], *, log_x: bool = False) -> str:
    """The picture. Points that are not finite are left out. ValueError if none is left."""
    kept = [_sound_points(line, log_x) for line in lines]
    points = [point for line in kept for point in line.points]
    if not points:
        raise ValueError("no points to draw")
    across = _Axis([math.log10(x) if log_x else x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return across.at(math.log10(point[0]) if log_x else point[0]), up.at(point[1])

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 28, title, size=16),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_title, anchor="middle"),
        f'<g transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)">'
        f"{_text(0, 0, y_title, anchor='middle')}</g>",
    ]
    for value in across.ticks():
        x = across.at(value)
        parts.append(_rule(x, TOP, x, HEIGHT - BOTTOM))
        shown = f"{10**value:.3g}" if log_x else f"{value:g}"
        parts.append(_text(x, HEIGHT - BOTTOM + 18, shown, anchor="middle"))
    for value in up.ticks():
        y = up.at(value)
        parts.append(_rule(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 8, y + 4, f"{value:g}", anchor="end"))
    for number, line in enumerate(kept):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        if line.dots:
            for (x, y), hint in zip(places, line.hints or repeat(""), strict=False):
                told = f"<title>{escape(hint)}</title>" if hint else ""
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{told}</circle>')
        top = TOP + 8 + 18 * number
        parts.append(f'<rect x="{WIDTH - 250}" y="{top}" width="18" height="4" fill="{colour}"/>')
        parts.append(_text(WIDTH - 226, top + 7, line.name))
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        margin = 0.04 * (max(values) - min(values)) or 0.5
        self.low, self.high, self.start, self.end = min(values) - margin, max(values) + margin, start, end

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        raw = (self.high - self.low) / 7
        power = 10.0 ** math.floor(math.log10(raw))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(number * step, 12) for number in range(first, last + 1)]


def _sound_points(line: Line, log_x: bool) -> Line:
    def sound(x: float, y: float) -> bool:
        return math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x)

    keep = [sound(*point) for point in line.points]
    points, hints = tuple(compress(line.points, keep)), tuple(compress(line.hints, keep))
    return replace(line, points=points, hints=hints)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e6e6e6"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222222">'
        f"{escape(text)}</text>"
    )
