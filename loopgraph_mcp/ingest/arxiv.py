"""Papers of arXiv: what names one, its metadata, and its text as source, HTML or PDF."""

import asyncio
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from loopgraph_mcp.config import ARXIV_URL, Settings
from loopgraph_mcp.errors import NotFoundError, SourceError
from loopgraph_mcp.ingest import archives
from loopgraph_mcp.ingest.fetch import Fetched, StatusError, Web
from loopgraph_mcp.ingest.rate_limit import Pace

_PAGES = "https://arxiv.org"
INTERVAL_S = 3.0  # https://info.arxiv.org/help/api/tou.html
_NEW = r"(?P<new>\d{2}(?:0[1-9]|1[0-2])\.\d{4,5})"
_OLD = r"(?P<old>[a-z]+(?:-[a-z]+)*(?:\.[A-Z]{2})?/\d{2}(?:0[1-9]|1[0-2])\d{3})"
_ID = rf"(?:{_NEW}|{_OLD})(?:v(?P<version>[1-9]\d{{0,2}}))?"
_NAMED = re.compile(rf"(?:arxiv:)?\s*{_ID}", re.IGNORECASE)
_DOI = re.compile(rf"(?:doi:\s*|https?://(?:dx\.)?doi\.org/)?10\.48550/arxiv\.{_ID}/?", re.IGNORECASE)
_PATHS = {
    "arxiv.org": re.compile(rf"/(?:abs|pdf|html|e-print|src|format|ps)/{_ID}(?:\.pdf)?/?"),
    "alphaxiv.org": re.compile(rf"/(?:\w+/)?{_ID}(?:\.pdf)?/?"),
    "huggingface.co": re.compile(rf"/papers/{_ID}/?"),
}
_TEXT_SUFFIXES = (".tex", ".ltx", ".bib", ".bbl", ".sty", ".cls", ".txt", ".def", ".clo", ".tikz", ".md", ".json", "")
_ATOM = {"a": "http://www.w3.org/2005/Atom", "x": "http://arxiv.org/schemas/atom"}
_WITHDRAWN = re.compile(
    r"\b(?:paper|article|submission|manuscript|preprint|version|work)\s+(?:(?:has|had|have|been|being|is|was|to|be|now|"
    r"temporarily)\s+){1,4}withdrawn\b|^\s*withdrawn\b",
    re.IGNORECASE,
)
_SEARCHED = 5


@dataclass(frozen=True, slots=True)
class Ref:
    """An arXiv id, with its version where one was named."""

    id: str
    version: int | None = None

    def __str__(self) -> str:
        return self.id if self.version is None else f"{self.id}v{self.version}"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What arXiv's API tells of a paper at one version."""

    ref: Ref
    title: str
    authors: tuple[str, ...]
    abstract: str
    published_on: str
    comment: str = ""
    licence: str = ""

    @property
    def withdrawn(self) -> bool:
        """Whether its authors, or arXiv, took this version back."""
        return bool(_WITHDRAWN.search(self.comment) or _WITHDRAWN.search(self.abstract[:300]))


@dataclass(frozen=True, slots=True)
class Source:
    """The files an author sent.

    Args:
        tex: LaTeX files by their path; empty where there are none.
        pdf: Or the PDF that stands in for them.
        skipped: What was not unpacked, with the reason.
        refused: Why nothing was.
    """

    url: str
    tex: Mapping[str, bytes]
    pdf: bytes = b""
    skipped: tuple[str, ...] = ()
    refused: str = ""
    withdrawn: bool = False


def read_ref(text: str) -> Ref | None:
    """Return the paper that an id, a DOI or a URL of arxiv.org, alphaxiv.org or huggingface.co names, or None."""
    text = text.strip()
    match = _NAMED.fullmatch(text) or _DOI.fullmatch(text)
    if match is None and text.startswith(("https://", "http://", "www.", *_PATHS)):
        try:
            parts = urlsplit(text if "://" in text else f"https://{text}")
            host = (parts.hostname or "").removeprefix("www.").removeprefix("export.").removeprefix("beta.")
        except ValueError:
            return None
        match = _PATHS[host].fullmatch(parts.path) if host in _PATHS else None
    if match is None:
        return None
    version = match["version"]
    return Ref(match["new"] or match["old"], None if version is None else int(version))


@dataclass(frozen=True, slots=True)
class Arxiv:
    """arXiv, asked for one thing every three seconds, whichever processes of this user ask."""

    web: Web
    base: str
    pace: Pace

    @classmethod
    def of(cls, web: Web, settings: Settings) -> "Arxiv":
        """Return arXiv, or the mirror that the settings name, which sets no pace."""
        interval_s = INTERVAL_S if settings.arxiv_url == ARXIV_URL else 0.0
        return cls(web, settings.arxiv_url, Pace(_pace_file(settings), interval_s))

    async def find(self, ref: Ref) -> Metadata:
        """Return a paper's metadata at the version named, or at its newest.

        Raises:
            NotFoundError: There is no such paper or version.
            SourceError: It cannot be fetched or read.
        """
        found = await self._ask({"id_list": str(ref), "max_results": "1"})
        if not found or found[0].ref.id != ref.id:
            raise NotFoundError(f"arXiv has no paper {ref}; give its title in place of the id to look for it")
        return found[0]

    async def search(self, phrase: str) -> list[Metadata]:
        """Return the papers that arXiv finds for a phrase, best first, at most five."""
        words = re.findall(r"\w+", phrase)[:20]
        if not words:
            raise SourceError(f"{phrase[:100]!r}: no words to look for; give an arXiv id, a URL, a file or a title")
        query = " AND ".join(f"all:{word}" for word in words)
        return await self._ask({"search_query": query, "max_results": str(_SEARCHED), "sortBy": "relevance"})

    async def _ask(self, query: dict[str, str]) -> list[Metadata]:
        url = f"{self.base}/api/query?{urlencode(query)}"
        try:
            fetched = await self.web.get(url, pace=self.pace)
        except StatusError as error:
            if error.status != 400:  # what it answers to an id that it cannot read
                raise
            return []
        return [] if fetched is None else await asyncio.to_thread(read_feed, fetched.body)

    async def source(self, ref: Ref) -> Source | None:
        """Return the source of a paper's version, or None where arXiv has none."""
        url = self._url("e-print", ref)
        try:
            fetched = await self.web.get(url, pace=self.pace, fixed=True)
        except StatusError as error:
            if error.status in {400, 403}:
                return None
            raise
        try:
            return None if fetched is None else await asyncio.to_thread(_open_source, fetched, ref)
        except SourceError as error:
            return Source(fetched.url if fetched else url, {}, refused=str(error))

    async def html(self, ref: Ref) -> Fetched | None:
        """Return arXiv's own HTML of a paper's version, which a quarter of papers lack."""
        fetched = await self._maybe(self._url("html", ref))
        if fetched is None and self.base == ARXIV_URL:  # the host for programs need not have it
            fetched = await self._maybe(f"{_PAGES}/html/{quote(str(ref))}")
        return fetched if fetched is not None and fetched.content_type.endswith("html") else None

    async def pdf(self, ref: Ref) -> Fetched | None:
        """Return the PDF of a paper's version."""
        return await self._maybe(self._url("pdf", ref))

    async def _maybe(self, url: str) -> Fetched | None:
        try:
            return await self.web.get(url, pace=self.pace, fixed=True)
        except StatusError as error:
            if error.status in {400, 403}:
                return None
            raise

    def _url(self, what: str, ref: Ref) -> str:
        return f"{self.base}/{what}/{quote(str(ref))}"


def read_feed(data: bytes) -> list[Metadata]:
    """Return the papers of an Atom feed of arXiv's API; a feed with declarations, which may bear entities, is refused.

    Raises:
        SourceError: It is none.
    """
    try:
        text = data.decode("utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise SourceError("arXiv's answer declares XML entities; refused")
        root = ET.fromstring(text)  # noqa: S314 - checked above: no declarations, and text whose encoding is settled
    except (UnicodeDecodeError, ET.ParseError, ValueError, RecursionError) as error:
        raise SourceError(f"arXiv's answer is no Atom feed ({error}); try again later") from error
    return [made for entry in root.findall("a:entry", _ATOM) if (made := _entry(entry)) is not None]


def _entry(entry: ET.Element) -> Metadata | None:
    ref = read_ref(_told(entry, "a:id"))
    if ref is None:  # how its errors are told
        return None
    return Metadata(
        ref=ref,
        title=_told(entry, "a:title"),
        authors=tuple(_told(author, "a:name") for author in entry.findall("a:author", _ATOM)[:200]),
        abstract=_told(entry, "a:summary"),
        published_on=_told(entry, "a:published")[:10],
        comment=_told(entry, "x:comment"),
        licence=_told(entry, "a:rights"),
    )


def _told(element: ET.Element, name: str) -> str:
    return " ".join(element.findtext(name, "", _ATOM).split())


def _open_source(fetched: Fetched, ref: Ref) -> Source:
    data = fetched.body
    if data.startswith(b"%PDF"):
        return Source(fetched.url, {}, pdf=data)
    if archives.is_archive(data):
        unpacked = archives.unpack(data, name=f"{ref}.tex".replace("/", "_"), wanted=_is_text)
    else:
        unpacked = archives.Unpacked({f"{ref}.tex".replace("/", "_"): data})
    files = unpacked.files
    if len(files) == 1:
        (only,) = files.values()
        if only.startswith(b"%PDF"):
            return Source(fetched.url, {}, pdf=only)
        if b"%auto-ignore" in only[:2_000] and len(only) < 10_000:  # what arXiv keeps of a withdrawn version
            return Source(fetched.url, {}, withdrawn=True)
    has_tex = any(b"\\" in data and not path.endswith((".bib", ".sty", ".cls", ".md")) for path, data in files.items())
    return Source(fetched.url, files if has_tex else {}, skipped=tuple(unpacked.skipped))


def _is_text(path: str) -> bool:
    return Path(path).suffix.lower() in _TEXT_SUFFIXES


def _pace_file(settings: Settings) -> Path:
    host = urlsplit(settings.arxiv_url).hostname or "arxiv"
    return settings.locks_dir / f"{host}.pace"
