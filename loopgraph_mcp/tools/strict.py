"""Registers tools that refuse what they do not know and tell the model what to do about our errors."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations

from loopgraph_mcp.access import Scope
from loopgraph_mcp.errors import LoopGraphError
from loopgraph_mcp.tools.callers import Ctx, caller_of, check_folder


def strict_tool(
    function: Callable[..., Awaitable[Any]], *, title: str, annotations: ToolAnnotations, needs: Scope = Scope.ADMIN
) -> Tool:
    """Return a tool whose arguments are taken as they are: no unknown names, no text where a number belongs.

    Args:
        function: What it does; its first parameter is `ctx`.
        title: Its name for people.
        annotations: What clients may expect of it.
        needs: The scope that a token needs to call it: a tool that forgets to say is for admins.
    """
    tool = Tool.from_function(_told(function, needs), title=title, annotations=annotations)
    strict = tool.fn_metadata.arg_model
    strict.model_config = {**strict.model_config, "extra": "forbid", "strict": True}
    strict.model_rebuild(force=True)
    tool.parameters = _without_titles(strict.model_json_schema(by_alias=True))
    tool.fn_metadata.output_schema = _without_titles(tool.fn_metadata.output_schema)
    return tool


def _told(function: Callable[..., Awaitable[Any]], needs: Scope) -> Callable[..., Awaitable[Any]]:
    """Check the token, and turn our errors into ToolErrors: the SDK hides all other exceptions' text from the model."""

    @functools.wraps(function)
    async def wrapper(ctx: Ctx, **kwargs: Any) -> Any:
        try:
            caller = caller_of(ctx)
            caller.check(needs)
            check_folder(ctx, caller, kwargs.get("workspace"))
            return await function(ctx, **kwargs)
        except LoopGraphError as error:
            raise ToolError(str(error)) from error

    return wrapper


def _without_titles(schema: Any, *, inside_properties: bool = False) -> Any:
    """Drop the titles that pydantic makes of field names: they cost tokens in every client and say nothing."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value, inside_properties=key == "properties")
            for key, value in schema.items()
            if inside_properties or key != "title"
        }
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    return schema
