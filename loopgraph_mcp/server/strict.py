"""Registers tools that check their arguments strictly and explain every refusal."""

import functools
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, ToolAnnotations
from mcp_types import Tool as ListedTool
from pydantic import ValidationError

from loopgraph_mcp.auth import Scope
from loopgraph_mcp.errors import LoopGraphError
from loopgraph_mcp.runner import schemas
from loopgraph_mcp.server.callers import Asked, Ctx, caller_of, checked_folder
from loopgraph_mcp.server.next_steps import refusal
from loopgraph_mcp.text import said

_MAX_WHOLE = 2**63  # what the store can hold
_MAX_PROBLEMS = 5  # problems of one call that its refusal lists


class StrictTool(Tool):
    """A tool whose arguments are taken in the types of its schema where their meaning is plain, and refused else."""

    async def run(self, arguments: dict[str, Any], context: Any, convert_result: bool = False) -> Any:  # noqa: FBT001, FBT002 - the SDK's
        """Run the tool; every refusal is worded here: argument, value, and what to give instead.

        Raises:
            ToolError: The arguments cannot be taken, or one of our own errors was raised.
        """
        taken = _taken(arguments, self.parameters)
        if problems := _beyond_schema(taken, self.parameters):
            raise ToolError(self._refusal(problems))
        try:
            return await super().run(taken, context, convert_result)
        except UnexpectedToolError as error:
            raise UnexpectedToolError(
                f"{self.name} failed inside LoopGraph; ask your user to read the server's log"
            ) from error
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                problems = _problems(error.__cause__, taken, self.parameters)
                raise ToolError(self._refusal(problems)) from None
            raise ToolError(said(str(error.__cause__ or error))) from error

    def _refusal(self, problems: Sequence[str]) -> str:
        more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        return said(f"{self.name}: {'; '.join(problems[:_MAX_PROBLEMS])}{more}")


class _AsSent(FuncMetadata):
    """The SDK parses any text that is JSON; here that happens only where the schema has no text."""

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        return data


def strict_tool(
    function: Callable[..., Awaitable[Any]], *, title: str, annotations: ToolAnnotations, needs: Scope = Scope.ADMIN
) -> Tool:
    """Return a tool that takes no unknown names, and no value whose meaning is not plain.

    Args:
        function: What it does; its first parameter is `ctx`.
        title: Its name for people.
        annotations: What clients may expect of it.
        needs: The scope that a token needs to call it: a tool that forgets to say is for admins.
    """
    tool = StrictTool.from_function(_with_errors(function, needs), title=title, annotations=annotations)
    strict = tool.fn_metadata.arg_model
    strict.model_config = {**strict.model_config, "extra": "forbid", "strict": True}
    strict.model_rebuild(force=True)
    tool.parameters = _without_titles(strict.model_json_schema(by_alias=True))
    tool.fn_metadata = _AsSent(
        arg_model=strict,
        output_schema=_without_titles(tool.fn_metadata.output_schema),
        output_model=tool.fn_metadata.output_model,
        wrap_output=tool.fn_metadata.wrap_output,
    )
    return tool


async def skip_unanswerable(ctx: Asked, call_next: CallNext) -> HandlerResult:
    """Leave out what is asked without an id: there is nobody to refuse it to, and it is no fault of ours."""
    if ctx.request_id is None and not ctx.method.startswith("notifications/"):
        return None
    return await call_next(ctx)


async def check_call(ctx: Asked, call_next: CallNext) -> HandlerResult:
    """Read arguments that were sent as the text of a JSON object; refuse a call that has no name or no object.

    Raises:
        MCPError: It cannot be read.
    """
    if ctx.method != "tools/call":
        return await call_next(ctx)
    params = ctx.params or {}
    if not isinstance(params.get("name"), str):
        raise _invalid("tools/call: name is missing or not text; give the name of a tool from tools/list")
    given = params.get("arguments")
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            raise _invalid(f"tools/call: arguments is text that is not JSON; {_AN_OBJECT}") from None
        ctx = replace(ctx, params={**params, "arguments": given})
    if given is not None and not isinstance(given, dict):
        raise _invalid(f"tools/call: arguments is {schemas.shown(given)}; {_AN_OBJECT}")
    return await call_next(ctx)


_AN_OBJECT = 'give an object of the tool\'s arguments, such as {"query": "attention"} for search_methods'


def _invalid(words: str) -> MCPError:
    return MCPError(code=INVALID_PARAMS, message=words)


# --------------------------------------------------------------------------------------------- arguments


def _taken(arguments: Mapping[str, Any], schema: schemas.Schema) -> dict[str, Any]:
    """Return arguments in the types of their schema, without those that a client leaves empty for `not given`."""
    properties, required = schema["properties"], schema.get("required", ())
    return {
        name: schemas.fitted(value, properties[name]) if name in properties else value
        for name, value in arguments.items()
        if name not in properties or name in required or not schemas.is_blank(value)
    }


def _beyond_schema(arguments: Mapping[str, Any], schema: schemas.Schema) -> list[str]:
    """Return what is wrong with arguments that their schema would let pass."""
    found = list[str]()
    for name, value in arguments.items():
        known = schema["properties"].get(name)
        if known is None:
            continue
        if isinstance(value, str) and not value.strip():
            found.append(f"{name} is empty; {_give(known)}")
        elif isinstance(value, float) and not math.isfinite(value) and _has_bound(known):
            found.append(f"{name} is {value}; {_give(known)}")
        elif type(value) is int and abs(value) >= _MAX_WHOLE:
            found.append(f"{name} is too large; {_give(known)}")
    return found


def _has_bound(schema: schemas.Schema) -> bool:
    """Return whether numbers have a bound; what a metric may be, its own verb says."""
    branches = [schema, *schema.get("anyOf", ())]
    return any(key in each for each in branches for key in ("minimum", "exclusiveMinimum", "maximum"))


def _problems(error: ValidationError, arguments: Mapping[str, Any], schema: schemas.Schema) -> list[str]:
    """Return in words what the validator found, one problem for each place."""
    properties = schema["properties"]
    found = dict[str, None]()
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(each["loc"][0])
        if name not in properties:
            found[schemas.unknown(name, list(properties), "argument")] = None
        elif name not in arguments:
            found[f"{name} is missing; {_give(properties[name])}"] = None
        else:
            path, value, known = name, arguments[name], properties[name]
            if len(each["loc"]) > 1:
                path, value, known = _inside(path, value, known, each["loc"][1])
            found[f"{path} is {schemas.shown(value)}; {_give(known)}"] = None
    return list(found)


def _inside(path: str, value: Any, schema: schemas.Schema, part: int | str) -> tuple[str, Any, schemas.Schema]:
    """Return the item or entry that is wrong, counted from one; the whole where the schema has branches."""
    branches = [each for each in schema.get("anyOf", (schema,)) if each.get("type") != "null"]
    if len(branches) == 1 and isinstance(value, list) and isinstance(part, int) and part < len(value):
        return f"{path}[{part + 1}]", value[part], branches[0].get("items", {})
    if len(branches) == 1 and isinstance(value, dict) and part in value:
        return f"{path}.{str(part)[:40]}", value[part], branches[0].get("additionalProperties", {})
    return path, value, schema


def _give(schema: schemas.Schema) -> str:
    """Return what to give for an argument, and what it is for."""
    meaning = schema.get("description", "")
    return f"give {schemas.wanted(schema)}" + (f": {meaning}" if meaning else "")


def _with_errors(function: Callable[..., Awaitable[Any]], needs: Scope) -> Callable[..., Awaitable[Any]]:
    """Check the token, and turn our errors into ToolErrors: the SDK hides all other exceptions' text from the model."""

    @functools.wraps(function)
    async def wrapper(ctx: Ctx, **kwargs: Any) -> Any:
        try:
            caller = caller_of(ctx)
            caller.check(needs)
            if "workspace" in kwargs:
                kwargs["workspace"] = checked_folder(ctx, caller, kwargs["workspace"])
            return await function(ctx, **kwargs)
        except LoopGraphError as error:
            raise ToolError(refusal(error)) from error
        except Exception as error:
            await _blame_damage(ctx, error)
            raise

    return wrapper


async def _blame_damage(ctx: Ctx, error: Exception) -> None:
    """Raise what to do where the store is damaged: that may make anything fail."""
    try:
        await ctx.request_context.lifespan_context.db.blame(error)
    except LoopGraphError as damage:
        raise ToolError(refusal(damage)) from error


def listed(tool: ListedTool) -> ListedTool:
    """Return a tool as tools/list shows it: every conversation pays for it, so it says each thing once.

    An argument that may be left out is not also nullable; long limits and empty defaults are left to the refusals, and
    what an answer holds is said by its text.
    """
    return tool.model_copy(update={"input_schema": _lean(tool.input_schema), "output_schema": None})


_UNSAID = frozenset({"maxLength", "minLength", "maxItems", "minItems", "title"})
_LARGE = 100_000  # a bound beyond what anybody sends is none to tell


def _lean(schema: Any, *, named: bool = False) -> Any:
    if isinstance(schema, list):
        return [_lean(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if named:
        return {key: _lean(value) for key, value in schema.items()}
    branches = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    told = {key: value for key, value in schema.items() if key not in _UNSAID}
    if len(branches) == 1:
        told = {**{key: value for key, value in told.items() if key != "anyOf"}, **branches[0]}
    elif branches:
        told["anyOf"] = branches
    dropped = {key for key in ("maximum", "exclusiveMaximum") if abs(told.get(key, 0)) > _LARGE}
    dropped |= {key for key in ("minimum", "exclusiveMinimum") if told.get(key) == 0}
    dropped |= {"default"} if told.get("default", 0) in (None, "", False) else set()
    return {
        key: _lean(value, named=key == "properties")
        for key, value in told.items()
        if key not in dropped and key not in _UNSAID
    }


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
