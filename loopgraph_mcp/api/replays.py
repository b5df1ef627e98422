"""Turns a history that was read into trials that can be replayed and counted."""

import hashlib
from collections.abc import Sequence

from loopgraph_mcp.ingest.histories import History, RowStatus
from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.backtest import Replay
from loopgraph_mcp.ranking.features import Trial


def owner_of(name: str) -> str:
    """Return whose history a file is: what stands before `__` in its name, or else the name without its ending."""
    stem = name.rsplit("/", 1)[-1].removesuffix(".tsv").removesuffix(".csv").removesuffix(".jsonl")
    return stem.split("__", 1)[0]


def fingerprint(trials: Sequence[Trial]) -> str:
    """Return what tells a history from others whatever its file is called: a hash of its first five metric values."""
    values = [each.metric_value for each in trials if each.metric_value is not None][:5]
    return hashlib.sha256(" ".join(f"{value:.6f}" for value in values).encode()).hexdigest()[:16]


def replay_of(history: History) -> Replay:
    """Return a history's replay; gains are taken over the best before in the same segment."""
    trials: list[Trial] = []
    best: float | None = None
    segment = 0
    for row in history.rows:
        if row.segment != segment:
            segment, best = row.segment, None
        kept = row.status is RowStatus.KEEP
        gain = None
        if best is not None and row.metric_value is not None:
            gain = history.direction.gain(best, row.metric_value)
        # A row of which nothing was decided, as in a tracker's export, says nothing of what is kept.
        is_change = not (row.is_baseline or row.is_rerun or row.status is RowStatus.OTHER)
        trials.append(Trial(row.moves or (Move("other"),), kept, row.metric_value, gain, is_change))
        if best is None or (kept and gain is not None and gain > 0):
            best = row.metric_value
    return Replay(history.name, owner_of(history.name), fingerprint(trials), tuple(trials))
