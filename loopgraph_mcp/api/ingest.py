"""Takes papers, repositories, files and packs into the memory: fetched, read, cut into passages, stored by version."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from loopgraph_mcp.api import forms, imports, packs
from loopgraph_mcp.api.answers import Candidate, ImportAnswer, IngestAnswer, ShownPassage
from loopgraph_mcp.api.linking import find_mentions
from loopgraph_mcp.api.state import State
from loopgraph_mcp.config import ARXIV_URL, GITHUB_URL, Settings
from loopgraph_mcp.errors import NotFoundError, SourceError
from loopgraph_mcp.ingest import archives, arxiv, github, local, pack_archives, select
from loopgraph_mcp.ingest.cache import Cache
from loopgraph_mcp.ingest.fetch import Web
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.ingest.sandbox import Reader
from loopgraph_mcp.models import Advice, DocumentState, NextStep
from loopgraph_mcp.store import methods, papers
from loopgraph_mcp.store.chunks import Chunk
from loopgraph_mcp.store.papers import NewDocument
from loopgraph_mcp.text import plain_line, plain_text

_HISTORIES = frozenset({".tsv", ".csv", ".jsonl"})
_ARCHIVES = (".tar.gz", ".tgz", ".zip", ".tar")
_MOST_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """How a source is to be ingested.

    Args:
        query: Which passages are shown; by default those that tell of the method.
        sha256: What a pack's content must hash to.
        offline: Whether only the cache is asked.
    """

    query: str = ""
    sha256: str | None = None
    offline: bool = False


async def ingest(state: State, source: str, asked: Asked, on_step: forms.OnStep | None) -> IngestAnswer:
    """Ingest whatever a source names: a paper, repository, file, folder, pack or run history."""

    async def quiet(_share: float, _words: str) -> None: ...

    if (history := _history_path(source, state.settings)) is not None:
        told = imports.Told()
        answer = await imports.import_history(state, history, told, dry_run=False, progress=lambda _: None)
        return _of_history(source, answer)
    return await _Ingest(state, asked, on_step or quiet).run(source)


@dataclass(slots=True)
class _Ingest:
    """One call of the verb: where it stores, how it fetches, whom it tells."""

    state: State
    asked: Asked
    tell: forms.OnStep
    reader: Reader = field(default_factory=Reader)

    async def run(self, source: str) -> IngestAnswer:
        """Ingest whatever a source names."""
        async with self.reader:
            return await self._run(source)

    async def _run(self, source: str) -> IngestAnswer:
        path = own_path(source, self.state.settings)
        if path is not None and pack_archives.looks_like_one(path):
            checked = pack_archives.Checked(await asyncio.to_thread(read_pack, path), path)
            return await packs.install_pack(self.state, source, checked, sha256=self.asked.sha256)
        if path is not None and (data := await asyncio.to_thread(_pack_bytes, path)) is not None:
            return await packs.install_archive(self.state, source, data, sha256=self.asked.sha256)
        if path is not None:
            return await self._files(source, path)
        named = {self.state.settings.arxiv_url, self.state.settings.github_url} - {ARXIV_URL, GITHUB_URL}
        cache = Cache(self.state.settings.fetched_dir)
        async with Web.open(cache, trusted=named, offline=self.asked.offline) as web:
            if (paper := arxiv.read_ref(source)) is not None:
                return await self._paper(source, arxiv.Arxiv.of(web, self.state.settings), paper)
            if (place := github.read_ref(source)) is not None:
                return await self._repository(source, github.GitHub.of(web, self.state.settings), place)
            if "://" in source:
                return await self._pack_url(source, web)
            _refuse_path(source)
            return await self._phrase(source, arxiv.Arxiv.of(web, self.state.settings))

    # ------------------------------------------------------------------------------------------- papers

    async def _phrase(self, source: str, site: arxiv.Arxiv) -> IngestAnswer:
        """Look for a paper by its title; one that has it to the letter is taken, of others the best are named."""
        await self.tell(0.05, "looking for it on arXiv")
        found = await site.search(source)
        exact = [each for each in found if _letters(each.title) == _letters(source)]
        if len(exact) == 1:
            return await self._paper(source, site, exact[0].ref)
        candidates = [Candidate(str(each.ref), plain_line(each.title)) for each in found]
        step = NextStep(Advice.OTHER_WORDS)
        if candidates:
            step = NextStep(Advice.CHOOSE_SOURCE, "ingest", {"source": candidates[0].id})
        return IngestAnswer(source, "choice", "", "", "", step, documents=0, candidates=candidates)

    async def _paper(self, source: str, site: arxiv.Arxiv, ref: arxiv.Ref) -> IngestAnswer:
        if ref.version is not None and await self._is_read(f"arxiv:{ref}"):
            return await self._answer(source, "paper", f"arxiv:{ref}", added=0, warnings=[])
        await self.tell(0.05, f"asking arXiv for {ref}")
        meta = await site.find(ref)
        document_id = f"arxiv:{meta.ref}"
        cited = await papers.cited_title(self.state.db, f"arxiv:{meta.ref.id}")
        warnings = list[str]()
        if cited and _letters(cited) != _letters(meta.title):
            warnings.append(f"a pack cites it as {plain_line(cited)!r}")
        if await self._is_read(document_id):
            return await self._answer(source, "paper", document_id, added=0, warnings=warnings)
        reading = await forms.read_paper(self.reader, site, meta, self.tell)
        document = NewDocument(
            kind="arxiv",
            ref=meta.ref.id,
            id=document_id,
            version=f"v{meta.ref.version or 1}",
            state=reading.state,
            title=plain_line(meta.title),
            form=reading.form,
            licence=plain_line(meta.licence),
            fetched_from=reading.url,
            content_hash=reading.content_hash,
            note="; ".join(reading.notes),
            authors=tuple(plain_line(each) for each in meta.authors),
            abstract=plain_text(meta.abstract),
            published_on=meta.published_on,
        )
        chunks = await forms.chunks_of(reading.document, "paper", document.paper_id, document.licence)
        if document.abstract and not any("abstract" in each.place.casefold() for each in chunks):
            chunks.insert(0, Chunk("paper", document.abstract, "Abstract", document.paper_id, document.licence))
        added = await self._store(document, chunks)
        return await self._answer(source, "paper", document_id, added=added, warnings=[*warnings, *reading.notes])

    # ------------------------------------------------------------------------------- repositories, files

    async def _repository(self, source: str, hub: github.GitHub, ref: github.Ref) -> IngestAnswer:
        await self.tell(0.05, f"asking GitHub for {ref.repository}")
        snapshot = await hub.read(ref)
        document_id = f"github:{snapshot.repository}@{snapshot.commit}"
        document_id += f":{snapshot.path}" if snapshot.path else ""
        content_hash = await asyncio.to_thread(forms.hash_of, snapshot.files)
        known = await papers.find_document(self.state.db, document_id)
        if known is not None and known.content_hash == content_hash:
            return await self._answer(source, "repository", document_id, added=0, warnings=[])
        chunks, notes = list[Chunk](), [plain_line(each) for each in snapshot.skipped]
        paper_id = f"github:{snapshot.repository}"
        for count, (path, data) in enumerate(snapshot.files.items()):
            await self.tell(0.3 + 0.6 * count / len(snapshot.files), f"reading {path}")
            kind = local.KINDS.get(PurePosixPath(path).suffix.lower(), "markdown")
            reading = await forms.read_form(self.reader, kind, data, snapshot.url, path=path, least=1)
            notes += [f"{path}: {each}" for each in reading.notes]
            of = "code" if kind == "code" else "document"
            chunks += await forms.chunks_of(reading.document, of, paper_id, snapshot.licence, path=path)
        document = NewDocument(
            kind="github",
            ref=snapshot.repository,
            id=document_id,
            version=snapshot.commit,
            state=DocumentState.READ if chunks else DocumentState.BROKEN,
            title=plain_line(snapshot.title) or snapshot.repository,
            form="code and documentation" if len(snapshot.files) > 1 else "file",
            licence=plain_line(snapshot.licence),
            fetched_from=snapshot.url,
            content_hash=content_hash,
            note="; ".join(notes[:_MOST_WARNINGS]),
        )
        added = await self._store(document, chunks)
        if not snapshot.licence:
            notes.insert(0, "GitHub knows no licence of it: read it, but copy nothing")
        return await self._answer(source, "repository", document_id, added=added, warnings=notes)

    async def _files(self, source: str, path: Path) -> IngestAnswer:
        """Ingest a file or a folder; each document in a transaction of its own, so that a cut loses none."""
        found = await asyncio.to_thread(local.find, path)
        notes, ids, added = [plain_line(each) for each in found.skipped], list[str](), 0
        for count, piece in enumerate(found.pieces):
            share = 0.9 * count / len(found.pieces)
            await self.tell(share, f"reading {piece.place} ({count + 1} of {len(found.pieces)})")
            try:
                document_id, new, told = await self._file(piece, share)
            except SourceError as error:
                if len(found.pieces) == 1:
                    raise
                notes.append(plain_line(str(error)))
                continue
            ids, added, notes = [*ids, document_id], added + new, [*notes, *told]
        if not ids:
            raise SourceError(f"{path}: nothing in it could be read: {'; '.join(notes[:3])}")
        if len(ids) == 1:
            return await self._answer(source, "files", ids[0], added=added, warnings=notes)
        return await self._answer(source, "files", *ids, added=added, warnings=notes, title=str(path))

    async def _file(self, piece: local.Piece, share: float) -> tuple[str, int, list[str]]:
        data = await asyncio.to_thread(piece.load)
        content_hash = await asyncio.to_thread(forms.hash_of, data if isinstance(data, Mapping) else {"": data})
        at = piece.root / piece.place
        document_id = f"local:{at}@{content_hash[:12]}"
        if await self._is_read(document_id):
            return document_id, 0, []
        reading = await forms.read_form(self.reader, piece.kind, data, str(at), path=piece.place, least=1)
        title = reading.document.title if reading.document is not None else ""
        document = NewDocument(
            kind="local",
            ref=str(at),
            id=document_id,
            version=content_hash[:12],
            state=reading.state,
            title=plain_line(title) or at.name,
            form=reading.form,
            fetched_from=str(at),
            content_hash=content_hash,
            note="; ".join(reading.notes),
        )
        of = {"code": "code", "markdown": "document", "html": "document"}.get(piece.kind, "paper")
        chunks = await forms.chunks_of(reading.document, of, document.paper_id, "")
        added = await self._store(document, chunks, share)
        return document_id, added, [f"{piece.place}: {each}" for each in reading.notes]

    # ------------------------------------------------------------------------------------------- packs

    async def _pack_url(self, source: str, web: Web) -> IngestAnswer:
        if not urlsplit(source).path.endswith(_ARCHIVES):
            raise SourceError(
                f"{source[:200]!r}: give a URL of arXiv or GitHub, or of a method pack ({', '.join(_ARCHIVES)}); "
                "save any other page or PDF and give its file"
            )
        await self.tell(0.1, "fetching the pack")
        fetched = await web.get(source)
        if fetched is None:
            raise NotFoundError(f"{source[:200]!r}: nothing is there; check the URL")
        return await packs.install_archive(self.state, source, fetched.body, sha256=self.asked.sha256)

    # ------------------------------------------------------------------------------------------- common

    async def _is_read(self, document_id: str) -> bool:
        """Return whether a document is in the store with its text; one that failed is tried again."""
        known = await papers.find_document(self.state.db, document_id)
        return known is not None and known.state in {DocumentState.READ, DocumentState.SOURCELESS}

    async def _store(self, document: NewDocument, chunks: Sequence[Chunk], share: float = 0.9) -> int:
        """Store a document with its passages and the methods they tell of; return how many passages are new."""
        await self.tell(share, f"storing {len(chunks)} passages of {document.id}")
        known = await methods.all_methods(self.state.db)
        mentions = await asyncio.to_thread(find_mentions, chunks, known)
        return await papers.add_document(self.state.db, document, chunks, mentions, now=self.state.clock())

    async def _answer(
        self, source: str, kind: str, *document_ids: str, added: int, warnings: Sequence[str], title: str = ""
    ) -> IngestAnswer:
        """Return the answer for stored documents: what they are, and the passages that tell most."""
        known, told, linked = list[papers.StoredDocument](), list[select.Told](), dict[str, None]()
        for each in document_ids:
            document = await papers.find_document(self.state.db, each)
            assert document is not None  # noqa: S101 - it was stored or found before
            known.append(document)
            of = f"{document.title}: " if len(document_ids) > 1 else ""
            chunks = await papers.chunks_of(self.state.db, each)
            told += [select.Told(found.id, f"{of}{found.place}", found.text) for found in chunks]
            linked |= dict.fromkeys(await papers.linked_methods(self.state.db, document.paper_id))
        shown = await asyncio.to_thread(select.choose, told, self.asked.query)
        first = known[0]
        return IngestAnswer(
            source=source,
            kind=kind,
            id=first.id if len(known) == 1 else title,
            version=first.version if len(known) == 1 else "",
            title=title or first.title,
            state=first.state if len(known) == 1 else DocumentState.READ,
            form=", ".join(dict.fromkeys(each.form for each in known if each.form)),
            licence=first.licence,
            fetched_from=first.fetched_from if len(known) == 1 else title,
            sha256=first.content_hash if len(known) == 1 else "",
            documents=len(known),
            added=added,
            known=len({each.id for each in told}) - added,
            passages=[ShownPassage(each.id, each.place, each.text) for each in shown],
            methods=list(linked),
            warnings=list(warnings[:_MOST_WARNINGS]),
            next_step=_next_step(shown, list(linked)),
        )


def own_path(source: str, settings: Settings) -> Path | None:
    """Return the file or folder that a source names, or None; relative ones lie in the workspace."""
    if "://" in source or len(source) > 4_000 or "\0" in source or not source.strip():
        return None
    try:
        path = settings.workspace / Path(source).expanduser()
        return path.resolve() if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user's home, or a link to itself
        return None


def _history_path(source: str, settings: Settings) -> Path | None:
    """Return the run history that a source names, or None where it names something else."""
    path = own_path(source, settings)
    return path if path is not None and path.is_file() and path.suffix.lower() in _HISTORIES else None


def _of_history(source: str, answer: ImportAnswer) -> IngestAnswer:
    """Return the answer for a history that was imported."""
    return IngestAnswer(
        source=source,
        kind="history",
        id=answer.file,
        version="",
        title=answer.file,
        form=f"{answer.metric} ({answer.direction.value} is better: {answer.direction_from}), {answer.device}",
        added=answer.added,
        known=answer.known,
        documents=1,
        warnings=[f"{answer.left_out} rows left out", *answer.notes] if answer.left_out else list(answer.notes),
        next_step=answer.next_step,
    )


def _next_step(shown: Sequence[select.Told], linked: Sequence[str]) -> NextStep:
    if not shown:
        return NextStep(Advice.OTHER_FORM)
    about = {"passages": ", ".join(each.id for each in shown[:2]), "methods": ", ".join(linked[:5])}
    return NextStep(Advice.REGISTER_METHOD, "add_method", about=about)


def _pack_bytes(path: Path) -> bytes | None:
    """Return a file's bytes if it is an archive that holds a pack."""
    if not path.is_file() or not path.name.endswith(_ARCHIVES):
        return None
    data = local.read_bytes(path, 100 * 2**20)
    held = archives.unpack(data, name=path.name, wanted=lambda name: PurePosixPath(name).name == "pack.toml").files
    return data if held or path.suffix == ".zip" else None


def _refuse_path(source: str) -> None:
    """Refuse what can only be a path: a typo in one is no phrase to look for.

    Raises:
        NotFoundError: It looks like a path.
    """
    suffix = PurePosixPath(source).suffix.lower()
    if source.startswith(("/", "./", "../", "~")) or (
        " " not in source.strip() and suffix in {*local.KINDS, *_HISTORIES}
    ):
        raise NotFoundError(f"{source[:200]!r}: no such file or folder; relative paths start at the workspace")


def _letters(text: str) -> str:
    return "".join(re.findall(r"\w+", text.casefold()))
