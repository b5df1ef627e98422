"""Reads other people's experiment histories as they are: results.tsv and its like, run logs, tracker exports.

Understood are tab- or comma-separated and Markdown tables, several in one file, with or without a header; JSON lines as
pi-autoresearch writes them; and the CSV or JSON exports of MLflow, W&B and Optuna. Each row says what of it was not
understood: nothing is guessed in silence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from loopgraph_mcp import columns, directions
from loopgraph_mcp.cells import (
    as_text,
    clean,
    column_name,
    comments,
    flatten,
    read_commit,
    read_entries,
    read_number,
    shorten,
    split_rows,
)
from loopgraph_mcp.columns import MAX_COLUMNS, Columns
from loopgraph_mcp.directions import KeptSteps, Origin
from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.models import Direction, Move
from loopgraph_mcp.moves import is_baseline, is_rerun, read_moves
from loopgraph_mcp.parameters import differences, in_words, is_other_seed, moves_of

MAX_ROWS = 100_000
MAX_ALL_CELLS = 5_000_000
MAX_LEFT_OUT = 10_000
_USUAL_COLUMNS = 2  # by which a line is known as a header
_OTHER_MACHINE = 0.05  # a later baseline that differs by more than this share was measured elsewhere


class RowStatus(StrEnum):
    """What came of a row, in its author's decision."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One experiment of a history.

    Args:
        line: Where it stands in the file, from 1.
        metric_value: None for a crash, or where it cannot be read.
        segment: Which table, or machine, of the file it belongs to, from 0.
        is_over: Whether its status says that it ran to its end, and nothing else.
        parameters: What it was configured with, where the file has columns for that.
        base: The row that its parameters were compared with, by its place.
        moves: What it changed; none for a baseline or a rerun.
        notes: What was not understood, or how something was taken.
    """

    line: int
    commit: str
    metric_value: float | None
    memory_gb: float | None
    status: RowStatus
    description: str
    segment: int = 0
    is_baseline: bool = False
    is_rerun: bool = False
    is_over: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    base: int | None = None
    moves: tuple[Move, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A line that is no experiment, and why."""

    line: int
    reason: str
    text: str


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


# ------------------------------------------------------------------------------------------------- statuses

_STATUSES: tuple[tuple[RowStatus, str], ...] = (
    (RowStatus.CRASH, r"crash|fail|oom|out.?of.?memory|error|nan|timeout|timed|killed|diverged|invalid|checks_failed"),
    (RowStatus.DISCARD, r"discard|reject|revert|not?(?![a-z])|worse|drop|false|bad|lose|loss|regress|neutral|skip"),
    (RowStatus.KEEP, r"keep|kept|best|baseline|accept|improv|win|won|yes|true|good|success|new.?best"),
)  # fmt: skip
_UNDER_WAY = re.compile(r"running|scheduled|pending|queued|waiting|started|preempting|in.?progress|wip(?![a-z])")
# How a tracker says that a run ended: nothing of these says whether its change was kept.
_OVER = re.compile(r"finished|complete[d]?|done|ok|success\w*|succeeded")
_STOPPED = re.compile(r"prun\w+|cancel\w*|preempted|aborted|stopped|early.?stop\w*")
_KILLED = re.compile(r"killed")  # in a tracker by a person, in a results.tsv because it did not end
_NO_EXPERIMENT = re.compile(
    r"no.?op(?![a-z])|blocked|refine\w*|pivot\w*|search(?:ed)?(?![a-z])|drift\w*|split(?![a-z])|info(?![a-z])|meta"
)


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
    found = _Reading(metric)
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
    rows = _compared([_without_sentinel(row, zero_is_value=zero_is_value) for row in rows], way)
    notes = list(found.notes)
    if rows[0].line > rows[-1].line and not found.is_ordered:
        notes.append("its baseline stands last: taken as newest first")
    return History(name, found.metric or "metric", way, rows, tuple(found.left_out), tuple(notes), origin, kept)


def _as_words(text: str) -> str:
    """Return a text's words between spaces, to look for some in others."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.casefold()))} "


def _nothing_found(name: str, found: "_Reading") -> str:
    if found.others and found.wanted is None:
        return f"{name}: which column is the metric? Name it with --metric: {', '.join(found.others)[:400]}"
    why = f"; {found.left_out[0].reason} (line {found.left_out[0].line})" if found.left_out else ""
    missing = f" in a column {found.wanted[:60]!r}" if found.wanted is not None else ""
    return (
        f"{name}: no experiments found{missing}{why}. A history has a header such as `commit val_bpb memory_gb status "
        "description`, tab-separated; name another metric column with --metric"
    )


def _direction(
    name: str, found: "_Reading", kept: KeptSteps, *, given: Direction | None, expected: Direction | None
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


def _oldest_first(found: "_Reading") -> Sequence[HistoryRow]:
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

_MAX_COMPARED = 5_000_000  # parameters of all rows together
_RESULT = re.compile(r"(?:(?:->|=>|[=:\u2192])\s*)?(?<![\w.])\d+\.\d{3,}(?![\w.])")


def _compared(rows: Sequence[HistoryRow], way: Direction) -> tuple[HistoryRow, ...]:
    """Say of each row what it changed: what differs in its parameters, and what its description says beside that."""
    compare = sum(len(row.parameters) for row in rows) <= _MAX_COMPARED
    is_decided = any(row.status in {RowStatus.KEEP, RowStatus.DISCARD} for row in rows)
    made: list[HistoryRow] = []
    sought = _Bases(way, is_decided=is_decided)
    for place, row in enumerate(rows):
        base = sought.nearest(row, made) if compare and row.parameters else None
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
    known = {move.knob for move in moves} | {"other"}
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


# ------------------------------------------------------------------------------------------------- reading


@dataclass(slots=True)
class _Table:
    """One table as it was found: its header and its rows, before it is known what the columns hold."""

    names: list[str]
    segment: int
    rows: list[tuple[int, list[str], list[str]]] = field(default_factory=list)  # line, cells, notes

    def samples(self) -> list[list[str]]:
        """Return the first cells of each column."""
        cells: list[list[str]] = [[] for _ in self.names]
        for _, row, _ in self.rows[: columns.SAMPLE]:
            for at, cell in enumerate(row[: len(self.names)]):
                cells[at].append(cell)
        return cells


@dataclass(slots=True)
class _Reading:
    """Gathers rows while a file is read."""

    wanted: str | None
    metric: str = ""
    others: tuple[str, ...] = ()
    rows: list[HistoryRow] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_ordered: bool = False
    names: set[str] = field(default_factory=set)
    said: set[Direction] = field(default_factory=set)
    comments: list[str] = field(default_factory=list)
    cells: int = 0
    taken: int = 0

    def declared(self) -> set[Direction]:
        """Return the directions that the file declares for its metric."""
        said = [(comment, way) for comment in self.comments if (way := directions.declared_in(comment)) is not None]
        if not said:
            return set(self.said)
        ours = {self.metric, "metric", "direction", "better", "status"}
        others = [_as_words(name) for name in self.names if len(name) > 1 and name not in ours]
        found = set(self.said)
        for comment, way in said:
            words = _as_words(comment)
            if _as_words(self.metric) in words or not any(other in words for other in others):
                found.add(way)
        return found

    def leave(self, line: int, reason: str, cells: Sequence[str]) -> None:
        """Leave a line out, and say why."""
        if len(self.left_out) < MAX_LEFT_OUT:
            self.left_out.append(LeftOut(line, reason, shorten(cells[:20])))
        elif len(self.left_out) == MAX_LEFT_OUT:
            self.left_out.append(LeftOut(line, f"more than {MAX_LEFT_OUT} lines are left out", ""))

    # ------------------------------------------------------------------------------------------ tables

    def read_tables(self, text: str) -> None:
        """Read all tables of a text, each under its header."""
        self.comments = list(comments(text))
        tables: list[_Table] = []
        segment, gap = -1, True
        for line, cells in split_rows(text):
            if cells is None or len(cells) == 1:
                gap = True
                if cells and tables:
                    self.leave(line, "is no row of a table", cells)
                continue
            if len(cells) > MAX_COLUMNS:
                self.leave(line, f"has more than {MAX_COLUMNS} cells", cells)
                continue
            names = self._header(cells)
            if names is not None:
                if gap or not tables or tables[-1].names != names:
                    segment += 1
                gap = False
                tables.append(_Table(names, segment))
                continue
            gap = False
            if not tables and (usual := self._headless(line, cells)) is not None:
                tables.append(_Table(usual, 0))
                segment = 0
            if tables:
                self._take(line, cells, tables[-1])
            else:
                self.leave(line, "stands before any header that names a metric", cells)
        for table in tables:
            self._understand(table)

    def _take(self, line: int, cells: Sequence[str], table: _Table) -> None:
        """Put a line into its table."""
        cells, notes = [cell.strip() for cell in cells], list[str]()
        width = len(table.names)
        if len(cells) > width:
            cells = [*cells[: width - 1], " ".join(cells[width - 1 :])]
            notes.append("more cells than columns; the last ones taken as one")
        self.cells += len(cells)
        if self.cells > MAX_ALL_CELLS:
            raise HistoryError(f"line {line}: more than {MAX_ALL_CELLS:,} cells; split the file, or drop columns")
        self.taken += 1
        if self.taken > MAX_ROWS:
            raise HistoryError(f"line {line}: more than {MAX_ROWS} rows; split the file")
        table.rows.append((line, cells, notes))

    def _header(self, cells: Sequence[str]) -> list[str] | None:
        """Return the columns' names where a line is a header: it names a metric, or other columns of experiments."""
        if any(read_number(cell) is not None for cell in cells):
            return None
        bare = [directions.marked(cell) for cell in cells]
        names = [column_name(cell) for cell, _ in bare]
        usual = sum(columns.is_usual(name) for name in names)
        if columns.metric_column(names, self.wanted) is None:
            may_hold_it = {"summary", "summary_metrics", "metrics"} & set(names)
            if not may_hold_it and (usual < _USUAL_COLUMNS or self.wanted is not None):
                return None
        self.said |= {
            way for name, (_, way) in zip(names, bare, strict=True) if way is not None and self._is_metric(name, names)
        }
        return names

    def _is_metric(self, name: str, names: Sequence[str]) -> bool:
        at = columns.metric_column(names, self.wanted)
        return at is None or names[at] == name

    def _headless(self, line: int, cells: Sequence[str]) -> list[str] | None:
        usual = ["commit", "val_bpb", "memory_gb", "status", "description"]
        if self.wanted is not None or len(cells) != len(usual):
            return None
        if read_number(cells[1]) is not None and _status(cells[3])[0]:
            self.notes.append(f"line {line}: no header; taken as commit, val_bpb, memory_gb, status, description")
            return usual
        return None

    def _understand(self, table: _Table, chosen: str | None = None) -> None:
        """Read the rows of a table, now that all of its cells can say what the columns hold."""
        table = self._unnested(table)
        samples = table.samples()
        metric = columns.metric_column(table.names, self.wanted)
        if chosen in table.names:
            metric = table.names.index(chosen)
        if metric is None:
            found = [] if self.wanted is not None else columns.candidates(table.names, samples)
            if len(found) != 1:
                self.others = self.others or tuple(found)
                for line, cells, _ in table.rows:
                    self.leave(line, "no column is known to be the metric", cells)
                return
            self.notes.append(f"the column {found[0][:60]!r} is taken as the metric")
            metric = table.names.index(found[0])
        meant = columns.understand(table.names, samples, metric)
        self.names |= set(table.names[:200])
        self.metric = self.metric or columns.metric_name(table.names[metric])
        rows = self._in_order(table, meant)
        for at in meant.directions:
            way = directions.agreed(
                directions.declared_by(table.names[at], row[at]) for _, row, _ in rows if at < len(row) and row[at]
            )
            self.said |= set() if way is None else {way}
        for line, cells, notes in rows:
            self._row(line, cells, meant, table.segment, notes)

    def _unnested(self, table: _Table) -> _Table:
        """Return a table whose cells that hold objects are columns of their own, as W&B's client exports them."""
        nested = columns.nested_in(table.samples())
        if not nested:
            return table
        entries = []
        for line, cells, notes in table.rows:
            flat = {
                name: cell for at, (name, cell) in enumerate(zip(table.names, cells, strict=False)) if at not in nested
            }
            for at in nested:
                flat.update(columns.unnest(table.names[at], cells[at] if at < len(cells) else ""))
            entries.append((line, flat, notes))
        return self._table(entries, table.segment)

    def _table(self, entries: Sequence[tuple[int, Mapping[str, str], list[str]]], segment: int) -> _Table:
        """Return entries as a table with a column for each name."""
        names = list(dict.fromkeys(name for _, flat, _ in entries for name in flat))
        if len(names) > MAX_COLUMNS or len(names) * len(entries) > MAX_ALL_CELLS:
            raise HistoryError(
                f"{len(names):,} columns of {len(entries):,} runs are too many; drop columns or split the file"
            )
        return _Table(
            names, segment, [(line, [flat.get(name, "") for name in names], notes) for line, flat, notes in entries]
        )

    def _in_order(self, table: _Table, meant: Columns) -> list[tuple[int, list[str], list[str]]]:
        """Return a tracker's rows in the order in which the runs began."""
        at = meant.places.get("order")
        if at is None or not meant.is_tracker:
            return table.rows
        cells = [row[at] if at < len(row) else "" for _, row, _ in table.rows]
        numbers = [read_number(cell) if re.fullmatch(r"[\d.e+]+", cell) else None for cell in cells]
        if all(number is not None for number in numbers):
            ranked = sorted(range(len(cells)), key=lambda place: numbers[place] or 0.0)
        elif all(re.match(r"\d{4}-\d\d-\d\d", cell) for cell in cells):
            ranked = sorted(range(len(cells)), key=lambda place: cells[place].replace("T", " "))
        else:
            return table.rows
        self.is_ordered = True
        return [table.rows[place] for place in ranked]

    def _row(self, line: int, cells: Sequence[str], meant: Columns, segment: int, notes: list[str]) -> None:
        """Read one row."""
        if meant.metric >= len(cells) and not meant.is_tracker:
            self.leave(line, "has no cell for the metric", cells)
            return
        cell = {key: cells[at] if at < len(cells) else "" for key, at in meant.places.items()}
        status, state = cell.get("status", ""), cell.get("state", "")
        if (
            reason := _no_outcome(status, is_tracker=meant.is_tracker) or _no_outcome(state, is_tracker=True)
        ) is not None:
            self.leave(line, reason, cells)
            return
        written = cells[meant.metric] if meant.metric < len(cells) else ""
        value = read_number(written)
        said, is_over, unclear = _decided(status, state, is_tracker=meant.is_tracker)
        description = clean(cell.get("description", ""))
        if said is None:
            said = RowStatus.OTHER
            notes.append(unclear)
        if value is None and said is not RowStatus.CRASH:
            notes.append(f"metric {written[:40]!r} is no number")
        if not description and not meant.parameters:
            notes.append("no description")
        if value is None and said is RowStatus.OTHER and not description:
            self.leave(line, "neither metric, status nor description", cells)
            return
        memory = read_number(cell.get("memory_gb", ""))
        if memory is None and (in_mb := read_number(cell.get("memory_mb", ""))) is not None:
            memory = in_mb / 1024
        self.rows.append(
            HistoryRow(
                line=line,
                commit=read_commit(cell.get("commit", "")),
                metric_value=value,
                memory_gb=memory,
                status=said,
                description=description,
                segment=segment,
                is_baseline=(bool(description) and is_baseline(description)) or status.strip().casefold() == "baseline",
                is_rerun=is_rerun(description),
                is_over=is_over,
                parameters={name: cells[at] for at, name in meant.parameters.items() if at < len(cells)},
                notes=tuple(notes),
            )
        )

    # -------------------------------------------------------------------------------------------- JSON

    def read_json(self, text: str) -> None:
        """Read JSON lines, or one list of runs."""
        segment = 0
        entries: list[tuple[int, Mapping[str, str], list[str]]] = []
        segments: dict[int, list[tuple[int, Mapping[str, str], list[str]]]] = {}
        for line, entry in read_entries(text):
            if not isinstance(entry, dict):
                self.leave(line, "is no JSON object", [str(entry)[:80]])
            elif entry.get("type") == "config" or "metricName" in entry:
                segment += bool(entries)
                self._config(entry)
            else:
                if len(entries) >= MAX_ROWS:
                    raise HistoryError(f"line {line}: more than {MAX_ROWS} rows; split the file")
                flat = {column_name(key): as_text(value) for key, value in flatten(entry)}
                entries.append((line, flat, []))
                place = int(read_number(flat.get("segment", "")) or segment)
                segments.setdefault(place, []).append(entries[-1])
        for place, found in segments.items():
            self._entries(place, found)

    def _entries(self, segment: int, found: Sequence[tuple[int, Mapping[str, str], list[str]]]) -> None:
        """Read the entries of one segment as a table."""
        name = self._metric_of([flat for _, flat, _ in found])
        with_status = {"status", "state", "decision", "info.status"}
        taken = [each for each in found if name is None or name in each[1] or with_status & set(each[1])]
        for line, flat, _ in found:
            if not (name is None or name in flat or with_status & set(flat)):
                self.leave(line, "names no metric", [str(dict(list(flat.items())[:8]))[:80]])
        if taken:
            self._understand(self._table(taken, segment), name)

    def _metric_of(self, entries: Sequence[Mapping[str, str]]) -> str | None:
        """Return the key of the metric: pi-autoresearch has its own under `metric`, and others under `metrics`."""
        names = list(dict.fromkeys(name for flat in entries for name in flat))
        if self.wanted is None and any(flat.get("metric") for flat in entries):
            return "metric"
        at = columns.metric_column(names, self.wanted)
        if at is None and self.wanted is None and self.metric:
            at = columns.metric_column(names, self.metric)
        return None if at is None else names[at]

    def _config(self, entry: Mapping[str, Any]) -> None:
        name = str(entry.get("metricName") or entry.get("metric_name") or self.metric)[:100]
        if self.metric and name != self.metric:
            self.notes.append(f"the metric changes from {self.metric} to {name}")
        self.metric = self.metric or name
        for key, value in flatten(entry):
            cell = as_text(value[0] if isinstance(value, list) and len(value) == 1 else value)
            way = directions.declared_by(str(key), cell)
            self.said |= set() if way is None else {way}


def _no_outcome(status: str, *, is_tracker: bool) -> str | None:
    """Return why a row of this status says nothing, or None where it may."""
    words = status.strip().strip("*`[]()").casefold().rsplit("trialstate.", 1)[-1]
    if _UNDER_WAY.match(words):
        return "is not over yet"
    if _STOPPED.match(words) or (is_tracker and _KILLED.match(words)):
        return "was stopped before its end, which says nothing of what it changed"
    if _NO_EXPERIMENT.match(words):
        return f"status {words[:20]!r}: is no experiment"
    return None


def _decided(status: str, state: str, *, is_tracker: bool) -> tuple[RowStatus | None, bool, str]:
    """Return what was decided, whether the run is only said to be over, and what is unclear."""
    ended = state.strip().casefold().rsplit("trialstate.", 1)[-1]
    said, words = _status("" if status == state else status)
    is_over = bool(_OVER.fullmatch(words) or (ended and _OVER.fullmatch(ended))) or ended in {"1", "1.0", "true"}
    if ended in {"0", "0.0", "false"} or (ended and _status(ended)[0] is RowStatus.CRASH):
        return RowStatus.CRASH, False, ""
    if is_tracker and _OVER.fullmatch(words):
        said = None
    if said is None:
        return None, is_over, _unclear(words or ("finished" if ended in {"1", "1.0", "true"} else ended))
    return said, False, ""


def _unclear(status: str) -> str:
    """Return what a status leaves open."""
    if _OVER.fullmatch(status):
        return f"status {status!r} does not say whether it was kept"
    return f"status {status!r} is not understood" if status else "no status"


def _status(cell: str) -> tuple[RowStatus | None, str]:
    """Return what a status says, and its words where that is not understood."""
    words = cell.strip().strip("*`[]()").casefold()[:60]
    for sign, status in (("✓", "keep"), ("✔", "keep"), ("✅", "keep"), ("✗", "discard"), ("❌", "discard")):
        words = words.replace(sign, f" {status} ")
    words = words.strip()
    if words in {"1", "0", "1.0", "0.0"}:  # of a column such as `kept`
        return RowStatus.KEEP if words[0] == "1" else RowStatus.DISCARD, words
    for status, pattern in _STATUSES:
        if re.match(rf"(?:{pattern})", words):
            return status, words
    return None, words
