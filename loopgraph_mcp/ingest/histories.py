"""Reads other people's experiment histories as they are: results.tsv and its like, run logs, tracker exports.

Understood are tab- or comma-separated and Markdown tables, several in one file, with or without a header; JSON lines as
pi-autoresearch writes them; and the CSV or JSON exports of MLflow, W&B and Optuna. Each row says what of it was not
understood: nothing is guessed in silence.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.ingest.cells import clean
from loopgraph_mcp.ingest.parameters import differences, in_words, is_other_seed, knobs_of, moves_of
from loopgraph_mcp.ingest.tables import HistoryRow, LeftOut, Reader, RowStatus
from loopgraph_mcp.models import Direction
from loopgraph_mcp.ranking import directions
from loopgraph_mcp.ranking.descriptions import read_moves
from loopgraph_mcp.ranking.directions import KeptSteps, Origin

__all__ = ["History", "HistoryRow", "LeftOut", "RowStatus", "read_history"]

_OTHER_MACHINE = 0.05  # a later baseline that differs by more than this share was measured elsewhere


@dataclass(frozen=True, slots=True)
class History:
    """A whole history, in the order of its file.

    Args:
        origin: Where its direction comes from.
        kept: How its kept rows moved the metric.
    """

    name: str
    metric: str
    direction: Direction
    rows: tuple[HistoryRow, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    origin: Origin = Origin.NAME
    kept: KeptSteps = field(default_factory=KeptSteps)


def read_history(
    text: str,
    *,
    name: str,
    metric: str | None = None,
    direction: Direction | None = None,
    expected: Direction | None = None,
) -> History:
    """Return the experiments of a history.

    Args:
        text: The whole file.
        name: What to call it in errors.
        metric: The column that holds the metric, where it is not the usual one.
        direction: Which way it improves; by default as the file declares, its kept rows show, or its name says.
        expected: Which way it improves where the file itself does not declare it.

    Raises:
        HistoryError: No experiment was found in it, or it declares both directions.
    """
    text = text.removeprefix("\ufeff").replace("\x00", "")
    found = Reader(metric)
    first = text.lstrip()[:1]
    if first == "{" or (first == "[" and text.lstrip()[1:2] != "]"):
        found.read_json(text)
    else:
        found.read_tables(text)
    if not found.rows:
        raise HistoryError(_nothing_found(name, found))
    rows = _segmented(_oldest_first(found))
    kept = _kept_steps(rows)
    way, origin = _direction(name, found, kept, given=direction, expected=expected)
    zero_is_value = way is Direction.HIGHER or any(_is_kept_zero(row) for row in rows)
    rows = tuple(_without_sentinel(row, zero_is_value=zero_is_value) for row in rows)
    notes = list(found.notes)
    if sum(len(row.parameters) for row in rows) > _MAX_COMPARED:
        rows = tuple(replace(row, parameters={}) for row in rows)
        notes.append(f"more than {_MAX_COMPARED:,} parameters in all: what differs in them is not read; drop columns")
    rows = _compared(rows, way)
    if rows[0].line > rows[-1].line and not found.is_ordered:
        notes.append("its baseline stands last: taken as newest first")
    return History(name, found.metric or "metric", way, rows, tuple(found.left_out), tuple(notes), origin, kept)


def _nothing_found(name: str, found: Reader) -> str:
    if found.others and found.wanted is None:
        return f"{name}: which column is the metric? Name it with --metric: {', '.join(found.others)[:400]}"
    why = f"; {found.left_out[0].reason} (line {found.left_out[0].line})" if found.left_out else ""
    missing = f" in a column {found.wanted[:60]!r}" if found.wanted is not None else ""
    return (
        f"{name}: no experiments found{missing}{why}. A history has a header such as `commit val_bpb memory_gb status "
        "description`, tab-separated; name another metric column with --metric"
    )


def _direction(
    name: str, found: Reader, kept: KeptSteps, *, given: Direction | None, expected: Direction | None
) -> tuple[Direction, Origin]:
    """Return which way a history's metric improves, and where that comes from."""
    if given is not None:
        return given, Origin.GIVEN
    declared = found.declared()
    if len(declared) > 1:
        raise HistoryError(f"{name}: declares both that higher and that lower is better; say which with --direction")
    if declared:
        return declared.pop(), Origin.DECLARED
    if expected is not None:
        return expected, Origin.WORKSPACE
    guess = directions.named(found.metric)
    shown = kept.shown
    if shown is not None and (guess is None or not guess.sure or guess.direction is shown):
        return shown, Origin.KEPT
    if guess is not None:  # where its kept rows say otherwise, it is not imported before it is said which
        return guess.direction, Origin.NAME
    return Direction.LOWER, Origin.DEFAULT


def _kept_steps(rows: Sequence[HistoryRow]) -> KeptSteps:
    """Return how the kept rows moved the metric, each against the kept row before it."""
    steps: list[tuple[int, float, float]] = []
    before: float | None = None
    segment = 0
    for row in rows:
        if row.segment != segment:
            segment, before = row.segment, None
        value = row.metric_value
        starts = row.is_baseline and before is None and row.status is not RowStatus.CRASH
        if value is None or not (row.status is RowStatus.KEEP or starts):
            continue
        if before is not None and not (row.is_baseline or row.is_rerun):
            steps.append((row.line, before, value))
        before = value
    return KeptSteps(tuple(steps))


def _is_kept_zero(row: HistoryRow) -> bool:
    return row.metric_value == 0 and (row.status is RowStatus.KEEP or row.is_over)


def _without_sentinel(row: HistoryRow, *, zero_is_value: bool) -> HistoryRow:
    """Take a crash's value, or a zero that stands for none, as none; where a zero was kept, zeros are values."""
    if row.metric_value is None:
        return row
    if row.status is RowStatus.CRASH:
        return replace(row, metric_value=None)
    if row.metric_value or zero_is_value:
        return row
    return replace(row, metric_value=None, notes=(*row.notes, "a metric of 0 counts as none"))


def _oldest_first(found: Reader) -> Sequence[HistoryRow]:
    """Turn a table around whose only baseline stands last, as in logs that grow at their head."""
    rows = found.rows
    if found.is_ordered:
        return rows
    baselines = [place for place, row in enumerate(rows) if row.is_baseline]
    return rows[::-1] if rows[0].segment == rows[-1].segment and baselines == [len(rows) - 1] else rows


def _segmented(rows: Sequence[HistoryRow]) -> tuple[HistoryRow, ...]:
    """Begin another segment at a baseline that is far from the first: it was measured on another machine."""
    made: list[HistoryRow] = []
    base: float | None = None
    table, extra = rows[0].segment, 0
    for row in rows:
        if row.segment != table:
            table, base = row.segment, None
        notes = row.notes
        if row.is_baseline and row.metric_value is not None and row.status is not RowStatus.CRASH:
            if base is not None and abs(row.metric_value - base) > _OTHER_MACHINE * abs(base):
                extra += 1
                notes = (*notes, "a baseline far from the one before: another machine or budget")
            base = row.metric_value
        made.append(replace(row, segment=row.segment + extra, notes=notes))
    return tuple(made)


# ------------------------------------------------------------------------------------------- what changed

_MAX_COMPARED = 2_000_000  # parameters of all rows together
_RESULT = re.compile(r"(?:(?:->|=>|[=:\u2192])\s*)?(?<![\w.])\d+\.\d{3,}(?![\w.])")


def _compared(rows: Sequence[HistoryRow], way: Direction) -> tuple[HistoryRow, ...]:
    """Say of each row what it changed: what differs in its parameters, and what its description says beside that."""
    is_decided = any(row.status in {RowStatus.KEEP, RowStatus.DISCARD} for row in rows)
    made: list[HistoryRow] = []
    sought = _Bases(way, is_decided=is_decided)
    for place, row in enumerate(rows):
        base = sought.nearest(row, made) if row.parameters else None
        done = _changed(row, None if base is None else made[base], base)
        made.append(done)
        sought.saw(place, done)
    return tuple(made)


def _changed(row: HistoryRow, base: HistoryRow | None, place: int | None) -> HistoryRow:
    """Return a row with what it changed in the one it is compared with."""
    said = () if row.is_baseline or row.is_rerun else read_moves(_without_result(row.description, row.metric_value))
    if base is None:
        first = ", ".join(f"{name}={value}" for name, value in list(row.parameters.items())[:6] if value)
        if row.parameters and not row.description:
            notes = (*row.notes, "nothing before it to compare its parameters with")
            return replace(row, description=clean(first), notes=notes)
        return replace(row, moves=said)
    found = differences(base.parameters, row.parameters)
    if not found:
        if is_other_seed(base.parameters, row.parameters) and not row.description:
            return replace(row, description="another seed", is_rerun=True, base=place)
        if not row.description:
            return replace(row, description="the same parameters again", is_rerun=True, base=place)
        return replace(row, moves=said, base=place)
    if row.is_baseline:
        return replace(row, base=place)
    moves = moves_of(found)
    known = knobs_of(row.parameters) | {move.knob for move in moves} | {"other"}
    beside = tuple(move for move in said if move.knob not in known)
    return replace(
        row, moves=(*moves, *beside), base=place, is_rerun=False, description=row.description or in_words(found)
    )


def _without_result(description: str, value: float | None) -> str:
    """Return a description without the row's own metric: `softcap 20 -> 0.978` says nothing of a softcap of 0.978."""
    if value is None:
        return description

    def drop(found: re.Match[str]) -> str:
        number = found[0].split()[-1].lstrip("=:>-\u2192")
        return " " if round(value, len(number.partition(".")[2])) == float(number) else found[0]

    return _RESULT.sub(drop, description)


@dataclass(slots=True)
class _Bases:
    """Finds the row that another is compared with: the kept one, or where none is kept the nearest of a few.

    Args:
        is_decided: Whether the history says what was kept.
    """

    way: Direction
    is_decided: bool
    segment: int = -1
    kept: int | None = None
    first: int | None = None
    best: int | None = None
    best_value: float | None = None
    last: int | None = None

    def nearest(self, row: HistoryRow, rows: Sequence[HistoryRow]) -> int | None:
        """Return the place of the row that this one differs from in the fewest parameters."""
        if row.segment != self.segment:
            return None
        if self.is_decided:
            return self.kept
        known = [place for place in (self.best, self.last, self.first) if place is not None]
        counted = [(len(differences(rows[place].parameters, row.parameters)), place) for place in dict.fromkeys(known)]
        fewest = min((count for count, _ in counted), default=0)
        return next((place for count, place in counted if count == fewest), None)

    def saw(self, place: int, row: HistoryRow) -> None:
        """Take a row in."""
        if row.segment != self.segment:
            self.segment, self.kept, self.first, self.best, self.last = row.segment, None, None, None, None
            self.best_value = None
        if row.metric_value is None:
            return
        if row.status is RowStatus.KEEP or (self.kept is None and row.is_baseline):
            self.kept = place
        self.last = place
        self.first = place if self.first is None else self.first
        if self.best_value is None or self.way.gain(self.best_value, row.metric_value) > 0:
            self.best, self.best_value = place, row.metric_value
