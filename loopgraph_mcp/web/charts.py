"""Charts as data: each function returns a Vega-Lite specification of an answer, for the page, the report and the view.

The page's browser draws them, or vl-convert does where there is no browser; both take the same specification.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from loopgraph_mcp.api.closeup import Loss
from loopgraph_mcp.api.overview import Overview, Prediction, Record
from loopgraph_mcp.text import plain_line
from loopgraph_mcp.web.themes import LIGHT, Spec, Theme, chart, places

_BINS = 5
_FEW = 8  # predictions below which a calibration says nothing


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
    return chart(
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
    return chart(
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
    return chart(
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
    return chart(
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
    return chart(
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
