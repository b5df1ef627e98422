"""Reads the rows of other people's tables and logs of experiments, each under what its columns hold."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.ingest import columns
from loopgraph_mcp.ingest.cells import (
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
from loopgraph_mcp.ingest.columns import MAX_COLUMNS, Columns
from loopgraph_mcp.models import Direction, Move
from loopgraph_mcp.ranking import directions
from loopgraph_mcp.ranking.descriptions import is_baseline, is_rerun
from loopgraph_mcp.text import compile_later

MAX_ROWS = 100_000
MAX_ALL_CELLS = 5_000_000
MAX_LEFT_OUT = 10_000
_USUAL_COLUMNS = 2  # by which a line is known as a header


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
        written: The description as the file has it; empty where it was made from what differs in the parameters.
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
    written: str = ""
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


# ------------------------------------------------------------------------------------------------- statuses

_STATUSES: tuple[tuple[RowStatus, str], ...] = (
    (RowStatus.CRASH, r"crash|fail|oom|out.?of.?memory|error|nan|timeout|timed|killed|diverged|invalid|checks_failed"),
    (RowStatus.DISCARD, r"discard|reject|revert|not?(?![a-z])|worse|drop|false|bad|lose|loss|regress|neutral|skip"),
    (RowStatus.KEEP, r"keep|kept|best|baseline|accept|improv|win|won|yes|true|good|success|new.?best"),
)  # fmt: skip
_UNDER_WAY = compile_later(r"running|scheduled|pending|queued|waiting|started|preempting|in.?progress|wip(?![a-z])")
# How a tracker says that a run ended: nothing of these says whether its change was kept.
_OVER = compile_later(r"finished|complete[d]?|done|ok|success\w*|succeeded")
_STOPPED = compile_later(r"prun\w+|cancel\w*|preempted|aborted|stopped|early.?stop\w*")
_KILLED = compile_later(r"killed")  # in a tracker by a person, in a results.tsv because it did not end
_NO_EXPERIMENT = compile_later(
    r"no.?op(?![a-z])|blocked|refine\w*|pivot\w*|search(?:ed)?(?![a-z])|drift\w*|split(?![a-z])|info(?![a-z])|meta"
)


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
class Reader:
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
        name = columns.metric_name(table.names[metric])
        if chosen is None and self.wanted is None and self.metric and name != self.metric:
            for line, cells, _ in table.rows:
                self.leave(line, f"is of another metric ({name[:60]!r}): import it with --metric", cells)
            return
        self.metric = self.metric or name
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
                written=description,
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
            elif entry.get("type") == "config" or "metricName" in entry or _is_declaration(entry):
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
        taken = list[tuple[int, Mapping[str, str], list[str]]]()
        for each in found:
            line, flat, _ = each
            if name is None or name in flat or with_status & set(flat):
                taken.append(each)
            else:
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


def _as_words(text: str) -> str:
    """Return a text's words between spaces, to look for some in others."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.casefold()))} "


def _is_declaration(entry: Mapping[str, Any]) -> bool:
    """Return whether a JSON entry says which way a metric improves, and is no run."""
    said = [directions.declared_by(str(key), as_text(value)) for key, value in list(entry.items())[:20]]
    return any(said) and not {"status", "state", "description", "commit", "metric", "value"} & set(entry)


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
