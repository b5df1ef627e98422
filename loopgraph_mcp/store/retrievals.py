"""Retrievals: what was shown for a query, in which order and why, and what answers cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.store.database import Database, new_id

_FATIGUE_WINDOW = 100  # retrievals: five half-lives, behind which nothing is left


@dataclass(frozen=True, slots=True)
class ShownMethod:
    """One line of an answer: a method with its score and the score's parts."""

    method_id: str
    score: float
    parts: Mapping[str, float]


async def add_retrieval(
    db: Database, query: str, shown: Sequence[ShownMethod], *, context_id: str | None, now: float
) -> str:
    """Record one answered query; return its id."""
    retrieval_id = new_id("ret")
    query = query[:2_000].encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be stored
    async with db.transaction() as conn:
        await conn.execute(
            "INSERT INTO retrieval (id, context_id, query, created_at) VALUES (:id, :context, :query, :now)",
            {"id": retrieval_id, "context": context_id, "query": query, "now": now},
        )
        await conn.executemany(
            "INSERT INTO retrieval_item (retrieval_id, rank, method_id, score, parts) "
            "VALUES (:retrieval, :rank, :method, :score, :parts)",
            [
                {
                    "retrieval": retrieval_id,
                    "rank": rank,
                    "method": item.method_id,
                    "score": item.score,
                    "parts": json.dumps(dict(item.parts), sort_keys=True),
                }
                for rank, item in enumerate(shown, start=1)
            ],
        )
    return retrieval_id


async def retrieval_exists(db: Database, retrieval_id: str) -> bool:
    """Return whether an id names a retrieval."""
    rows = await db.reader.execute_fetchall("SELECT 1 FROM retrieval WHERE id = :id", {"id": retrieval_id})
    return bool(list(rows))


async def ages_since_shown(db: Database) -> dict[str, list[int]]:
    """Return for each method shown of late the ages, in retrievals, of the times it was shown since last tried."""
    shown = list(
        await db.reader.execute_fetchall(
            "WITH newest AS (SELECT coalesce(max(row), 0) AS row FROM retrieval) "
            "SELECT retrieval_item.method_id, newest.row - retrieval.row AS age, retrieval.created_at AS at "
            "FROM newest JOIN retrieval ON retrieval.row > newest.row - :window "
            "JOIN retrieval_item ON retrieval_item.retrieval_id = retrieval.id ORDER BY retrieval.row",
            {"window": _FATIGUE_WINDOW},
        )
    )
    tried = await db.reader.execute_fetchall(
        "SELECT experiment_method.method_id, max(experiment.created_at) AS at "
        "FROM experiment CROSS JOIN experiment_method ON experiment_method.experiment_id = experiment.id "
        "WHERE experiment.created_at >= :oldest AND device_slot <> 'imported' GROUP BY experiment_method.method_id",
        {"oldest": min((row["at"] for row in shown), default=0.0)},
    )
    last_tried = {row["method_id"]: row["at"] for row in tried}
    ages: dict[str, list[int]] = {}
    for row in shown:
        if row["at"] > last_tried.get(row["method_id"], 0.0):
            ages.setdefault(row["method_id"], []).append(row["age"])
    return ages


async def add_cost(
    db: Database,
    source: str,
    *,
    subject_id: str | None,
    tokens: int | None,
    cost_usd: float | None,
    now: float,
) -> None:
    """Record what one answer, or what an agent says of its own work, cost."""
    async with db.transaction() as conn:
        await conn.execute(
            "INSERT INTO cost (source, subject_id, tokens, cost_usd, created_at) "
            "VALUES (:source, :subject, :tokens, :cost, :now)",
            {"source": source, "subject": subject_id, "tokens": tokens, "cost": cost_usd, "now": now},
        )


async def count_rows(db: Database) -> dict[str, int]:
    """Return how many rows each stage of the chain holds."""
    rows = await db.reader.execute_fetchall(
        "SELECT 'methods' AS stage, count(*) AS n FROM method WHERE retired_at IS NULL "
        "UNION ALL SELECT 'retrievals', count(*) FROM retrieval UNION ALL SELECT 'edits', count(*) FROM edit "
        "UNION ALL SELECT 'experiments', count(*) FROM experiment UNION ALL SELECT 'outcomes', count(*) FROM outcome"
    )
    return {str(row["stage"]): int(row["n"]) for row in rows}
