"""Imported histories: a file's new rows, their contexts and their trials, all in one transaction."""

import dataclasses
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loopgraph_mcp.models import Context, Decision, Direction, OutcomeKind
from loopgraph_mcp.ranking.prior import KindCount
from loopgraph_mcp.store.database import Database, new_id, text_hash
from loopgraph_mcp.store.edits import add_context_row, context_key, context_of

IMPORTED = "imported"  # the device slot of experiments read from a file


@dataclass(frozen=True, slots=True)
class Program:
    """A program text with the hash of its syntax tree."""

    text: str
    tree_hash: str


@dataclass(frozen=True, slots=True)
class ImportedRow:
    """One row of a history as it is to be stored.

    Args:
        key: The same for the same row in every import of its history.
        segment: Which of the history's contexts it belongs to.
        decision: What its author decided; None where the history does not say.
        parent: The row it is compared with, by its place among the rows.
        program: What ran, where the history's repository holds it.
        diff: What that changes in its parent's program, where that is held too.
    """

    key: str
    segment: int
    description: str
    kind: OutcomeKind
    metric_value: float | None
    reason: str
    decision: Decision | None
    commit: str
    parent: int | None = None
    method_ids: tuple[str, ...] = ()
    program: Program | None = None
    diff: str = ""
    summary: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """What the store holds of a history: its rows' keys and its contexts by segment."""

    keys: frozenset[str] = frozenset()
    contexts: Mapping[int, Context] = field(default_factory=dict)


async def find_source(db: Database, source: str) -> Source:
    """Return what is known of a history by what it was imported as."""
    rows = await db.reader.execute_fetchall(
        "SELECT context.* FROM context JOIN workspace ON workspace.id = workspace_id WHERE path = :path "
        "ORDER BY (SELECT max(row) FROM experiment WHERE context_id = context.id)",  # the one used last counts
        {"path": source},
    )
    contexts = {int(row["dataset_hash"].removeprefix("segment ")): context_of(row) for row in rows}
    keys = await db.reader.execute_fetchall(
        "SELECT idempotency_key FROM experiment JOIN context ON context.id = context_id "
        "JOIN workspace ON workspace.id = workspace_id WHERE path = :path",
        {"path": source},
    )
    return Source(frozenset(row["idempotency_key"] for row in keys), contexts)


def segment_context(
    source: str, segment: int, *, device: str, budget_s: float, metric: str, direction: Direction
) -> Context:
    """Return the context of a history's segment; it equals no context of runs that were made here."""
    return Context("", device, budget_s, f"segment {segment}", source, metric, direction)


async def add_history(
    db: Database,
    source: str,
    contexts: Mapping[int, Context],
    rows: Sequence[ImportedRow],
    counts: Sequence[KindCount],
    *,
    now: float,
) -> list[bool]:
    """Store the rows that are new, all or none of them; return for each row whether it was.

    Known rows move to their present contexts, take their author's last decision, and get the programs they lacked.
    """

    def write(conn: sqlite3.Connection) -> list[bool]:
        workspace = _workspace(conn, source, now)
        context_ids = {each: _context(conn, workspace, context) for each, context in contexts.items()}
        known = _known(conn, workspace)
        ids = [known[row.key]["id"] if row.key in known else new_id("exp") for row in rows]
        new = [row.key not in known for row in rows]
        _keep_programs(conn, rows)
        bare = [is_new or known[row.key]["program_hash"] is None for row, is_new in zip(rows, new, strict=True)]
        edits = _add_edits(conn, workspace, rows, bare, now)
        made = [
            {
                "id": identity,
                "context": context_ids[row.segment],
                "edit": edits.get(index),
                "base": None if row.parent is None else _program_hash(rows[row.parent]),
                "program": _program_hash(row),
                "parent": None if row.parent is None else ids[row.parent],
                "description": row.description,
                "key": row.key,
                "slot": IMPORTED,
                "kind": row.kind.value,
                "value": row.metric_value,
                "reason": row.reason,
                "summary": json.dumps(dict(row.summary), sort_keys=True),
                "now": now,
            }
            for index, (row, identity) in enumerate(zip(rows, ids, strict=True))
        ]
        _add_experiments(conn, [each for each, is_new in zip(made, new, strict=True) if is_new])
        _fill_in(conn, [each for each, is_new in zip(made, new, strict=True) if not is_new])
        _identify(conn, workspace)
        _add_decisions(conn, rows, ids, known, now)
        _replace_methods(conn, rows, ids)
        _replace_counts(conn, source, counts)
        return new

    return await db.write(write)


def _workspace(conn: sqlite3.Connection, source: str, now: float) -> str:
    conn.execute(
        "INSERT INTO workspace (id, path, created_at) VALUES (:id, :path, :now) ON CONFLICT (path) DO NOTHING",
        {"id": new_id("ws"), "path": source, "now": now},
    )
    rows = conn.execute("SELECT id FROM workspace WHERE path = :path", {"path": source})
    return str(next(iter(rows))["id"])


def _context(conn: sqlite3.Connection, workspace: str, context: Context) -> str:
    there = dataclasses.replace(context, workspace_id=workspace)
    identity = context_key(there)
    statement, values = add_context_row(there)
    conn.execute(statement, {**values, "id": identity})
    return identity


def _known(conn: sqlite3.Connection, workspace: str) -> dict[str, sqlite3.Row]:
    """Return the rows of a history that are stored, by their keys, with their last decision."""
    rows = conn.execute(
        "SELECT experiment.id, idempotency_key, program_hash, "
        "(SELECT decision FROM decision WHERE experiment_id = experiment.id ORDER BY row DESC LIMIT 1) AS decision "
        "FROM experiment JOIN context ON context.id = context_id WHERE workspace_id = :workspace",
        {"workspace": workspace},
    )
    return {row["idempotency_key"]: row for row in rows}


def _program_hash(row: ImportedRow) -> str | None:
    return None if row.program is None else text_hash(row.program.text)


def _keep_programs(conn: sqlite3.Connection, rows: Sequence[ImportedRow]) -> None:
    conn.executemany(
        "INSERT INTO program (hash, tree_hash, text) VALUES (?, ?, ?) ON CONFLICT (hash) DO NOTHING",
        [(_program_hash(row), row.program.tree_hash, row.program.text) for row in rows if row.program is not None],
    )


def _add_edits(
    conn: sqlite3.Connection, workspace: str, rows: Sequence[ImportedRow], bare: Sequence[bool], now: float
) -> dict[int, str]:
    """Store the diffs of rows that had none; return the edits' ids by the rows' places."""
    ids: dict[int, str] = {}
    values = []
    for index, row in enumerate(rows):
        if not bare[index] or not row.diff or row.parent is None:
            continue
        ids[index] = new_id("edit")
        method = row.method_ids[0] if len(row.method_ids) == 1 else None
        base, made = _program_hash(rows[row.parent]), _program_hash(row)
        values.append((ids[index], workspace, method, base, made, row.diff, now))
    conn.executemany(
        "INSERT INTO edit (id, workspace_id, method_id, base_hash, new_hash, knobs, diff, created_at) "
        "VALUES (?, ?, ?, ?, ?, '{}', ?, ?)",
        values,
    )
    return ids


def _add_experiments(conn: sqlite3.Connection, made: Sequence[Mapping[str, object]]) -> None:
    """Insert finished experiments with their outcomes."""
    conn.executemany(
        "INSERT INTO experiment (id, context_id, edit_id, base_hash, program_hash, parent_id, description, seed, "
        "timeout_s, silence_s, idempotency_key, device_slot, state, created_at, finished_at) VALUES (:id, :context, "
        ":edit, :base, :program, :parent, :description, 42, 1, 1, :key, :slot, 'done', :now, :now)",
        made,
    )
    conn.executemany(
        "INSERT INTO outcome (experiment_id, kind, metric_value, reason, summary, log_tail, created_at, origin) "
        "VALUES (:id, :kind, :value, :reason, :summary, '', :now, 'imported')",
        made,
    )


def _fill_in(conn: sqlite3.Connection, known: Sequence[Mapping[str, object]]) -> None:
    """Update known rows from the file's present content."""
    conn.executemany("UPDATE experiment SET context_id = :context WHERE id = :id AND context_id <> :context", known)
    conn.executemany(
        "UPDATE experiment SET program_hash = :program, base_hash = :base, edit_id = :edit "
        "WHERE id = :id AND program_hash IS NULL",
        [each for each in known if each["program"] is not None],
    )


def _identify(conn: sqlite3.Connection, workspace: str) -> None:
    """Say which rows ran one program, and which program each is compared with: its parent's."""
    for statement in (
        "UPDATE experiment SET group_key = coalesce((SELECT tree_hash FROM program WHERE hash = program_hash), id)",
        "UPDATE experiment SET run_key = group_key, base_group_key = "
        "(SELECT parent.group_key FROM experiment AS parent WHERE parent.id = experiment.parent_id)",
    ):
        conn.execute(
            f"{statement} WHERE context_id IN (SELECT id FROM context WHERE workspace_id = :workspace)",  # noqa: S608 - ours
            {"workspace": workspace},
        )


def _replace_methods(conn: sqlite3.Connection, rows: Sequence[ImportedRow], ids: Sequence[str]) -> None:
    """Say which methods the rows tried; a later pack may know more of them."""
    conn.executemany("DELETE FROM experiment_method WHERE experiment_id = ?", [(each,) for each in ids])
    conn.executemany(
        "INSERT INTO experiment_method (experiment_id, method_id) VALUES (?, ?)",
        [(identity, method_id) for row, identity in zip(rows, ids, strict=True) for method_id in row.method_ids],
    )


def _add_decisions(
    conn: sqlite3.Connection,
    rows: Sequence[ImportedRow],
    ids: Sequence[str],
    known: Mapping[str, sqlite3.Row],
    now: float,
) -> None:
    """Record each author's decision where it differs from the stored one."""
    values = []
    for row, identity in zip(rows, ids, strict=True):
        stored = known[row.key]["decision"] if row.key in known else None
        if row.decision is not None and row.decision.value != stored:
            values.append((identity, row.decision.value, row.commit or None, now))
    conn.executemany(
        "INSERT INTO decision (experiment_id, decision, made_by, commit_hash, note, created_at) "
        "VALUES (?, ?, 'agent', ?, '', ?)",
        values,
    )


def _replace_counts(conn: sqlite3.Connection, source: str, counts: Sequence[KindCount]) -> None:
    """Replace the counts of a history."""
    conn.execute("DELETE FROM kind_count WHERE source = :source", {"source": source})
    conn.executemany(
        "INSERT INTO kind_count (source, kind, kept, trials) VALUES (?, ?, ?, ?)",
        [(source, each.kind, each.kept, each.trials) for each in counts],
    )


async def all_counts(db: Database) -> list[KindCount]:
    """Return the counts of all imported histories, in a fixed order."""
    rows = await db.reader.execute_fetchall("SELECT * FROM kind_count ORDER BY source, kind")
    return [KindCount(row["source"], row["kind"], row["kept"], row["trials"]) for row in rows]


async def own_runs(db: Database, path: str) -> set[tuple[str, str]]:
    """Return description and metric of the runs made in a workspace, as its results.tsv reports them."""
    rows = await db.reader.execute_fetchall(
        "SELECT description, metric_value FROM experiment JOIN context ON context.id = context_id "
        "JOIN workspace ON workspace.id = workspace_id JOIN outcome ON outcome.experiment_id = experiment.id "
        "WHERE workspace.path = :path",
        {"path": path},
    )
    return {(" ".join(row["description"].split()), f"{row['metric_value'] or 0.0:.6f}") for row in rows}
