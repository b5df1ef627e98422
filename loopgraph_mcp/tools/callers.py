"""Who calls a tool, and whether the token is for it."""

from pathlib import Path
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context

from loopgraph_mcp.access import Caller
from loopgraph_mcp.errors import AccessError
from loopgraph_mcp.loopgraph import LoopGraph
from loopgraph_mcp.quoting import plain_line
from loopgraph_mcp.workspace import resolved

Ctx = Context[LoopGraph, Any]
Asked = ServerRequestContext[LoopGraph, Any]
GRANT = "loopgraph.grant"  # where a request's ASGI scope holds what its token allows


def caller_of(ctx: Ctx) -> Caller:
    """Return the agent that calls a tool."""
    return asker(ctx.request_context)


def asker(asked: Asked) -> Caller:
    """Return the agent that asks; over stdio, a program of this user."""
    client = asked.session.client_params
    name = "unknown client" if client is None else plain_line(client.client_info.name, limit=60)
    if asked.request is None:
        return Caller(name, asked.lifespan_context.session)
    return Caller(name, asked.request.headers.get("mcp-session-id", ""), asked.request.scope.get(GRANT))


def check_folder(ctx: Ctx, caller: Caller, workspace: str | None) -> None:
    """Refuse a folder that is none of the server's, unless an admin names it.

    Raises:
        AccessError: It is none.
    """
    root = ctx.request_context.lifespan_context.settings.workspace
    if workspace is None or caller.is_admin or resolved(Path(workspace)).is_relative_to(root.resolve()):
        return
    raise AccessError(f"workspace: over HTTP, name a folder in the server's own, {root}, or leave it out")
