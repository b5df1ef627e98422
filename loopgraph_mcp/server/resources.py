"""MCP resources: what clients read by address, list in pages, and complete the ids of."""

import asyncio
import base64
import binascii
import functools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CompleteRequestParams,
    CompleteResult,
    Completion,
    ListResourcesResult,
    PaginatedRequestParams,
    Resource,
    ResourceTemplateReference,
)

from loopgraph_mcp.api import lookups, recovery
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.auth import Scope
from loopgraph_mcp.errors import LoopGraphError, NotFoundError
from loopgraph_mcp.server import pages, render
from loopgraph_mcp.server.callers import Asked, Ctx, asker, caller_of
from loopgraph_mcp.server.next_steps import refusal
from loopgraph_mcp.store import chunks, papers, resources
from loopgraph_mcp.text import plain_line

_PAGE = 100  # resources of one page; a client reads them into its context
_COMPLETIONS = 100  # the protocol's maximum
_PASSAGES = 20
_SHELVES = {"method": "methods", "paper": "papers", "experiment": "experiments"}
_KINDS = {"method_id": "method", "paper_id": "paper", "experiment_id": "experiment"}


async def method(ctx: Ctx, method_id: str) -> str:
    """A method: its description, knobs and sources, and the passages that describe it."""
    db = _graph(ctx).db
    found = await lookups.the_method(db, method_id)
    return pages.method(found, await chunks.passages_of(db, found.id, limit=_PASSAGES))


async def paper(ctx: Ctx, paper_id: str, at: str = "0") -> str:
    """The passages read from a paper, repository or file, starting at a given one."""
    db = _graph(ctx).db
    document = await papers.newest_document(db, paper_id)
    if document is None:
        raise NotFoundError(f"no text stored for {paper_id[:80]!r}; ingest it first")
    return pages.paper(document, await papers.chunks_of(db, document.id), max(_number(at), 0))


async def passage(ctx: Ctx, chunk_id: str) -> str:
    """One passage of a paper, repository or pack."""
    found = await chunks.get_chunk(_graph(ctx).db, chunk_id)
    if found is None:
        raise NotFoundError(f"no passage {chunk_id[:80]!r}; read a method or paper resource for its passage ids")
    return pages.passage(found)


async def experiment(ctx: Ctx, experiment_id: str) -> str:
    """An experiment: its progress, or its outcome and verdict."""
    return render.experiment(await _graph(ctx).get_experiment(experiment_id, wait_s=0))


async def log(ctx: Ctx, experiment_id: str, at: str = "0") -> str:
    """The log of an experiment from a byte offset; a negative offset counts from the end."""
    row = await lookups.the_experiment(_graph(ctx).db, experiment_id)
    part, begin, end, size = await asyncio.to_thread(
        recovery.read_part, Path(row.run_dir or "") / recovery.LOG_NAME, _number(at), limit=pages.MAX_CHARS
    )
    return pages.log(experiment_id, part, at=begin, end=end, size=size)


def add_resources(server: MCPServer[LoopGraph]) -> None:
    """Register every resource with a server."""
    for path, title, function in (
        ("methods/{method_id}", "Method", method),
        ("papers/{paper_id}{?at}", "Paper", paper),
        ("passages/{chunk_id}", "Passage", passage),
        ("experiments/{experiment_id}", "Experiment", experiment),
        ("experiments/{experiment_id}/log{?at}", "Run log", log),
    ):
        server.resource(pages.SCHEME + path, title=title, mime_type="text/plain")(_with_errors(function))
    # The SDK's own handlers have neither pages nor completion from the store.
    low = server._lowlevel_server  # noqa: SLF001
    low.add_request_handler("resources/list", PaginatedRequestParams, list_page)
    low.add_request_handler("completion/complete", CompleteRequestParams, complete)


async def list_page(asked: Asked, params: PaginatedRequestParams) -> ListResourcesResult:
    """Return one page of the list: experiments, newest first, then methods, then papers."""
    asker(asked).check(Scope.READ)
    found = await resources.page(asked.lifespan_context.db, _place(params.cursor), limit=_PAGE + 1)
    last = found[_PAGE - 1] if len(found) > _PAGE else None
    return ListResourcesResult(
        resources=[
            Resource(
                uri=pages.address(_SHELVES[each.kind], each.id),
                name=plain_line(each.id),
                title=plain_line(each.title, limit=120) or plain_line(each.id),
                description=plain_line(each.note, limit=200) or None,
                mime_type="text/plain",
            )
            for each in found[:_PAGE]
        ],
        next_cursor=None if last is None else _cursor(last.kind, last.key),
    )


async def complete(asked: Asked, params: CompleteRequestParams) -> CompleteResult:
    """Return stored ids that contain the typed text."""
    kind = _KINDS.get(params.argument.name)
    if kind is None or not isinstance(params.ref, ResourceTemplateReference):
        return CompleteResult(completion=Completion(values=[], total=0, has_more=False))
    asker(asked).check(Scope.READ)
    values, found = await resources.ids_like(asked.lifespan_context.db, kind, params.argument.value, limit=_COMPLETIONS)
    return CompleteResult(completion=Completion(values=values, total=found, has_more=found > len(values)))


def _cursor(kind: str, key: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([kind, key]).encode()).decode()


def _place(cursor: str | None) -> tuple[str, str]:
    if cursor is None:
        return "", ""
    try:
        kind, key = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
        if isinstance(kind, str) and isinstance(key, str):
            return kind, key
    except (binascii.Error, ValueError, TypeError, RecursionError):
        pass
    raise MCPError(code=INVALID_PARAMS, message="invalid cursor; omit it to start from the first page")


def _number(at: str) -> int:
    try:
        return int(at[:20])
    except ValueError:
        raise NotFoundError(f"at={at[:20]!r} is not a whole number; omit it to start at the beginning") from None


def _graph(ctx: Ctx) -> LoopGraph:
    return ctx.request_context.lifespan_context


def _with_errors(function: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    """Check the token, and turn our errors into those of the protocol."""

    @functools.wraps(function)
    async def wrapper(ctx: Ctx, **kwargs: Any) -> str:
        try:
            caller_of(ctx).check(Scope.READ)
            return await function(ctx, **kwargs)
        except NotFoundError as error:
            raise ResourceNotFoundError(refusal(error)) from error
        except LoopGraphError as error:
            raise ResourceError(refusal(error)) from error
        except Exception as error:
            try:
                await _graph(ctx).db.blame(error)
            except LoopGraphError as damage:
                raise ResourceError(refusal(damage)) from error
            raise

    return wrapper
