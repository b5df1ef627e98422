"""Fixes nearly correct tool calls, and finds calls that a model wrote as text; never guesses at code."""

import ast
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopgraph_mcp.agents.messages import ToolCall, ToolSpec

# Similarity of names; a wrong tool does more harm than a wrong argument.
_NEAR_NAME, _NEAR_ARGUMENT = 0.7, 0.6
_MAX_FOUND = 8  # calls in one text; more are a model that repeats itself
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)
_FENCED = re.compile(r"```(?:json|tool_call|tool|python)?\s*\n(.*?)(?:```|\Z)", re.DOTALL)
_TAGGED = re.compile(r"<(?:tool_calls?|function_call|tools?)>(.*?)(?:</|\Z)", re.DOTALL)
_DOUBLED = re.compile(r'\{\{\s*"')
_WRITTEN = re.compile(r"\b([A-Za-z_]\w*)\(")


@dataclass(frozen=True, slots=True)
class Fixed:
    """A call that can be carried out; `note` says what was fixed."""

    call: ToolCall
    arguments: dict[str, Any]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that cannot, and what to do instead."""

    call: ToolCall
    reason: str


def fix(call: ToolCall, tools: Sequence[ToolSpec]) -> Fixed | Refused:
    """Return a call as its tool takes it, or what is wrong with it."""
    tool = _named(call.name, tools)
    if tool is None:
        return Refused(call, f"there is no tool {call.name!r}; the tools are {', '.join(each.name for each in tools)}")
    notes = [] if tool.name == call.name else [f"{call.name} read as {tool.name}"]
    given = read_object(call.arguments)
    if given is None:
        return Refused(
            call,
            f"the arguments of {tool.name} are not a JSON object, or were cut off; send them again, shorter: "
            f"{_example(tool)}",
        )
    properties = tool.schema.get("properties", {})
    arguments: dict[str, Any] = {}
    for name, value in given.items():
        known = _near(name, list(properties), _NEAR_ARGUMENT)
        if known is None or known in arguments:
            notes.append(f"{name} ignored: {tool.name} has no such argument")
            continue
        if known != name:
            notes.append(f"{name} read as {known}")
        fitted = _fitted(value, properties[known])
        if fitted is not None or "default" not in properties[known]:
            arguments[known] = fitted
    missing = [name for name in tool.schema.get("required", []) if arguments.get(name) is None]
    if missing:
        return Refused(call, f"{tool.name} also needs {', '.join(missing)}: {_example(tool)}")
    wrong = _not_allowed(arguments, properties)
    if wrong:
        return Refused(call, wrong)
    return Fixed(ToolCall(call.id, tool.name, json.dumps(arguments, ensure_ascii=False)), arguments, "; ".join(notes))


def calls_in_text(text: str, tools: Sequence[ToolSpec]) -> list[ToolCall]:
    """Return the calls that a model wrote into its text for want of a better place, in the forms that are common."""
    text = _THOUGHT.sub("", text)
    pieces = [*_TAGGED.findall(text), *_FENCED.findall(text)] or (
        [text] if text.lstrip().startswith(("{", "[")) else []
    )
    found = list[ToolCall]()
    for piece in pieces:
        named = [each for value in _values(piece) for each in _by_name(value, tools)]
        found += [call for value in named if (call := _as_call(value, len(found))) is not None]
    if not found:
        found = [call for tool in tools for call in _written(text, tool)]
    return found[:_MAX_FOUND]


def without_thoughts(text: str) -> str:
    """Return a text without the model's thinking aloud, which is not to be sent back to it."""
    return _THOUGHT.sub("", text).strip()


def read_object(text: str) -> dict[str, Any] | None:
    """Return a JSON object that may be fenced, in Python's notation, quoted twice, or lack its closing brackets.

    A string that was cut off is not closed: half a piece of code is another piece of code.
    """
    text = text.strip()
    if fenced := _FENCED.search(text):
        text = fenced.group(1).strip()
    if not text:
        return {}
    for candidate in (text, _closed(text)):
        if candidate is None:
            continue
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(candidate)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(value, str) and value.lstrip().startswith("{"):
                return read_object(value)
            if isinstance(value, dict):
                return {str(name): each for name, each in value.items()}
    return None


def _closed(text: str) -> str | None:
    """Return a text with the brackets closed that were left open, or None where it ends inside of a string."""
    closing, quote, escaped = list[str](), "", False
    for char in text:
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "\"'":
            quote = char
        elif char in "{[":
            closing.append("}" if char == "{" else "]")
        elif char in "}]" and closing:
            closing.pop()
    return None if quote else text.rstrip().rstrip(",") + "".join(reversed(closing))


def _named(name: str, tools: Sequence[ToolSpec]) -> ToolSpec | None:
    bare = name.strip().removeprefix("functions.").removeprefix("default_api.").lower().replace("-", "_")
    near = _near(bare, [tool.name for tool in tools], _NEAR_NAME)
    return next((tool for tool in tools if tool.name == near), None)


def _near(name: str, known: Sequence[str], cutoff: float) -> str | None:
    if name in known:
        return name
    longer = [each for each in known if len(name) >= 3 and (each.startswith(name) or name.startswith(each))]
    if len(longer) == 1:
        return longer[0]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kinds = {kind for part in schema.get("anyOf", []) for kind in _kinds(part)}
    kind = schema.get("type", [])
    return kinds | ({kind} if isinstance(kind, str) else set(kind))


def _fitted(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a value in the type that its argument has, where that is plain to see."""
    kinds, choices = _kinds(schema), schema.get("enum", [])
    if isinstance(value, str) and "string" not in kinds:
        read = read_object(value) if "object" in kinds else _literal(value)
        value = value if read is None else read
    if isinstance(value, bool) and "boolean" not in kinds:
        return int(value) if kinds & {"integer", "number"} else str(value)
    if isinstance(value, float) and value.is_integer() and "number" not in kinds and "integer" in kinds:
        return int(value)
    if isinstance(value, int | float) and "string" in kinds and not kinds & {"integer", "number"}:
        value = str(value)
    if choices and isinstance(value, str) and value not in choices:
        return _near(value.lower(), [str(each) for each in choices], _NEAR_ARGUMENT) or _near(
            value.upper(), [str(each) for each in choices], _NEAR_NAME) or value  # fmt: skip
    return value


def _literal(text: str) -> Any:
    lowered = {"true": True, "false": False, "null": None, "none": None}
    if text.strip().lower() in lowered:
        return lowered[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _not_allowed(arguments: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    for name, value in arguments.items():
        choices = properties[name].get("enum")
        if choices and value not in choices:
            return f"{name} is {value!r}; use one of {', '.join(str(each) for each in choices)}"
    return ""


def _example(tool: ToolSpec) -> str:
    properties = tool.schema.get("properties", {})
    wanted = tool.schema.get("required") or list(properties)[:1]
    return f"{tool.name}({json.dumps({name: properties[name].get('description', name)[:60] for name in wanted})})"


def _values(piece: str) -> list[Any]:
    """Return the JSON values that stand one after another in a text."""
    values, decoder, place = list[Any](), json.JSONDecoder(), 0
    while (start := _next_brace(piece, place)) >= 0 and len(values) < _MAX_FOUND:
        if _DOUBLED.match(piece, start):  # braces as a chat template escaped them, and the model copied them
            start += 1
        try:
            value, place = decoder.raw_decode(piece, start)
        except ValueError:
            value, place = read_object(piece[start:]), len(piece)
        values += value if isinstance(value, list) else [value]
    return values


def _next_brace(text: str, place: int) -> int:
    found = [at for bracket in "{[" if (at := text.find(bracket, place)) >= 0]
    return min(found, default=-1)


def _by_name(value: Any, tools: Sequence[ToolSpec]) -> list[Any]:
    """Return the calls of an object that has tools for its keys, `{"run": {"description": "a"}}`; else the value."""
    names = {tool.name for tool in tools}
    if not isinstance(value, dict) or not value or not set(value) <= names:
        return [value]
    return [
        {"name": name, "arguments": given.get("arguments", given) if isinstance(given, dict) else given}
        for name, given in value.items()
    ]


def _as_call(value: Any, place: int) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    inner: dict[str, Any] = function if isinstance(function, dict) else value
    name = inner.get("name") or inner.get("tool") or inner.get("tool_name") or inner.get("function")
    if not isinstance(name, str):
        return None
    arguments: Any = next((inner[key] for key in ("arguments", "parameters", "args", "input") if key in inner), {})
    if isinstance(arguments, dict) and arguments.get("type") == "object" and "properties" in arguments:
        return None  # what the tool takes, copied from the prompt
    return ToolCall(
        f"text_{place}", name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    )


def _written(text: str, tool: ToolSpec) -> list[ToolCall]:
    """Return the calls of a tool that are written as Python would: `set_value("X", value=1)`."""
    calls, names = list[ToolCall](), list(tool.schema.get("properties", {}))
    for match in _WRITTEN.finditer(text):
        if match.group(1) != tool.name:
            continue
        for end in range(match.end(), min(len(text), match.end() + 4_000)):
            if text[end] != ")":
                continue
            try:
                node = ast.parse(text[match.start() : end + 1].strip(), mode="eval").body
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) > len(names):
                    break
                arguments = {name: ast.literal_eval(each) for name, each in zip(names, node.args, strict=False)}
                arguments |= {each.arg or "": ast.literal_eval(each.value) for each in node.keywords}
            except (SyntaxError, ValueError, MemoryError, RecursionError):
                continue
            calls.append(ToolCall(f"text_{len(calls)}", tool.name, json.dumps(arguments, default=str)))
            break
    return calls
