"""Lists rows that can be read by id, page by page, and reports which changed."""

from dataclasses import dataclass

from loopgraph_mcp.store.database import Database

_HELD = """
    WITH held AS (
        SELECT 'experiment' AS kind, printf('%015d', 999999999999999 - row) AS key, id, description AS title, '' AS note
        FROM experiment
        UNION ALL
        SELECT 'method', id, id, name, summary FROM method WHERE retired_at IS NULL
        UNION ALL
        SELECT 'paper', id, id, title, '' FROM paper WHERE EXISTS (SELECT 1 FROM document WHERE paper_id = paper.id)
    )
    SELECT *, count(*) OVER () AS found FROM held
"""


@dataclass(frozen=True, slots=True)
class Holding:
    """Something that can be read by its id: a `method`, a `paper` or an `experiment`."""

    kind: str
    key: str
    id: str
    title: str
    note: str


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the store had grown at a moment; the same mark means the same list and the same decisions."""

    experiments: int
    documents: int
    packs: str
    decisions: int


async def page(db: Database, after: tuple[str, str], *, limit: int) -> list[Holding]:
    """Return what comes after a kind and key: experiments, the newest first, then methods and papers by their ids."""
    rows = await db.reader.execute_fetchall(
        f"{_HELD} WHERE (kind, key) > (:kind, :key) ORDER BY kind, key LIMIT :limit",
        {"kind": after[0], "key": after[1], "limit": limit},
    )
    return [Holding(row["kind"], row["key"], row["id"], row["title"], row["note"]) for row in rows]


async def ids_like(db: Database, kind: str, typed: str, *, limit: int) -> tuple[list[str], int]:
    """Return ids that hold what was typed, those that begin with it first, and how many there are in all."""
    given = {"kind": kind, "typed": typed.lower(), "limit": limit}
    rows = await db.reader.execute_fetchall(
        f"{_HELD} WHERE kind = :kind AND instr(lower(id), :typed) "
        "ORDER BY instr(lower(id), :typed) > 1, key LIMIT :limit",
        given,
    )
    found = list(rows)
    return [str(row["id"]) for row in found], found[0]["found"] if found else 0


async def mark(db: Database) -> Mark:
    """Return how far the store has grown by now."""
    rows = await db.reader.execute_fetchall(
        "SELECT (SELECT coalesce(max(row), 0) FROM experiment) AS experiments, "
        "(SELECT coalesce(max(rowid), 0) FROM document) AS documents, "
        "(SELECT coalesce(group_concat(name || content_hash), '') FROM pack) AS packs, "
        "(SELECT coalesce(max(row), 0) FROM decision) AS decisions"
    )
    return Mark(*next(iter(rows)))


async def decided_after(db: Database, decision: int) -> list[str]:
    """Return the experiments that were decided on after a decision."""
    rows = await db.reader.execute_fetchall(
        "SELECT DISTINCT experiment_id FROM decision WHERE row > :row", {"row": decision}
    )
    return [str(row["experiment_id"]) for row in rows]
