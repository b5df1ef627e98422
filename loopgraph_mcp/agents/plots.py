"""Draws best-so-far curves as an SVG: a line for each arm, its seeds thin behind it."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from statistics import fmean

Curve = Sequence[tuple[float, float]]  # (spent, best so far), in order

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 150, 20, 50
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # apart also for the colour-blind
_TICKS, _SAMPLES = 5, 60


def draw(curves: Mapping[str, Sequence[Curve]], *, across: str, up: str) -> str:
    """Return an SVG of curves by arm; each holds its value until the next point."""
    points = [point for each in curves.values() for curve in each for point in curve]
    if not points:
        return "<svg xmlns='http://www.w3.org/2000/svg'/>"
    right = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    room = (high - low) * 0.05 or abs(high) * 0.01 or 1.0
    low, high = low - room, high + room

    def place(x: float, y: float) -> str:
        across_px = _LEFT + x / right * (_WIDTH - _LEFT - _RIGHT)
        down_px = _TOP + (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{across_px:.1f},{down_px:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for tick in range(_TICKS + 1):
        x, y = right * tick / _TICKS, low + (high - low) * tick / _TICKS
        (x_px, _), (_, y_px) = place(x, low).split(","), place(0, y).split(",")
        parts.append(f'<text x="{x_px}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:,.4g}</text>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y_px}" text-anchor="end" dominant-baseline="middle">{y:.4g}</text>')
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y_px}" y2="{y_px}" stroke="#ddd"/>')
    for number, (arm, each) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        thin = [[place(*point) for point in _steps(curve)] for curve in each]
        parts += [_line(points_px, colour, width=0.7, opacity=0.4) for points_px in thin]
        mean = _mean(each)
        parts.append(_line([place(*point) for point in mean], colour, width=2.5, opacity=1.0))
        line_px = _TOP + 20 * (number + 1)
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{line_px}" fill="{colour}">{escape(arm)}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(across)}</text>'
    )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">{escape(up)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _line(points: Sequence[str], colour: str, *, width: float, opacity: float) -> str:
    return (
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-opacity="{opacity}"/>'
    )


def _steps(curve: Curve) -> list[tuple[float, float]]:
    stepped = list(curve[:1])
    for (_, before), (x, y) in pairwise(curve):
        stepped += [(x, before), (x, y)]
    return stepped


def _mean(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Return the mean of step curves, over as far as all of them go."""
    held = [curve for curve in curves if curve]
    if not held:
        return []
    start, end = max(curve[0][0] for curve in held), min(curve[-1][0] for curve in held)
    xs = [start + (end - start) * step / _SAMPLES for step in range(_SAMPLES + 1)]
    return [(x, fmean(_at(curve, x) for curve in held)) for x in xs]


def _at(curve: Curve, x: float) -> float:
    return next((y for at, y in reversed(curve) if at <= x + 1e-9), curve[0][1])
