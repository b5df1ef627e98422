"""What the page and the report show beside the experiments: where there are any, what they cost, what was spared."""

import json
from collections.abc import Collection
from dataclasses import dataclass

from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.imports import IMPORTED


@dataclass(frozen=True, slots=True)
class WorkspaceRow:
    """A workspace with experiments.

    Args:
        path: Its folder; of a history that was imported, no path.
        last_at: When its newest experiment was made.
    """

    id: str
    path: str
    experiments: int
    last_at: float

    @property
    def is_imported(self) -> bool:
        """Whether it is somebody's history and no folder here."""
        return self.path.startswith(f"{IMPORTED}:")


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens and dollars that an agent spent at a moment; `experiment_id` where it says on which."""

    at: float
    tokens: int
    cost_usd: float
    experiment_id: str | None = None


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """An experiment that answered further calls of run_experiment, so that it was not run again.

    Args:
        times: How many calls it answered without a run.
    """

    experiment_id: str
    times: int


async def data_version(db: Database) -> int:
    """Return what is another number after each change of the store, by whichever process."""
    rows = await db.reader.execute_fetchall("PRAGMA data_version")
    return int(next(iter(rows))[0])


async def workspaces(db: Database) -> list[WorkspaceRow]:
    """Return the workspaces that have experiments, the one with the newest first."""
    rows = await db.reader.execute_fetchall(
        "SELECT workspace.id, workspace.path, count(*) AS experiments, max(experiment.created_at) AS last_at "
        "FROM workspace CROSS JOIN context ON context.workspace_id = workspace.id "
        "CROSS JOIN experiment ON experiment.context_id = context.id "
        "GROUP BY workspace.id ORDER BY max(experiment.row) DESC"
    )
    return [WorkspaceRow(row["id"], row["path"], row["experiments"], row["last_at"]) for row in rows]


async def spending(db: Database, workspace_id: str, path: str) -> list[Spent]:
    """Return what agents spent in a workspace, oldest first: what they reported, and what sessions' turns cost."""
    rows = await db.reader.execute_fetchall(
        """
        SELECT cost.created_at AS at, coalesce(tokens, 0) AS tokens, coalesce(cost_usd, 0.0) AS usd, subject_id
        FROM cost JOIN experiment ON experiment.id = cost.subject_id JOIN context ON context.id = experiment.context_id
        WHERE cost.source = 'agent' AND context.workspace_id = :workspace
        UNION ALL
        SELECT turn.created_at, prompt_tokens + completion_tokens + wasted_tokens, coalesce(cost_usd, 0.0), NULL
        FROM session JOIN turn ON turn.session_id = session.id WHERE session.workspace_path = :path
        ORDER BY at
        """,
        {"workspace": workspace_id, "path": path},
    )
    return [Spent(row["at"], row["tokens"], row["usd"], row["subject_id"]) for row in rows]


async def asked_again(db: Database, workspace_id: str) -> list[AskedAgain]:
    """Return the experiments that answered calls for a run in place of one, those that did most often first.

    Each answer of run_experiment leaves a row of what it cost to read; of an agent's own experiment the first was the
    run's.
    """
    rows = await db.reader.execute_fetchall(
        """
        SELECT experiment.id, count(*) - EXISTS (
            SELECT 1 FROM asked WHERE asked.subject_id = experiment.id AND asked.asked_at = experiment.created_at
        ) AS times
        FROM cost JOIN experiment ON experiment.id = cost.subject_id JOIN context ON context.id = experiment.context_id
        WHERE cost.source = 'run_experiment' AND context.workspace_id = :workspace
        GROUP BY experiment.id HAVING times > 0 ORDER BY times DESC, experiment.row
        """,
        {"workspace": workspace_id},
    )
    return [AskedAgain(row["id"], row["times"]) for row in rows]


async def predicted(db: Database, workspace_id: str) -> dict[str, float]:
    """Return the probability of a gain that the search before each experiment gave its method, by experiment."""
    rows = await db.reader.execute_fetchall(
        """
        SELECT experiment.id, json_extract(retrieval_item.parts, '$.p_win') AS p
        FROM context CROSS JOIN experiment ON experiment.context_id = context.id
        CROSS JOIN edit ON edit.id = experiment.edit_id
        CROSS JOIN retrieval_item
            ON retrieval_item.retrieval_id = edit.retrieval_id AND retrieval_item.method_id = edit.method_id
        WHERE context.workspace_id = :workspace
        """,
        {"workspace": workspace_id},
    )
    return {row["id"]: row["p"] for row in rows if row["p"] is not None}


async def method_names(db: Database, method_ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the name and the family of each of some methods."""
    rows = await db.reader.execute_fetchall(
        "SELECT id, name, family FROM method WHERE id IN (SELECT value FROM json_each(:ids))",
        {"ids": json.dumps(sorted(method_ids))},
    )
    return {row["id"]: (row["name"], row["family"]) for row in rows}
