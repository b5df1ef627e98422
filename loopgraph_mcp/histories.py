"""Reads other people's experiment histories as they are: results.tsv and its kin, run logs, tracker exports.

Understood are tab- or comma-separated and Markdown tables, several in one file, with or without a header; JSON lines as
pi-autoresearch writes them; and the CSV or JSON exports of MLflow and W&B. Each row says what of it was not understood:
nothing is guessed in silence.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from loopgraph_mcp.cells import (
    as_text,
    clean,
    column_name,
    flatten,
    read_commit,
    read_entries,
    read_number,
    shorten,
    split_rows,
)
from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.models import Direction
from loopgraph_mcp.moves import is_baseline, is_rerun

MAX_ROWS = 100_000
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
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A line that is no experiment, and why."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class History:
    """A whole history, in the order of its file."""

    name: str
    metric: str
    direction: Direction
    rows: tuple[HistoryRow, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------- columns

# fmt: off
_COLUMNS: Mapping[str, frozenset[str]] = {
    "commit": frozenset({"commit", "commit_hash", "git_commit", "git_sha", "hash", "revision", "sha"}),
    "status": frozenset({"decision", "keep", "kept", "outcome", "result", "state", "status", "verdict"}),
    "description": frozenset({
        "change", "desc", "description", "experiment", "hypothesis", "idea", "message", "modification", "name", "note",
        "notes", "run_name", "summary", "tags.mlflow.runname", "what",
    }),
    "memory_gb": frozenset({"mem", "mem_gb", "memory", "memory_gb", "peak_memory_gb", "peak_vram_gb", "vram_gb"}),
    "memory_mb": frozenset({"memory_mb", "peak_memory_mb", "peak_vram_mb", "vram_mb"}),
}
# fmt: on
_METRICS = (
    "val_bpb",
    "bpb",
    "val/bpb",
    "val_loss",
    "val/loss",
    "eval_loss",
    "loss",
    "metric",
    "score",
    "accuracy",
    "acc",
)  # fmt: skip
# Columns that stand beside a metric; one that is none of these, and alone, is the metric.
_BESIDE = re.compile(
    r"#|id|idx|index|no|num|order|exp|run|iter\w*|step\w*|date|time|timestamp|created\w*|updated\w*|runtime|duration\w*"
    r"|seed|lr|mfu\w*|params\w*|branch|agent|model|user|tags|sweep|delta\w*|gain|diff|change|best|confidence|segment|tokens(?:_m|_total)?"
    r"|cost\w*|run_id|params\..*|tags\..*|config\..*"
)
_LOWER = re.compile(r"loss|bpb|ppl|perplex|err|latency|time|(?:^|(?<!per)_)(?:ms|us|ns|seconds|s)(?:_per|$)")
_HIGHER = re.compile(r"acc|score|reward|f1|auc|throughput|tok|per_s|/s$|speed|mfu|bleu|rouge|pass")
_STATUSES: tuple[tuple[RowStatus, str], ...] = (
    (RowStatus.CRASH, r"crash|fail|oom|out.?of.?memory|error|nan|timeout|timed|killed|diverged|invalid|checks_failed"),
    (RowStatus.DISCARD, r"discard|reject|revert|no|worse|drop|false|bad|lose|loss|regress|neutral|skip"),
    (RowStatus.KEEP, r"keep|kept|best|baseline|accept|improv|win|won|yes|true|good|success|new.?best"),
)


_UNDER_WAY = r"running|scheduled|pending|queued|in.?progress"


def read_history(text: str, *, name: str, metric: str | None = None, direction: Direction | None = None) -> History:
    """Return the experiments of a history.

    Args:
        text: The whole file.
        name: What to call it in errors.
        metric: The column that holds the metric, where it is not the usual one.
        direction: Which way it improves; by default told by its name.

    Raises:
        HistoryError: No experiment was found in it.
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
    way = direction or found.direction or _direction(found.metric)
    in_order = _oldest_first([_failed(row, way) for row in found.rows])
    if in_order[0].line > in_order[-1].line:
        found.notes.append("its baseline stands last: taken as newest first")
    rows = _segmented(in_order)
    return History(name, found.metric or "metric", way, rows, tuple(found.left_out), tuple(found.notes))


def _nothing_found(name: str, found: "_Reading") -> str:
    if found.others and found.wanted is None:
        return f"{name}: which column is the metric? Name it with --metric: {', '.join(found.others)[:400]}"
    why = f"; {found.left_out[0].reason} (line {found.left_out[0].line})" if found.left_out else ""
    return (
        f"{name}: no experiments found{why}. A history has a header such as `commit val_bpb memory_gb status "
        "description`, tab-separated; name another metric column with --metric"
    )


def _direction(metric: str) -> Direction:
    """Return which way a metric of this name improves."""
    return Direction.HIGHER if _HIGHER.search(metric) and not _LOWER.search(metric) else Direction.LOWER


def _failed(row: HistoryRow, way: Direction) -> HistoryRow:
    """Take a crash's, or a loss's, value of zero for the absence of one."""
    crashed = row.status is RowStatus.CRASH
    if row.metric_value is None or (not crashed and (row.metric_value or way is Direction.HIGHER)):
        return row
    notes = row.notes if crashed else (*row.notes, "a metric of 0 counts as none")
    return replace(row, metric_value=None, notes=notes)


def _oldest_first(rows: Sequence[HistoryRow]) -> Sequence[HistoryRow]:
    """Turn a table around whose only baseline stands last, as in logs that grow at their head."""
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
        if row.is_baseline and row.metric_value is not None:
            if base is not None and abs(row.metric_value - base) > _OTHER_MACHINE * abs(base):
                extra += 1
                notes = (*notes, "a baseline far from the one before: another machine or budget")
            base = row.metric_value
        made.append(replace(row, segment=row.segment + extra, notes=notes))
    return tuple(made)


@dataclass(slots=True)
class _Reading:
    """Gathers rows while a file is read."""

    wanted: str | None
    metric: str = ""
    others: tuple[str, ...] = ()
    direction: Direction | None = None
    rows: list[HistoryRow] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    # ------------------------------------------------------------------------------------------ tables

    def read_tables(self, text: str) -> None:
        """Read all tables of a text, each under its header."""
        header: list[str] | None = None
        segment, gap = -1, True
        for line, cells in split_rows(text):
            if cells is None or len(cells) == 1:
                gap = True
                if cells and header is not None:
                    self.left_out.append(LeftOut(line, "is no row of a table", shorten(cells)))
                continue
            as_header = self._header(cells)
            if as_header is not None:
                if header != as_header or gap:
                    segment += 1
                header, gap = as_header, False
                continue
            gap = False
            if header is None:
                header = self._headless(line, cells)
                segment = 0
            if header is not None:
                self._add(line, cells, header, max(segment, 0))
            else:
                self.left_out.append(LeftOut(line, "stands before any header that names a metric", shorten(cells)))

    def _header(self, cells: Sequence[str]) -> list[str] | None:
        """Return the columns' meanings where a line is a header: it names a metric and something else."""
        names = [column_name(cell) for cell in cells]
        if len(names) < 2 or any(read_number(cell) is not None for cell in cells):
            return None
        metric = self._metric_column(names)
        if metric is None and self.wanted is None:
            metric = self._lone_column(names)
        if metric is None:
            return None
        self.metric = self.metric or names[metric]
        meanings = [next((key for key, known in _COLUMNS.items() if name in known), name) for name in names]
        meanings[metric] = "metric"
        for key in ("status", "description", "commit"):  # the first column of a meaning has it
            for again in [at for at, meaning in enumerate(meanings) if meaning == key][1:]:
                meanings[again] = names[again] + " "
        return meanings

    def _metric_column(self, names: Sequence[str]) -> int | None:
        if self.wanted is not None:
            return names.index(self.wanted.casefold()) if self.wanted.casefold() in names else None
        for known in _METRICS:
            for form in (known, f"metrics.{known}", f"summary.{known}", f"val_{known}"):
                if form in names:
                    return names.index(form)
        return None

    def _lone_column(self, names: Sequence[str]) -> int | None:
        """Return the one column of a usual header that is none of the usual ones."""
        usual = [name for name in names if any(name in known for known in _COLUMNS.values())]
        others = [name for name in names if name and name not in usual and not _BESIDE.fullmatch(name)]
        if len(usual) < 2 or not others:
            return None
        if len(others) > 1:
            self.others = self.others or tuple(others)
            return None
        self.notes.append(f"the column {others[0][:60]!r} is taken as the metric")
        return names.index(others[0])

    def _headless(self, line: int, cells: Sequence[str]) -> list[str] | None:
        usual = ["commit", "metric", "memory_gb", "status", "description"]
        if self.others or self.wanted is not None:
            return None
        if len(cells) == len(usual) and read_number(cells[1]) is not None and _status(cells[3])[0]:
            self.metric = "val_bpb"
            self.notes.append(f"line {line}: no header; taken as commit, val_bpb, memory_gb, status, description")
            return usual
        return None

    def _add(self, line: int, cells: Sequence[str], header: Sequence[str], segment: int) -> None:
        cells = [cell.strip() for cell in cells]
        notes = []
        if len(cells) > len(header):
            cells = [*cells[: len(header) - 1], " ".join(cells[len(header) - 1 :])]
            notes.append("more cells than columns; the last ones taken as one")
        named = dict(zip(header, cells, strict=False))
        if "metric" not in named:
            self.left_out.append(LeftOut(line, "has no cell for the metric", shorten(cells)))
            return
        self._row(line, named, segment, notes)

    def _row(self, line: int, named: Mapping[str, str], segment: int, notes: list[str]) -> None:
        if len(self.rows) >= MAX_ROWS:
            raise HistoryError(f"line {line}: more than {MAX_ROWS} rows; split the file")
        if re.match(_UNDER_WAY, named.get("status", "").strip().casefold()):
            self.left_out.append(LeftOut(line, "is not over yet", shorten(list(named.values()))))
            return
        value = read_number(named.get("metric", ""))
        said, unclear = _status(named.get("status", ""))
        description = clean(named.get("description", ""))
        if said is None:
            said = RowStatus.OTHER
            notes.append(_unclear(unclear))
        if value is None and said is not RowStatus.CRASH:
            notes.append(f"metric {named.get('metric', '')[:40]!r} is no number")
        if not description:
            notes.append("no description")
        if value is None and said is RowStatus.OTHER and not description:
            self.left_out.append(LeftOut(line, "neither metric, status nor description", shorten(list(named.values()))))
            return
        memory = read_number(named.get("memory_gb", ""))
        if memory is None and (in_mb := read_number(named.get("memory_mb", ""))) is not None:
            memory = in_mb / 1024
        self.rows.append(
            HistoryRow(
                line=line,
                commit=read_commit(named.get("commit", "")),
                metric_value=value,
                memory_gb=memory,
                status=said,
                description=description,
                segment=segment,
                is_baseline=(bool(description) and is_baseline(description))
                or named.get("status", "").strip().casefold() == "baseline",
                is_rerun=is_rerun(description),
                notes=tuple(notes),
            )
        )

    # -------------------------------------------------------------------------------------------- JSON

    def read_json(self, text: str) -> None:
        """Read JSON lines, or one list of runs."""
        segment = 0
        for line, entry in read_entries(text):
            if not isinstance(entry, dict):
                self.left_out.append(LeftOut(line, "is no JSON object", str(entry)[:80]))
            elif entry.get("type") == "config" or "metricName" in entry:
                segment += bool(self.rows)
                self._config(entry)
            else:
                self._entry(line, entry, int(read_number(str(entry.get("segment", segment))) or segment))

    def _config(self, entry: Mapping[str, Any]) -> None:
        name = str(entry.get("metricName") or self.metric)[:100]
        if self.metric and name != self.metric:
            self.notes.append(f"the metric changes from {self.metric} to {name}")
        self.metric = self.metric or name
        way = str(entry.get("bestDirection", "")).casefold()
        if way in {"lower", "higher"}:
            self.direction = Direction(way)

    def _entry(self, line: int, entry: Mapping[str, Any], segment: int) -> None:
        flat = {column_name(key): as_text(value) for key, value in flatten(entry)}
        names = list(flat)
        plain = self.wanted is None and flat.get("metric")  # pi-autoresearch has secondary ones under `metrics`
        at = names.index("metric") if plain else self._metric_column(names)
        if at is None and self.wanted is None and self.metric.casefold() in flat:
            at = names.index(self.metric.casefold())
        if at is None:
            self.left_out.append(LeftOut(line, "names no metric", str(dict(entry))[:80]))
            return
        self.metric = self.metric or names[at].removeprefix("summary.").removeprefix("metrics.")
        named = {"metric": flat[names[at]]}
        for key, known in _COLUMNS.items():
            cell = next((flat[name] for name in names if name in known and name != names[at]), "")
            named[key] = cell
        self._row(line, named, segment, [])


def _unclear(status: str) -> str:
    """Return what a status leaves open."""
    if status in {"finished", "completed", "complete", "done", "ok"}:
        return f"status {status!r} does not say whether it was kept"
    return f"status {status!r} is not understood" if status else "no status"


def _is(named: Mapping[str, str], column: str, word: str) -> bool:
    return named.get(column, "").strip().casefold() == word


def _status(cell: str) -> tuple[RowStatus | None, str]:
    """Return what a status says, and its words where that is not understood."""
    words = cell.strip().strip("*`[]()").casefold()[:60]
    for sign, status in (("✓", "keep"), ("✔", "keep"), ("✅", "keep"), ("✗", "discard"), ("❌", "discard")):
        words = words.replace(sign, f" {status} ")
    words = words.strip()
    for status, pattern in _STATUSES:
        if re.match(rf"(?:{pattern})", words):
            return status, words
    return None, words
