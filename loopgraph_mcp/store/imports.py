"""Imported histories: a file's new rows in one transaction, and the lessons of the whole."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import aiosqlite

from loopgraph_mcp.foresight import Lesson
from loopgraph_mcp.models import Decision, OutcomeKind
from loopgraph_mcp.store.database import Database, new_id, text_hash


@dataclass(frozen=True, slots=True)
class Program:
    """A program text with the hash of its syntax tree."""

    text: str
    tree_hash: str


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """One row of a history as it is to be stored.

    Args:
        key: The same for the same row in every import.
        context_id: The context of its segment.
        program: What ran, where the history's repository holds it.
    """

    key: str
    context_id: str
    description: str
    kind: OutcomeKind
    metric_value: float | None
    reason: str
    decision: Decision
    commit: str | None
    method_ids: tuple[str, ...] = ()
    program: Program | None = None


async def add_rows(db: Database, rows: Sequence[ImportedRow], *, now: float) -> list[bool]:
    """Store the rows that are new, all or none of them; return for each row whether it was.

    Each is compared with the last kept row before it in its context, as its author did.
    """
    new: list[bool] = []
    incumbents: dict[str, tuple[str, str | None]] = {}
    async with db.transaction() as conn:
        for row in rows:
            known = list(
                await conn.execute_fetchall(
                    "SELECT id, program_hash FROM experiment WHERE idempotency_key = :key", {"key": row.key}
                )
            )
            program_hash = known[0]["program_hash"] if known else None
            experiment_id = known[0]["id"] if known else new_id("exp")
            parent_id, base_hash = incumbents.get(row.context_id, (None, None))
            if not known:
                if row.program is not None and (parent_id is None or base_hash is not None):  # else: no diff to tell
                    program_hash = text_hash(row.program.text)
                    await conn.execute(
                        "INSERT INTO program (hash, tree_hash, text) VALUES (:hash, :tree, :text) "
                        "ON CONFLICT (hash) DO NOTHING",
                        {"hash": program_hash, "tree": row.program.tree_hash, "text": row.program.text},
                    )
                told = {"base": base_hash, "program": program_hash, "parent": parent_id, "now": now}
                await _insert(conn, row, experiment_id, told)
            if row.decision is Decision.KEEP and row.metric_value is not None:
                incumbents[row.context_id] = (experiment_id, program_hash)
            new.append(not known)
    return new


async def _insert(
    conn: aiosqlite.Connection, row: ImportedRow, experiment_id: str, told: dict[str, str | float | None]
) -> None:
    """Insert one experiment with its outcome and its author's decision."""
    await conn.execute(
        "INSERT INTO experiment (id, context_id, base_hash, program_hash, parent_id, description, seed, timeout_s, "
        "silence_s, idempotency_key, device_slot, state, created_at, finished_at) VALUES (:id, :context, :base, "
        ":program, :parent, :description, 0, 1, 1, :key, 'imported', 'done', :now, :now)",
        {
            "id": experiment_id,
            "context": row.context_id,
            "description": row.description,
            "key": row.key,
            **told,
        },
    )
    await conn.execute(
        "INSERT INTO outcome (experiment_id, kind, metric_value, reason, summary, log_tail, created_at) "
        "VALUES (:id, :kind, :value, :reason, :summary, '', :now)",
        {
            "id": experiment_id,
            "kind": row.kind.value,
            "value": row.metric_value,
            "reason": row.reason,
            "summary": json.dumps({}),
            "now": told["now"],
        },
    )
    await conn.execute(
        "INSERT INTO decision (experiment_id, decision, made_by, commit_hash, note, created_at) "
        "VALUES (:id, :decision, 'agent', :commit, '', :now)",
        {"id": experiment_id, "decision": row.decision.value, "commit": row.commit, "now": told["now"]},
    )
    await conn.executemany(
        "INSERT INTO experiment_method (experiment_id, method_id) VALUES (?, ?)",
        [(experiment_id, method_id) for method_id in row.method_ids],
    )


async def replace_lessons(db: Database, source: str, lessons: Sequence[Lesson]) -> None:
    """Put what a history teaches in the place of what it taught before."""
    async with db.transaction() as conn:
        await conn.execute("DELETE FROM lesson WHERE source = :source", {"source": source})
        await conn.executemany(
            "INSERT INTO lesson (source, about, first, now, expected, kept, tries, low, high, mean_gain, spread) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    source,
                    lesson.about,
                    *(lesson.level or (None, None)),
                    lesson.expected,
                    lesson.kept,
                    lesson.tries,
                    *(lesson.values or (None, None)),
                    *(lesson.gains or (None, None)),
                )
                for lesson in lessons
            ],
        )


async def all_lessons(db: Database) -> list[Lesson]:
    """Return what all imported histories teach, in a fixed order."""
    rows = await db.reader.execute_fetchall("SELECT * FROM lesson ORDER BY source, about")
    return [
        Lesson(
            owner=row["source"],
            about=row["about"],
            level=None if row["first"] is None else (row["first"], row["now"]),
            expected=row["expected"],
            kept=row["kept"],
            tries=row["tries"],
            values=None if row["low"] is None else (row["low"], row["high"]),
            gains=None if row["mean_gain"] is None else (row["mean_gain"], row["spread"]),
        )
        for row in rows
    ]
