"""Chunks: passages of papers, code, packs and documents, stored once each, and the methods they describe."""

import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from loopgraph_mcp.store.database import Database, text_hash

_CODE_NAME = re.compile(r"\b(?:[A-Za-z]+\d*_\w+|_\w+|[a-z]+(?:[A-Z][a-z0-9]*)+|(?:[A-Z][a-z0-9]+){2,})\b")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage to keep.

    Args:
        source_kind: `paper`, `code`, `pack` or `document`.
        place: Its section, page or symbol.
        licence: Under which terms it is kept; empty where that is not known.
    """

    source_kind: str
    text: str
    place: str = ""
    paper_id: str | None = None
    licence: str = ""

    @property
    def id(self) -> str:
        """The hash of what it holds: the same passage has one id in every store."""
        return f"chunk_{text_hash(json.dumps(asdict(self), sort_keys=True))[:16]}"


async def add_chunks(db: Database, chunks: Sequence[Chunk], *, method_id: str | None = None) -> list[str]:
    """Store passages, in order, with the method they describe; return their ids. Known passages stay unchanged."""
    ids = [chunk.id for chunk in chunks]

    def write(conn: sqlite3.Connection) -> None:
        insert_chunks(conn, chunks)
        if method_id is not None:
            conn.executemany(
                "INSERT INTO method_chunk (method_id, chunk_id) VALUES (:method, :id) ON CONFLICT DO NOTHING",
                [{"method": method_id, "id": each} for each in ids],
            )

    await db.write(write)
    return ids


def insert_chunks(conn: sqlite3.Connection, chunks: Sequence[Chunk]) -> int:
    """Keep passages within a transaction; return how many are new."""
    cursor = conn.executemany(
        "INSERT INTO chunk (id, source_kind, paper_id, place, licence, text, identifiers) "
        "VALUES (:id, :kind, :paper, :place, :licence, :text, :identifiers) ON CONFLICT (id) DO NOTHING",
        [
            {
                "id": chunk.id,
                "kind": chunk.source_kind,
                "paper": chunk.paper_id,
                "place": chunk.place,
                "licence": chunk.licence,
                "text": chunk.text,
                "identifiers": " ".join(split_names(chunk.text)),
            }
            for chunk in chunks
        ],
    )
    return max(cursor.rowcount, 0)  # -1 where there was nothing to insert


async def passages_of(db: Database, method_id: str, *, limit: int) -> list[Chunk]:
    """Return the passages that describe a method: those of papers first, then the oldest."""
    rows = await db.reader.execute_fetchall(
        "SELECT chunk.* FROM method_chunk JOIN chunk ON chunk.id = method_chunk.chunk_id "
        "WHERE method_id = :method ORDER BY source_kind <> 'paper', chunk.row LIMIT :limit",
        {"method": method_id, "limit": limit},
    )
    return [Chunk(row["source_kind"], row["text"], row["place"], row["paper_id"], row["licence"]) for row in rows]


async def get_chunk(db: Database, chunk_id: str) -> Chunk | None:
    """Return a passage, or None where the id names none."""
    rows = await db.reader.execute_fetchall(
        "SELECT source_kind, text, place, paper_id, licence FROM chunk WHERE id = :id", {"id": chunk_id}
    )
    return next((Chunk(*row) for row in rows), None)


def split_names(text: str) -> list[str]:
    """Return the parts of the names of code in a text: `val_bpb` is also val and bpb."""
    names = dict.fromkeys(_CODE_NAME.findall(text))
    return list(dict.fromkeys(part.casefold() for name in names for part in _PART.findall(name) if len(part) > 1))
