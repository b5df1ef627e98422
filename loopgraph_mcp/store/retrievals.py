"""Retrievals: what was shown for a query, in which order and why, and what answers cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.store.database import Database, new_id


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


async def ages_since_shown(db: Database, method_ids: Sequence[str]) -> dict[str, list[int]]:
    """Return for each method the ages, in retrievals, of the times it was shown since it was last tried."""
    rows = await db.reader.execute_fetchall(
        """
        WITH asked AS (SELECT value AS method_id FROM json_each(:ids)),
        tried AS (
            SELECT asked.method_id, coalesce(max(experiment.created_at), 0) AS at
            FROM asked
            LEFT JOIN experiment_method USING (method_id)
            LEFT JOIN experiment ON experiment.id = experiment_method.experiment_id AND device_slot <> 'imported'
            GROUP BY asked.method_id
        )
        SELECT tried.method_id,
               (SELECT count(*) FROM retrieval AS later WHERE later.row > retrieval.row) AS age
        FROM tried
        JOIN retrieval_item ON retrieval_item.method_id = tried.method_id
        JOIN retrieval ON retrieval.id = retrieval_item.retrieval_id AND retrieval.created_at > tried.at
        WHERE retrieval.row > (SELECT coalesce(max(row), 0) FROM retrieval) - 200
        ORDER BY retrieval.row
        """,
        {"ids": json.dumps(list(method_ids))},
    )
    ages: dict[str, list[int]] = {method_id: [] for method_id in method_ids}
    for row in rows:
        ages[row["method_id"]].append(row["age"])
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
