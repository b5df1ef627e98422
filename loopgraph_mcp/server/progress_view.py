"""The view of a search inside a client that draws MCP Apps; a client that does not is shown no tool but the text's."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from mcp.server.apps import APP_MIME_TYPE, Apps, client_supports_apps
from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver.resources import Resource
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import ConfigDict, Field

from loopgraph_mcp.api.answers import ProgressAnswer
from loopgraph_mcp.auth import Scope
from loopgraph_mcp.config import Settings
from loopgraph_mcp.server.callers import Asked, Ctx
from loopgraph_mcp.server.strict import strict_tool
from loopgraph_mcp.server.tools import answered, as_result, graph_of

URI = "ui://loopgraph/progress.html"
_FOR_THE_VIEW = "app"


class _View(Resource):
    """The view's HTML, put together when it is first read: what draws its curve takes seconds to make."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    settings: Settings = Field(exclude=True)

    async def read(self) -> str:
        """Return the HTML."""
        from loopgraph_mcp.web import view  # noqa: PLC0415 - a start should not wait for what draws

        return await asyncio.to_thread(view.html, self.settings.home / "web")


async def show_progress(ctx: Ctx) -> Annotated[CallToolResult, ProgressAnswer]:
    """Show the user how the search goes: best, noise, newest runs; live where the client can draw."""
    from loopgraph_mcp.web import view  # noqa: PLC0415 - a start should not wait for what draws

    graph = graph_of(ctx)
    _, answer = await view.progress(graph, _page(ctx))
    return await answered(graph, "show_progress", answer.version, answer, view.as_text(answer))


async def progress_since(
    ctx: Ctx,
    since: Annotated[str, Field(description="The version shown", max_length=200)] = "",
    dark: Annotated[bool, Field(description="For a dark background")] = False,  # noqa: FBT002 - a JSON flag
    width: Annotated[int, Field(description="Pixels of the curve", ge=200, le=4_000)] = 640,
) -> Annotated[CallToolResult, ProgressAnswer]:
    """Return what the view shows, with the curve where it is another one than before."""
    from loopgraph_mcp.web import view  # noqa: PLC0415 - a start should not wait for what draws

    seen, answer = await view.progress(graph_of(ctx), _page(ctx))
    if answer.version != since:
        chart = await asyncio.to_thread(view.chart, seen, dark=dark, width=width)
        answer = replace(answer, chart=chart)
    return as_result(answer, answer.title)


def view_tools() -> list[Tool]:
    """Return the tool that shows the view, and the one that the view itself calls."""
    look = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    shown = strict_tool(show_progress, title="Show progress", annotations=look, needs=Scope.READ)
    asked = strict_tool(progress_since, title="Progress since", annotations=look, needs=Scope.READ)
    shown.meta = {"ui": {"resourceUri": URI}}
    asked.meta = {"ui": {"resourceUri": URI, "visibility": [_FOR_THE_VIEW]}}
    return [shown, asked]


def view_extension(settings: Settings) -> Apps:
    """Return the extension with the view's HTML."""
    apps = Apps()
    apps.add_resource(
        _View(uri=URI, name="progress", title="Progress of the search", mime_type=APP_MIME_TYPE, settings=settings)
    )
    return apps


async def hide_from_others(ctx: Asked, call_next: CallNext) -> HandlerResult:
    """Leave what only the view calls out of the list of tools for clients that draw none: a model would read it."""
    result = await call_next(ctx)
    if ctx.method == "tools/list" and isinstance(result, dict) and not client_supports_apps(ctx):
        return {**result, "tools": [each for each in result["tools"] if not _is_for_the_view(each)]}
    return result


def _is_for_the_view(tool: Mapping[str, Any]) -> bool:
    ui = (tool.get("_meta") or {}).get("ui", {})
    return bool(ui.get("visibility") == [_FOR_THE_VIEW])


def _page(ctx: Ctx) -> str:
    """Return where the page is: this server's own over HTTP; over stdio, the command that opens one."""
    request = ctx.request_context.request
    return "loopgraph ui" if request is None else str(request.base_url)
