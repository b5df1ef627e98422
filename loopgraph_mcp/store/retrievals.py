"""Retrievals: what was shown for a query, in which order and why, and what answers cost."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.auth import Caller
from loopgraph_mcp.store.agents import asked_rows
from loopgraph_mcp.store.database import Database, new_id

_FATIGUE_WINDOW = 100  # retrievals: five half-lives, behind which nothing is left


@dataclass(frozen=True, slots=True)
class ShownMethod:
    """One line of an answer: a method with its score and the score's parts."""

    method_id: str
    score: float
    parts: Mapping[str, float]


async def add_retrieval(
    db: Database,
    query: str,
    shown: Sequence[ShownMethod],
    *,
    context_id: str | None,
    now: float,
    caller: Caller | None = None,
) -> str:
    """Record one answered query, later where the store cannot be written now; return its id."""
    retrieval_id = new_id("ret")
    query = query[:2_000].encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be stored
    items = [
        {
            "retrieval": retrieval_id,
            "rank": rank,
            "method": item.method_id,
            "score": item.score,
            "parts": json.dumps(dict(item.parts), sort_keys=True),
        }
        for rank, item in enumerate(shown, start=1)
    ]
    await db.append_or_wait(
        [
            (
                "INSERT INTO retrieval (id, context_id, query, created_at) VALUES (:id, :context, :query, :now)",
                [{"id": retrieval_id, "context": context_id, "query": query, "now": now}],
            ),
            (
                "INSERT INTO retrieval_item (retrieval_id, rank, method_id, score, parts) "
                "VALUES (:retrieval, :rank, :method, :score, :parts)",
                items,
            ),
            *([] if caller is None else asked_rows(retrieval_id, caller, now=now)),
        ]
    )
    return retrieval_id


async def methods_shown(db: Database, retrieval_id: str) -> list[str]:
    """Return the ids of the methods that a retrieval showed, in their order; none where there is no such retrieval."""
    rows = await db.reader.execute_fetchall(
        "SELECT method_id FROM retrieval_item WHERE retrieval_id = :id ORDER BY rank", {"id": retrieval_id}
    )
    return [str(row["method_id"]) for row in rows]


async def retrieval_exists(db: Database, retrieval_id: str) -> bool:
    """Return whether an id names a retrieval."""
    rows = await db.reader.execute_fetchall("SELECT 1 FROM retrieval WHERE id = :id", {"id": retrieval_id})
    return bool(list(rows))


@dataclass(frozen=True, slots=True)
class Shown:
    """What was shown recently and not tried since: for each method, how many retrievals ago each time."""

    ago: Mapping[str, list[int]]

    def ages(self, method_id: str) -> list[int]:
        """Return how many retrievals ago a method was shown, each time."""
        return self.ago.get(method_id, [])


def read_shown(conn: sqlite3.Connection) -> Shown:
    """Return what the last retrievals showed that no experiment has tried since."""
    rows = json.loads(conn.execute(_SHOWN, {"window": _FATIGUE_WINDOW}).fetchone()[0])
    ago = defaultdict[str, list[int]](list)
    for method_id, age in rows:
        ago[method_id].append(age)
    return Shown(ago)


_SHOWN = """
    WITH newest (row) AS (SELECT coalesce(max(row), 0) FROM retrieval),
    shown AS MATERIALIZED (
        SELECT method_id, retrieval.row, created_at, newest.row - retrieval.row AS age
        FROM newest CROSS JOIN retrieval CROSS JOIN retrieval_item ON retrieval_id = id
        WHERE retrieval.row > newest.row - :window),
    tried AS MATERIALIZED (
        SELECT method_id, max(created_at) AS at FROM experiment CROSS JOIN experiment_method ON experiment_id = id
        WHERE created_at >= (SELECT min(created_at) FROM shown) AND device_slot <> 'imported' GROUP BY method_id)
    SELECT json_group_array(json_array(method_id, age)) FROM (
        SELECT shown.method_id, age FROM shown LEFT JOIN tried USING (method_id)
        WHERE tried.at IS NULL OR shown.created_at > tried.at ORDER BY shown.row)
"""


async def add_cost(
    db: Database,
    source: str,
    *,
    subject_id: str | None,
    tokens: int | None,
    cost_usd: float | None,
    now: float,
) -> None:
    """Record what one answer, or an agent's own work, cost; later where the store cannot be written now."""
    cost = {"source": source, "subject": subject_id, "tokens": tokens, "cost": cost_usd, "now": now}
    await db.append_or_wait(
        [
            (
                "INSERT INTO cost (source, subject_id, tokens, cost_usd, created_at) "
                "VALUES (:source, :subject, :tokens, :cost, :now)",
                [cost],
            )
        ]
    )


async def count_rows(db: Database) -> dict[str, int]:
    """Return how many rows each stage of the chain holds."""
    rows = await db.reader.execute_fetchall(
        "SELECT 'methods' AS stage, count(*) AS n FROM method WHERE retired_at IS NULL "
        "UNION ALL SELECT 'retrievals', count(*) FROM retrieval UNION ALL SELECT 'edits', count(*) FROM edit "
        "UNION ALL SELECT 'experiments', count(*) FROM experiment UNION ALL SELECT 'outcomes', count(*) FROM outcome"
    )
    return {str(row["stage"]): int(row["n"]) for row in rows}
