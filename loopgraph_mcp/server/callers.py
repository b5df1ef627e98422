"""Identifies the caller of a tool, and checks its token and paths."""

from pathlib import Path
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.errors import AccessError
from loopgraph_mcp.runner.workspace import resolved
from loopgraph_mcp.text import plain_line

Ctx = Context[LoopGraph, Any]
Asked = ServerRequestContext[LoopGraph, Any]
_MAX_PATH, _MAX_PART = 4_000, 255  # the limits of Linux file systems, rounded down
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


def checked_folder(ctx: Ctx, caller: Caller, workspace: str | None) -> str | None:
    """Return where a folder leads that a caller named, home and links followed; it is what is worked on.

    Raises:
        AccessError: It is none of the server's, and the caller is no admin.
        WorkspaceError: It can be no path.
    """
    if workspace is None:
        return None
    root, found = ctx.request_context.lifespan_context.settings.workspace, resolved(Path(workspace))
    if caller.is_admin or found.is_relative_to(root.resolve()):
        return str(found)
    raise AccessError(f"workspace: over HTTP, name a folder inside {root}, or omit it")


def checked_source(ctx: Ctx, caller: Caller, source: str) -> str:
    """Return a source as it may be read: where it is a path, only an admin may name one outside of the server's folder.

    The answer does not reveal whether anything outside exists.

    Raises:
        AccessError: It leads outside.
        WorkspaceError: It can be no path.
    """
    if caller.is_admin or "://" in source:
        return source
    root = ctx.request_context.lifespan_context.settings.workspace.resolve()
    found = resolved(root / Path(source).expanduser()) if _may_be_path(source) else root
    if not found.is_relative_to(root):
        raise AccessError(f"source: over HTTP, name a URL, or a file or folder inside {root}")
    return str(found) if found != root and found.exists() else source


def _may_be_path(source: str) -> bool:
    """Return whether a source may be a path; the title of a paper may have any length, and hold a tilde."""
    try:
        Path(source).expanduser()
    except RuntimeError:  # no such user's home: a title, or nothing that could be read
        return False
    return "\0" not in source and len(source) <= _MAX_PATH and all(len(part) <= _MAX_PART for part in source.split("/"))
