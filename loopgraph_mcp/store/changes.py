"""Changes: what each edit did to the syntax tree, and the runs that tried one."""

import json
import sqlite3
from dataclasses import dataclass

from loopgraph_mcp.changes import Change, Rewrite, Turn, change_between
from loopgraph_mcp.models import Decision, OutcomeKind
from loopgraph_mcp.store.database import Database

_UNKNOWN = Change(rewrites=(Rewrite("", "", "unparsable"),))


@dataclass(frozen=True, slots=True)
class TriedChange:
    """One run that is over, with what it changed.

    Args:
        change: What its edit did; None for a baseline, or where only its description is known.
        base_hash: The program it started from, None where that is not known.
        base_tree: The same by syntax tree.
        tree: The program that ran, by syntax tree.
    """

    experiment_id: str
    context_id: str
    description: str
    kind: OutcomeKind
    metric_value: float | None
    reason: str
    decision: Decision | None
    has_program: bool
    base_hash: str | None
    base_tree: str | None
    tree: str | None
    change: Change | None


async def keep_change(db: Database, base_hash: str, new_hash: str) -> Change:
    """Return what turns one stored program into another, worked out at the first asking."""
    keys = {"base": base_hash, "new": new_hash}
    rows = await db.reader.execute_fetchall(
        "SELECT turns, rewrites FROM change WHERE base_hash = :base AND new_hash = :new", keys
    )
    for row in rows:
        return _change(row)
    texts = await db.reader.execute_fetchall("SELECT hash, text FROM program WHERE hash IN (:base, :new)", keys)
    by_hash = {row["hash"]: row["text"] for row in texts}
    change = change_between(by_hash[base_hash], by_hash[new_hash]) or _UNKNOWN
    async with db.transaction() as conn:
        await conn.execute(
            "INSERT INTO change (base_hash, new_hash, turns, rewrites) VALUES (:base, :new, :turns, :rewrites) "
            "ON CONFLICT DO NOTHING",
            {
                **keys,
                "turns": json.dumps([[turn.knob, turn.old, turn.new] for turn in change.turns]),
                "rewrites": json.dumps([[each.scope, each.removed, each.added] for each in change.rewrites]),
            },
        )
    return change


async def tried_changes(db: Database, context_id: str) -> list[TriedChange]:
    """Return the runs of a context's workspace and metric that say something of an idea, oldest first."""
    rows = list(
        await db.reader.execute_fetchall(
            """
            SELECT experiment.id, experiment.context_id, experiment.description, experiment.base_hash,
                   experiment.program_hash, base.tree_hash AS base_tree, program.tree_hash AS tree,
                   outcome.kind, outcome.metric_value, outcome.reason, change.turns, change.rewrites,
                   (SELECT decision FROM decision WHERE experiment_id = experiment.id ORDER BY row DESC LIMIT 1)
                       AS decision
            FROM context AS here
            JOIN context ON context.workspace_id = here.workspace_id AND context.metric = here.metric
            JOIN experiment ON experiment.context_id = context.id
            JOIN outcome ON outcome.experiment_id = experiment.id
            LEFT JOIN program AS base ON base.hash = experiment.base_hash
            LEFT JOIN program ON program.hash = experiment.program_hash
            LEFT JOIN change ON change.base_hash = experiment.base_hash AND change.new_hash = experiment.program_hash
            WHERE here.id = :context AND outcome.kind NOT IN ('cancelled', 'interrupted', 'void')
            ORDER BY experiment.row
            """,
            {"context": context_id},
        )
    )
    return [await _tried(db, row) for row in rows]


async def _tried(db: Database, row: sqlite3.Row) -> TriedChange:
    change = None
    if row["turns"] is not None:
        change = _change(row)
    elif row["base_hash"] is not None and row["program_hash"] is not None:  # a store of before changes were kept
        change = await keep_change(db, row["base_hash"], row["program_hash"])
    return TriedChange(
        experiment_id=row["id"],
        context_id=row["context_id"],
        description=row["description"],
        kind=OutcomeKind(row["kind"]),
        metric_value=row["metric_value"],
        reason=row["reason"],
        decision=None if row["decision"] is None else Decision(row["decision"]),
        has_program=row["program_hash"] is not None,
        base_hash=row["base_hash"],
        base_tree=row["base_tree"],
        tree=row["tree"],
        change=change,
    )


def _change(row: sqlite3.Row) -> Change:
    return Change(
        tuple(Turn(*turn) for turn in json.loads(row["turns"])),
        tuple(Rewrite(*rewrite) for rewrite in json.loads(row["rewrites"])),
    )
