"""The main chart, as data: every run a dot, the best so far with its noise, what was kept by name; and a card of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal, get_args

from loopgraph_mcp.api.overview import Line, Mark, Overview, spent_until
from loopgraph_mcp.models import Direction
from loopgraph_mcp.ranking.verdicts import cautious
from loopgraph_mcp.text import plain_line
from loopgraph_mcp.web.themes import LIGHT, Spec, Theme, chart, places, shortened

Across = Literal["run", "hour", "dollars"]
ACROSS: tuple[Across, ...] = get_args(Across)

_LETTER = 5.9  # pixels of a letter at 11 px, on average
_LABELS = 9  # more names would hide what they name
_LABEL_LETTERS = 34
_ASIDE = 8  # pixels from a dot to its name
_ROOM = 1.35  # of the way from best to baseline that is shown on its far side; what is further away is at the edge

# What a dot looks like by what became of its run: shape and filling say the same as the colour.
_LOOKS = ("kept beyond noise", "kept within noise", "baseline", "not kept", "failed")
_LOOK_OF = {
    Mark.KEPT: _LOOKS[0],
    Mark.TENTATIVE: _LOOKS[1],
    Mark.BASELINE: _LOOKS[2],
    Mark.FAILED: _LOOKS[4],
}
_CROSS = "M-1,-1L1,1M-1,1L1,-1"


@dataclass(frozen=True, slots=True)
class Reached:
    """The best program after a run: the mean of its runs so far, as `results` chooses it."""

    x: float
    value: float


def best_so_far(lines: Sequence[Line], xs: Mapping[str, float], direction: Direction, sigma: float) -> list[Reached]:
    """Return the best mean after each measured run: the mean less its standard error decides, not the luckiest run."""
    values, best, reached = dict[str, list[float]](), "", list[Reached]()
    worth = dict[str, float]()
    for line in lines:
        if line.metric_value is None or line.verdict is None:
            continue
        same = values.setdefault(line.group, [])
        same.append(line.metric_value)
        worth[line.group] = direction.gain(0.0, cautious(same, direction=direction, sigma=sigma))
        if line.group == best or not best or worth[line.group] > worth[best]:
            best = max(worth, key=lambda group: (worth[group], group)) if line.group == best else line.group
        reached.append(Reached(xs[line.experiment_id], fmean(values[best])))
    return reached


def positions(overview: Overview, across: Across) -> dict[str, float]:
    """Return where each experiment lies across: its number, the hours since the first began, or dollars until then."""
    lines = overview.lines
    if across == "run":
        return {line.experiment_id: float(line.number) for line in lines}
    if across == "hour":
        began = lines[0].created_at if lines else 0.0
        return {line.experiment_id: ((line.finished_at or line.created_at) - began) / 3600 for line in lines}
    return {line.experiment_id: spent_until(overview, line.finished_at or line.created_at) for line in lines}


def progress(
    overview: Overview, *, across: Across = "run", theme: Theme = LIGHT, width: int = 900, height: int = 360
) -> Spec:
    """Return the main chart: every run a dot, the best so far with the noise of one run, what was kept by name."""
    lines, context = overview.here, overview.setting.context
    sigma = overview.noise.sd if overview.noise is not None else 0.0
    xs = positions(overview, across)
    reached = best_so_far(lines, xs, context.direction, sigma)
    low, high = _scale(lines, reached, context.direction, sigma)
    dots = [_dot(line, xs, low, high, sigma) for line in lines if line.mark is not Mark.UNMEASURED]
    last = max((dot["x"] for dot in dots), default=1.0)
    first = min((dot["x"] for dot in dots), default=0.0)
    lower = context.direction is Direction.LOWER
    titles = {"run": "experiment", "hour": "hours since the first experiment", "dollars": "dollars spent"}
    x = {
        "field": "x",
        "type": "quantitative",
        "title": titles[across],
        "scale": {"domain": [min(0.0, first), last * 1.01 or 1.0], "nice": False},
        "axis": {"grid": False, "tickMinStep": 1 if across == "run" else 0},
    }
    y = {
        "field": "y",
        "type": "quantitative",
        "title": f"{plain_line(context.metric, limit=60)} ({'lower' if lower else 'higher'} is better)",
        "scale": {"domain": [low, high], "zero": False, "nice": False, "clamp": True},
        "axis": {"tickCount": 6, "format": f".{places(sigma)}f", "domain": False, "ticks": False},
    }
    steps = [{"x": each.x, "y": each.value, "low": each.value - sigma, "high": each.value + sigma} for each in reached]
    if steps:
        steps.append({**steps[-1], "x": last * 1.01})
    plot = _Plot(
        first=min(0.0, first), last=last * 1.01 or 1.0, low=low, high=high, width=width - 90, height=height - 90
    )
    named = _labels(lines, xs, reached, plot, lower=lower)
    running = [{"x": xs[line.experiment_id]} for line in lines if line.mark is Mark.RUNNING]
    layers = [
        _band(steps, x, y, theme),
        _best_line(steps, x, y, theme),
        _joined(lines, xs, x, y, theme, low, high),
        _dots(dots, x, y, theme, columns=5 if width > 560 else 2),
        _failures(dots, x, theme),
        _names(named, x, y, theme),
        *_running(running, x, theme),
    ]
    said = (
        f"{len(dots)} experiments; best so far {steps[-1]['y']:.{places(sigma)}f}" if steps else "no runs measured yet"
    )
    return chart(theme, width=width, height=height, description=f"Best so far by {across}: {said}", layer=layers)


def _scale(lines: Sequence[Line], reached: Sequence[Reached], way: Direction, sigma: float) -> tuple[float, float]:
    """Return what part of the metric is shown: from the best to some way behind the baseline."""
    values = [line.metric_value for line in lines if line.metric_value is not None]
    if not values or not reached:
        return 0.0, 1.0
    best = min(each.value for each in reached) if way is Direction.LOWER else max(each.value for each in reached)
    span = max(abs(reached[0].value - best), 6 * sigma, abs(best) * 1e-6, 1e-12)
    far = best + _ROOM * span if way is Direction.LOWER else best - _ROOM * span
    near = best - 0.12 * span if way is Direction.LOWER else best + 0.12 * span
    near = min([near, *values]) if way is Direction.LOWER else max([near, *values])
    edge = max(values) + 0.05 * span if way is Direction.LOWER else min(values) - 0.05 * span
    far = min(far, edge) if way is Direction.LOWER else max(far, edge)
    near = near - 0.04 * span if way is Direction.LOWER else near + 0.04 * span
    return (near, far) if way is Direction.LOWER else (far, near)


def _dot(line: Line, xs: Mapping[str, float], low: float, high: float, sigma: float) -> Spec:
    value, digits = line.metric_value, places(sigma)
    said = line.mark.value if line.mark is not Mark.TENTATIVE else "kept, not distinguishable from noise"
    return {
        "x": xs[line.experiment_id],
        "y": None if value is None else min(max(value, low), high),
        "look": _LOOK_OF.get(line.mark, _LOOKS[3]),
        "id": line.experiment_id,
        "number": line.number,
        "tried": plain_line(line.description, limit=80),
        "measured": (line.outcome.value if line.outcome else line.state.value) if value is None else f"{value:.6f}",
        "gain": "" if line.gain is None else f"{line.gain:+.{digits}f}",
        "result": said,
        "beyond": value is not None and not low <= value <= high,
    }


_TOOLTIP = [
    {"field": "number", "title": "experiment"},
    {"field": "tried", "title": "tried"},
    {"field": "measured", "title": "measured"},
    {"field": "gain", "title": "gain"},
    {"field": "result", "title": "result"},
]


def _band(steps: Sequence[Spec], x: Spec, y: Spec, theme: Theme) -> Spec:
    return {
        "data": {"values": list(steps)},
        "mark": {"type": "area", "interpolate": "step-after", "color": theme.band, "opacity": 0.14, "tooltip": None},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }


def _best_line(steps: Sequence[Spec], x: Spec, y: Spec, theme: Theme) -> Spec:
    return {
        "data": {"values": list(steps)},
        "mark": {"type": "line", "interpolate": "step-after", "color": theme.kept, "strokeWidth": 2, "tooltip": None},
        "encoding": {"x": x, "y": y},
    }


def _joined(
    lines: Sequence[Line], xs: Mapping[str, float], x: Spec, y: Spec, theme: Theme, low: float, high: float
) -> Spec:
    """Return thin lines between the runs of one program."""
    groups = dict[str, list[Line]]()
    for line in lines:
        if line.metric_value is not None:
            groups.setdefault(line.group, []).append(line)
    values = [
        {"x": xs[line.experiment_id], "y": min(max(line.metric_value or 0.0, low), high), "group": number}
        for number, same in enumerate(groups.values())
        if len(same) > 1
        for line in same
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "line", "color": theme.muted, "strokeWidth": 1, "strokeDash": [2, 2], "tooltip": None},
        "encoding": {"x": x, "y": y, "detail": {"field": "group", "type": "nominal"}},
    }


def _dots(dots: Sequence[Spec], x: Spec, y: Spec, theme: Theme, *, columns: int) -> Spec:
    """Return the measured runs; the legend names failures as well."""
    domain = list(_LOOKS)
    strokes = [theme.kept, theme.kept, theme.text, theme.faint, theme.failed]
    fills = [theme.kept, theme.background, theme.text, theme.background, theme.failed]
    shapes = ["circle", "circle", "square", "circle", _CROSS]
    legend = {"title": None, "orient": "top", "columns": columns, "symbolStrokeWidth": 1.5, "offset": 12}
    return {
        "data": {"values": [dot for dot in dots if dot["y"] is not None]},
        "mark": {"type": "point", "filled": True, "size": 46, "strokeWidth": 1.5, "opacity": 1, "cursor": "pointer"},
        "encoding": {
            "x": x,
            "y": y,
            "stroke": {
                "field": "look",
                "type": "nominal",
                "scale": {"domain": domain, "range": strokes},
                "legend": legend,
            },
            "fill": {"field": "look", "type": "nominal", "scale": {"domain": domain, "range": fills}, "legend": legend},
            "shape": {
                "field": "look",
                "type": "nominal",
                "scale": {"domain": domain, "range": shapes},
                "legend": legend,
            },
            "tooltip": _TOOLTIP,
        },
    }


def _failures(dots: Sequence[Spec], x: Spec, theme: Theme) -> Spec:
    """Return the runs without a metric, as crosses on the axis."""
    return {
        "data": {"values": [dot for dot in dots if dot["look"] == _LOOKS[4]]},
        "mark": {
            "type": "point",
            "shape": _CROSS,
            "size": 36,
            "stroke": theme.failed,
            "strokeWidth": 2,
            "opacity": 1,
            "cursor": "pointer",
        },
        "encoding": {"x": x, "y": {"value": "height"}, "tooltip": _TOOLTIP},
    }


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where values lie in pixels, roughly: labels are placed before anything is drawn."""

    first: float
    last: float
    low: float
    high: float
    width: float
    height: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.first) / ((self.last - self.first) or 1.0)
        down = (self.high - y) / ((self.high - self.low) or 1.0)
        return across * self.width, down * self.height


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _labels(
    lines: Sequence[Line], xs: Mapping[str, float], reached: Sequence[Reached], plot: _Plot, *, lower: bool
) -> list[Spec]:
    """Return the names of what was kept beyond the noise, the largest gains first, each where nothing else is."""
    kept = [
        line for line in lines if line.mark is Mark.KEPT and line.metric_value is not None and line.gain is not None
    ]
    taken = [
        _Box(x - 5, y - 5, x + 5, y + 5)
        for line in lines
        if line.metric_value is not None
        for x, y in [plot.at(xs[line.experiment_id], min(max(line.metric_value, plot.low), plot.high))]
    ]
    for before, after in pairwise(reached):
        (x0, y0), (x1, y1) = plot.at(before.x, before.value), plot.at(after.x, after.value)
        taken += [_Box(x0, y0 - 3, x1, y0 + 3), _Box(x1 - 2, min(y0, y1), x1 + 2, max(y0, y1))]
    found = list[Spec]()
    named = set[str]()
    for line in sorted(kept, key=lambda line: -(line.gain or 0.0)):
        if len(found) >= _LABELS or line.group in named:
            continue
        text = shortened(line.description, _LABEL_LETTERS)
        x, y = plot.at(xs[line.experiment_id], line.metric_value or 0.0)
        wide = len(text) * _LETTER
        sides = (1, -1) if lower else (-1, 1)  # the side that the best moves to is the emptier one
        for down in (side * far for far in (12, 25, 38) for side in (-sides[0], sides[0])):
            box = _Box(x + _ASIDE, y + down - 6, x + _ASIDE + wide, y + down + 6)
            inside = box.right <= plot.width and box.top >= 4 and box.bottom <= plot.height - 4
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                named.add(line.group)
                found.append({"x": xs[line.experiment_id], "y": line.metric_value, "text": text, "down": down})
                break
    return found


def _names(named: Sequence[Spec], x: Spec, y: Spec, theme: Theme) -> Spec:
    def layer(down: int) -> Spec:
        return {
            "data": {"values": [each for each in named if each["down"] == down]},
            "mark": {
                "type": "text",
                "align": "left",
                "dx": _ASIDE,
                "dy": down,
                "fontSize": 11,
                "color": theme.text,
                "tooltip": None,
            },
            "encoding": {"x": x, "y": y, "text": {"field": "text", "type": "nominal"}},
        }

    return {"layer": [layer(down) for down in sorted({each["down"] for each in named})]}


def _running(at: Sequence[Spec], x: Spec, theme: Theme) -> list[Spec]:
    if not at:
        return []
    return [
        {
            "data": {"values": list(at)},
            "mark": {"type": "rule", "color": theme.running, "strokeDash": [3, 3], "strokeWidth": 1.5, "tooltip": None},
            "encoding": {"x": x},
        },
        {
            "data": {"values": list(at)},
            "mark": {
                "type": "text",
                "align": "right",
                "dx": -5,
                "color": theme.running,
                "fontSize": 11,
                "tooltip": None,
            },
            "encoding": {"x": x, "y": {"value": 8}, "text": {"value": "running"}},
        },
    ]


# --------------------------------------------------------------------------------------------------- card


def card(overview: Overview, *, title: str, sentence: str, figures: Sequence[tuple[str, str]]) -> Spec:
    """Return a card to share, 1200 by 630: what a search came to, its figures, and the curve."""
    theme, width = LIGHT, 1_056  # with its axis and margins 1200
    step = width / max(len(figures), 4)
    values = [{"x": place * step, "figure": plain_line(f), "name": n} for place, (f, n) in enumerate(figures)]
    across = {"field": "x", "type": "quantitative", "axis": None, "scale": {"domain": [0, width]}}

    def text(field: str, size: int, y: int, colour: str, weight: str) -> Spec:
        mark = {"type": "text", "align": "left", "fontSize": size, "color": colour, "fontWeight": weight}
        return {"mark": mark, "encoding": {"x": across, "y": {"value": y}, "text": {"field": field}}}

    curve = progress(overview, width=width, height=360)
    spec = chart(theme, width=width, height=0, description=title)
    del spec["width"], spec["height"], spec["autosize"]
    return {
        **spec,
        "padding": {"left": 40, "right": 40, "top": 36, "bottom": 28},
        "title": {
            "text": plain_line(title, limit=80),
            "subtitle": _wrapped(sentence, 118),
            "anchor": "start",
            "frame": "group",
            "fontSize": 40,
            "fontWeight": 600,
            "color": theme.text,
            "subtitleFontSize": 18,
            "subtitleLineHeight": 26,
            "subtitleColor": theme.muted,
            "subtitlePadding": 12,
            "offset": 22,
        },
        "spacing": 14,
        "resolve": {"legend": {"fill": "independent", "stroke": "independent", "shape": "independent"}},
        "vconcat": [
            {
                "width": width,
                "height": 52,
                "data": {"values": values},
                "layer": [text("figure", 24, 12, theme.text, "600"), text("name", 14, 38, theme.muted, "normal")],
            },
            {"width": width, "height": 286, "layer": curve["layer"]},
        ],
    }


def _wrapped(text: str, letters: int) -> list[str]:
    """Return a text as lines of so many letters at most."""
    lines = [""]
    for word in plain_line(text, limit=1_000).split():
        if len(lines[-1]) + len(word) >= letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
