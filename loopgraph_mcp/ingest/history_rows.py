"""Understands a history row by row: what it was compared with, what it changed, which methods it tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.code.apply import unified_diff
from loopgraph_mcp.code.hashes import program_hash
from loopgraph_mcp.ingest.histories import History, HistoryRow, RowStatus
from loopgraph_mcp.models import Decision, Method, Move, OutcomeKind
from loopgraph_mcp.ranking.mentions import methods_tried

_ENOUGH_KEEPS = 4  # that a majority of them says something even where each step is within the noise
_NOISE = 0.005  # share of the metric, where nothing is known of a device's noise


@dataclass(frozen=True, slots=True)
class Reading:
    """What was understood of one row.

    Args:
        kind: How its run ended; None where the row says too little to count.
        decision: What its author decided, where that is told.
        parent: The row it is compared with, by its place; None for a baseline, or where that is not known.
        text, tree_hash: The program that ran, where the repository holds it.
        diff: What that changed in its parent's program.
        notes: What was not understood; with no kind, why it is left out.
    """

    row: HistoryRow
    kind: OutcomeKind | None
    decision: Decision | None
    parent: int | None
    moves: tuple[Move, ...]
    method_ids: tuple[str, ...]
    text: str = ""
    tree_hash: str = ""
    diff: str = ""
    notes: tuple[str, ...] = ()


def read_rows(
    history: History, programs: Mapping[str, str], methods: Sequence[Method], *, editable: str
) -> list[Reading]:
    """Return what is understood of each row, in their order.

    Args:
        history: What was read.
        programs: The editable file's text by commit.
        methods: The methods that are known.
        editable: The file's name, for the diffs.
    """
    made: list[Reading] = []
    incumbents: dict[int, int] = {}
    trees = {commit: program_hash(text) for commit, text in programs.items()}
    lines: dict[tuple[int, str], int] = {}  # where a commit stood first
    for place, row in enumerate(history.rows):
        kind, decision, notes = _outcome(row)
        parent = incumbents.get(row.segment) if row.base is None else row.base
        base = None if parent is None else made[parent]
        text, tree, doubt = _program(row, programs, trees, base, lines.get((row.segment, row.commit)))
        diff = "" if base is None or not base.text or not text else unified_diff(base.text, text, editable)
        moves, method_ids, unclear = _change(row, methods)
        notes += tuple(note for note in (unclear, doubt) if note)
        made.append(Reading(row, kind, decision, parent, moves, method_ids, text, tree, diff, notes))
        if kind is None:
            continue
        lines.setdefault((row.segment, row.commit), row.line)
        if row.metric_value is not None and (decision is Decision.KEEP or (parent is None and row.is_baseline)):
            incumbents[row.segment] = place
    return made


def _outcome(row: HistoryRow) -> tuple[OutcomeKind | None, Decision | None, tuple[str, ...]]:
    """Return how a row's run ended, what was decided, and what is in doubt."""
    kept = {RowStatus.KEEP: Decision.KEEP, RowStatus.OTHER: None}.get(row.status, Decision.DISCARD)
    if row.metric_value is not None:
        return OutcomeKind.FINISHED, kept, row.notes
    if row.status is RowStatus.CRASH:
        return OutcomeKind.CRASHED, kept, row.notes
    if row.status is RowStatus.DISCARD:
        return OutcomeKind.CRASHED, kept, (*row.notes, "counts as a run that failed")
    return None, None, (*row.notes, "neither a metric nor a failure")


def _change(row: HistoryRow, methods: Sequence[Method]) -> tuple[tuple[Move, ...], tuple[str, ...], str]:
    """Return a row's moves, the methods it tries, and what of that is in doubt."""
    if row.is_baseline or row.is_rerun:
        return (), (), ""
    moves = row.moves
    tried = methods_tried(row.description, methods, moves=moves)
    unknown = not tried.method_ids and [move.knob for move in moves] == ["other"]
    doubt = tried.doubt or ("names no change that is known" if unknown and row.description else "")
    return () if unknown else moves, tried.method_ids, doubt


def _program(
    row: HistoryRow, programs: Mapping[str, str], trees: Mapping[str, str], base: Reading | None, seen: int | None
) -> tuple[str, str, str]:
    """Return the program that a row ran and its tree's hash, or why it cannot be told.

    Many log the commit that a run started from, or was reset to: a program that is the parent's, or another row's, says
    nothing of the change.
    """
    text = programs.get(row.commit, "")
    if not text:
        return "", "", "its commit is not in the repository" if row.commit and programs else ""
    tree = trees[row.commit]
    if row.is_baseline or row.is_rerun:
        return text, tree, ""
    if base is not None and base.tree_hash == tree:
        return "", "", f"no diff: its commit holds the program of line {base.row.line}, which it is compared with"
    if seen is not None:
        return "", "", f"no diff: its commit is that of line {seen}"
    return text, tree, ""


def contradicted(history: History) -> list[tuple[int, float, float]]:
    """Return the kept rows that got worse under a history's direction, where most did: line, value before, value.

    Of a few keeps, those within the noise say nothing.
    """
    steps = history.kept.steps
    worse = history.kept.worse(history.direction)
    if len(steps) < _ENOUGH_KEEPS:
        worse = [step for step in worse if abs(step[2] - step[1]) > _NOISE * abs(step[1])]
    return worse if 2 * len(worse) > len(steps) else []


def doubts(history: History, readings: Sequence[Reading]) -> list[str]:
    """Return what looks wrong with a history as a whole."""
    found = []
    if worse := contradicted(history):
        found.append(f"{len(worse)} of {len(history.kept.steps)} kept rows made {history.metric} worse")
    counted = [reading for reading in readings if reading.kind is OutcomeKind.FINISHED]
    if counted and all(reading.parent is None for reading in counted) and len(counted) > 1:
        found.append("no row was kept and none is a baseline: there is nothing to compare with, so no gain is told")
    return found
