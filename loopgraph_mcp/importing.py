"""Takes other people's histories into the memory: rows as experiments of another context, and what they teach."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from loopgraph_mcp.answers import ImportAnswer, ImportedLine
from loopgraph_mcp.duplicates import program_hash
from loopgraph_mcp.foresight import lessons
from loopgraph_mcp.histories import History, HistoryRow, RowStatus
from loopgraph_mcp.models import Context, Decision, Method, Move, OutcomeKind
from loopgraph_mcp.moves import read_moves
from loopgraph_mcp.replays import replay_of
from loopgraph_mcp.store import edits, imports, methods
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.imports import ImportedRow, Program
from loopgraph_mcp.workspace import committed_file

_EDITABLE = "train.py"


async def import_history(
    db: Database,
    history: History,
    *,
    folder: Path,
    device: str | None,
    budget_s: float,
    dry_run: bool,
    now: float,
) -> ImportAnswer:
    """Store a history's new rows, all or none, and what the whole of it teaches.

    Its outcomes count as those of another context, at a discount, whatever device it names.

    Args:
        db: The store.
        history: What was read.
        folder: Where its repository is looked for, so that rows get their diffs.
        device: What it ran on, where that is known.
        budget_s: Training seconds of its runs.
        dry_run: Only say what was understood.
        now: The time, in epoch seconds.
    """
    identity = _identity(history)
    source = f"imported:{identity}"
    label = device or "unknown"
    known = await methods.all_methods(db)
    programs = await asyncio.to_thread(_programs, history, folder)
    rows, tried = [], list[str | None]()
    seen: Counter[str] = Counter()
    contexts: dict[int, str] = {}
    for row in history.rows:
        if row.segment not in contexts and not dry_run:
            contexts[row.segment] = await _context(db, history, row.segment, source, label, budget_s, now)
        method = _method(row, known)
        tried.append(method)
        content = "\t".join([row.commit, str(row.metric_value), row.status.value, row.description])
        seen[content] += 1
        key = hashlib.sha256(f"{identity}\t{seen[content]}\t{content}".encode()).hexdigest()
        rows.append(_imported(row, f"import:{key}", contexts.get(row.segment, ""), method, programs, history.name))
    taught = lessons(replay_of(history).tries, owner=source, higher_is_better=history.direction.value == "higher")
    new = [False] * len(rows)
    if not dry_run:
        new = await imports.add_rows(db, rows, now=now)
        await imports.replace_lessons(db, source, taught)
    told = [_line(*each) for each in zip(history.rows, rows, tried, new, strict=True)]
    told += [ImportedLine(each.line, "left_out", each.text, None, "", notes=[each.reason]) for each in history.left_out]
    return ImportAnswer(
        file=history.name,
        metric=history.metric,
        direction=history.direction,
        device=label,
        added=sum(new),
        known=0 if dry_run else len(new) - sum(new),
        left_out=len(history.left_out),
        lessons=len(taught),
        rows=sorted(told, key=lambda each: each.line),
        notes=list(history.notes),
        next_step="Leave out --dry-run to import it." if dry_run else "search_methods counts it, at a discount.",
    )


def _identity(history: History) -> str:
    """Return what tells a history from others wherever its file lies and however it grows: its first row."""
    first = history.rows[0]
    content = f"{history.metric}\t{first.commit}\t{first.metric_value}\t{first.description}"
    return hashlib.sha256(content.encode()).hexdigest()[:12]


async def _context(
    db: Database, history: History, segment: int, source: str, device: str, budget_s: float, now: float
) -> str:
    return await edits.context_id(
        db,
        Context(
            workspace_id=await edits.workspace_id(db, source, now=now),
            device=f"{device} (imported)",
            budget_s=budget_s,
            dataset_hash=f"segment {segment}",
            harness_hash=source,
            metric=history.metric,
            direction=history.direction,
        ),
    )


def _programs(history: History, folder: Path) -> dict[str, str]:
    """Return the training files of the commits that the repository around the history holds."""
    commits = {row.commit for row in history.rows if row.commit}
    found = ((commit, committed_file(folder, commit, _EDITABLE)) for commit in sorted(commits))
    return {commit: text for commit, text in found if text is not None and _is_text(text)}


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False
    return "\x00" not in text


def _imported(
    row: HistoryRow, key: str, context_id: str, method: str | None, programs: dict[str, str], name: str
) -> ImportedRow:
    text = programs.get(row.commit)
    kind = OutcomeKind.FINISHED if row.metric_value is not None else OutcomeKind.CRASHED
    if row.metric_value is None and row.status is not RowStatus.CRASH:
        kind = OutcomeKind.NO_METRIC
    return ImportedRow(
        key=key,
        context_id=context_id,
        description=row.description[:200] or f"line {row.line}",
        kind=kind,
        metric_value=row.metric_value,
        reason=f"imported from {name}, line {row.line}",
        decision=Decision.KEEP if row.status is RowStatus.KEEP else Decision.DISCARD,
        commit=row.commit or None,
        method_ids=() if method is None else (method,),
        program=None if text is None else Program(text, program_hash(text)),
    )


def _method(row: HistoryRow, known: Sequence[Method]) -> str | None:
    """Return the one method that a row tries: it makes that move and no other."""
    if row.is_baseline or row.is_rerun:
        return None
    moves = read_moves(row.description)
    if len(moves) != 1:
        return None
    fits = [method.id for method in known if _same_move(moves[0], method.moves)]
    return fits[0] if len(fits) == 1 else None


def _same_move(move: Move, others: Sequence[Move]) -> bool:
    if len(others) != 1 or move.knob == "other" or others[0].knob != move.knob or others[0].word != move.word:
        return False
    return 0 in {move.direction, others[0].direction} or move.direction == others[0].direction


def _line(row: HistoryRow, stored: ImportedRow, method: str | None, new: bool) -> ImportedLine:  # noqa: FBT001
    moves = [] if row.is_baseline or row.is_rerun else [str(move) for move in read_moves(row.description)]
    notes = [*row.notes, *(["what it moves is not understood"] if moves == ["other"] else [])]
    return ImportedLine(
        line=row.line,
        understood="part" if notes else "whole",
        description=row.description,
        metric_value=row.metric_value,
        status=row.status.value,
        moves=moves,
        method_id=method,
        has_diff=stored.program is not None,
        new=new,
        notes=notes,
    )
