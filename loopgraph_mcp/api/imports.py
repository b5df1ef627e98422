"""Takes other people's histories into the memory: rows as experiments of another context, and what they teach."""

import asyncio
import hashlib
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loopgraph_mcp.api.answers import ImportAnswer, ImportedLine
from loopgraph_mcp.api.replays import replay_of
from loopgraph_mcp.api.state import State
from loopgraph_mcp.errors import HistoryError, LoopGraphError
from loopgraph_mcp.ingest import git_objects, history_rows
from loopgraph_mcp.ingest.files import read_file
from loopgraph_mcp.ingest.git_objects import Programs
from loopgraph_mcp.ingest.histories import History, HistoryRow, read_history
from loopgraph_mcp.ingest.history_rows import Reading
from loopgraph_mcp.ingest.published import read_day_one
from loopgraph_mcp.models import Advice, Context, Direction, NextStep
from loopgraph_mcp.ranking.directions import Origin, other
from loopgraph_mcp.ranking.prior import KindCount, count_kinds
from loopgraph_mcp.runner.workspace import Workspace, load_workspace
from loopgraph_mcp.store import imports, methods
from loopgraph_mcp.store.imports import ImportedRow, Program, Source

DEFAULT_BUDGET_S = 300.0  # autoresearch's
_EDITABLE = "train.py"
_GUESSED = frozenset({Origin.NAME, Origin.DEFAULT})
_MAX_DESCRIPTION = 200
_UNKNOWN = "unknown (imported)"
_GPU = re.compile(
    r"\b(?:cuda|nvidia|geforce|rtx|gtx|[abhlv]\d{2,3}s?|gb\d+|t4|jetson|spark|mi\d{3}x?|rocm)\b", re.IGNORECASE
)
_APPLE = re.compile(r"\b(?:apple|mps|mlx|metal|mac\w*|m[1-9])\b", re.IGNORECASE)
_CPU = re.compile(r"\b(?:cpu|xeon|epyc|ryzen|intel)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Told:
    """What the caller says of a history; None is for us to find out.

    Args:
        repository: A checkout that holds the rows' commits; by default the one that the file lies in.
        device: What it ran on.
        budget_s: Training seconds of its runs.
        metric: The column of its metric, where it is not the usual one.
        direction: Which way that improves.
    """

    repository: Path | None = None
    device: str | None = None
    budget_s: float | None = None
    metric: str | None = None
    direction: Direction | None = None


async def import_history(
    state: State, path: Path, told: Told, *, dry_run: bool, progress: Callable[[str], None]
) -> ImportAnswer:
    """Store a history's new rows, all or none, and what the whole of it teaches.

    Its outcomes count as those of another context, at a discount, whatever device it names.

    Args:
        state: What the verbs share; runs are read again, for known rows may have moved to another context.
        path: The file.
        told: What the caller says of it.
        dry_run: Only say what would be understood.
        progress: Called with what is being done, from any thread.

    Raises:
        HistoryError: The file cannot be read or holds no experiments; the repository is none.
    """
    db = state.db
    published = read_day_one().histories if state.settings.day_one else ()
    shipped = {each.fingerprint for each in published}
    progress(f"reading {path.name}")
    where, history = await asyncio.to_thread(_read_with, path, told)
    source = f"imported:{_identity(history)}"
    known = await imports.find_source(db, source)
    before = known.contexts.get(history.rows[0].segment)
    remembered = None if before is None else before.direction
    if history.origin in _GUESSED and remembered not in {None, history.direction}:
        where, history = await asyncio.to_thread(_read_with, path, told, remembered)
    _refuse_contradicted(history, path, told, remembered)
    editable = _EDITABLE if where is None else where.editable
    programs = await asyncio.to_thread(_programs, history, path, told, editable, progress)
    progress(f"reading {len(history.rows)} rows of {path.name}")
    everything = await methods.all_methods(db)
    read = await asyncio.to_thread(history_rows.read_rows, history, programs.found, everything, editable=editable)
    own = set[int]() if where is None else _own(read, await imports.own_runs(db, str(where.path)))
    taken = [index for index, each in enumerate(read) if each.kind is not None and index not in own]
    rows = _rows(history, read, taken)
    contexts = _contexts(history, source, told, known, where)
    is_shipped, counts = await asyncio.to_thread(_counts, history, source, shipped)
    counts = [] if own else counts
    new = [row.key not in known.keys for row in rows]
    if not dry_run:
        progress(f"storing {len(rows)} rows of {path.name}")
        new = await imports.add_history(db, source, contexts, rows, counts, now=state.clock())
        state.read_again()
    is_new = dict(zip(taken, new, strict=True))
    lines = [_line(each, own=index in own, new=is_new.get(index, False)) for index, each in enumerate(read)]
    context = contexts[history.rows[0].segment]
    notes = _notes(history, read, programs, context, told)
    if is_shipped:
        notes.append("the prior bundled with LoopGraph counts it already, and it is not counted twice")
    return replace(
        _answer(history, lines, context),
        added=sum(new),
        known=len(new) - sum(new),
        kinds=len(counts),
        notes=notes,
        direction_from=_direction_from(history, remembered),
        next_step=NextStep(Advice.IMPORT_IT) if dry_run else NextStep(Advice.COUNTED, "search_methods"),
    )


def _counts(history: History, source: str, shipped: Collection[str]) -> tuple[bool, list[KindCount]]:
    """Return whether the bundled prior has a history's counts already, and else the counts."""
    replay = replay_of(history)
    if replay.fingerprint in shipped:
        return True, []
    return False, count_kinds(replay.trials, owner=source)


def _answer(history: History, lines: Sequence[ImportedLine], context: Context) -> ImportAnswer:
    """Return what the file's lines tell, before it is known which are new."""
    skipped = [
        ImportedLine(each.line, "left_out", each.text, None, "", notes=[each.reason]) for each in history.left_out
    ]
    count = Counter(each.understood for each in [*lines, *skipped])
    return ImportAnswer(
        file=history.name,
        metric=history.metric,
        direction=history.direction,
        device=context.device,
        budget_s=context.budget_s,
        added=0,
        known=0,
        left_out=count["left_out"],
        understood=(count["whole"], count["part"]),
        kinds=0,
        rows=sorted([*lines, *skipped], key=lambda each: each.line),
        notes=[],
        next_step=NextStep(Advice.NOTHING),
    )


def _read_with(path: Path, told: Told, remembered: Direction | None = None) -> tuple[Workspace | None, History]:
    """Read a file, and find the workspace that it belongs to."""
    where = _workspace(told.repository or path.absolute().parent)
    return where, _read(path, told, where, remembered)


def _refuse_contradicted(history: History, path: Path, told: Told, remembered: Direction | None) -> None:
    """Refuse a direction in which most kept rows got worse, unless the caller gave it.

    Raises:
        HistoryError: It is such a one; the message names the rows and the command that says which direction it is.
    """
    if history.origin is Origin.GIVEN:
        return
    name, direction = history.metric, history.direction
    if history.origin is Origin.KEPT and remembered not in {None, direction}:
        raise HistoryError(
            f"{path}: imported before as {other(direction).value} is better for {name}, but its kept rows show that "
            f"{direction.value} is; nothing is imported. Say which: {_command(path, told, direction)}"
        )
    worse = history_rows.contradicted(history)
    if not worse:
        return
    shown = ", ".join(f"line {line}: {before:g} -> {after:g}" for line, before, after in worse[:3])
    count = f"{len(worse)} of {len(history.kept.steps)}"
    raise HistoryError(
        f"{path}: {count} kept rows would be worse if {direction.value} is better for {name} "
        f"({_direction_from(history, remembered)}): {shown}; nothing is imported. Say which: "
        f"{_command(path, told, other(direction))}, or --direction {direction.value} if that is right"
    )


def _command(path: Path, told: Told, direction: Direction) -> str:
    """Return the command that imports a file with a direction."""
    words = ["loopgraph", "import", str(path), "--direction", direction.value]
    for option, value in (("--metric", told.metric), ("--device", told.device), ("--repo", told.repository)):
        words += [] if value is None else [option, str(value)]
    words += [] if told.budget_s is None else ["--budget", f"{told.budget_s:g}"]
    return shlex.join(words)


def _direction_from(history: History, remembered: Direction | None) -> str:
    """Return in a few words what says which way a history's metric improves."""
    steps = history.kept.steps
    match history.origin:
        case Origin.KEPT:
            better = len(steps) - len(history.kept.worse(history.direction))
            return f"shown by {better} of {len(steps)} kept rows"
        case Origin.WORKSPACE if remembered is history.direction:
            return "as before"
        case origin:
            return origin.value


def _workspace(folder: Path) -> Workspace | None:
    """Return the workspace that a file belongs to: its folder, or the root of the checkout around it."""
    roots = [each for each in (folder, *folder.parents) if (each / ".git").exists()]
    for each in dict.fromkeys([folder, *roots[:1]]):
        try:
            return load_workspace(each)
        except LoopGraphError:
            continue
    return None


def _read(path: Path, told: Told, where: Workspace | None, remembered: Direction | None) -> History:
    """Read a file, its metric and direction as the caller or else the workspace around it declares them."""
    text = read_file(path)
    if told.metric is None and where is not None:
        try:
            expected = remembered or where.direction
            return read_history(text, name=path.name, metric=where.metric, direction=told.direction, expected=expected)
        except HistoryError:
            pass  # it is of another metric
    return read_history(text, name=path.name, metric=told.metric, direction=told.direction, expected=remembered)


def _identity(history: History) -> str:
    """Return what tells a history from others wherever its file lies and at whichever end it grows: its baseline."""
    first = next((row for row in history.rows if row.is_baseline), history.rows[0])
    content = f"{history.metric}\t{first.commit}\t{first.metric_value}\t{_words(first)}"
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _words(row: HistoryRow) -> str:
    """Return a row's own words, or its parameters: the same whatever it is compared with."""
    return row.written or "; ".join(f"{name}={value}" for name, value in sorted(row.parameters.items()))


def _programs(history: History, path: Path, told: Told, editable: str, progress: Callable[[str], None]) -> Programs:
    """Return the training files of the commits that the repository around the history, or the one told, holds.

    Raises:
        HistoryError: The one told is none.
    """
    folder = told.repository or path.absolute().parent
    if told.repository is not None and not git_objects.is_repository(folder):
        raise HistoryError(f"{folder}: no git repository; name a checkout that holds the history's commits")
    return git_objects.read_programs(folder, (row.commit for row in history.rows), editable, progress=progress)


def _own(read: Sequence[Reading], runs: Collection[tuple[str, str]]) -> set[int]:
    """Return the places of rows that LoopGraph wrote itself, of runs it made in this workspace."""
    described = defaultdict(list)
    for words, value in runs:
        described[value].append(words)
    own = set()
    for index, each in enumerate(read):
        line = each.row.description
        known = described.get(f"{each.row.metric_value or 0.0:.6f}", ())
        if any(line == words or line.startswith(f"{words} (") for words in known):  # in brackets: how it ended
            own.add(index)
    return own


def _rows(history: History, read: Sequence[Reading], taken: Sequence[int]) -> list[ImportedRow]:
    """Return what is to be stored of the rows taken, each with a key that is the same in every import."""
    identity = _identity(history)
    places = {index: place for place, index in enumerate(taken)}
    seen: Counter[str] = Counter()
    rows = []
    for index in taken:
        each = read[index]
        row = each.row
        content = f"{row.commit}\t{row.metric_value}\t{row.memory_gb}\t{_words(row)}"
        seen[content] += 1
        key = hashlib.sha256(f"{identity}\t{seen[content]}\t{content}".encode()).hexdigest()
        assert each.kind is not None  # noqa: S101 - the others are left out
        rows.append(
            ImportedRow(
                key=f"import:{key}",
                segment=row.segment,
                description=row.description[:_MAX_DESCRIPTION] or f"line {row.line}",
                kind=each.kind,
                metric_value=row.metric_value,
                reason=f"imported from {history.name}, line {row.line}",
                decision=each.decision,
                commit=row.commit,
                parent=None if each.parent is None else places.get(each.parent),
                method_ids=each.method_ids,
                program=Program(each.text, each.tree_hash) if each.text else None,
                diff=each.diff if each.parent in places else "",
                summary={} if row.memory_gb is None else {"peak_vram_mb": row.memory_gb * 1024},
            )
        )
    return rows


def _contexts(history: History, source: str, told: Told, known: Source, where: Workspace | None) -> dict[int, Context]:
    """Return each segment's context: as the caller says, or as it was known, or by default."""
    made = {}
    for segment in dict.fromkeys(row.segment for row in history.rows):
        before = known.contexts.get(segment)
        budget_s = told.budget_s or (before and before.budget_s) or (where and where.budget_s) or DEFAULT_BUDGET_S
        made[segment] = imports.segment_context(
            source,
            segment,
            device=_device(told.device) if told.device else (before.device if before else _UNKNOWN),
            budget_s=budget_s,
            metric=history.metric,
            direction=history.direction,
        )
    return made


def _device(told: str) -> str:
    """Return a device's label: its class, which tells its noise, and that its outcomes were only told of."""
    name = " ".join(told.split())[:80]
    if not name.casefold().startswith(("cuda:", "mps:", "cpu:")):
        kind = "cuda:" if _GPU.search(name) else "mps:" if _APPLE.search(name) else "cpu:" if _CPU.search(name) else ""
        name = f"{kind}{name}"
    return f"{name} (imported)"


def _notes(history: History, read: Sequence[Reading], programs: Programs, context: Context, told: Told) -> list[str]:
    """Return what is to be known of the history as a whole."""
    notes = [*history.notes, *history_rows.doubts(history, read)]
    if history.origin is Origin.DEFAULT:
        notes.append(
            f"nothing says which way {history.metric} improves; lower is taken: --direction higher says otherwise"
        )
    commits = {row.commit for row in history.rows if row.commit}
    if programs.note:
        notes.append(programs.note)
    elif commits and not programs.repository:
        notes.append("no git repository around it: rows have no diffs; --repo names one")
    elif commits and not programs.found:
        notes.append(
            f"none of its {len(commits)} commits is in the repository: rows have no diffs; --repo names another"
        )
    if context.device == _UNKNOWN:
        notes.append("device unknown, so its noise is taken as half a percent: --device says, such as H100 or M2 Pro")
    if told.budget_s is None and context.budget_s == DEFAULT_BUDGET_S:
        notes.append(f"budget taken as {DEFAULT_BUDGET_S:g} s: --budget says otherwise")
    segments = len({row.segment for row in history.rows})
    if segments > 1:
        notes.append(f"{segments} tables or machines, each compared within itself alone")
    return notes


def _line(each: Reading, *, own: bool, new: bool) -> ImportedLine:
    notes = ["LoopGraph made this run itself", *each.notes] if own else list(each.notes)
    left_out = own or each.kind is None
    return ImportedLine(
        line=each.row.line,
        understood="left_out" if left_out else "part" if notes else "whole",
        description=each.row.description,
        metric_value=each.row.metric_value,
        status=each.row.status.value,
        moves=[str(move) for move in each.moves],
        method_ids=list(each.method_ids),
        has_diff=bool(each.diff),
        new=new,
        notes=notes,
    )
