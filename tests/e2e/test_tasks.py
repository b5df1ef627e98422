"""Experiments as tasks (SEP-2663): for clients that declare the extension, over both transports, on the same rows."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Literal

import pytest
from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ListResourcesResult, Request, Result
from pydantic import ConfigDict

from loopgraph_mcp.auth import Grant, Scope
from loopgraph_mcp.config import Settings
from loopgraph_mcp.store import tokens
from loopgraph_mcp.store.database import Database

Connect = Callable[..., AbstractAsyncContextManager[Client]]
SLOW = "@@ @@\n-SLEEP_S = 0.05\n-STEPS = 3\n+SLEEP_S = 0.1\n+STEPS = {}\n"
IDENTIFIER = "io.modelcontextprotocol/tasks"
MISSING, INVALID, MISMATCH = -32021, -32602, -32020


class Told(Result):
    model_config = ConfigDict(extra="allow")


class Task(Told):
    result_type: Literal["task"] = "task"


class Params(Request[dict[str, Any], str]):
    name_param: ClassVar[str | None] = "taskId"


class Tasks(ClientExtension):
    """A client that knows tasks: it hands the caller the task itself."""

    identifier = IDENTIFIER

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Task, resolve=self._resolve)]

    async def _resolve(self, made: Task, _: ClaimContext) -> CallToolResult:
        raise AssertionError(made)  # these tests take the task as it comes


async def ask(client: Client, method: str, task_id: str, **more: Any) -> dict[str, Any]:
    request = Params(method=f"tasks/{method}", params={"taskId": task_id, **more})
    return (await client.session.send_request(request, Told)).model_dump()


async def code_of(client: Client, method: str, task_id: str) -> int:
    with pytest.raises(MCPError) as caught:
        await ask(client, method, task_id)
    return caught.value.error.code


async def run(client: Client, **arguments: Any) -> dict[str, Any]:
    result = await client.session.call_tool("run_experiment", arguments, allow_claimed=True)
    if isinstance(result, Task):
        return dict(result.model_extra or {})
    assert isinstance(result, CallToolResult)
    assert not result.is_error, result.content
    return result.structured_content or {}


async def until_settled(client: Client, task_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (task := await ask(client, "get", task_id))["status"] == "working":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    return task


async def test_an_experiment_is_a_task_for_those_who_declare_it(connect: Connect) -> None:
    async with connect(extensions=[Tasks()]) as client, connect() as plain:
        assert IDENTIFIER in (client.server_capabilities.extensions or {})
        began = time.monotonic()
        made = await run(client, patch=SLOW.format(15))
        assert time.monotonic() - began < 5  # the call does not wait where wait_s is left out
        assert (made["status"], made["ttlMs"]) == ("working", None)
        assert isinstance(made["pollIntervalMs"], int)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made["createdAt"])
        working = await ask(client, "get", made["taskId"])
        assert working["status"] == "working"
        assert "result" not in working
        task = await until_settled(client, made["taskId"])
        assert (task["status"], task["taskId"]) == ("completed", made["taskId"])
        assert "io.modelcontextprotocol/related-task" not in str(task["result"])
        polled = await plain.call_tool("get_experiment", {"experiment_id": made["taskId"]})
        assert task["result"]["structuredContent"] == polled.structured_content
        assert task["result"]["content"][0]["text"] == getattr(polled.content[0], "text", "")
        assert (await run(client, patch=SLOW.format(15)))["repeated"]  # done already: an answer, no task
        waited = await run(client, replicate=True, wait_s=30)
        assert waited["state"] == "done"


async def test_a_task_ends_by_cancelling_and_asks_for_nothing(connect: Connect) -> None:
    async with connect(extensions=[Tasks()]) as client:
        made = await run(client, patch=SLOW.format(500))
        await ask(client, "update", made["taskId"], inputResponses={"x": {}})
        await ask(client, "cancel", made["taskId"])
        assert (await until_settled(client, made["taskId"]))["status"] == "cancelled"
        assert "taskId" not in await ask(client, "cancel", made["taskId"])
        assert [await code_of(client, each, "exp_none") for each in ("get", "update", "cancel")] == [INVALID] * 3


async def test_others_see_no_tasks(connect: Connect) -> None:
    async with connect() as client, connect("legacy", extensions=[Tasks()]) as old:
        answer = await run(client, patch=SLOW.format(8))
        assert answer["state"] == "done"  # it waited
        assert [await code_of(client, each, answer["experiment_id"]) for each in ("get", "update", "cancel")] == [
            MISSING
        ] * 3
        assert (await run(old, patch=SLOW.format(9)))["state"] == "done"
        listen = Request[dict[str, Any], str](
            method="subscriptions/listen", params={"notifications": {"taskIds": ["exp_x"]}}
        )
        with pytest.raises(MCPError) as caught:
            await client.session.send_request(listen, ListResourcesResult)
        assert caught.value.error.code == MISSING


async def test_a_task_belongs_to_whom_asked_for_it(start_http: Callable[..., Any], settings: Settings) -> None:
    async with Database.open(settings.db_path) as db:
        scopes = {"one": Scope.RUN, "two": Scope.RUN, "reader": Scope.READ}
        one, two, reader = [
            await tokens.add_token(db, Grant(name, scope), now=time.time()) for name, scope in scopes.items()
        ]
    server, more = start_http(), {"extensions": [Tasks()]}
    async with (
        server.client(token=one, **more) as mine,
        server.client(token=two, **more) as other,
        server.client(token=reader, **more) as looks,
    ):
        made = await run(mine, patch=SLOW.format(500))
        assert await code_of(other, "cancel", made["taskId"]) == INVALID
        assert await code_of(looks, "cancel", made["taskId"]) == INVALID
        assert (await ask(looks, "get", made["taskId"]))["status"] == "working"
        await ask(mine, "cancel", made["taskId"])
        assert (await until_settled(looks, made["taskId"]))["status"] == "cancelled"
        elsewhere = Request[dict[str, Any], str](method="tasks/get", params={"taskId": made["taskId"]})
        with pytest.raises(MCPError) as caught:
            await mine.session.send_request(elsewhere, Told)
        assert caught.value.error.code == MISMATCH
