"""Retrievals: what was shown for a query, in which order and why, and what answers cost."""

import json
import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.access import Caller
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
    """Record one answered query; return its id."""
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
    await db.append(
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
            *asked_rows(retrieval_id, caller, now=now),
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


class Fatigue:
    """Follows what was shown of late and what was tried since, reading only what is new."""

    def __init__(self) -> None:
        self._shown: deque[tuple[int, float, str]] = deque()  # retrieval's row, when, method; the newest last
        self._tried: dict[str, float] = {}
        self._newest = self._newest_experiment = 0

    def ages(self, conn: sqlite3.Connection) -> dict[str, list[int]]:
        """Return for each method shown of late the ages, in retrievals, of the times it was shown since last tried."""
        (newest,) = conn.execute("SELECT coalesce(max(row), 0) FROM retrieval").fetchone()
        (shown,) = conn.execute(
            "SELECT json_group_array(json_array(row, printf('%.17g', created_at), method_id)) FROM ("
            "SELECT retrieval.row, created_at, method_id FROM retrieval CROSS JOIN retrieval_item "
            "ON retrieval_id = id WHERE retrieval.row > :seen AND retrieval.row <= :newest ORDER BY retrieval.row)",
            {"seen": max(self._newest, newest - _FATIGUE_WINDOW), "newest": newest},
        ).fetchone()
        self._shown.extend((row, float(at), method_id) for row, at, method_id in json.loads(shown))
        self._newest = newest
        while self._shown and self._shown[0][0] <= newest - _FATIGUE_WINDOW:
            self._shown.popleft()
        tried = conn.execute(
            "SELECT experiment.row, method_id, created_at FROM experiment CROSS JOIN experiment_method "
            "ON experiment_id = id WHERE experiment.row > :seen AND device_slot <> 'imported' ORDER BY experiment.row",
            {"seen": self._newest_experiment},
        )
        for row in tried:
            self._newest_experiment = row["row"]
            self._tried[row["method_id"]] = max(self._tried.get(row["method_id"], 0.0), row["created_at"])
        ages: dict[str, list[int]] = {}
        for place, at, method_id in self._shown:
            if at > self._tried.get(method_id, 0.0):
                ages.setdefault(method_id, []).append(newest - place)
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
    cost = {"source": source, "subject": subject_id, "tokens": tokens, "cost": cost_usd, "now": now}
    await db.append(
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
