"""The version of the store, its newest row ids: cached results are valid while it is unchanged."""

import sqlite3
from dataclasses import dataclass

from loopgraph_mcp.store.database import Database


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest rows of the tables that a search rests on.

    Args:
        outcome: Place of the newest outcome, 0 if there is none.
        decision: Place of the newest decision, likewise.
        recipe: Place of the newest learned recipe, likewise.
        methods: What is another text after each change of a method.
        live: Whether anything is queued or running.
    """

    outcome: int
    decision: int
    recipe: int
    methods: str
    live: bool


_NEWEST = """
    SELECT (SELECT coalesce(max(rowid), 0) FROM outcome) AS outcome,
           (SELECT coalesce(max(row), 0) FROM decision) AS decision,
           (SELECT coalesce(max(rowid), 0) FROM learned_recipe) AS recipe,
           (SELECT coalesce(group_concat(name || content_hash), '') FROM pack)
           || (SELECT coalesce(max(row), 0) FROM method) AS methods,
           EXISTS (SELECT 1 FROM experiment WHERE state <> 'done') AS live
"""


def look(conn: sqlite3.Connection) -> Newest:
    """Return how far the store has come."""
    return _read(conn.execute(_NEWEST).fetchone())


async def read_newest(db: Database) -> Newest:
    """Return how far the store has come."""
    return _read(next(iter(await db.reader.execute_fetchall(_NEWEST))))


def _read(row: sqlite3.Row) -> Newest:
    return Newest(row["outcome"], row["decision"], row["recipe"], row["methods"], bool(row["live"]))
