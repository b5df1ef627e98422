"""Papers, repositories and documents: which versions were read, from where, and their passages."""

from collections.abc import Sequence
from dataclasses import dataclass

from loopgraph_mcp.models import DocumentState
from loopgraph_mcp.store.chunks import Chunk, insert_chunks
from loopgraph_mcp.store.database import Database


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


async def add_document(db: Database, document: NewDocument, chunks: Sequence[Chunk], *, now: float) -> int:
    """Store a document with its passages, all or nothing; return how many passages are new.

    One that is there is read anew only where its content or state differs.
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
    async with db.transaction() as conn:
        await conn.execute(
            "INSERT INTO paper (id, kind, ref, title, authors, abstract, published_on) "
            "VALUES (:paper, :kind, :ref, :title, :authors, :abstract, :published) ON CONFLICT (id) DO UPDATE SET "
            "title = :title, authors = :authors, abstract = :abstract, published_on = :published",
            values,
        )
        await conn.execute(
            "INSERT INTO document (id, paper_id, version, state, form, licence, fetched_from, content_hash, note, "
            "ingested_at) VALUES (:id, :paper, :version, :state, :form, :licence, :url, :hash, :note, :now) "
            "ON CONFLICT (id) DO UPDATE SET state = :state, form = :form, licence = :licence, fetched_from = :url, "
            "content_hash = :hash, note = :note, ingested_at = :now",
            values,
        )
        new = await insert_chunks(conn, chunks)
        await conn.execute("DELETE FROM document_chunk WHERE document_id = :id", values)
        await conn.executemany(
            "INSERT INTO document_chunk (document_id, place, chunk_id) VALUES (:document, :place, :chunk)",
            [
                {"document": document.id, "place": place, "chunk": chunk.id}
                for place, chunk in enumerate(dict.fromkeys(chunks))
            ],
        )
    return new


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
    """Return the methods that cite a paper or of which its passages tell, by id."""
    rows = await db.reader.execute_fetchall(
        "SELECT method.id FROM method WHERE retired_at IS NULL AND (id IN "
        "(SELECT method_id FROM method_paper WHERE paper_id = :paper) OR id IN (SELECT method_id FROM chunk "
        "JOIN method_chunk ON chunk_id = chunk.id WHERE paper_id = :paper)) ORDER BY id",
        {"paper": paper_id},
    )
    return [str(row["id"]) for row in rows]
