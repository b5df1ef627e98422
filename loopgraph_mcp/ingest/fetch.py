"""Fetches other people's files over HTTPS: within limits, from public addresses alone, each at most once."""

import asyncio
import email.utils
import functools
import random
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

import httpx

from loopgraph_mcp import __version__
from loopgraph_mcp.errors import SourceError
from loopgraph_mcp.ingest.addresses import Resolve, headers_for, is_public, origin, resolve
from loopgraph_mcp.ingest.cache import Cache, Entry, Part
from loopgraph_mcp.ingest.rate_limit import Pace

USER_AGENT = f"loopgraph-mcp/{__version__} (https://pypi.org/project/loopgraph-mcp)"
_MOST_REDIRECTS = 5
_MOST_ADDRESSES = 4
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_GONE = frozenset({404, 410})


class StatusError(SourceError):
    """A server answered with a status that is none of success, absence or a reason to try again for long."""

    def __init__(self, message: str, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read the authorities once: each reading takes half a megabyte, which a refused request holds for long."""
    return httpx.create_ssl_context(trust_env=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a fetch may take.

    Args:
        body_bytes: Of a body as it is sent.
        decoded_bytes: Of a body once its Content-Encoding is undone.
        total_s: For all of a fetch, its waits and repeats included.
        silence_s: Without a byte.
        attempts: Tries, of which each may go on where the last ended.
        backoff_s: Before the second try; twice as long before each next one.
        wait_s: The longest wait that a server may ask for by Retry-After.
    """

    body_bytes: int = 100 * 2**20
    decoded_bytes: int = 200 * 2**20
    total_s: float = 300.0
    silence_s: float = 30.0
    attempts: int = 4
    backoff_s: float = 1.0
    wait_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A body with where it came from in the end and its type."""

    url: str
    body: bytes
    content_type: str
    sha256: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """The server said that what we have is still right."""


@dataclass(frozen=True, slots=True)
class Web:
    """The one way out: every fetch of LoopGraph's server goes through `get`.

    Args:
        trusted: Origins, such as `http://127.0.0.1:8000`, that the user's settings name: they may be on this machine
            and do without TLS. No redirect leads to one from elsewhere.
        offline: Whether only the cache is asked.
    """

    client: httpx.AsyncClient
    cache: Cache
    trusted: Collection[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    resolve: Resolve = resolve
    offline: bool = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        cache: Cache,
        *,
        trusted: Collection[str] = (),
        limits: Limits | None = None,
        resolve: Resolve = resolve,
        offline: bool = False,
    ) -> AsyncIterator["Web"]:
        """Open connections as needed and close them at the end.

        None is kept for another request: its certificate was checked for one name only. The environment's proxies and
        netrc are not asked: a proxy would look names up behind our back.
        """
        limits = limits or Limits()
        async with httpx.AsyncClient(
            verify=await asyncio.to_thread(_certificates),
            trust_env=False,
            follow_redirects=False,
            timeout=limits.silence_s,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        ) as client:
            yield cls(client, cache, frozenset(origin(url) for url in trusted), limits, resolve, offline)

    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        pace: Pace | None = None,
        fixed: bool = False,
    ) -> Fetched | None:
        """Return what a URL holds, or None where nothing is there.

        Args:
            url: An https URL, or one of a trusted origin.
            headers: Sent as well; Authorization only to this URL's own origin.
            pace: Whose turn each request takes.
            fixed: What is there never changes, so that the cache is not asked twice.

        Raises:
            StatusError: The server refused.
            SourceError: It could not be fetched within the limits, or leads where it may not.
        """
        headers = dict(headers or {})
        key = f"{url}\n{headers.get('Accept', '')}"
        known = await asyncio.to_thread(self.cache.find, key)
        if known is not None and (fixed or self.offline):
            return await asyncio.to_thread(self._fetched, *known)
        if self.offline:
            raise SourceError(f"{url}: not in the cache; leave out --offline to fetch it")
        try:
            async with asyncio.timeout(self.limits.total_s):
                return await self._try(url, key, headers, known, pace)
        except TimeoutError as error:
            raise SourceError(
                f"{url}: not done within {self.limits.total_s:g} s; ask again, it goes on where it ended"
            ) from error

    async def _try(
        self,
        url: str,
        key: str,
        headers: dict[str, str],
        known: tuple[Entry, bytes] | None,
        pace: Pace | None,
    ) -> Fetched | None:
        """Ask until there is an answer, the tries are used up, or the server wants too long a wait."""
        for attempt in range(1, self.limits.attempts + 1):
            wait_s = self.limits.backoff_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
            try:
                answer = await self._ask(url, key, headers, known, pace)
            except StatusError as error:
                asked = _retry_after(error.headers)
                if error.status not in _AGAIN or attempt == self.limits.attempts or (asked or 0) > self.limits.wait_s:
                    raise
                wait_s = wait_s if asked is None else asked
            except httpx.TransportError as error:
                if attempt == self.limits.attempts:
                    raise SourceError(f"{url}: {_reason(error)}; check the network, and ask again") from error
            else:
                if isinstance(answer, _Kept):
                    assert known is not None  # noqa: S101 - we told the server what we have
                    return await asyncio.to_thread(self._fetched, *known)
                return answer
            await asyncio.sleep(wait_s)
        raise AssertionError("attempts is at least 1")

    async def _ask(
        self,
        url: str,
        key: str,
        headers: dict[str, str],
        known: tuple[Entry, bytes] | None,
        pace: Pace | None,
    ) -> Fetched | _Kept | None:
        """Ask once, following redirects by hand."""
        first = origin(url)
        with self.cache.part(key) as part:
            for _ in range(_MOST_REDIRECTS + 1):
                allowed = headers_for(url, first, headers)
                turn: AbstractAsyncContextManager[None] = nullcontext() if pace is None else pace.turn()
                async with turn:
                    answer = await self._request(url, allowed, known, part, from_origin=first)
                if not isinstance(answer, str):
                    break
                url = answer
            else:
                raise SourceError(f"{url}: more than {_MOST_REDIRECTS} redirects; give the address it should end at")
            if not isinstance(answer, httpx.Response):
                return answer
            body = await asyncio.to_thread(part.read)
            entry = await asyncio.to_thread(self.cache.keep, key, url, body, answer.headers)
            self.cache.forget_part(key)
        return await asyncio.to_thread(self._fetched, entry, body)

    async def _request(
        self,
        url: str,
        headers: dict[str, str],
        known: tuple[Entry, bytes] | None,
        part: Part,
        *,
        from_origin: str,
    ) -> httpx.Response | str | _Kept | None:
        """Send one request; a redirect's answer is where it leads, and a body is left in the part."""
        asked = dict(headers)
        if part.size:
            asked |= {"Range": f"bytes={part.size}-", "If-Range": part.etag}
        elif known is not None:
            asked |= {"If-None-Match": known[0].etag} if known[0].etag else {}
            asked |= {"If-Modified-Since": known[0].last_modified} if known[0].last_modified else {}
        async with self._send(url, asked, from_origin=from_origin) as response:
            status = response.status_code
            if response.has_redirect_location:
                try:
                    return urljoin(url, response.headers["location"])
                except ValueError as error:
                    raise SourceError(f"{url}: redirects to no URL ({error}); refused") from error
            if status == HTTPStatus.NOT_MODIFIED and known is not None:
                return _Kept()
            if status in _GONE:
                return None
            _begin(url, response, part)
            await self._receive(url, response, part)
            return response

    @asynccontextmanager
    async def _send(self, url: str, headers: Mapping[str, str], *, from_origin: str) -> AsyncIterator[httpx.Response]:
        """Send a request to an address that was checked, under the name it was checked for."""
        addresses = await self._addresses(url, from_origin)
        try:
            named = httpx.URL(url.partition("#")[0])
        except httpx.InvalidURL as error:
            raise SourceError(f"{url[:200]!r}: no URL ({error})") from error
        for address in addresses:
            request = self.client.build_request(
                "GET",
                named.copy_with(host=address),
                headers={**headers, "Host": named.netloc.decode("ascii")},
                extensions={"sni_hostname": named.raw_host.decode("ascii")},
            )
            try:
                response = await self.client.send(request, stream=True)
            except httpx.RemoteProtocolError as error:
                if "location header" not in str(error):
                    raise
                raise SourceError(f"{url}: redirects to no URL ({error}); refused") from error
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return

    async def _addresses(self, url: str, from_origin: str) -> list[str]:
        """Return where a URL may be asked for.

        Raises:
            SourceError: It is no https URL, or any of its name's addresses is not public.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise SourceError(f"{url[:200]!r}: no URL ({error})") from error
        trusted = origin(url) in self.trusted and origin(url) == from_origin
        if not parts.hostname or (parts.scheme != "https" and not trusted):
            raise SourceError(f"{url[:200]!r}: refused; only https is fetched")
        if "@" in parts.netloc:
            raise SourceError(f"{parts.hostname}: refused; an address must not hold a name or password")
        try:
            addresses = await self.resolve(parts.hostname, port)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"no address for {parts.hostname!r}") from error
        for address in addresses:
            if not trusted and not is_public(address):
                raise SourceError(f"{url[:200]!r}: refused; it leads to {address}, which is no public address")
        if not addresses:
            raise httpx.ConnectError(f"no address for {parts.hostname!r}")
        return addresses[:_MOST_ADDRESSES]

    async def _receive(self, url: str, response: httpx.Response, part: Part) -> None:
        """Write a body down as it comes, and stop where it is too large."""
        length = response.headers.get("content-length", "")
        told = part.size + int(length) if length.isdigit() else 0
        async for data in response.aiter_raw():
            if part.size + len(data) > self.limits.body_bytes or told > self.limits.body_bytes:
                part.restart("")
                raise SourceError(
                    f"{url}: larger than {_mib(self.limits.body_bytes)}; name a part of it, or give a local copy"
                )
            part.write(data)

    def _fetched(self, entry: Entry, body: bytes) -> Fetched:
        decoded = decode(body, entry.encoding, most=self.limits.decoded_bytes, url=entry.url)
        return Fetched(entry.url, decoded, entry.content_type.partition(";")[0].strip().lower(), entry.sha256)


def decode(body: bytes, encoding: str, *, most: int, url: str) -> bytes:
    """Undo a Content-Encoding, up to a size.

    Raises:
        SourceError: It is damaged, unknown, or grows past the size.
    """
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise SourceError(f"{url}: sent as {encoding!r}, which was not asked for; refused")
    engine = zlib.decompressobj(wbits=47 if encoding != "deflate" else 15)
    try:
        decoded = engine.decompress(body, most + 1)
    except zlib.error as error:
        raise SourceError(f"{url}: its compression is damaged ({error}); try again later") from error
    if len(decoded) > most:
        raise SourceError(f"{url}: unpacks to more than {_mib(most)}; refused")
    if not engine.eof:
        raise SourceError(f"{url}: its compressed body is cut short; try again later")
    return decoded


def _begin(url: str, response: httpx.Response, part: Part) -> None:
    """Make the part ready for a body: go on with what is there if that is what is sent, or else begin anew.

    Raises:
        StatusError: It is no body.
    """
    status = response.status_code
    if part.size and status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.restart("")
        raise httpx.RemoteProtocolError("the file has become shorter")
    if part.size and status == HTTPStatus.PARTIAL_CONTENT:
        if not response.headers.get("content-range", "").startswith(f"bytes {part.size}-"):
            part.restart("")
            raise httpx.RemoteProtocolError("it sent another part than it was asked for")
    elif status == HTTPStatus.OK:
        part.restart(response.headers.get("etag", ""))
    else:
        raise StatusError(_refusal(url, status, response.headers), status, response.headers)


def _refusal(url: str, status: int, headers: Mapping[str, str]) -> str:
    asked = _retry_after(headers)
    when = "later" if asked is None else f"in {asked:.0f} s, as it asks"
    return f"{url}: the server answered {status}; try again {when}"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks for, told as a number or as a date."""
    told = headers.get("retry-after", "").strip()
    if told.isdigit() and len(told) < 10:
        return float(told)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


def _mib(size: int) -> str:
    return f"{size / 2**20:,.4g} MiB"
