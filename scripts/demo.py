"""The loop on this machine, from an empty folder: a baseline, three methods from the memory, and what they taught it.

Everything goes through the MCP server over stdio, with the calls an agent makes; the headline at the end is what
`loopgraph results` shows.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from loopgraph_mcp.api.answers import BestResult, ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli import render
from loopgraph_mcp.config import Settings, bundled, read_settings
from loopgraph_mcp.errors import LoopGraphError, first_of
from loopgraph_mcp.runner.workspace import create_workspace, prepare_command


class ToolFailedError(LoopGraphError):
    """A tool answered with an error; its text names the next step."""


_RUNS_IN_TIME = 10  # budgets of training that the demo may take: five minutes by default
QUERY = "learning rate, batch size or schedule for a short run"
console: Console = render.console


async def main() -> None:
    """Run the demo and say where everything lies."""
    options = _options()
    folder = (options.dir or Path(tempfile.mkdtemp(prefix="loopgraph-demo-"))).resolve()
    where, new = create_workspace(folder / "workspace", bundled("trainer"), budget_s=options.budget)
    console.rule("[bold]1. A workspace")
    console.print(f"{where.path}: improves {where.editable} by {where.metric}, {where.budget_s:g} s of training a run")
    if new:
        subprocess.run(prepare_command(where.path), cwd=where.path, check=True)  # noqa: ASYNC221, S603 - our prepare.py
    began = time.monotonic()
    environment = {**os.environ, "LOOPGRAPH_HOME": str(folder / "home"), "LOOPGRAPH_WORKSPACE": str(where.path)}
    server = StdioServerParameters(command=sys.executable, args=["-m", "loopgraph_mcp"], env=environment)
    async with Client(server) as client:
        settings = read_settings(environment, where.path)
        await _loop(client, options.methods, settings, replicate_until=began + _RUNS_IN_TIME * where.budget_s)
    console.rule("[bold]Where everything lies")
    console.print(f"workspace  {where.path}\nresults    {where.path / 'results.tsv'}")
    console.print(f"memory     {folder / 'home' / 'loopgraph.db'}\nruns, logs {folder / 'home' / 'runs'}")
    console.print(f"[dim]{time.monotonic() - began:.0f} s in all. Next: loopgraph config CLIENT, see README.md[/]")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--budget", type=float, default=30.0, metavar="S", help="training seconds of a run (%(default)g)"
    )
    parser.add_argument("--methods", type=int, default=3, metavar="N", help="methods to try (%(default)d)")
    parser.add_argument("--dir", type=Path, help="folder for workspace and memory (a new temporary one)")
    return parser.parse_args()


async def _loop(client: Client, methods: int, settings: Settings, *, replicate_until: float) -> None:
    """Go through the loop; the best of single runs is replicated if that should end before `replicate_until`."""
    began = time.monotonic()
    console.rule("[bold]2. A baseline, and one more with another seed for the noise")
    await _run(client, description="baseline")
    await _run(client, description="baseline", replicate=True)

    console.rule("[bold]3. What does the memory say?")
    before = await _call(client, "search_methods", query=QUERY, limit=methods + 3)
    if not before["hits"]:
        before = await _call(client, "search_methods", limit=methods + 3)
    _show_ranking(before, {})

    console.rule("[bold]4. Search, edit, run, outcome")
    edits: dict[str, str] = {}  # by the experiment that ran it
    for hit in before["hits"]:
        if len(edits) == methods:
            break
        edit = await _call(client, "get_code_edit", method_id=hit["method_id"], retrieval_id=before["retrieval_id"])
        if edit["edit_id"] is None:
            console.print(f"{hit['method_id']}: {edit['status']}, {edit['reason']}")
            continue
        console.print(f"[bold]{hit['method_id']}[/]: " + "; ".join(edit["changes"]), highlight=False, markup=True)
        run = await _run(client, edit_id=edit["edit_id"], description=hit["name"])
        await _call(client, "record_outcome", experiment_id=run["experiment_id"], description="tried by scripts/demo")
        edits[run["experiment_id"]] = edit["edit_id"]
    _, best = await _results(settings)
    now = time.monotonic()
    in_time = now + (now - began) / (2 + len(edits)) <= replicate_until
    if in_time and best is not None and best.runs == 1 and best.experiment_id in edits:
        console.print(f"[bold]{best.description}[/] is the best so far, of one run: once more with another seed")
        await _run(client, edit_id=edits[best.experiment_id], description=best.description, replicate=True)

    console.rule("[bold]5. The same question again")
    ranks = {hit["method_id"]: rank for rank, hit in enumerate(before["hits"], start=1)}
    query = before["query"]
    _show_ranking(await _call(client, "search_methods", query=query, limit=methods + 3), ranks)

    console.rule("[bold]6. What came of it: the mean of the best program, with its noise")
    answers, best = await _results(settings)
    console.print(render.results_table(answers))
    render.show_best(best)


async def _results(settings: Settings) -> tuple[list[ExperimentAnswer], BestResult | None]:
    """Return the experiments, oldest first, and the best program among them, as `loopgraph results` does."""
    async with LoopGraph.open(settings) as graph:
        answers = await graph.list_experiments(limit=50)
        return answers[::-1], await graph.best_result()


async def _call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    return _content(await client.call_tool(tool, arguments))


def _content(result: CallToolResult) -> dict[str, Any]:
    if result.is_error or result.structured_content is None:
        raise ToolFailedError(getattr(result.content[0], "text", str(result.content)))
    return result.structured_content


async def _run(client: Client, **arguments: Any) -> dict[str, Any]:
    """Run an experiment to its end, as a client with short calls does: start it, then look again."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(arguments["description"], total=100, told="starting")

        async def told(done: float, _total: float | None, message: str | None) -> None:
            bar.update(task, completed=done, told=(message or "").rpartition("running, ")[2])

        answer = await _follow(client, "run_experiment", arguments, told, bar, task)
        while answer["state"] != "done":
            waiting = {"experiment_id": answer["experiment_id"], "wait_s": 30}
            answer = await _follow(client, "get_experiment", waiting, told, bar, task)
    if answer["outcome"] != "finished":
        console.print(f"[red]{answer['outcome']}[/]: {answer['reason']}\n{answer['log_tail']}", highlight=False)
    return answer


async def _follow(
    client: Client, tool: str, arguments: dict[str, Any], told: Any, bar: Progress, task: TaskID
) -> dict[str, Any]:
    answer = _content(await client.call_tool(tool, arguments, progress_callback=told))
    bar.update(task, completed=answer["percent"] or 0)
    return answer


def _show_ranking(answer: dict[str, Any], before: dict[str, int]) -> None:
    table = Table(title=f"“{answer['query']}”, {answer['context']}", title_justify="left")
    for name in ("#", "method", "standing", "score", "why"):
        table.add_column(name)
    for rank, hit in enumerate(answer["hits"], start=1):
        was = before.get(hit["method_id"])
        moved = "" if was in {None, rank} else f" [dim](was {was})[/]"
        table.add_row(f"{rank}{moved}", hit["method_id"], hit["standing"], f"{hit['score']:.2f}", hit["why"])
    console.print(table)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (LoopGraphError, ExceptionGroup) as error:
        if (told := first_of(error)) is None:
            raise
        sys.exit(f"scripts/demo: {told}")
    except KeyboardInterrupt:
        sys.exit(130)
