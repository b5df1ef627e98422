"""The MCP tools: search, edit, run, get, cancel, record; ingest and add_method; trace and map_code."""

import asyncio
from typing import Annotated, Any, Literal

from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import Field, TypeAdapter

from loopgraph_mcp.api.answers import (
    CodeMapAnswer,
    EditAnswer,
    ExperimentAnswer,
    IngestAnswer,
    MethodAnswer,
    RecordAnswer,
    SearchAnswer,
    TraceAnswer,
)
from loopgraph_mcp.api.experiment import OnProgress
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.record import MAX_TOKENS, MAX_USD
from loopgraph_mcp.auth import Scope
from loopgraph_mcp.models import Decision, OutcomeKind, Standing
from loopgraph_mcp.runner.queue import Priority
from loopgraph_mcp.server import render
from loopgraph_mcp.server.callers import Ctx, caller_of, checked_source
from loopgraph_mcp.server.strict import strict_tool
from loopgraph_mcp.text import estimate_tokens, plain

Workspace = Annotated[str | None, Field(description="Folder of the training loop. Default: the server's own workspace")]
WaitS = Annotated[float, Field(description="Seconds to wait for the outcome before answering", ge=0, le=50)]
ExperimentId = Annotated[str, Field(description="The experiment_id that run_experiment returned", max_length=64)]

_ADAPTERS = dict[type, TypeAdapter[Any]]()  # built at first use: building all of them would slow the start


async def search_methods(
    ctx: Ctx,
    query: Annotated[str, Field(description="What to improve or try, in plain words. Empty: rank all methods")] = "",
    workspace: Workspace = None,
    limit: Annotated[int, Field(description="How many methods to return", ge=1, le=20)] = 5,
    family: Annotated[
        str | None, Field(description="Only methods of this family, such as `optimizer`", max_length=60)
    ] = None,
    standing: Annotated[
        Literal["untried", "proven", "mixed", "flopped"] | None,
        Field(description="Only methods with this track record in this context"),
    ] = None,
    detail: Annotated[
        Literal["concise", "detailed"], Field(description="`detailed` adds the factors of each score")
    ] = "concise",
) -> Annotated[CallToolResult, SearchAnswer]:
    """Find methods and constant values to try next, ranked by text match and gains. Call it before editing."""
    graph, caller = graph_of(ctx), caller_of(ctx)
    answer = await graph.search_methods(
        query,
        workspace=workspace,
        limit=limit,
        family=family,
        standing=None if standing is None else Standing(standing),
        caller=caller,
    )
    return await answered(graph, "search_methods", answer.retrieval_id, answer, render.search(answer, detail))


async def get_code_edit(
    ctx: Ctx,
    method_id: Annotated[
        str,
        Field(
            description="Method id; `set-values`; or an experiment id to restore that run's program. "
            "With revert=true, also an edit id",
            max_length=200,
        ),
    ],
    also: Annotated[
        list[str] | None, Field(description="More methods for the same edit, in any order", max_length=10)
    ] = None,
    retrieval_id: Annotated[
        str | None,
        Field(
            description="retrieval_id of the search that suggested the method; links the outcome to it", max_length=64
        ),
    ] = None,
    knobs: Annotated[
        dict[str, int | float | str] | None,
        Field(
            description="Values for the method's knobs; else suggested ones or defaults. Another method's: `gqa.groups`"
        ),
    ] = None,
    companions: Annotated[  # noqa: FBT002 - a JSON flag
        bool | list[str],
        Field(description="Also make the recommended dependent changes: true for all, or their names"),
    ] = False,
    revert: Annotated[bool, Field(description="Remove the method's last edit from the file")] = False,  # noqa: FBT002 - a JSON flag
    apply: Annotated[bool, Field(description="Also write the edit to the file")] = False,  # noqa: FBT002 - a JSON flag
    diff_from: Annotated[int, Field(description="First line of the diff to show, for diffs that were cut", ge=1)] = 1,
    workspace: Workspace = None,
) -> Annotated[CallToolResult, EditAnswer]:
    """Turn one or more methods into one edit of the current training file: a diff, or guidance to write it by hand."""
    graph, caller = graph_of(ctx), caller_of(ctx)
    if apply:
        caller.check(Scope.RUN)
    answer = await graph.get_code_edit(
        method_id,
        also=also or (),
        retrieval_id=retrieval_id,
        knobs=knobs,
        companions=companions,
        revert=revert,
        apply=apply,
        workspace=workspace,
        caller=caller,
    )
    return await answered(graph, "get_code_edit", answer.edit_id or method_id, answer, render.edit(answer, diff_from))


async def run_experiment(
    ctx: Ctx,
    edit_id: Annotated[str | None, Field(description="Edit to train, from get_code_edit", max_length=64)] = None,
    patch: Annotated[str | None, Field(description="Or a unified diff to apply to the current file")] = None,
    method_id: Annotated[
        str | None, Field(description="Method that the patch or hand edit implements", max_length=200)
    ] = None,
    description: Annotated[str, Field(description="What this run tries, in a few words")] = "",
    seed: Annotated[int | None, Field(description="Random seed", ge=0, le=2**31 - 1)] = None,
    budget_s: Annotated[
        float | None, Field(description="Training seconds. Default: the workspace's budget", gt=0)
    ] = None,
    replicate: Annotated[  # noqa: FBT002 - a JSON flag
        bool, Field(description="Run the same program again with a new seed, to measure the noise")
    ] = False,
    idempotency_key: Annotated[
        str | None, Field(description="Calls with the same key return the same run", max_length=200)
    ] = None,
    priority: Annotated[
        Literal["low", "normal", "high"],
        Field(
            description="Order among your own runs: `high` first; `low` only when no other run waits. Agents take turns"
        ),
    ] = "normal",
    wait_s: WaitS = 20.0,
    workspace: Workspace = None,
) -> Annotated[CallToolResult, ExperimentAnswer]:
    """Train for the fixed budget with an edit or a patch; without either, train the current file (a baseline).

    The run continues without the call. The answer is the outcome, or the progress and when to call get_experiment.
    """
    graph, caller = graph_of(ctx), caller_of(ctx)
    answer = await graph.run_experiment(
        edit_id=edit_id,
        patch=patch,
        method_id=method_id,
        description=description,
        seed=seed,
        budget_s=budget_s,
        replicate=replicate,
        idempotency_key=idempotency_key,
        wait_s=wait_s,
        workspace=workspace,
        on_progress=_reporter(ctx),
        priority=Priority(priority),
        caller=caller,
    )
    return await experiment_result(graph, "run_experiment", answer)


async def get_experiment(
    ctx: Ctx, experiment_id: ExperimentId, wait_s: WaitS = 20.0
) -> Annotated[CallToolResult, ExperimentAnswer]:
    """Return an experiment's progress, or its outcome and verdict."""
    graph = graph_of(ctx)
    answer = await graph.get_experiment(experiment_id, wait_s=wait_s, on_progress=_reporter(ctx))
    return await experiment_result(graph, "get_experiment", answer)


async def cancel_experiment(ctx: Ctx, experiment_id: ExperimentId) -> Annotated[CallToolResult, ExperimentAnswer]:
    """Cancel a queued or running experiment and end every process it started."""
    graph = graph_of(ctx)
    answer = await graph.cancel_experiment(experiment_id, caller=caller_of(ctx))
    return await experiment_result(graph, "cancel_experiment", answer)


async def record_outcome(
    ctx: Ctx,
    experiment_id: Annotated[
        str | None,
        Field(description="Experiment to decide on. Omit it to report a run made without LoopGraph", max_length=64),
    ] = None,
    method_id: Annotated[str | None, Field(description="Reported run: the method it tried", max_length=200)] = None,
    metric_value: Annotated[float | None, Field(description="Reported run: its metric")] = None,
    status: Annotated[
        Literal["finished", "crashed", "out_of_memory", "diverged", "timed_out"] | None,
        Field(description="Reported run: how it ended"),
    ] = None,
    description: Annotated[str, Field(description="What was tried, or the reason for the decision")] = "",
    decision: Annotated[
        Literal["keep", "discard"] | None, Field(description="Whether the change stays. Default: keep if it improved")
    ] = None,
    commit: Annotated[str | None, Field(description="Commit that contains the change", max_length=64)] = None,
    log: Annotated[
        str | None,
        Field(description="Reported run: its log, or the log's path in the workspace. A bare metric counts little"),
    ] = None,
    tokens: Annotated[int | None, Field(description="Tokens you spent on this experiment", ge=0, le=MAX_TOKENS)] = None,
    cost_usd: Annotated[float | None, Field(description="Cost of those tokens in US dollars", ge=0, le=MAX_USD)] = None,
    workspace: Workspace = None,
) -> Annotated[CallToolResult, RecordAnswer]:
    """Record a decision, its cost, or the outcome of a run made without LoopGraph. Record failures too."""
    graph = graph_of(ctx)
    answer = await graph.record_outcome(
        experiment_id=experiment_id,
        method_id=method_id,
        metric_value=metric_value,
        status=None if status is None else OutcomeKind(status),
        description=description,
        decision=None if decision is None else Decision(decision),
        commit=commit,
        log=log,
        tokens=tokens,
        cost_usd=cost_usd,
        workspace=workspace,
    )
    return await answered(graph, "record_outcome", answer.experiment_id, answer, render.record(answer))


async def ingest(
    ctx: Ctx,
    source: Annotated[
        str,
        Field(
            description="arXiv id, URL or title; GitHub repository, folder, file or pull request; local PDF, TeX, "
            "Markdown, HTML or Python file, or a folder of them; method pack; run history such as results.tsv",
            max_length=2_000,
        ),
    ],
    query: Annotated[
        str,
        Field(description="Return the passages most relevant to this question. Default: the method", max_length=1_000),
    ] = "",
    sha256: Annotated[
        str | None, Field(description="Expected hash of a pack; any other content is refused", max_length=80)
    ] = None,
) -> Annotated[CallToolResult, IngestAnswer]:
    """Read a source into the store and return its most relevant passages; call again with another query for others."""
    graph, reached = graph_of(ctx), 0.0

    async def step(share: float, words: str) -> None:
        nonlocal reached
        reached = max(reached, 100 * share)
        await ctx.report_progress(reached, 100.0, words)

    source = await asyncio.to_thread(checked_source, ctx, caller_of(ctx), source)
    answer = await graph.ingest(source, query=query, sha256=sha256, on_step=step)
    return await answered(graph, "ingest", answer.id or source, answer, render.ingest(answer))


async def add_method(
    ctx: Ctx,
    method_id: Annotated[
        str, Field(description="Method id: lower-case words joined by hyphens, such as `qk-norm`", max_length=60)
    ],
    chunk_ids: Annotated[
        list[str],
        Field(
            description="chunk_ids (from ingest) of the passages that describe the method", min_length=1, max_length=20
        ),
    ],
    definition: Annotated[
        dict[str, Any] | None,
        Field(
            description="name, family, summary, description (what it does, in your words); optional: aliases, "
            "published ({claim, setting, gain}, with numbers from a cited passage) and recipe, as in a method pack. "
            "Omit it to link the passages to an existing method"
        ),
    ] = None,
    workspace: Workspace = None,
) -> Annotated[CallToolResult, MethodAnswer]:
    """Register a method that you read in passages, so that searches find it. Call again to change it."""
    graph = graph_of(ctx)
    answer = await graph.add_method(method_id, chunk_ids, definition, workspace=workspace, caller=caller_of(ctx))
    return await answered(graph, "add_method", answer.method_id, answer, render.method(answer))


async def trace(
    ctx: Ctx,
    id: Annotated[  # noqa: A002 - what the caller knows it as
        str,
        Field(
            description="Id of an experiment, edit, retrieval, method, paper, passage, recipe or pack", max_length=500
        ),
    ],
) -> Annotated[CallToolResult, TraceAnswer]:
    """Show what led to a row and what followed from it: pack, paper, passage, method, search, edit, run, outcome."""
    graph = graph_of(ctx)
    answer = await graph.trace(id)
    return await answered(graph, "trace", id, answer, render.trace(answer))


async def map_code(
    ctx: Ctx,
    path: Annotated[
        str | None, Field(description="Python file or folder in the workspace. Default: its editable file")
    ] = None,
    query: Annotated[str, Field(description="What you are looking for; matching entries come first")] = "",
    budget_tokens: Annotated[int, Field(description="Approximate length in tokens", ge=150, le=20_000)] = 750,
    workspace: Workspace = None,
) -> Annotated[CallToolResult, CodeMapAnswer]:
    """Outline a file with line numbers: knobs, fields, classes, parameter groups, loop, and methods it contains."""
    graph = graph_of(ctx)
    answer = await graph.map_code(path, query=query, budget_tokens=budget_tokens, workspace=workspace)
    return await answered(graph, "map_code", answer.path, answer, render.code_map(answer))


def loop_tools() -> list[Tool]:
    """Return the tools in the order in which the loop uses them."""
    look = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    change = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
    run = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
    end = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
    fetch = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=True)
    return [
        strict_tool(search_methods, title="Search methods", annotations=look, needs=Scope.READ),
        strict_tool(get_code_edit, title="Get a code edit", annotations=change, needs=Scope.READ),
        strict_tool(run_experiment, title="Run an experiment", annotations=run, needs=Scope.RUN),
        strict_tool(get_experiment, title="Get an experiment", annotations=look, needs=Scope.READ),
        strict_tool(cancel_experiment, title="Cancel an experiment", annotations=end, needs=Scope.RUN),
        strict_tool(record_outcome, title="Record an outcome", annotations=run, needs=Scope.RUN),
        strict_tool(ingest, title="Ingest a source", annotations=fetch, needs=Scope.RUN),
        strict_tool(add_method, title="Add a method", annotations=change, needs=Scope.RUN),
        strict_tool(trace, title="Trace", annotations=look, needs=Scope.READ),
        strict_tool(map_code, title="Map the code", annotations=look, needs=Scope.READ),
    ]


def graph_of(ctx: Ctx) -> LoopGraph:
    """Return the memory that a server serves."""
    return ctx.request_context.lifespan_context


def _reporter(ctx: Ctx) -> OnProgress:
    reached = 0.0

    async def report(answer: ExperimentAnswer) -> None:
        nonlocal reached
        reached = max(reached, answer.percent or 0.0)  # progress may not go back
        await ctx.report_progress(reached, 100.0, render.progress(answer))

    return report


async def experiment_result(graph: LoopGraph, tool: str, answer: ExperimentAnswer) -> CallToolResult:
    """Return an experiment's progress or outcome."""
    return await answered(graph, tool, answer.experiment_id, answer, render.experiment(answer))


async def answered(graph: LoopGraph, tool: str, subject: str, answer: Any, words: str) -> CallToolResult:
    """Return text for the model beside the whole answer for programs, and write down what the text costs."""
    await graph.add_cost(tool, subject_id=subject, tokens=estimate_tokens(words))
    return as_result(answer, words)


def as_result(answer: Any, words: str) -> CallToolResult:
    """Return text for the model beside the whole answer for programs."""
    kind = type(answer)
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return CallToolResult(
        content=[TextContent(type="text", text=words)],
        structured_content=_ADAPTERS[kind].dump_python(plain(answer), mode="json"),
    )
