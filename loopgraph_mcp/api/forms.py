"""Reads a document from whichever form of it can be read: its text with its state, and why where there is none."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.errors import SourceError
from loopgraph_mcp.ingest import arxiv
from loopgraph_mcp.ingest.parsers.model import Format
from loopgraph_mcp.ingest.sandbox import Parsed, Reader
from loopgraph_mcp.models import DocumentState
from loopgraph_mcp.store.chunks import Chunk
from loopgraph_mcp.text import plain_line, plain_text

OnStep = Callable[[float, str], Awaitable[None]]
_LEAST_WORDS = 40  # a paper's text below that is a cover page, or what a failed conversion left


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read of a document, from which form of it."""

    state: DocumentState
    document: Parsed | None = None
    form: str = ""
    url: str = ""
    content_hash: str = ""
    notes: tuple[str, ...] = ()


async def read_paper(reader: Reader, site: arxiv.Arxiv, meta: arxiv.Metadata, tell: OnStep) -> Reading:
    """Read a paper from its source, or else from arXiv's HTML, or else from its PDF."""
    ref, notes = meta.ref, list[str]()
    await tell(0.15, f"fetching the source of {ref}")
    source = await site.source(ref)
    if meta.withdrawn or (source is not None and source.withdrawn):
        before = (ref.version or 1) - 1
        earlier = f"; an earlier version may be readable: {ref.id}v{before}" if before else ""
        note = f"withdrawn{f': {plain_line(meta.comment)}' if meta.comment else ''}{earlier}"
        return Reading(DocumentState.WITHDRAWN, notes=(note,))
    state = DocumentState.READ
    if source is not None and source.tex:
        notes += [f"left out of its source: {plain_line(each)}" for each in source.skipped[:5]]
        reading = await read_form(reader, "latex", source.tex, source.url)
        if reading.document is not None:
            return _with(reading, state, [*notes, *reading.notes])
        notes += [f"its LaTeX: {each}" for each in reading.notes]
    elif source is not None and source.refused:
        notes.append(f"its source: {plain_line(source.refused)}")
    else:
        state = DocumentState.SOURCELESS
        notes.append("arXiv has no LaTeX of it")
    await tell(0.4, f"fetching {ref} as HTML")
    page = await site.html(ref)
    if page is not None:
        reading = await read_form(reader, "html", page.body, page.url)
        if reading.document is not None:
            return _with(reading, state, [*notes, *reading.notes])
        notes += [f"its HTML: {each}" for each in reading.notes]
    await tell(0.5, f"fetching {ref} as PDF")
    pdf = source.pdf if source is not None and source.pdf else b""
    url = source.url if source is not None else ""
    if not pdf and (fetched := await site.pdf(ref)) is not None:
        pdf, url = fetched.body, fetched.url
    if not pdf:
        return Reading(DocumentState.BROKEN, notes=(*notes, "arXiv has no PDF of it either"))
    reading = await read_form(reader, "pdf", pdf, url)
    return _with(reading, state if reading.document is not None else reading.state, [*notes, *reading.notes])


async def read_form(
    reader: Reader,
    form: Format,
    data: bytes | Mapping[str, bytes],
    url: str,
    *,
    path: str = "",
    least: int = _LEAST_WORDS,
) -> Reading:
    """Parse a document; what cannot be read is a state with its reason."""
    content_hash = await asyncio.to_thread(hash_of, data if isinstance(data, Mapping) else {"": data})
    try:
        document = await reader.parse(form, data, path=path)
    except SourceError as error:
        return Reading(DocumentState.BROKEN, None, form, url, content_hash, (plain_line(str(error)),))
    notes = tuple(plain_line(each) for each in document.warnings)
    if document.state != "read":
        return Reading(DocumentState(document.state), None, form, url, content_hash, notes)
    if document.words < least:
        state = DocumentState.SCANNED if form == "pdf" else DocumentState.BROKEN
        return Reading(
            state, None, form, url, content_hash, (*notes, f"only {document.words} words of text were found")
        )
    return Reading(DocumentState.READ, document, form, url, content_hash, notes)


async def chunks_of(
    document: Parsed | None, source_kind: str, paper_id: str, licence: str, *, path: str = ""
) -> list[Chunk]:
    """Return a document's passages, made plain; none where it could not be read."""
    return await asyncio.to_thread(_chunks, document, source_kind, paper_id, licence, path)


def _chunks(document: Parsed | None, source_kind: str, paper_id: str, licence: str, path: str) -> list[Chunk]:
    made = []
    for each in document.passages if document is not None else ():
        place = plain_line(each.place)
        place = f"{path}: {place}" if path and place and not place.startswith(path) else place or path
        if text := plain_text(each.text):
            made.append(Chunk(source_kind, text, place, paper_id, plain_line(licence)))
    return made


def _with(reading: Reading, state: DocumentState, notes: Sequence[str]) -> Reading:
    return Reading(state, reading.document, reading.form, reading.url, reading.content_hash, tuple(notes))


def hash_of(files: Mapping[str, bytes]) -> str:
    """Return the hash of files by their paths."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(files[path]).digest())
    return digest.hexdigest()
