"""The tasks extension (SEP-2663): clients that declare it get an active experiment as a task to poll.

The task is the experiment's row and its id the experiment's, so that it outlives the server and the call.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mcp.server.context import CallNext, HandlerResult
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER
from mcp_types import HEADER_MISMATCH, INVALID_PARAMS, CallToolRequestParams, CallToolResult, RequestParams
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field

from loopgraph_mcp.api import lookups
from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.auth import Scope
from loopgraph_mcp.errors import AccessError, NotFoundError
from loopgraph_mcp.models import OutcomeKind, RunState
from loopgraph_mcp.server import render
from loopgraph_mcp.server.callers import Asked, asker
from loopgraph_mcp.server.tools import experiment_result
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.text import said

IDENTIFIER = "io.modelcontextprotocol/tasks"
_ERA = frozenset(MODERN_PROTOCOL_VERSIONS)


class TaskParams(RequestParams):
    """Which task is meant."""

    task_id: str = Field(max_length=64)


class Tasks(Extension):
    """Makes a task of a call that started an experiment, unless it is done by the time the call is answered.

    A call without `wait_s` is answered at once; every other client waits and polls with get_experiment.
    """

    identifier = IDENTIFIER
    tools_that_start = frozenset({"run_experiment"})

    def methods(self) -> Sequence[MethodBinding]:
        """Return the extension's own requests."""
        return [
            MethodBinding("tasks/get", TaskParams, _get, _ERA),
            MethodBinding("tasks/update", TaskParams, _update, _ERA),
            MethodBinding("tasks/cancel", TaskParams, _cancel, _ERA),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Asked, call_next: CallNext
    ) -> HandlerResult:
        """Return a task in place of an experiment's progress, to a client that knows what that is."""
        if params.name not in self.tools_that_start or not _declared(ctx):
            return await call_next(ctx)
        params.arguments = {"wait_s": 0, **(params.arguments or {})}
        result = await call_next(ctx)
        found = result.structured_content if isinstance(result, CallToolResult) and not result.is_error else None
        if not found or found["state"] == RunState.DONE:
            return result
        row = await lookups.the_experiment(ctx.lifespan_context.db, found["experiment_id"])
        return {"resultType": "task", **_task(row, found["poll_after_s"]), "statusMessage": _words(result)}


async def check_listen(ctx: Asked, call_next: CallNext) -> HandlerResult:
    """Refuse to watch tasks for a client that does not declare them; to one that does, they are for polling."""
    listened = (ctx.params or {}).get("notifications") if ctx.method == "subscriptions/listen" else None
    if isinstance(listened, dict) and "taskIds" in listened:
        require_client_extension(ctx, IDENTIFIER)
    return await call_next(ctx)


def _declared(asked: Asked) -> bool:
    known = asked.session.client_capabilities
    return asked.protocol_version in _ERA and known is not None and IDENTIFIER in (known.extensions or {})


async def _get(asked: Asked, params: TaskParams) -> dict[str, Any]:
    """Answer how far a task is, or with what its call would have returned."""
    row, answer = await _found(asked, params.task_id, Scope.READ)
    if answer.outcome is OutcomeKind.CANCELLED:
        return {**_task(row, None), "status": "cancelled", "statusMessage": answer.reason}
    if answer.state is not RunState.DONE:
        return {**_task(row, answer.poll_after_s), "statusMessage": render.progress(answer)}
    result = await experiment_result(asked.lifespan_context, "tasks/get", answer)
    return {**_task(row, None), "status": "completed", "result": result.model_dump(by_alias=True, exclude_none=True)}


async def _update(asked: Asked, params: TaskParams) -> dict[str, Any]:
    """Take note of input: none was asked for, so there is nothing to do with it."""
    await _found(asked, params.task_id, Scope.RUN)
    return {}


async def _cancel(asked: Asked, params: TaskParams) -> dict[str, Any]:
    """End the experiment; one that is done stays as it is."""
    await _found(asked, params.task_id, Scope.RUN)
    try:
        await asked.lifespan_context.cancel_experiment(params.task_id, caller=asker(asked))
    except AccessError as error:
        raise MCPError(code=INVALID_PARAMS, message=said(str(error))) from error
    return {}


async def _found(asked: Asked, task_id: str, needs: Scope) -> tuple[ExperimentRow, ExperimentAnswer]:
    require_client_extension(asked, IDENTIFIER)
    if asked.request is not None and asked.request.headers.get(MCP_NAME_HEADER) != task_id:
        raise MCPError(code=HEADER_MISMATCH, message=f"{MCP_NAME_HEADER}: the header is not the request's taskId")
    graph = asked.lifespan_context
    try:
        asker(asked).check(needs)
        answer = await graph.get_experiment(task_id, wait_s=0)
        return await lookups.the_experiment(graph.db, task_id), answer
    except (AccessError, NotFoundError) as error:
        raise MCPError(code=INVALID_PARAMS, message=said(str(error))) from error


def _task(row: ExperimentRow, poll_after_s: float | None) -> dict[str, Any]:
    changed = row.finished_at or row.started_at or row.created_at
    polled = {} if poll_after_s is None else {"pollIntervalMs": round(1_000 * poll_after_s)}
    return {
        "taskId": row.id,
        "status": "working",
        "createdAt": _iso(row.created_at),
        "lastUpdatedAt": _iso(changed),
        "ttlMs": None,
        **polled,
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _words(result: Any) -> str:
    return "".join(getattr(each, "text", "") for each in result.content)
