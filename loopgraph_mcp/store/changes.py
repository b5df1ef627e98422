"""Changes: what each edit did to the syntax tree, and the runs that tried one."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from loopgraph_mcp.errors import UnwritableError
from loopgraph_mcp.models import Decision, Origin, OutcomeKind
from loopgraph_mcp.ranking.change import Change, Rewrite, Turn, change_between
from loopgraph_mcp.store.database import Database

_UNKNOWN = Change(rewrites=(Rewrite("", "", "unparsable"),))


@dataclass(frozen=True, slots=True)
class TriedChange:
    """One run that is over, with what it changed.

    Args:
        change: What its edit did; None for a baseline, or where only its description is known.
        base_hash: The program it started from, None where that is not known.
        group_key: What ran, up to the values of seeds.
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
    group_key: str
    change: Change | None
    origin: Origin


async def keep_change(db: Database, base_hash: str, new_hash: str) -> Change:
    """Return what turns one stored program into another, worked out at the first asking."""
    keys = {"base": base_hash, "new": new_hash}
    select = "SELECT turns, rewrites FROM change WHERE base_hash = :base AND new_hash = :new"
    rows = list(await db.reader.execute_fetchall(select, keys))
    if not rows:
        await _keep_changes(db, [(base_hash, new_hash)])
        rows = list(await db.reader.execute_fetchall(select, keys))
    return _change(rows[0]["turns"], rows[0]["rewrites"])


async def _keep_changes(db: Database, pairs: Sequence[tuple[str, str]]) -> None:
    """Work out changes in a thread, for a hundred of them take seconds, and store them."""
    hashes = json.dumps(sorted({each for pair in pairs for each in pair}))
    rows = await db.reader.execute_fetchall(
        "SELECT hash, text FROM program WHERE hash IN (SELECT value FROM json_each(:hashes))", {"hashes": hashes}
    )
    texts = {row["hash"]: row["text"] for row in rows}
    found = await asyncio.to_thread(
        lambda: [change_between(texts[base], texts[new]) or _UNKNOWN for base, new in pairs]
    )
    kept = [
        (
            *pair,
            json.dumps([[turn.knob, turn.old, turn.new] for turn in change.turns]),
            json.dumps([[each.scope, each.removed, each.added] for each in change.rewrites]),
        )
        for pair, change in zip(pairs, found, strict=True)
    ]
    statement = "INSERT INTO change (base_hash, new_hash, turns, rewrites) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
    await db.write(lambda conn: conn.executemany(statement, kept))


async def _unknown_pairs(db: Database, context_id: str) -> list[sqlite3.Row]:
    return list(
        await db.reader.execute_fetchall(
            """
            SELECT DISTINCT experiment.base_hash, experiment.program_hash
            FROM context AS here
            JOIN context ON context.workspace_id = here.workspace_id AND context.metric = here.metric
            JOIN experiment ON experiment.context_id = context.id
            JOIN outcome ON outcome.experiment_id = experiment.id
            LEFT JOIN change ON change.base_hash = experiment.base_hash AND change.new_hash = experiment.program_hash
            WHERE here.id = :context AND experiment.base_hash IS NOT NULL AND experiment.program_hash IS NOT NULL
                AND change.base_hash IS NULL
            """,
            {"context": context_id},
        )
    )


async def tried_changes(db: Database, context_id: str, *, newest: int) -> list[TriedChange]:
    """Return the runs of a context's workspace and metric that say something of an idea, in the order they ended.

    `newest` is the place of the last outcome to read. Changes that were not worked out yet are: those of an imported
    history, or of a store from before they were kept.
    """
    new = [(row["base_hash"], row["program_hash"]) for row in await _unknown_pairs(db, context_id)]
    if new:
        with suppress(UnwritableError):  # the runs whose changes are known are read all the same
            await _keep_changes(db, new)
    rows = list(
        await db.reader.execute_fetchall(
            """
            SELECT experiment.id, experiment.context_id, experiment.description, experiment.base_hash,
                   experiment.program_hash, experiment.group_key,
                   outcome.kind, outcome.metric_value, outcome.reason, outcome.origin, change.turns, change.rewrites,
                   (SELECT decision FROM decision WHERE experiment_id = experiment.id ORDER BY row DESC LIMIT 1)
                       AS decision
            FROM context AS here
            JOIN context ON context.workspace_id = here.workspace_id AND context.metric = here.metric
            JOIN experiment ON experiment.context_id = context.id
            JOIN outcome ON outcome.experiment_id = experiment.id
            LEFT JOIN change ON change.base_hash = experiment.base_hash AND change.new_hash = experiment.program_hash
            WHERE here.id = :context AND outcome.rowid <= :newest
                AND outcome.kind NOT IN ('cancelled', 'interrupted', 'no_metric', 'void')
            ORDER BY outcome.rowid
            """,
            {"context": context_id, "newest": newest},
        )
    )
    return await asyncio.to_thread(lambda: [_tried(row) for row in rows])


def _tried(row: sqlite3.Row) -> TriedChange:
    change = None if row["turns"] is None else _change(row["turns"], row["rewrites"])
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
        group_key=row["group_key"],
        change=change,
        origin=Origin(row["origin"]),
    )


@lru_cache(maxsize=32_768)
def _change(turns: str, rewrites: str) -> Change:
    return Change(
        tuple(Turn(*turn) for turn in json.loads(turns)),
        tuple(Rewrite(*rewrite) for rewrite in json.loads(rewrites)),
    )
