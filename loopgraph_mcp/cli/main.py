"""The command `loopgraph`: the verbs for people at a terminal, and --json for programs."""

import gc

gc.disable()  # while modules are imported: they stay, and looking through them takes a tenth of a start

import asyncio
import dataclasses
import os
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.status import Status

from loopgraph_mcp import __version__
from loopgraph_mcp.api import backtest as backtesting
from loopgraph_mcp.api import packs, permissions, propose, trust
from loopgraph_mcp.api.answers import BestResult, CodeMapAnswer, ExperimentAnswer, ImportAnswer, IngestAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli import asking, clients, doctor, next_steps, page, render, store, tokens
from loopgraph_mcp.cli.agents import app as harness_app
from loopgraph_mcp.config import SKILL, Settings, bundled, read_settings
from loopgraph_mcp.errors import HistoryError, LoopGraphError, first_of
from loopgraph_mcp.ingest.files import expand
from loopgraph_mcp.ingest.packs import read_definition
from loopgraph_mcp.models import Direction, KnobValue, OutcomeKind, RunState, Standing
from loopgraph_mcp.runner.kernel import hide_memory
from loopgraph_mcp.runner.workspace import CONFIG_NAME, create_workspace, load_workspace, prepare_command, resolved
from loopgraph_mcp.text import plain_line

gc.freeze()
gc.enable()

app = typer.Typer(
    name="loopgraph",
    help="The memory layer for autonomous ML research: suggest a change, make the edit, run it, store the outcome.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(tokens.app)

_T = TypeVar("_T")
app.add_typer(harness_app)
app.add_typer(store.app)
app.add_typer(page.app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", "-w", help="Folder of the training loop. Default: the current folder.")
]


def main() -> None:
    """Run the command line; our own errors end it with one line and status 1."""
    hide_memory()  # an agent's key is in the environment, and a run of the same user could read it
    warnings.simplefilter("ignore", SyntaxWarning)  # Python's warnings about programs that we only parse
    permissions.close_mask()
    try:
        app(spread(sys.argv[1:], "--memory"))
    except (LoopGraphError, ExceptionGroup) as error:
        if (ours := first_of(error)) is None:
            raise
        render.errors.print(f"loopgraph: {next_steps.refusal(ours)}", style="red", markup=False, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def spread(arguments: list[str], option: str) -> list[str]:
    """Put an option before each of the values that follow it: `--memory a b` is `--memory a --memory b`."""
    spread_out, inside = list[str](), False
    for argument in arguments:
        if argument == option:
            inside = True
            continue
        inside = inside and not argument.startswith("-")
        spread_out += [option, argument] if inside else [argument]
    return spread_out


def _settings() -> Settings:
    return read_settings(os.environ, Path.cwd())


def _with_graph(work: Callable[[LoopGraph], Awaitable[_T]]) -> _T:
    async def run() -> _T:
        async with LoopGraph.open(_settings()) as graph:
            return await work(graph)

    return asyncio.run(run())


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        render.console.print(f"loopgraph {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def init(
    directory: Annotated[
        Path, typer.Argument(help="New folder, or an existing checkout of an autoresearch-style loop.")
    ] = Path(),
    *,
    budget: Annotated[float | None, typer.Option(help="Training seconds of one experiment.")] = None,
    prepare: Annotated[bool, typer.Option(help="Prepare the data and the tokenizer now.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take what was understood without asking.")] = False,
) -> None:
    """Create a workspace from the bundled trainer, or turn existing code into one."""
    declared = (resolved(directory) / CONFIG_NAME).exists()
    if not declared:
        _propose(resolved(directory), budget, yes=yes)
    with permissions.users_mask():
        where, new = create_workspace(directory, bundled("trainer"), budget_s=budget)
    if not declared:
        trust.accept(_settings(), where)
    made = "created from the bundled trainer" if new else "found an existing training loop"
    render.console.print(f"{where.path}: {made}", markup=False, highlight=False)
    render.console.print(
        f"experiments edit {plain_line(where.editable)}: {plain_line(where.metric)}, {where.direction.value} is "
        f"better, {where.budget_s:g} s a run: {trust.command(where)}",
        markup=False,
        highlight=False,
    )
    if new and prepare:
        _prepare(where.path)
    render.console.print(
        f"[dim]next:[/] cd {escape(str(where.path))} && loopgraph run --description baseline", highlight=False
    )


def _propose(directory: Path, budget_s: float | None, *, yes: bool) -> None:
    """Declare a folder of other code as its files suggest, once the user agrees."""
    own = (directory / "train.py").is_file() and (directory / "prepare.py").is_file()
    if own or not directory.is_dir() or not any(directory.iterdir()):
        return
    made = propose.propose(directory)
    if made is None:
        return
    kind = f"a {made.known_as} checkout" if made.known_as else "code to improve"
    text = made.declaration(budget_s or 300.0)
    told = f" (read in {', '.join(made.read_in)})" if made.read_in else ""
    render.console.print(f"{directory}: {kind}{told}. {CONFIG_NAME} would be:\n\n{text}", markup=False, highlight=False)
    if not yes and not (sys.stdin.isatty() and typer.confirm("Write it?", default=True)):
        render.errors.print(
            f"nothing is written; run it again with --yes, or write {CONFIG_NAME} by hand", markup=False
        )
        raise typer.Exit(1)
    with permissions.users_mask():
        (directory / CONFIG_NAME).write_text(text, encoding="utf-8")


def _prepare(path: Path) -> None:
    """Run the bundled prepare.py and show its output."""
    done = subprocess.run(prepare_command(path), cwd=path, check=False)  # noqa: S603 - our own prepare.py
    if done.returncode != 0:
        render.errors.print(
            "[red]prepare.py failed[/]; if torch is missing, run: pip install 'loopgraph-mcp\\[trainer]'",
            highlight=False,
        )
        raise typer.Exit(1)


@app.command()
def serve() -> None:
    """Serve MCP over stdio, like `loopgraph-mcp`."""
    from loopgraph_mcp import logs  # noqa: PLC0415 - the MCP SDK takes longer to import than most commands
    from loopgraph_mcp.server.app import serve_stdio  # noqa: PLC0415 - the MCP SDK takes longer to import than most commands

    settings = _settings()
    logs.set_up(settings)
    serve_stdio(settings)


@app.command()
def search(
    query: Annotated[
        list[str] | None, typer.Argument(help="What to improve. Without a query, all methods are ranked.")
    ] = None,
    *,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=20, help="How many methods to show.")] = 5,
    family: Annotated[str | None, typer.Option(help="Only methods of this family, such as optimizer.")] = None,
    standing: Annotated[
        Standing | None, typer.Option(help="Only methods with this track record in this context.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank methods to try next, by text match and by measured gains."""
    answer = _with_graph(
        lambda graph: graph.search_methods(
            " ".join(query or []), workspace=workspace, limit=limit, family=family, standing=standing
        )
    )
    render.print_json(answer) if as_json else render.show_search(answer)


def _methods_like(incomplete: str) -> list[str]:
    packed = (file.stem for file in bundled("methodpacks").glob("*.toml") if file.stem != "pack")
    return sorted(each for each in packed if each.startswith(incomplete))


@app.command()
def edit(
    method: Annotated[
        str,
        typer.Argument(
            help="Method id (from `loopgraph search`), or an experiment id to restore that run's program. "
            "With --revert, an edit id is also accepted.",
            autocompletion=_methods_like,
        ),
    ],
    *,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="Another method for the same edit. Repeatable.")
    ] = None,
    knob: Annotated[list[str] | None, typer.Option("--set", help="KNOB=VALUE. Repeatable.")] = None,
    companion: Annotated[
        list[str] | None, typer.Option("--with", help="A recommended dependent change, by name, or `all`. Repeatable.")
    ] = None,
    revert: Annotated[bool, typer.Option("--revert", help="Remove the method's last edit from the file.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Write the edit to the file.")] = False,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Turn methods into a diff of the current training file, or revert an earlier edit."""
    knobs = dict(_knob(text) for text in knob or [])
    answer = _with_graph(
        lambda graph: graph.get_code_edit(
            method,
            also=also or (),
            knobs=knobs,
            companions=companion or (),
            revert=revert,
            apply=apply,
            workspace=workspace,
        )
    )
    render.print_json(answer) if as_json else render.show_edit(answer)
    if answer.status in {"refused", "guidance"}:
        raise typer.Exit(1)


def _knob(text: str) -> tuple[str, KnobValue]:
    name, separator, value = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"{text!r} is not KNOB=VALUE", param_hint="--set")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


@app.command(name="map")
def map_(
    path: Annotated[
        Path | None, typer.Argument(help="Python file or folder. Default: the workspace's editable file.")
    ] = None,
    *,
    query: Annotated[
        str, typer.Option("--query", "-q", help="What you are looking for; matching entries come first.")
    ] = "",
    budget: Annotated[
        int, typer.Option(min=150, max=20_000, help="Approximate length of the outline in tokens.")
    ] = 800,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Outline a program with line numbers: knobs, classes, parameter groups, training loop, known methods."""

    async def work(graph: LoopGraph) -> CodeMapAnswer:
        if path is None:
            return await graph.map_code(query=query, budget_tokens=budget, workspace=workspace)
        return await graph.map_file(resolved(path), query=query, budget_tokens=budget)

    answer = _with_graph(work)
    render.print_json(answer) if as_json else render.show_map(answer)


@app.command()
def run(
    *,
    edit_id: Annotated[str | None, typer.Option("--edit", help="Edit to train, from `loopgraph edit`.")] = None,
    patch: Annotated[
        typer.FileText | None, typer.Option(help="Unified diff to apply to the current file; - reads stdin.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method that the patch or hand edit implements.")] = None,
    description: Annotated[str, typer.Option("--description", "-d", help="What this run tries, in a few words.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Random seed.")] = None,
    budget: Annotated[float | None, typer.Option(help="Training seconds. Default: the workspace's budget.")] = None,
    replicate: Annotated[bool, typer.Option("--replicate", help="Run the same program again with a new seed.")] = False,
    trusted: Annotated[
        bool, typer.Option("--trust", help="Run the command of this folder's loopgraph.toml without asking.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Do not wait; follow the run with `loopgraph status`.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Train an edit, a patch or the current file for the fixed budget. Ctrl-C cancels the run."""
    text = None if patch is None else patch.read()
    asking.check_folder(_settings(), workspace, yes=trusted)

    async def work(graph: LoopGraph) -> ExperimentAnswer:
        answer = await graph.run_experiment(
            edit_id=edit_id,
            patch=text,
            method_id=method,
            description=description,
            seed=seed,
            budget_s=budget,
            replicate=replicate,
            workspace=workspace,
            wait_s=0,
        )
        return answer if detach else await _follow(graph, answer)

    answer = _with_graph(work)
    render.print_json(answer) if as_json else render.show_experiment(answer)
    if answer.state is RunState.DONE and answer.outcome is not OutcomeKind.FINISHED:
        raise typer.Exit(1)


async def _follow(graph: LoopGraph, answer: ExperimentAnswer) -> ExperimentAnswer:
    """Show a bar until an experiment is done; interrupting the command cancels the experiment."""
    repeated = answer.repeated
    try:
        with render.RunBar(render.errors) as bar:
            while answer.state is not RunState.DONE:
                answer = await graph.get_experiment(answer.experiment_id, wait_s=5, on_progress=bar.update)
    except asyncio.CancelledError:
        render.errors.print("cancelling the run …")
        answer = await graph.cancel_experiment(answer.experiment_id)
        line = f"{answer.experiment_id}: {plain_line(answer.reason) or answer.state.value}"
        render.errors.print(line, markup=False, highlight=False)
        raise
    return dataclasses.replace(answer, repeated=repeated)


@app.command(name="trust")
def trust_(
    directory: Annotated[Path, typer.Argument(help="Folder of a training loop.")] = Path(),
) -> None:
    """Allow runs of a folder's command until its loopgraph.toml changes."""
    where = load_workspace(directory)
    trust.accept(_settings(), where)
    line = f"{where.path}: runs of `{trust.command(where)}` are allowed until {CONFIG_NAME} changes"
    render.console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def status(
    *,
    workspace: WorkspaceOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit.")] = False,
    as_json: Json = False,
) -> None:
    """Follow current runs and the last outcomes. Ctrl-C ends the view, not the runs."""

    async def work(graph: LoopGraph) -> None:
        answers = await graph.list_experiments(workspace=workspace, limit=10)
        if as_json:
            render.print_json(answers)
            return
        if once:
            render.console.print(render.results_table(answers))
            return
        with Live(console=render.console, auto_refresh=False) as live:
            while True:
                hint = "[dim]Ctrl-C ends the view; runs continue[/]"
                live.update(Group(render.results_table(answers), hint), refresh=True)
                await asyncio.sleep(1)
                answers = await graph.list_experiments(workspace=workspace, limit=10)

    _with_graph(work)


@app.command()
def results(
    *,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many experiments to show.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the workspace's experiments, oldest first, with their verdicts."""

    async def work(graph: LoopGraph) -> tuple[list[ExperimentAnswer], BestResult | None]:
        found = await graph.list_experiments(workspace=workspace, limit=limit)
        return found, await graph.best_result(workspace=workspace)

    answers, best = _with_graph(work)
    answers.reverse()
    if as_json:
        render.print_json(answers)
    elif answers:
        render.console.print(render.results_table(answers))
        render.show_best(best)
    else:
        render.console.print("no experiments here yet; start with `loopgraph run --description baseline`")


@app.command()
def cancel(
    experiment: Annotated[str, typer.Argument(help="Experiment id, from `loopgraph status`.")], *, as_json: Json = False
) -> None:
    """Cancel a queued or running experiment and end every process it started."""
    answer = _with_graph(lambda graph: graph.cancel_experiment(experiment))
    render.print_json(answer) if as_json else render.show_experiment(answer)


@app.command()
def trace(
    identity: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="Id of an experiment, edit, retrieval, method, paper, passage, recipe or pack."
        ),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Show what led to a row, back to its paper or pack, and what followed from it."""
    answer = _with_graph(lambda graph: graph.trace(identity))
    render.print_json(answer) if as_json else render.show_trace(answer)


@app.command()
def merge(other: Annotated[Path, typer.Argument(help="The other loopgraph.db.")], *, as_json: Json = False) -> None:
    """Add the rows of another machine's store to this one. Merging again adds only new rows."""
    added = _with_graph(lambda graph: graph.merge_store(other))
    if as_json:
        render.print_json(added)
    else:
        counts = ", ".join(f"{count} {table}" for table, count in added.items())
        render.console.print(counts or "Nothing new.", markup=False)


@app.command(name="import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="results.tsv, log.jsonl, or an export of MLflow, W&B or Optuna.")],
    *,
    repo: Annotated[
        Path | None, typer.Option(help="Git checkout with the rows' commits. Default: the one that contains the file.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of the runs, such as 'H100'.")] = None,
    budget: Annotated[float | None, typer.Option(help="Training seconds of each run.", min=0.001)] = None,
    metric: Annotated[str | None, typer.Option(help="Column of the metric. Default: recognised by its name.")] = None,
    direction: Annotated[
        Direction | None, typer.Option(help="Which direction of the metric is better; overrides the file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show how the file is read; store nothing.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Show each row, not only a summary.")] = False,
    as_json: Json = False,
) -> None:
    """Import run histories into the store. Importing again adds only new rows."""
    answers: list[ImportAnswer] = []
    failed: list[HistoryError] = []

    async def work(graph: LoopGraph, shown: Status) -> None:
        for path in expand(files):
            try:
                answer = await graph.import_history(
                    path,
                    repository=repo,
                    device=device,
                    budget_s=budget,
                    metric=metric,
                    direction=direction,
                    dry_run=dry_run,
                    on_progress=lambda words: shown.update(escape(words)),
                )
            except HistoryError as error:  # the other files are still imported
                failed.append(error)
            else:
                answers.append(answer)

    with render.errors.status("opening the store") as shown:
        _with_graph(lambda graph: work(graph, shown))
    if as_json:
        render.print_json(answers)
        render.end_with(failed)
    else:
        render.show_imports(answers, failed, details=details)


@app.command()
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(help="arXiv ids, URLs or titles; GitHub URLs; files, folders, packs.", metavar="SOURCE..."),
    ],
    *,
    query: Annotated[str, typer.Option("--query", "-q", help="Show the passages most relevant to this question.")] = "",
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="Expected hash of a pack; any other content is refused.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Read only what was fetched before; make no request.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read papers, repositories, files and packs into the store. Ingesting again adds only new passages."""
    answers, failed = list[IngestAnswer](), list[LoopGraphError]()

    async def work(graph: LoopGraph, shown: Status) -> None:
        async def step(share: float, words: str) -> None:
            shown.update(escape(f"{share:.0%} {words}"))

        for named in map(render.named, sources):
            try:
                answers.append(await graph.ingest(named, query=query, sha256=sha256, offline=offline, on_step=step))
            except LoopGraphError as error:  # the other sources are still ingested
                failed.append(error)

    with render.errors.status("opening the store") as shown:
        _with_graph(lambda graph: work(graph, shown))
    if as_json:
        render.print_json(answers)
    else:
        for answer in answers:
            render.show_ingest(answer)
    render.end_with(failed)


@app.command()
def backtest(
    files: Annotated[list[Path], typer.Argument(help="Run histories to replay, such as results.tsv.")],
    *,
    memory: Annotated[
        list[Path] | None,
        typer.Option("--memory", "-m", help="Training histories: the predictor learns from these files."),
    ] = None,
    day_one: Annotated[
        bool,
        typer.Option("--day-one/--no-day-one", help="Also train on the 50 published histories bundled with LoopGraph."),
    ] = True,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Replay only histories of the owners set aside to judge the prior.")
    ] = False,
    own_searches: Annotated[
        bool, typer.Option("--own-searches", help="Learn from the other histories of a history's owner as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how well LoopGraph predicts which changes were kept (leave-one-owner-out AUC on past runs)."""
    with render.errors.status("reading …") as shown:
        report = backtesting.run(
            files,
            memory or [],
            bundled=day_one,
            held_out=held_out,
            own_searches=own_searches,
            progress=lambda words: shown.update(escape(words)),
        )
    render.print_json(report) if as_json else render.show_backtest(report)


packs_app = typer.Typer(help="Export and check method packs.", no_args_is_help=True)
app.add_typer(packs_app, name="pack")


@packs_app.command(name="export")
def export_pack(
    name: Annotated[str, typer.Argument(help="Name of the pack: lower-case words joined by -.")],
    directory: Annotated[Path, typer.Argument(help="New folder.")],
    *,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="A method to export. Repeatable. Default: all learned and local ones."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write methods with their recipes and measured outcomes into a new pack."""
    with permissions.users_mask():
        answer = _with_graph(lambda graph: graph.export_pack(name, resolved(directory), method_ids=method or []))
    render.print_json(answer) if as_json else render.show_export(answer)


@packs_app.command(name="check")
def check_pack(
    directory: Annotated[Path, typer.Argument(help="Folder of the pack.")],
    *,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="A train.py to try the recipes on, besides the bundled trainer's. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a pack's format, and whether each recipe applies, is present already or is refused."""
    programs = {"trainer/train.py": bundled("trainer") / "train.py", **{str(each): each for each in against or []}}
    answer = packs.check_pack(resolved(directory), programs)
    render.print_json(answer) if as_json else render.show_pack_check(answer)


methods_app = typer.Typer(help="Show, add, change or retire a method.", no_args_is_help=True)
app.add_typer(methods_app, name="method")

MethodId = Annotated[str, typer.Argument(metavar="METHOD", help="Method id: lower-case words joined by -.")]


@methods_app.command(name="show")
def show_method(method: MethodId, *, as_json: Json = False) -> None:
    """Show a method with its sources and the passages that describe it."""
    answer = _with_graph(lambda graph: graph.show_method(method))
    render.print_json(answer) if as_json else render.show_method(answer)


@methods_app.command(name="add")
def add_method(
    method: MethodId,
    file: Annotated[
        Path | None,
        typer.Argument(help="Definition, as in a method pack. Omit it to link passages to an existing method."),
    ] = None,
    *,
    cite: Annotated[
        list[str],
        typer.Option(
            metavar="PASSAGE", help="Id of a passage (from `loopgraph ingest`) that describes the method. Repeatable."
        ),
    ],
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Register a method with its passages, change it, or link passages to an existing method."""
    definition = None if file is None else read_definition(resolved(file))
    answer = _with_graph(lambda graph: graph.add_method(method, cite, definition, workspace=workspace))
    render.print_json(answer) if as_json else render.show_method(answer)


@methods_app.command(name="retire")
def retire_method(method: MethodId, *, as_json: Json = False) -> None:
    """Hide a registered method from searches; its experiments stay."""
    answer = _with_graph(lambda graph: graph.retire_method(method))
    render.print_json(answer) if as_json else render.show_method(answer)


def _clients_like(incomplete: str) -> list[str]:
    return [each for each in clients.CLIENTS if each.startswith(incomplete)]


@app.command()
def config(
    client: Annotated[str, typer.Argument(help=f"One of {', '.join(clients.CLIENTS)}.", autocompletion=_clients_like)],
    *,
    write: Annotated[bool, typer.Option("--write", help="Write the entry to the client's configuration file.")] = False,
    url: Annotated[
        str | None,
        typer.Option(
            help="Address of a running server, such as http://127.0.0.1:8848/mcp. Default: start one over stdio."
        ),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Print or write the configuration entry that connects an MCP client to LoopGraph."""
    known = clients.CLIENTS.get(client)
    if known is None:
        raise typer.BadParameter(f"{client!r}; use one of {', '.join(clients.CLIENTS)}", param_hint="CLIENT")
    folder = resolved(Path(workspace or "."))
    if url is None:
        made = clients.entry(known, folder, os.environ, context_env=_context_env(folder))
    else:
        made = clients.remote_entry(known, url)
    file = known.path(Path.home(), folder)
    if write:
        changed = clients.write(known, made, file)
        line = f"{file}: {'written' if changed else 'unchanged'}"
        render.console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    render.errors.print(f"[dim]for {escape(str(file))} (--write writes it):[/]", highlight=False, soft_wrap=True)
    print(clients.as_text(known, made), end="")  # noqa: T201 - to be piped, unwrapped
    if (command := clients.as_command(known, made)) is not None:
        render.errors.print("[dim]or run:[/]")
        render.errors.print(command, soft_wrap=True, markup=False, highlight=False)


def _context_env(folder: Path) -> tuple[str, ...]:
    """Return a workspace's `context_env`; empty where the folder is no workspace yet."""
    try:
        return load_workspace(folder).context_env
    except LoopGraphError:
        return ()


@app.command()
def skill() -> None:
    """Print the skill file for agents (how to use LoopGraph well); save it in your agent's skills folder."""
    typer.echo(SKILL.read_text("utf-8"), nl=False)


@app.command(name="doctor")
def examine(*, as_json: Json = False) -> None:
    """Check everything LoopGraph needs and report what is missing."""
    checks = asyncio.run(doctor.examine(_settings(), home=Path.home(), cwd=Path.cwd()))
    render.print_json(checks) if as_json else render.show_checks(checks)
    if doctor.failed(checks):
        raise typer.Exit(1)
