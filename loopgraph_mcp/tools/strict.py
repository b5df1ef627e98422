"""Registers tools that refuse what they do not know and tell the model what to do about our errors."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import ConfigDict, create_model

from loopgraph_mcp.errors import LoopGraphError


def strict_tool(function: Callable[..., Awaitable[Any]], *, title: str, annotations: ToolAnnotations) -> Tool:
    """Return a tool whose arguments are taken as they are: no unknown names, no text where a number belongs."""
    tool = Tool.from_function(_told(function), title=title, annotations=annotations)
    model = tool.fn_metadata.arg_model
    strict = create_model(model.__name__, __base__=model)
    strict.model_config = ConfigDict(extra="forbid", strict=True)
    strict.model_rebuild(force=True)
    tool.fn_metadata.arg_model = strict
    tool.parameters = _without_titles(strict.model_json_schema(by_alias=True))
    tool.fn_metadata.output_schema = _without_titles(tool.fn_metadata.output_schema)
    return tool


def _told(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Turn our errors into ToolErrors: the SDK hides the text of every other exception from the model."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
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
