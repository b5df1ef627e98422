"""Papers, repositories and documents: which versions were read, from where, and their passages."""

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from loopgraph_mcp.models import DocumentState, Method
from loopgraph_mcp.ranking.reported import Figure
from loopgraph_mcp.store.chunks import Chunk, insert_chunks
from loopgraph_mcp.store.database import Database

_CHUNKS_AT_ONCE = 100  # some 50 ms of writing


@dataclass(frozen=True, slots=True)
class NewDocument:
    """One version of a paper as it was read.

    Args:
        kind: With `ref`, what the paper is known by: `arxiv`, `github` or `local`.
        version: Within the paper: an arXiv version, a commit, or a content's hash.
        form: What it was read from: `latex`, `html`, `pdf`, `markdown`, `code`.
        note: Where it was not, or not wholly, read: why.
    """

    kind: str
    ref: str
    id: str
    version: str
    state: DocumentState
    title: str
    form: str = ""
    licence: str = ""
    fetched_from: str = ""
    content_hash: str = ""
    note: str = ""
    authors: Sequence[str] = ()
    abstract: str = ""
    published_on: str = ""

    @property
    def paper_id(self) -> str:
        """The paper's id, the same for all its versions and in method packs."""
        return f"{self.kind}:{self.ref}"


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """What the store holds of a document."""

    id: str
    paper_id: str
    version: str
    state: DocumentState
    title: str
    form: str
    licence: str
    fetched_from: str
    content_hash: str
    note: str


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A passage of a document, in reading order."""

    id: str
    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Mention:
    """A passage that describes a known method.

    Args:
        words: By which it was recognised.
        figures: What it reports of the method.
        titled: Whether its place names the method.
    """

    method_id: str
    chunk_id: str
    words: str
    figures: tuple[Figure, ...] = ()
    titled: bool = False


async def add_document(
    db: Database, document: NewDocument, chunks: Sequence[Chunk], mentions: Sequence[Mention] = (), *, now: float
) -> int:
    """Store a document with its passages and the methods they describe; return how many passages are new.

    The passages come first, in transactions so short that others can write between them, and the document last: where
    that is missing, nothing says that it was read. One that is there is replaced where its content or state differs.
    """
    values = {
        "paper": document.paper_id,
        "kind": document.kind,
        "ref": document.ref,
        "title": document.title,
        "authors": "\n".join(document.authors),
        "abstract": document.abstract,
        "published": document.published_on,
        "id": document.id,
        "version": document.version,
        "state": document.state.value,
        "form": document.form,
        "licence": document.licence,
        "url": document.fetched_from,
        "hash": document.content_hash,
        "note": document.note,
        "now": now,
    }

    def write_paper(conn: sqlite3.Connection) -> None:
        conn.execute(
            "INSERT INTO paper (id, kind, ref, title, authors, abstract, published_on) "
            "VALUES (:paper, :kind, :ref, :title, :authors, :abstract, :published) ON CONFLICT (id) DO UPDATE SET "
            "title = :title, authors = :authors, abstract = :abstract, published_on = :published",
            values,
        )

    def write(conn: sqlite3.Connection) -> None:
        conn.execute(
            "INSERT INTO document (id, paper_id, version, state, form, licence, fetched_from, content_hash, note, "
            "ingested_at) VALUES (:id, :paper, :version, :state, :form, :licence, :url, :hash, :note, :now) "
            "ON CONFLICT (id) DO UPDATE SET state = :state, form = :form, licence = :licence, fetched_from = :url, "
            "content_hash = :hash, note = :note, ingested_at = :now",
            values,
        )
        conn.execute("DELETE FROM document_chunk WHERE document_id = :id", values)
        conn.executemany(
            "INSERT INTO document_chunk (document_id, place, chunk_id) VALUES (:document, :place, :chunk)",
            [
                {"document": document.id, "place": place, "chunk": chunk.id}
                for place, chunk in enumerate(dict.fromkeys(chunks))
            ],
        )
        _insert_mentions(conn, mentions)

    await db.write(write_paper)
    new = 0
    for at in range(0, len(chunks), _CHUNKS_AT_ONCE):
        new += await db.write(partial(insert_chunks, chunks=chunks[at : at + _CHUNKS_AT_ONCE]))
    await db.write(write)
    return new


async def add_mentions(db: Database, mentions: Sequence[Mention]) -> None:
    """Link stored passages to the methods they describe; existing links stay."""
    await db.write(lambda conn: _insert_mentions(conn, mentions))


def _insert_mentions(conn: sqlite3.Connection, mentions: Sequence[Mention]) -> None:
    conn.executemany(
        "INSERT INTO method_chunk (method_id, chunk_id, words) VALUES (?, ?, ?) "
        # no words, a person's or an agent's citation, win over those that were recognised
        "ON CONFLICT (method_id, chunk_id) DO UPDATE SET words = min(words, excluded.words)",
        [(each.method_id, each.chunk_id, each.words) for each in mentions],
    )
    conn.executemany(
        "INSERT INTO reported (method_id, chunk_id, claim, setting) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(each.method_id, each.chunk_id, figure.claim, figure.setting) for each in mentions for figure in each.figures],
    )


async def figures_of(db: Database, method_id: str, *, limit: int) -> list[str]:
    """Return what papers were read to report of a method: sentence, setting and paper; the newest papers first."""
    rows = await db.reader.execute_fetchall(
        "SELECT coalesce(paper_id, '') AS paper, claim, setting FROM reported JOIN chunk ON chunk.id = chunk_id "
        "WHERE method_id = :method ORDER BY chunk.row DESC, claim LIMIT :limit",
        {"method": method_id, "limit": limit},
    )
    return [
        " ".join(filter(None, (row["claim"], row["setting"] and f"[{row['setting']}]", f"({row['paper']})")))
        for row in rows
    ]


async def chunks_by_id(db: Database, chunk_ids: Sequence[str]) -> dict[str, Chunk]:
    """Return passages by id; unknown ids are left out."""
    rows = await db.reader.execute_fetchall(
        "SELECT * FROM chunk WHERE id IN (SELECT value FROM json_each(:ids))", {"ids": json.dumps(list(chunk_ids))}
    )
    return {str(row["id"]): _chunk(row) for row in rows}


async def cited_by(db: Database, method_id: str) -> list[str]:
    """Return the ids of the passages that describe a method, cited ones first."""
    rows = await db.reader.execute_fetchall(
        "SELECT chunk_id FROM method_chunk WHERE method_id = :id ORDER BY words <> '', chunk_id", {"id": method_id}
    )
    return [str(row["chunk_id"]) for row in rows]


async def titles(db: Database, paper_ids: Sequence[str]) -> dict[str, str]:
    """Return the titles of papers by id."""
    rows = await db.reader.execute_fetchall(
        "SELECT id, title FROM paper WHERE id IN (SELECT value FROM json_each(:ids))",
        {"ids": json.dumps(list(paper_ids))},
    )
    return {str(row["id"]): str(row["title"]) for row in rows}


async def chunks_saying(db: Database, method: Method, *, limit: int) -> dict[str, list[Chunk]]:
    """Return the newest passages that say one of a method's names, by document."""
    names = {" ".join(re.findall(r"\w+", name)) for name in (method.name, method.id, *method.aliases)}
    rows = await db.reader.execute_fetchall(
        "SELECT document_id, chunk.* FROM chunk_fts JOIN chunk ON chunk.row = chunk_fts.rowid "
        "JOIN document_chunk ON chunk_id = chunk.id WHERE chunk_fts MATCH :names ORDER BY chunk.row DESC LIMIT :limit",
        {"names": " OR ".join(f'"{name}"' for name in sorted(names) if name), "limit": limit},
    )
    found = defaultdict[str, list[Chunk]](list)
    for row in rows:
        found[row["document_id"]].insert(0, _chunk(row))
    return found


def _chunk(row: sqlite3.Row) -> Chunk:
    return Chunk(row["source_kind"], row["text"], row["place"], row["paper_id"], row["licence"])


async def find_document(db: Database, document_id: str) -> StoredDocument | None:
    """Return a document, or None."""
    rows = await db.reader.execute_fetchall(
        "SELECT document.*, paper.title FROM document JOIN paper ON paper.id = paper_id WHERE document.id = :id",
        {"id": document_id},
    )
    return next(
        (
            StoredDocument(
                id=row["id"],
                paper_id=row["paper_id"],
                version=row["version"],
                state=DocumentState(row["state"]),
                title=row["title"],
                form=row["form"],
                licence=row["licence"],
                fetched_from=row["fetched_from"],
                content_hash=row["content_hash"],
                note=row["note"],
            )
            for row in rows
        ),
        None,
    )


async def newest_document(db: Database, paper_id: str) -> StoredDocument | None:
    """Return what was read last of a paper, or None."""
    rows = await db.reader.execute_fetchall(
        "SELECT id FROM document WHERE paper_id = :paper ORDER BY ingested_at DESC, id DESC LIMIT 1",
        {"paper": paper_id},
    )
    ids = [str(row["id"]) for row in rows]
    return await find_document(db, ids[0]) if ids else None


async def chunks_of(db: Database, document_id: str) -> list[StoredChunk]:
    """Return a document's passages in reading order."""
    rows = await db.reader.execute_fetchall(
        "SELECT chunk.id, chunk.place, chunk.text FROM document_chunk JOIN chunk ON chunk.id = chunk_id "
        "WHERE document_id = :id ORDER BY document_chunk.place",
        {"id": document_id},
    )
    return [StoredChunk(row["id"], row["place"], row["text"]) for row in rows]


async def cited_title(db: Database, paper_id: str) -> str:
    """Return the title under which packs cite a paper, or nothing."""
    rows = await db.reader.execute_fetchall("SELECT title FROM paper WHERE id = :id", {"id": paper_id})
    return next((str(row["title"]) for row in rows), "")


async def linked_methods(db: Database, paper_id: str) -> list[str]:
    """Return the methods that cite a paper or that its passages describe, by id."""
    rows = await db.reader.execute_fetchall(
        "SELECT method.id FROM method WHERE retired_at IS NULL AND (id IN "
        "(SELECT method_id FROM method_paper WHERE paper_id = :paper) OR id IN (SELECT method_id FROM chunk "
        "JOIN method_chunk ON chunk_id = chunk.id WHERE paper_id = :paper)) ORDER BY id",
        {"paper": paper_id},
    )
    return [str(row["id"]) for row in rows]
