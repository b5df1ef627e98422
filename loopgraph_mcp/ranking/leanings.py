"""Which way others' histories lean for each knob of a program: the estimate of the prior that values are chosen by."""

from collections.abc import Mapping

from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking import change
from loopgraph_mcp.ranking.features import Past
from loopgraph_mcp.ranking.prior import Foresight

_ZERO_TO = 0.05  # a first value of what is zero: a short warmup, a low floor


def leanings(values: Mapping[str, float], foresight: Foresight, past: Past) -> dict[str, float]:
    """Return for each knob the log keep ratio of a higher value less that of a lower one, halved; 0 where unknown."""
    found = dict[str, float]()
    for name, value in values.items():
        knob = change.knob_name(name)
        up, down = (value * 2, value / 2) if value else (_ZERO_TO, -_ZERO_TO)
        ways = [foresight.foresee((Move(knob, way, new, value),), past) for way, new in ((1, up), (-1, down))]
        found[name] = (ways[0].parts.elsewhere - ways[1].parts.elsewhere) / 2 if knob != "other" else 0.0
    return found
