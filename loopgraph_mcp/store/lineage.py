"""The chain's rows and what links them: from pack and paper to outcome and learned recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.imports import IMPORTED


@dataclass(frozen=True, slots=True)
class Row:
    """One row on the chain: its stage, its id, a few words on it, and when it was made, where that is known."""

    stage: str
    id: str
    words: str
    at: float | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The newest rows of a stage that a row is linked with, and how many there are in all."""

    stage: str
    rows: Sequence[Row]
    count: int


# A row's id, words and time, by stage, in the order of the chain. An id names the first of them that has it.
_ROWS = {
    "experiment": "SELECT id, description || ', seed ' || seed AS words, created_at AS at FROM experiment",
    "method": "SELECT id, name || ': ' || summary AS words, NULL AS at FROM method",
    "paper": "SELECT id, title AS words, NULL AS at FROM paper",
    "document": "SELECT id, form || ' ' || state AS words, ingested_at AS at FROM document",
    "passage": "SELECT id, place || ': ' || substr(text, 1, 200) AS words, NULL AS at FROM chunk",
    "retrieval": "SELECT id, 'query: ' || query AS words, created_at AS at FROM retrieval",
    "edit": "SELECT id, substr(base_hash, 1, 7) || ' -> ' || substr(new_hash, 1, 7) || "
    "CASE knobs WHEN '{}' THEN '' ELSE ' ' || knobs END AS words, created_at AS at FROM edit",
    "recipe": "SELECT id, 'learned for ' || method_id AS words, created_at AS at FROM learned_recipe",
    "pack": "SELECT name AS id, 'version ' || version AS words, imported_at AS at FROM pack",
    "history": "SELECT id, path AS words, created_at AS at FROM workspace",
    "turn": "SELECT session_id || ':' || number AS id, researcher || ', memory ' || memory AS words, "
    "turn.created_at AS at FROM turn JOIN session ON session.id = session_id",
    "outcome": "SELECT experiment_id AS id, kind || coalesce(' ' || metric_value, '') || "
    "CASE origin WHEN 'measured' THEN '' ELSE ' (' || origin || ')' END || "
    "CASE reason WHEN '' THEN '' ELSE ': ' || reason END AS words, created_at AS at FROM outcome",
    "decision": "SELECT experiment_id AS id, decision || ' by ' || made_by || "
    "CASE note WHEN '' THEN '' ELSE ': ' || note END AS words, created_at AS at FROM decision",
}

# What leads to what: pairs of ids, with the stages on both sides.
_LINKS = (
    ("pack", "method", "SELECT pack_name AS earlier, id AS later FROM method"),
    ("paper", "document", "SELECT paper_id AS earlier, id AS later FROM document"),
    ("document", "passage", "SELECT document_id AS earlier, chunk_id AS later FROM document_chunk"),
    ("paper", "method", "SELECT paper_id AS earlier, method_id AS later FROM method_paper"),
    ("passage", "method", "SELECT chunk_id AS earlier, method_id AS later FROM method_chunk"),
    ("method", "retrieval", "SELECT method_id AS earlier, retrieval_id AS later FROM retrieval_item"),
    ("method", "edit", "SELECT method_id AS earlier, id AS later FROM edit"),
    ("retrieval", "edit", "SELECT retrieval_id AS earlier, id AS later FROM edit"),
    ("recipe", "edit", "SELECT recipe_id AS earlier, edit_id AS later FROM learned_edit"),
    ("edit", "experiment", "SELECT edit_id AS earlier, id AS later FROM experiment"),
    ("method", "experiment", "SELECT method_id AS earlier, experiment_id AS later FROM experiment_method"),
    (
        "turn",
        "experiment",
        "SELECT session_id || ':' || turn AS earlier, experiment_id AS later FROM tool_call "
        "WHERE experiment_id IS NOT NULL",
    ),
    (
        "history",
        "experiment",
        "SELECT workspace_id AS earlier, experiment.id AS later FROM experiment "  # noqa: S608
        f"JOIN context ON context.id = context_id WHERE device_slot = '{IMPORTED}'",
    ),
    ("experiment", "outcome", "SELECT experiment_id AS earlier, experiment_id AS later FROM outcome"),
    ("experiment", "decision", "SELECT experiment_id AS earlier, experiment_id AS later FROM decision"),
    ("experiment", "recipe", "SELECT experiment_id AS earlier, recipe_id AS later FROM learned_from"),
)


async def find_row(db: Database, identity: str) -> Row | None:
    """Return the row that an id names, whatever it is, or None."""
    for stage, rows in _ROWS.items():
        if stage in {"outcome", "decision"}:
            continue  # they bear their experiment's id
        found = await db.reader.execute_fetchall(f"SELECT * FROM ({rows}) WHERE id = :id", {"id": identity})  # noqa: S608
        for row in found:
            return Row(stage, row["id"], row["words"], row["at"])
    return None


async def neighbours(db: Database, row: Row, *, later: bool, limit: int) -> list[Neighbours]:
    """Return what a row led to, or what led to it, by stage, the newest first."""
    mine, theirs = ("earlier", "later") if later else ("later", "earlier")
    found = []
    for earlier_stage, later_stage, pairs in _LINKS:
        own, stage = (earlier_stage, later_stage) if later else (later_stage, earlier_stage)
        if own != row.stage:
            continue
        rows = list(
            await db.reader.execute_fetchall(
                f"SELECT linked.*, count(*) OVER () AS count FROM ({pairs}) AS link "  # noqa: S608
                f"JOIN ({_ROWS[stage]}) AS linked ON linked.id = link.{theirs} WHERE link.{mine} = :id "
                "ORDER BY at DESC, linked.id LIMIT :limit",
                {"id": row.id, "limit": limit},
            )
        )
        if rows:
            seen = [Row(stage, each["id"], each["words"], each["at"]) for each in rows]
            found.append(Neighbours(stage, seen, int(rows[0]["count"])))
    return found
