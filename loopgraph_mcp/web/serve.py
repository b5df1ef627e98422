"""`loopgraph ui`: the page for this machine's user alone, behind a link that is good once."""

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import ConfigError, LoopGraphError
from loopgraph_mcp.web import drawing
from loopgraph_mcp.web.door import Door
from loopgraph_mcp.web.page import Page

HOST = "127.0.0.1"
_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})  # another name that leads here is another site's
_STOP_S = 2


class _Guard:
    """Lets in who has the cookie, by a name of this machine; others reach nothing but the door."""

    def __init__(self, app: ASGIApp, page: Page) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            if request.headers.get("host", "").rpartition(":")[0] not in _NAMES:
                await PlainTextResponse("this is no name of this machine", 421)(scope, receive, send)
                return
            is_open = request.url.path.startswith(self._page.open_paths)
            if not is_open and self._page.visitor(request) is None:
                await self._page.sign_in()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def application(page: Page) -> ASGIApp:
    """Return the page's application behind its guard."""
    return _Guard(Starlette(routes=page.routes(), exception_handlers={LoopGraphError: page.failed}), page)


async def serve(settings: Settings, *, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page on loopback until it is stopped; experiments go on without it.

    Args:
        settings: Settings of the memory that is shown.
        port: The port; 0 for a free one.
        ready: Called once with the link, when it can be opened.

    Raises:
        ConfigError: The extra is not installed, or the port cannot be had.
    """
    drawing.version()
    async with LoopGraph.open(settings) as graph:
        try:
            listener = socket.create_server((HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port}: {error.strerror or error}; use another one") from error
        port = listener.getsockname()[1]
        door = Door(f"loopgraph_{port}")
        page = Page(graph, door)
        server = uvicorn.Server(
            uvicorn.Config(
                application(page),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=_STOP_S,
            )
        )
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(graph.watch_runs())
            await page.warm()
            ready(f"http://{HOST}:{port}/enter?key={door.make_link()}")
            await server.serve(sockets=[listener])
            watching.cancel()
