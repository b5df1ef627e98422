"""Serves over stdio and answers every line: the SDK drops unreadable ones, and their client would wait forever."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Self, cast

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter
from pydantic import ValidationError

_MAX_BYTES = 16 * 2**20  # of one line; over HTTP a body has 4 MiB
_HEAD = 64 * 2**10  # where the id of a message that is no JSON is looked for
# What a message is made of; a string that does not end is one as well, so that no text is read twice.
_PIECE = re.compile(r'"((?:[^"\\]|\\.)*)"?|([{\[])|([}\]])|(-?\d[\d.eE+-]*)', re.DOTALL)
_WHOLE = re.compile(r"-?\d{1,40}", re.ASCII)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_EXAMPLE = 'send one object a line, such as {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'

Answer = Callable[[SessionMessage], Awaitable[None]]


async def serve(server: MCPServer[Any]) -> None:
    """Serve until the client closes stdin."""
    with _own_stdin() as wire:
        lines = Lines(wire)
        # The SDK takes any source of lines, and asks for no more of it than to be iterated.
        async with stdio_server(stdin=cast("anyio.AsyncFile[str]", lines)) as (read, write):
            lines.answer_with(write.send)
            low = server._lowlevel_server  # noqa: SLF001 - as the SDK's own way over stdio does
            await low.run(read, write, low.create_initialization_options())


@contextmanager
def _own_stdin() -> Iterator[BinaryIO]:
    """Give stdin, and leave the null device in its place: what a tool starts must not read the client's messages."""
    wire, null = os.dup(sys.stdin.fileno()), os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, sys.stdin.fileno())
    os.close(null)
    try:
        yield os.fdopen(wire, "rb", closefd=False)  # a thread may still wait for a line when the server has ended
    finally:
        os.dup2(wire, sys.stdin.fileno())


class Lines:
    """The client's messages; each line that is none is answered with an error, and the next one is read."""

    def __init__(self, wire: BinaryIO) -> None:
        self._wire = wire
        self._answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answer_with(self, answer: Answer) -> None:
        """Say how an answer is sent."""
        self._answer.set_result(answer)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Return the next line that is a message."""
        while head := await self._read():
            line, rest = head.decode("utf-8", "replace").removeprefix("\ufeff"), head
            while len(rest) == _MAX_BYTES and not rest.endswith(b"\n"):  # what is too long goes by in pieces
                rest = await self._read()
            if rest is not head:
                refusal: JSONRPCError | None = too_long(line)
            elif len(head) > _HEAD:  # what takes a while holds up nobody
                refusal = await asyncio.to_thread(refused, line)
            elif head.strip():
                refusal = refused(line)
            else:
                continue
            if refusal is None:
                return line
            await (await self._answer)(SessionMessage(refusal))
        raise StopAsyncIteration

    async def _read(self) -> bytes:
        return await anyio.to_thread.run_sync(self._wire.readline, _MAX_BYTES)


def too_long(line: str) -> JSONRPCError:
    """Return the answer to a line of which only the beginning was kept."""
    return _error(read_id(line), INVALID_REQUEST, f"the message is longer than {_MAX_BYTES // 2**20} MiB; send less")


def refused(line: str) -> JSONRPCError | None:
    """Return the answer to a line that is no message of the protocol; None to one that is."""
    try:
        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] != "json_invalid":
            return _error(read_id(line), INVALID_REQUEST, f"this is not a JSON-RPC message; {_EXAMPLE}")
        return _error(read_id(line), PARSE_ERROR, _why_unread(str(first.get("ctx", {}).get("error", "")), line))
    if not hasattr(message, "id") and '"id"' in line and _is_asked(line):
        return _error(
            None,
            INVALID_REQUEST,
            f"the id is neither text nor a whole number, so no answer can refer to it; {_EXAMPLE}",
        )
    return None


def _why_unread(parser: str, line: str) -> str:
    """Return in words what the parser found in a line."""
    if "hex escape" in parser and _HALF.search(line):
        return "the message has half a character (a lone surrogate, \\ud800 to \\udfff); remove it"
    if "recursion" in parser:
        return "the message is nested too deeply; send flat arguments"
    return f"the line is not JSON ({parser[:80] or 'cannot be read'}); {_EXAMPLE}"


def _is_asked(line: str) -> bool:
    """Return whether a message has an id of its own, whatever that is."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(message, dict) and "id" in message


def read_id(line: str) -> str | int | None:
    """Return the id of a request, as far as it can be read; None where that is not so, or it is no request.

    It is looked for in the outermost object alone: what arguments hold is no id of the message.

    Example:
        >>> read_id('{"jsonrpc": "2.0", "id": 7, "method": "x", "params": {"id": 8, "q": "')
        7
    """
    depth, key, keys, found = 0, "", set[str](), list[str | int | None]()
    for piece in _PIECE.finditer(line[:_HEAD]):
        text, opens, closes, number = piece.groups()
        if opens or closes:
            depth, key = depth + (1 if opens else -1), ""
        elif depth == 1:
            is_key = text is not None and line[piece.end() : piece.end() + 20].lstrip().startswith(":")
            if not is_key and key == "id":
                found.append(_id(text, number))
            key = text if is_key else ""
            keys.add(key)
    is_request = line.lstrip().startswith("{") and '"method"' in line and not keys & {"result", "error"}
    return found[0] if is_request and len(found) == 1 else None


def _id(text: str | None, number: str | None) -> str | int | None:
    if number is not None:
        return int(number) if _WHOLE.fullmatch(number) else None
    try:
        read = str(json.loads(f'"{text}"'))
        read.encode("utf-8")
    except (ValueError, UnicodeError):
        return None
    return read


def _error(request: str | int | None, code: int, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=request, error=ErrorData(code=code, message=message))
