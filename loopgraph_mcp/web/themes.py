"""What all charts have in common: colours by day and by night, letters, and how figures and names are cut."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loopgraph_mcp.text import plain_line

Spec = dict[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_FONT = "Inter, system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"


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


def chart(theme: Theme, *, width: int, height: int, description: str, **more: Any) -> Spec:
    """Return a specification with what all charts have: size, colours, letters and what it shows in words."""
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
