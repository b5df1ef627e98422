"""Charts as data: each function returns a Vega-Lite specification of an answer, for the page, the report and the card.

The page's browser draws them, or vl-convert does where there is no browser; both take the same specification.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal, get_args

from loopgraph_mcp.api.closeup import Loss
from loopgraph_mcp.api.overview import Line, Mark, Overview, Prediction, Record, spent_until
from loopgraph_mcp.models import Direction
from loopgraph_mcp.ranking.verdicts import cautious
from loopgraph_mcp.text import plain_line

Spec = dict[str, Any]
Across = Literal["run", "hour", "dollars"]
ACROSS: tuple[Across, ...] = get_args(Across)

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_FONT = "Inter, system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
_LETTER = 5.9  # pixels of a letter at 11 px, on average
_LABELS = 9  # more names would hide what they name
_LABEL_LETTERS = 34
_ASIDE = 8  # pixels from a dot to its name
_ROOM = 1.35  # of the way from best to baseline that is shown on its far side; what is further away is at the edge
_BINS = 5
_FEW = 8  # predictions below which a calibration says nothing


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of a chart, legible on its background with and without colour vision."""

    background: str
    text: str
    muted: str
    line: str
    kept: str
    band: str
    faint: str
    failed: str
    running: str


LIGHT = Theme("#ffffff", "#22262b", "#616872", "#e7e4de", "#1f7a5c", "#1f7a5c", "#a9adb3", "#b3442c", "#2b62b8")
DARK = Theme("#1a1d22", "#e9e6e0", "#9aa1ab", "#2e333b", "#5cc79f", "#5cc79f", "#6d747e", "#ec8a70", "#86b3f7")
THEMES: Mapping[str, Theme] = {"light": LIGHT, "dark": DARK}

# What a dot looks like by what became of its run: shape and filling say the same as the colour.
_LOOKS = ("kept beyond noise", "kept within noise", "baseline", "not kept", "failed")
_LOOK_OF = {
    Mark.KEPT: _LOOKS[0],
    Mark.TENTATIVE: _LOOKS[1],
    Mark.BASELINE: _LOOKS[2],
    Mark.FAILED: _LOOKS[4],
}
_SHAPES = ("circle", "circle", "square", "circle", "cross")
_CROSS = "M-1,-1L1,1M-1,1L1,-1"


def places(noise: float | None) -> int:
    """Return how many decimals of a metric say something, given its noise."""
    return 4 if not noise or noise <= 0 else min(max(math.ceil(-math.log10(noise)), 1), 8)


def shortened(text: str, limit: int) -> str:
    """Return a text as one line, cut between words where it is long."""
    line = plain_line(text, limit=1_000)
    if len(line) <= limit:
        return line
    cut = line[: limit - 1]
    return (cut[: cut.rindex(" ")] if " " in cut[limit // 2 :] else cut).rstrip(" ,;:(") + "…"


def _chart(theme: Theme, *, width: int, height: int, description: str, **more: Any) -> Spec:
    axis = {
        "labelColor": theme.muted,
        "titleColor": theme.muted,
        "tickColor": theme.line,
        "domainColor": theme.line,
        "gridColor": theme.line,
        "gridOpacity": 0.7,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelPadding": 6,
    }
    legend = {"labelColor": theme.text, "titleColor": theme.muted, "labelFontSize": 11, "symbolSize": 62}
    return {
        "$schema": _SCHEMA,
        "description": description,
        "width": width,
        "height": height,
        "background": theme.background,
        "padding": 6,
        "autosize": {"type": "fit", "contains": "padding"},
        "config": {"font": _FONT, "view": {"stroke": None}, "axis": axis, "legend": legend},
        **more,
    }


# ------------------------------------------------------------------------------------------------- progress


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
    return _chart(theme, width=width, height=height, description=f"Best so far by {across}: {said}", layer=layers)


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


# ---------------------------------------------------------------------------------------------------- loss


def loss(seen: Loss, *, theme: Theme = LIGHT, width: int = 460, height: int = 220) -> Spec:
    """Return a run's loss over its parent's, on the same part of the budget."""
    names = {"this run": seen.own, "its parent": seen.parent}
    values = [
        {"x": point.x, "loss": point.loss, "run": name}
        for name, points in reversed(names.items())  # what comes last is drawn on top
        for point in _settled(points)
    ]
    ends = [{"x": points[-1].x, "loss": points[-1].loss, "run": name} for name, points in names.items() if points]
    colours = {"domain": list(names), "range": [theme.running, theme.faint]}
    last = 100 if seen.by == "percent" else max((each["x"] for each in values), default=1)
    x = {
        "field": "x",
        "type": "quantitative",
        "title": "% of the budget" if seen.by == "percent" else "step",
        "scale": {"domain": [0, last], "nice": False},
        "axis": {"grid": False, "tickCount": 5},
    }
    y = {
        "field": "loss",
        "type": "quantitative",
        "title": "training loss",
        "scale": {"zero": False, "nice": True},
        "axis": {"tickCount": 4, "domain": False, "ticks": False},
    }
    colour = {"field": "run", "type": "nominal", "scale": colours, "legend": {"title": None, "orient": "top"}}
    said = ", ".join(f"{each['run']} at {each['loss']:.3f}" for each in ends) or "no loss logged yet"
    return _chart(
        theme,
        width=width,
        height=height,
        description=f"Training loss: {said}",
        layer=[
            {
                "data": {"values": values},
                "mark": {"type": "line", "strokeWidth": 1.75, "tooltip": None},
                "encoding": {"x": x, "y": y, "color": colour},
            },
            {
                "data": {"values": [each for each in ends if each["run"] == "this run"]},
                "mark": {"type": "point", "filled": True, "size": 50, "color": theme.running, "opacity": 1},
                "encoding": {"x": x, "y": y},
            },
        ],
    )


def _settled(points: Sequence[Any]) -> Sequence[Any]:
    """Leave out the first steps, whose loss falls so far that nothing else could be seen."""
    return [point for index, point in enumerate(points) if index >= len(points) // 8] if len(points) > 20 else points


# ------------------------------------------------------------------------------------------------ families


def families(
    records: Sequence[Record], metric: str, *, noise: float | None = None, theme: Theme = LIGHT, width: int = 560
) -> Spec:
    """Return the gain of each family: every change a tick, the mean a dot with its 95 % interval."""
    shown = [each for each in records if each.mean is not None]
    order = [f"{each.name}  {each.kept}/{each.tries}" for each in shown]
    means = [
        {
            "family": name,
            "mean": each.mean,
            "low": each.low,
            "high": each.high,
            "kept": f"{each.kept} of {each.tries} kept" + (f", {each.failed} failed" if each.failed else ""),
        }
        for name, each in zip(order, shown, strict=True)
    ]
    edge = _edge(shown)
    ticks = [
        {"family": name, "gain": min(max(gain, -edge), edge)}
        for name, each in zip(order, shown, strict=True)
        for gain in each.gains
    ]
    scale = {"domain": [-edge, edge], "nice": False, "clamp": True}
    x = {
        "type": "quantitative",
        "title": f"gain in {plain_line(metric, limit=40)} (right is better)",
        "scale": scale,
        "axis": {"format": f"+.{places(noise)}f", "tickCount": 5, "grid": False},
    }
    y = {
        "field": "family",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"domain": False, "ticks": False, "labelColor": theme.text, "labelLimit": 190},
    }
    data = {"values": means}
    colour = {
        "condition": [
            {"test": "datum.low > 0", "value": theme.kept},
            {"test": "datum.high < 0", "value": theme.failed},
        ],
        "value": theme.muted,
    }
    return _chart(
        theme,
        width=width,
        height=44 + 26 * max(len(shown), 1),
        description="Mean gain by family of change, with 95 % intervals",
        layer=[
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "color": theme.muted, "strokeWidth": 1},
                "encoding": {"x": {"datum": 0, **x}},
            },
            {
                "data": {"values": ticks},
                "mark": {"type": "tick", "color": theme.faint, "thickness": 1.5, "size": 10, "opacity": 0.8},
                "encoding": {"x": {"field": "gain", **x}, "y": y},
            },
            {
                "data": data,
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "color": colour},
            },
            {
                "data": data,
                "mark": {"type": "point", "filled": True, "size": 64, "opacity": 1},
                "encoding": {
                    "x": {"field": "mean", **x},
                    "y": y,
                    "color": colour,
                    "tooltip": [
                        {"field": "family", "title": "family"},
                        {"field": "mean", "title": "mean gain", "format": "+.5f"},
                        {"field": "kept", "title": "changes"},
                    ],
                },
            },
        ],
    )


def _edge(records: Sequence[Record]) -> float:
    """Return how far from zero is shown: every gain, and most losses; a family of one disaster hides nothing."""
    ends = sorted(abs(end) for each in records for end in (each.low, each.high) if end is not None)
    gained = max((each.high or 0.0 for each in records if (each.mean or 0.0) > 0), default=0.0)
    most = ends[int(0.7 * (len(ends) - 1))] if ends else 1.0
    return max(gained, most, 1e-12) * 1.08


# --------------------------------------------------------------------------------------------- calibration


def calibration(
    seen: Sequence[Prediction], *, theme: Theme = LIGHT, width: int = 340, height: int = 300
) -> Spec | None:
    """Return what was predicted against what came out, in bins of equal size; None of too few to say anything."""
    if len(seen) < _FEW:
        return None
    ordered = sorted(seen, key=lambda each: each.p)
    bins = min(_BINS, len(ordered) // 4)
    values = []
    for number in range(bins):
        part = ordered[number * len(ordered) // bins : (number + 1) * len(ordered) // bins]
        gained, count = sum(each.gained for each in part), len(part)
        low, high = _wilson(gained, count)
        values.append(
            {"p": fmean(each.p for each in part), "rate": gained / count, "low": low, "high": high, "n": count}
        )
    scale = {"domain": [0, 1]}
    axis = {"format": ".0%", "tickCount": 5}
    x = {"field": "p", "type": "quantitative", "title": "predicted P(improves)", "scale": scale, "axis": axis}
    y = {"field": "rate", "type": "quantitative", "title": "share that improved", "scale": scale, "axis": axis}
    return _chart(
        theme,
        width=width,
        height=height,
        description=f"Predicted probability of a gain against what came out, {len(seen)} changes in {bins} bins",
        layer=[
            {
                "data": {"values": [{"p": 0, "rate": 0}, {"p": 1, "rate": 1}]},
                "mark": {"type": "line", "color": theme.muted, "strokeDash": [4, 4], "strokeWidth": 1, "tooltip": None},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": {"values": values},
                "mark": {"type": "rule", "color": theme.kept, "strokeWidth": 2},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "data": {"values": values},
                "mark": {"type": "point", "filled": True, "color": theme.kept, "size": 70, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "tooltip": [
                        {"field": "p", "title": "predicted", "format": ".2f"},
                        {"field": "rate", "title": "improved", "format": ".2f"},
                        {"field": "n", "title": "changes"},
                    ],
                },
            },
        ],
    )


def _wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share: Wilson's, which holds for few and for none."""
    z, share = 1.96, hits / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


# ---------------------------------------------------------------------------------------------------- cost


def cost(overview: Overview, *, theme: Theme = LIGHT, width: int = 460, height: int = 300) -> Spec | None:
    """Return what was spent by the hour, in dollars, or in tokens where no dollars are known; None of nothing."""
    by_dollars = overview.cost_usd > 0
    if not overview.spent or not (by_dollars or overview.tokens):
        return None
    began = overview.lines[0].created_at
    total, values = 0.0, [{"hour": 0.0, "spent": 0.0}]
    for each in overview.spent:
        total += each.cost_usd if by_dollars else each.tokens / 1e6
        values.append({"hour": max(0.0, (each.at - began) / 3600), "spent": total})
    x = {"field": "hour", "type": "quantitative", "title": "hours since the first experiment", "axis": {"grid": False}}
    y = {
        "field": "spent",
        "type": "quantitative",
        "title": "dollars, all together" if by_dollars else "million tokens, all together",
        "axis": {"tickCount": 5, "domain": False, "ticks": False, "format": "$.2f" if by_dollars else ".1f"},
    }
    mark = {
        "type": "area",
        "interpolate": "step-after",
        "color": theme.running,
        "fillOpacity": 0.12,
        "line": {"color": theme.running, "strokeWidth": 1.75},
        "tooltip": None,
    }
    said = f"${total:.2f}" if by_dollars else f"{total:.1f} million tokens"
    return _chart(
        theme,
        width=width,
        height=height,
        description=f"Spent over time: {said} in all",
        data={"values": values},
        mark=mark,
        encoding={"x": x, "y": y},
    )


# --------------------------------------------------------------------------------------------------- arms


def arms(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    *,
    across: str,
    up: str,
    theme: Theme = LIGHT,
    width: int = 640,
    height: int = 320,
) -> Spec:
    """Return the best so far of each arm of a benchmark: a thin line for each seed, in the arm's colour and dash."""
    values = [
        {"arm": arm, "seed": f"{arm} {seed}", "x": x, "y": y}
        for arm, trials in curves.items()
        for seed, points in enumerate(trials)
        for x, y in points
    ]
    colours = [theme.kept, theme.running, theme.failed, theme.muted, theme.text]
    return _chart(
        theme,
        width=width,
        height=height,
        description=f"{up} by {across}, {len(curves)} arms",
        data={"values": values},
        mark={"type": "line", "interpolate": "step-after", "strokeWidth": 1.75, "opacity": 0.85},
        encoding={
            "x": {"field": "x", "type": "quantitative", "title": across, "axis": {"grid": False}},
            "y": {"field": "y", "type": "quantitative", "title": up, "scale": {"zero": False}},
            "detail": {"field": "seed", "type": "nominal"},
            "color": {
                "field": "arm",
                "type": "nominal",
                "sort": list(curves),
                "scale": {"range": colours},
                "legend": {"title": None, "orient": "top"},
            },
            "strokeDash": {"field": "arm", "type": "nominal", "sort": list(curves), "legend": None},
        },
    )


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
    spec = _chart(theme, width=width, height=0, description=title)
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
