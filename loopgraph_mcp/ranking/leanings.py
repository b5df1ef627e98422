"""Which way the prior leans for each constant of a program: values are chosen by it where this search says little."""

from collections.abc import Mapping

from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking import change
from loopgraph_mcp.ranking.features import TrialHistory
from loopgraph_mcp.ranking.prior import Prior

_ZERO_TO = 0.05  # a first value of what is zero: a short warmup, a low floor


def leanings(values: Mapping[str, float], prior: Prior, history: TrialHistory) -> dict[str, float]:
    """Return for each constant the log keep ratio of a higher value less that of a lower one, halved; 0 if unknown."""
    found = dict[str, float]()
    for name, value in values.items():
        knob = change.knob_name(name)
        up, down = (value * 2, value / 2) if value else (_ZERO_TO, -_ZERO_TO)
        ways = [prior.estimate((Move(knob, way, new, value),), history).log_ratio for way, new in ((1, up), (-1, down))]
        found[name] = (ways[0] - ways[1]) / 2 if knob != "other" else 0.0
    return found
