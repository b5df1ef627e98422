"""A LoopGraph server in a separate process, and an MCP client connected to it."""

import asyncio
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, TextContent

from loopgraph_mcp.agents.messages import ToolSpec
from loopgraph_mcp.errors import RunError

_CALL_TIMEOUT_S = 90.0  # the longest wait of a call is 50 s
# What the desk does itself, in both arms: run and record stand for them.
THE_DESKS = frozenset({"run_experiment", "get_experiment", "cancel_experiment", "record_outcome"})
_SERVERS_OWN = frozenset({"workspace", "apply"})  # arguments that the desk decides

logger = logging.getLogger("loopgraph.harness")


class Server:
    """A LoopGraph server in a process of its own, an async context manager; restarted once if it dies.

    A task of its own holds the connection, so that several servers may be opened and closed in any order.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._parameters = StdioServerParameters(
            command=sys.executable,
            args=["-P", "-m", "loopgraph_mcp"],  # -P and its folder: a workspace's mcp.py is not the one it needs
            env=dict(environment),
            cwd=Path(sys.executable).parent,
        )
        self._client: Client | None = None
        self._leave = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._let_go()

    async def tools(self) -> list[ToolSpec]:
        """Return the server's tools that a researcher may call, without the arguments that are not its to choose."""
        listed = (await (await self._connected()).list_tools()).tools
        return [
            ToolSpec(tool.name, tool.description or "", _schema(tool.input_schema))
            for tool in listed
            if tool.name not in THE_DESKS
        ]

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> CallToolResult:
        """Call a tool; where the server has died, start it again and call once more: its tools bear that."""
        for attempt in (1, 2):
            client = await self._connected()
            try:
                return await client.call_tool(tool, dict(arguments), read_timeout_seconds=_CALL_TIMEOUT_S)
            except Exception as error:  # however the connection broke, the answer is a new one
                await self._let_go()
                if attempt == 2:
                    raise RunError(f"LoopGraph's server failed at {tool}: {error}; `loopgraph doctor`") from error
        raise AssertionError  # the second attempt returned or raised

    async def _connected(self) -> Client:
        if self._client is None:
            self._leave = asyncio.Event()
            ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            self._holder = asyncio.create_task(self._hold(ready))
            self._client = await ready
        return self._client

    async def _hold(self, ready: "asyncio.Future[Client]") -> None:
        try:
            async with Client(self._parameters) as client:
                ready.set_result(client)
                await self._leave.wait()
        except Exception as error:  # noqa: BLE001 - raised in the caller that waits for the connection, or in the next call
            if not ready.done():
                ready.set_exception(RunError(f"LoopGraph's server does not start: {error}; `loopgraph doctor`"))
            logger.debug("a server's connection ended: %s", error)

    async def _let_go(self) -> None:
        self._leave.set()
        if self._holder is not None:
            await self._holder
        self._client = self._holder = None


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = {name: each for name, each in schema.get("properties", {}).items() if name not in _SERVERS_OWN}
    return {**schema, "properties": properties}


def text_of(result: CallToolResult) -> str:
    """Return what a tool answered in words."""
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))
