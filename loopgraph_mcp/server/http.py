"""Serves over streamable HTTP: access, limits, shutdown. Imported only with --http."""

import asyncio
import json
import logging
import resource
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import uvicorn
from mcp.server import MCPServer
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import build_resource_metadata_url, create_protected_resource_routes
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from mcp_types import INVALID_REQUEST
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import AnyHttpUrl
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from loopgraph_mcp import auth
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.auth import Allowance, Grant
from loopgraph_mcp.config import HttpOptions, Settings
from loopgraph_mcp.errors import ConfigError, LoopGraphError
from loopgraph_mcp.server.background import running
from loopgraph_mcp.server.callers import GRANT
from loopgraph_mcp.server.metrics import Metrics
from loopgraph_mcp.server.oauth import SCOPE_PREFIX, Issuer
from loopgraph_mcp.server.progress_view import view_tools
from loopgraph_mcp.server.tools import loop_tools
from loopgraph_mcp.store import experiments, tokens
from loopgraph_mcp.store.database import Database, text_hash
from loopgraph_mcp.web.door import SECRET, Door

if TYPE_CHECKING:
    from loopgraph_mcp.web.page import Page

PATH = "/mcp"
FIRST_TOKEN = "default"  # noqa: S105 - its name, not its secret
_OPEN_PATHS = frozenset({"/health", "/ready"})
_METADATA = "/.well-known/oauth-protected-resource"
_TOKENS_FOR_S = 1.0  # how long a revoked token may still be taken
_HEAD_S = 20.0  # a slow head would keep a connection from others
_BODY_S = 30.0  # 4 MiB over a slow line
_KEEP_ALIVE_S = 30  # idle connections count towards the limit below
_STOP_S = 5  # for open answers; runs do not depend on the server
_MAX_CONNECTIONS = 5_000  # each costs a file descriptor
_CROWDED = 4_000  # connections from which on a new one takes the place of the one that was opened first and is idle
_SESSIONS_PER_TOKEN = 100  # a session takes about 50 KB
_MAX_SESSIONS = 2_000
_SESSIONS_FOR_ADMINS = 100  # of these: nobody else can take them
_SESSION_IDLE_S = 15 * 60.0  # an agent may think for minutes between calls
_REQUESTS_PER_TOKEN = 500  # at one moment, those that stream among them
_LOOK_EVERY_S = 1.0  # at the tokens of open requests
_MAX_BODY_BYTES = 4 * 2**20  # the SDK's own limit
_MAX_ALLOWANCES = 10_000  # tokens whose call rates are remembered
_BAD_REQUEST = 400
_VALIDATOR = b"errors.pydantic.dev"
_NO_REQUEST = (
    "the body is not a JSON-RPC message; send one object such as "
    '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "search_methods", "arguments": {}}}'
)
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

logger = logging.getLogger("loopgraph.http")


class Doorkeeper:
    """Knows which bearer tokens are good, and how often each may still call."""

    def __init__(self, db: Database, issuer: Issuer | None) -> None:
        self._db = db
        self._issuer = issuer
        self._lock = asyncio.Lock()
        self._known: dict[str, Grant] = {}
        self._read_at = -_TOKENS_FOR_S
        self._allowances: dict[str, tuple[int, Allowance]] = {}
        self._under_way: dict[asyncio.Timeout, tuple[str, Grant]] = {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """End open requests of a token that is revoked, rotated or expired: a stream would continue for days."""
        async with running(self._watch()):
            yield

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            good = dict[str, bool]()
            for limit, (secret, grant) in list(self._under_way.items()):
                if secret not in good:
                    try:
                        good[secret] = await self.grant(secret) is not None
                    except Exception as error:  # noqa: BLE001 - an issuer or a store that fails for now ends no stream
                        logger.warning("a token cannot be checked again: %s", error)
                        good[secret] = grant.expires_at is None or grant.expires_at > time.time()
                if not good[secret] and limit in self._under_way:
                    limit.reschedule(asyncio.get_running_loop().time())

    def under_way(self, grant: Grant) -> int:
        """Return how many requests of a token are being served."""
        return sum(each.name == grant.name for _, each in self._under_way.values())

    @asynccontextmanager
    async def admitted(self, secret: str, grant: Grant) -> AsyncIterator[None]:
        """Serve one request for as long as its token is good.

        Raises:
            TimeoutError: It no longer is.
        """
        async with asyncio.timeout(None) as limit:
            self._under_way[limit] = secret, grant
            try:
                yield
            finally:
                del self._under_way[limit]

    async def grant(self, secret: str) -> Grant | None:
        """Return what a token allows at this moment, or None where it is no good."""
        if not secret.startswith(tokens.PREFIX):
            found = None if self._issuer is None else await self._issuer.verify(secret)
        else:
            async with self._lock:
                if time.monotonic() - self._read_at >= _TOKENS_FOR_S:
                    stored = await tokens.all_tokens(self._db)
                    self._known = {each.hash: each.grant for each in stored if each.revoked_at is None}
                    self._read_at = time.monotonic()
            found = self._known.get(text_hash(secret))
        return found if found is None or (found.expires_at or time.time() + 1) > time.time() else None

    def wait_s(self, grant: Grant) -> float:
        """Take a call from a token's allowance and return 0, or return the seconds until there is one."""
        now = time.monotonic()
        known = self._allowances.get(grant.name)
        if known is None or known[0] != grant.calls_per_minute:
            if len(self._allowances) >= _MAX_ALLOWANCES:
                self._allowances.clear()
            known = self._allowances[grant.name] = grant.calls_per_minute, Allowance(grant.calls_per_minute, now=now)
        return known[1].take(now=now)


@dataclass(frozen=True, slots=True)
class Gate:
    """Guards the application: names and origins first, then the token and its allowance, then the body in time.

    Args:
        doorkeeper: None where no token is asked for.
        challenge: How a refused caller can authenticate.
        page: The page for people; None without its extra.
    """

    app: ASGIApp
    names: TransportSecurityMiddleware
    doorkeeper: Doorkeeper | None
    challenge: str
    metrics: Metrics
    sessions: "Sessions"
    page: "Page | None" = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        send = _worded(send)

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.metrics.responses.labels(str(status)).inc()
            await send(message)

        refusal: Response | None
        try:
            refusal = await self._refusal(Request(scope), scope)
            if refusal is None:
                body = await _whole_body(receive)
                refusal = body if isinstance(body, Response) else await self._serve(scope, body, counted)
        except _TokenOver:
            if status:
                with suppress(RuntimeError):  # all of it was sent at that very moment
                    await counted({"type": "http.response.body", "body": b"", "more_body": False})
            refusal = self._unauthorized("the token was revoked, replaced or has expired", error="invalid_token")
        except Exception:
            logger.exception("a request failed")
            refusal = PlainTextResponse("the server failed; its log says why", 500)
        if refusal is not None and status == 0:
            await refusal(scope, receive, counted)
        if status >= 400:
            named = scope.get(GRANT)
            fields = {"status": status, "method": scope["method"], "token": None if named is None else named.name}
            logger.info("refused: %(status)d %(method)s token=%(token)s", fields, extra={"fields": fields})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Serve a request that was let in, or return why there is no place for it."""
        grant: Grant | None = scope.get(GRANT)
        with self.sessions.opening(scope, grant) as refusal:
            if refusal is not None:
                return refusal
            if self.doorkeeper is None or grant is None:
                await self.app(scope, receive, send)
                return None
            if self.doorkeeper.under_way(grant) >= _REQUESTS_PER_TOKEN:
                return _too_many(f"{_REQUESTS_PER_TOKEN} requests of this token are open; close a stream first")
            cancelled = False
            try:
                async with self.doorkeeper.admitted(scope[SECRET], grant):
                    try:
                        await self.app(scope, receive, send)
                    except asyncio.CancelledError:
                        cancelled = True
                        raise
            except TimeoutError as error:
                if cancelled:
                    raise _TokenOver from error
                raise
        return None

    async def _refusal(self, request: Request, scope: Scope) -> Response | None:
        """Return why a request is not let in, or put what its token allows into its scope."""
        if (wrong := await self.names.validate_request(request)) is not None:
            return wrong
        if self.doorkeeper is None or scope["path"] in _OPEN_PATHS or scope["path"].startswith(_METADATA):
            return None
        if self.page is not None and request.url.path.startswith(self.page.open_paths):
            return None
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        page = self.page if not scheme and self.page is not None and self.page.answers(request.url.path) else None
        if page is not None:
            secret = page.visitor(request) or ""
        elif len(request.headers.getlist("authorization")) != 1 or scheme.lower() != "bearer":
            return self._unauthorized("send a bearer token: Authorization: Bearer …", error="")
        try:
            grant = await self.doorkeeper.grant(secret.strip())
        except OSError as error:
            logger.warning("%s", error)
            return JSONResponse({"error": "temporarily_unavailable"}, 503, {"retry-after": "10"})
        if grant is None:
            if page is not None and "text/html" in request.headers.get("accept", ""):
                return page.sign_in()
            return self._unauthorized("the token is unknown, expired or revoked", error="invalid_token")
        if (wait_s := self.doorkeeper.wait_s(grant)) > 0:
            return _too_many(f"{grant.calls_per_minute} calls a minute", wait_s=wait_s)
        scope[GRANT], scope[SECRET] = grant, secret.strip()
        scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=grant.name, scopes=[grant.scope.value]))
        return None

    def _unauthorized(self, description: str, *, error: str) -> Response:
        answer = (
            f'Bearer error="{error}"{self.challenge and ", " + self.challenge}' if error else "Bearer " + self.challenge
        )
        body = {"error": error or "unauthorized", "error_description": description}
        return JSONResponse(body, 401, {"www-authenticate": answer.strip()})


class _TokenOver(Exception):  # noqa: N818 - no fault: it ends a request
    """The token of a request that is being served is no longer good."""


def _too_many(description: str, *, wait_s: float = 10.0) -> Response:
    answer = {"error": "too_many_requests", "error_description": description}
    return JSONResponse(answer, 429, {"retry-after": str(int(wait_s) + 1)})


@dataclass(slots=True)
class Sessions:
    """How many sessions of the older protocol each token has open: so many, and no more."""

    manager: StreamableHTTPSessionManager
    _opening: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def opening(self, scope: Scope, grant: Grant | None) -> Iterator[Response | None]:
        """Give why a request may open no session; None where it may, or opens none."""
        headers = dict(scope["headers"])
        version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
        opens = scope["path"] == PATH and scope["method"] == "POST" and b"mcp-session-id" not in headers
        if not opens or grant is None or (version and version not in HANDSHAKE_PROTOCOL_VERSIONS):
            yield None
            return
        owners = self.manager._session_owners.values()  # noqa: SLF001 - the SDK counts no token's sessions
        own = sum(each["client_id"] == grant.name for each in owners) + self._opening[grant.name]
        places = _MAX_SESSIONS - (0 if grant.scope is auth.Scope.ADMIN else _SESSIONS_FOR_ADMINS)
        if own >= _SESSIONS_PER_TOKEN:
            yield _too_many(
                f"this token has {own} sessions open; end one with DELETE, or wait {_SESSION_IDLE_S / 60:.0f} minutes "
                "until an idle one ends"
            )
        elif len(owners) + self._opening.total() >= places:
            yield _too_many("too many sessions are open; try again later")
        else:
            self._opening[grant.name] += 1
            try:
                yield None
            finally:
                self._opening[grant.name] -= 1
                if not self._opening[grant.name]:
                    del self._opening[grant.name]


def _worded(send: Send) -> Send:
    """Return what sends a response on, a refusal once its body is known and is in our words."""
    held: Message | None = None

    async def worded(message: Message) -> None:
        nonlocal held
        if message["type"] == "http.response.start" and message["status"] == _BAD_REQUEST:
            held = message
            return
        if held is not None:
            start, message = _in_our_words(held, message)
            held = None
            await send(start)
        await send(message)

    return worded


def _in_our_words(start: Message, body: Message) -> tuple[Message, Message]:
    """Return a refusal's head and body; where the SDK put its validator's text in the body, what to send instead."""
    if _VALIDATOR not in body.get("body", b"") or body.get("more_body", False):
        return start, body
    error = {"code": INVALID_REQUEST, "message": _NO_REQUEST}
    ours = json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
    kept = [pair for pair in start.get("headers", []) if pair[0].lower() != b"content-length"]
    return {**start, "headers": [*kept, (b"content-length", str(len(ours)).encode())]}, {**body, "body": ours}


async def _whole_body(receive: Receive) -> Receive | Response:
    """Read a request's body, all of it and in time, and return what hands it on; or why it is not taken."""
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(_BODY_S):
            while True:
                message = await receive()
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > _MAX_BODY_BYTES:
                    return PlainTextResponse("the request's body is too large", 413, {"connection": "close"})
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        return PlainTextResponse("the request's body did not arrive in time", 408, {"connection": "close"})
    handed_on = False

    async def replay() -> Message:
        nonlocal handed_on
        if handed_on:
            return await receive()
        handed_on = True
        return {**message, "body": b"".join(parts)} if message["type"] == "http.request" else message

    return replay


class _Impatient(H11Protocol):
    """Closes a connection on which no whole request head comes for a while, at once where places become few."""

    open: ClassVar[dict["_Impatient", None]] = {}  # in the order in which they came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the parent
        super().connection_made(transport)
        # asyncio sets it only where the listener names its protocol; without it an answer's end waits 40 ms for an ACK.
        with suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.open) >= _CROWDED and (idle := next((each for each in self.open if each.is_idle), None)):
            idle.transport.close()
            self.open.pop(idle, None)
        self.open[self] = None
        self._answered: object = None
        self._timer = self.loop.call_later(_HEAD_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self.open.pop(self, None)
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered on it: a whole request has not come, or its answer is out."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def _look(self) -> None:
        idle = self.is_idle and (self.cycle is None or self.cycle is self._answered)
        if idle and not self.transport.is_closing():
            self.transport.close()
            return
        self._answered = self.cycle
        self._timer = self.loop.call_later(_HEAD_S, self._look)


async def serve(
    settings: Settings,
    options: HttpOptions,
    build: Callable[[Settings, LoopGraph], MCPServer[LoopGraph]],
    say: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; experiments go on without the server.

    Args:
        settings: Settings of the memory that is served.
        options: Where and how to serve.
        build: Makes the server around the open memory.
        say: Called with what the one who starts it is to read, once: the address, and a new token's secret.

    Raises:
        ConfigError: The options would leave the door open, or the address cannot be had.
    """
    check(options)
    async with LoopGraph.open(settings) as graph:
        listener = _listen(options)
        port = listener.getsockname()[1]
        scheme = "http" if options.tls_cert is None else "https"
        doorkeeper = await _doorkeeper(graph, say) if options.auth else None
        config = uvicorn.Config(
            application(build(settings, graph), graph, options, doorkeeper),
            http=_Impatient,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_S,
            limit_concurrency=_MAX_CONNECTIONS,
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
        )
        try:
            config.load()
        except OSError as error:
            raise ConfigError(f"--tls-cert and --tls-key: {error}") from error
        _allow_many_connections()
        host = f"[{options.host}]" if ":" in options.host else options.host
        say(f"LoopGraph serves {scheme}://{host}:{port}{PATH}")
        if not options.is_loopback and options.tls_cert is None:
            logger.warning("no TLS: anyone who sees the traffic sees the tokens; use --tls-cert, or a proxy with TLS")
        async with nullcontext() if doorkeeper is None else doorkeeper.watching():
            await uvicorn.Server(config).serve(sockets=[listener])


def check(options: HttpOptions) -> None:
    """Refuse options that would leave the door open.

    Raises:
        ConfigError: They would.
    """
    if not options.is_loopback and not options.auth:
        raise ConfigError(f"--no-auth on {options.host}: anyone who reaches it could run code here; remove --no-auth")
    if options.host in {"0.0.0.0", "::"} and not options.hosts:  # noqa: S104 - compared, not bound
        raise ConfigError(f"--http {options.host}: name this machine as clients do: --allow-host NAME")
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key need each other")


def application(
    server: MCPServer[LoopGraph], graph: LoopGraph, options: HttpOptions, doorkeeper: Doorkeeper | None
) -> ASGIApp:
    """Return the ASGI application: the tools behind the gate, and what operators ask for."""
    metrics = Metrics([tool.name for tool in [*loop_tools(), *view_tools()]])
    server.middleware.append(metrics.watch)
    bound = f"[{options.host}]" if ":" in options.host else options.host
    hosts = [*_LOOPBACK, bound, *options.hosts]
    names = TransportSecuritySettings(
        allowed_hosts=[form for host in hosts for form in (host, f"{host}:*")],
        allowed_origins=[  # its own names: what its page sends has them for its origin
            f"{scheme}://{host}{end}" for host in hosts for scheme in ("http", "https") for end in ("", ":*")
        ]
        + list(options.origins),
    )
    # Names are checked at the gate, for every path; the SDK's own check would come after the token's.
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=_MAX_BODY_BYTES,
        session_idle_timeout=_SESSION_IDLE_S,
        max_sessions=_MAX_SESSIONS,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        try:
            await asyncio.wait_for(experiments.live_experiments(graph.db), 2)
        except Exception:
            logger.exception("the store does not answer")
            return PlainTextResponse("the store does not answer\n", 503)
        return PlainTextResponse("ready\n")

    async def prometheus(_: Request) -> Response:
        live = await experiments.live_experiments(graph.db)
        page = metrics.page([(each.device_slot, each.state.value) for each in live])
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, endpoint in (("/health", health), ("/ready", ready), ("/metrics", prometheus)):
        app.router.routes.append(Route(path, endpoint, methods=["GET"]))
    page = _page(graph, options, doorkeeper)
    if page is None:
        app.router.routes.append(Route("/", _no_page))
    else:
        app.router.routes += page.routes()
        app.add_exception_handler(LoopGraphError, page.failed)
    challenge = ""
    if (oauth := graph.settings.oauth) is not None and doorkeeper is not None:
        resource_url = AnyHttpUrl(oauth.audience)
        scopes = [SCOPE_PREFIX + scope.value for scope in auth.Scope]
        app.router.routes += create_protected_resource_routes(resource_url, [AnyHttpUrl(oauth.issuer)], scopes)
        challenge = f'resource_metadata="{build_resource_metadata_url(resource_url)}"'
    sessions = Sessions(server.session_manager)
    return Gate(app, TransportSecurityMiddleware(names), doorkeeper, challenge, metrics, sessions, page)


def _page(graph: LoopGraph, options: HttpOptions, doorkeeper: Doorkeeper | None) -> "Page | None":
    """Return the page for people, whose visitors are let in by the tokens; None without the extra that it needs."""
    try:
        from loopgraph_mcp.web.page import Page  # noqa: PLC0415 - an extra
    except ImportError:
        return None

    async def admits(secret: str) -> bool:
        return doorkeeper is not None and await doorkeeper.grant(secret) is not None

    door = Door(f"loopgraph_{options.port}", secure=options.tls_cert is not None)
    return Page(graph, door, None if doorkeeper is None else admits)


async def _no_page(_: Request) -> Response:
    return PlainTextResponse("the page needs an extra: pip install 'loopgraph-mcp[ui]'\n", 501)


async def _doorkeeper(graph: LoopGraph, say: Callable[[str], None]) -> Doorkeeper:
    """Return the token checker; create the first token if there is none and no OAuth issuer."""
    oauth = graph.settings.oauth
    if oauth is None and not await tokens.all_tokens(graph.db):
        secret = await tokens.add_token(graph.db, Grant(FIRST_TOKEN, auth.Scope.ADMIN), now=time.time())
        say(f"Created the token {FIRST_TOKEN!r}; shown only once: {secret}")
    return Doorkeeper(graph.db, None if oauth is None else Issuer(oauth))


def _listen(options: HttpOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=2_048)
    except OSError as error:
        raise ConfigError(
            f"--http {options.host}:{options.port}: {error.strerror or error}; use another port"
        ) from error


def _allow_many_connections() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(2 * _MAX_CONNECTIONS, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
