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
    help="The memory layer for autonomous ML research: what to try, the edit, the run, and what came of it.",
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
    str | None, typer.Option("--workspace", "-w", help="Folder of the training loop; here by default.")
]


def main() -> None:
    """Run the command line; our own errors end it with one line and status 1."""
    hide_memory()  # an agent's key is in the environment, and a run of the same user could read it
    warnings.simplefilter("ignore", SyntaxWarning)  # Python's remarks on programs that we only read
    permissions.close_mask()
    try:
        app(spread(sys.argv[1:], "--memory"))
    except (LoopGraphError, ExceptionGroup) as error:
        if (told := first_of(error)) is None:
            raise
        render.errors.print(f"loopgraph: {next_steps.refusal(told)}", style="red", markup=False, highlight=False)
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
        Path, typer.Argument(help="A new folder, or an existing autoresearch-style checkout.")
    ] = Path(),
    *,
    budget: Annotated[float | None, typer.Option(help="Training seconds of one experiment.")] = None,
    prepare: Annotated[bool, typer.Option(help="Prepare the data and the tokenizer now.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take what was understood without asking.")] = False,
) -> None:
    """Make a workspace: from the bundled trainer, or of code that is there already."""
    declared = (resolved(directory) / CONFIG_NAME).exists()
    if not declared:
        _propose(resolved(directory), budget, yes=yes)
    with permissions.users_mask():
        where, new = create_workspace(directory, bundled("trainer"), budget_s=budget)
    if not declared:
        trust.accept(_settings(), where)
    made = "made from the bundled trainer" if new else "an existing training loop was found"
    render.console.print(f"{where.path}: {made}", markup=False, highlight=False)
    render.console.print(
        f"improves {plain_line(where.editable)} by {plain_line(where.metric)} ({where.direction.value} is better), "
        f"{where.budget_s:g} s a run: {trust.command(where)}",
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
    """Run the bundled prepare.py, its output for the user to see."""
    done = subprocess.run(prepare_command(path), cwd=path, check=False)  # noqa: S603 - our own prepare.py
    if done.returncode != 0:
        render.errors.print(
            "[red]prepare.py failed[/]; with torch missing, run: pip install 'loopgraph-mcp\\[trainer]'",
            highlight=False,
        )
        raise typer.Exit(1)


@app.command()
def serve() -> None:
    """Serve MCP over stdio, as `loopgraph-mcp` does."""
    from loopgraph_mcp import logs  # noqa: PLC0415 - the MCP SDK takes longer to import than most commands
    from loopgraph_mcp.server.app import serve_stdio  # noqa: PLC0415 - the MCP SDK takes longer to import than most commands

    settings = _settings()
    logs.set_up(settings)
    serve_stdio(settings)


@app.command()
def search(
    query: Annotated[list[str] | None, typer.Argument(help="What to improve; nothing ranks all methods.")] = None,
    *,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=20)] = 5,
    family: Annotated[str | None, typer.Option(help="Methods of this family alone, such as optimizer.")] = None,
    standing: Annotated[Standing | None, typer.Option(help="Methods of this standing alone.")] = None,
    as_json: Json = False,
) -> None:
    """Rank methods by text and by what they gained here."""
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
            help="A method from `loopgraph search`, or an experiment whose program is wanted; to revert, also an edit.",
            autocompletion=_methods_like,
        ),
    ],
    *,
    also: Annotated[list[str] | None, typer.Option("--also", help="Another method for the same edit.")] = None,
    knob: Annotated[list[str] | None, typer.Option("--set", help="KNOB=VALUE, as often as needed.")] = None,
    companion: Annotated[
        list[str] | None, typer.Option("--with", help="A change that goes well with it, by name, or `all`.")
    ] = None,
    revert: Annotated[bool, typer.Option("--revert", help="Take the method's last edit out of the file.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Write the edit to the file.")] = False,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Turn methods into a diff of the present training file, or take one out of it again."""
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
        Path | None, typer.Argument(help="A Python file or a folder; the workspace's own by default.")
    ] = None,
    *,
    query: Annotated[str, typer.Option("--query", "-q", help="What to show first, in plain words.")] = "",
    budget: Annotated[int, typer.Option(min=150, max=20_000, help="About how many tokens the map may have.")] = 800,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Show what stands where in a program: knobs, classes, parameter groups, the loop, methods present."""

    async def work(graph: LoopGraph) -> CodeMapAnswer:
        if path is None:
            return await graph.map_code(query=query, budget_tokens=budget, workspace=workspace)
        return await graph.map_file(resolved(path), query=query, budget_tokens=budget)

    answer = _with_graph(work)
    render.print_json(answer) if as_json else render.show_map(answer)


@app.command()
def run(
    *,
    edit_id: Annotated[str | None, typer.Option("--edit", help="Run the program of this edit.")] = None,
    patch: Annotated[
        typer.FileText | None, typer.Option(help="Run with this unified diff applied; - is stdin.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="The method that a patch or a hand edit tries.")] = None,
    description: Annotated[str, typer.Option("--description", "-d", help="What is tried, in a few words.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1)] = None,
    budget: Annotated[float | None, typer.Option(help="Training seconds, if not the workspace's.")] = None,
    replicate: Annotated[bool, typer.Option("--replicate", help="Run it again, with a new seed.")] = False,
    trusted: Annotated[
        bool, typer.Option("--trust", help="Run the command of this folder's loopgraph.toml without asking.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; `loopgraph status` follows it.")] = False,
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Train for the fixed budget: an edit, a patch, or the file as it stands. Ctrl-C cancels the run."""
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
    """Show a bar until an experiment is done; a cancel of this command cancels the experiment."""
    repeated = answer.repeated
    try:
        with render.RunBar(render.errors) as bar:
            while answer.state is not RunState.DONE:
                answer = await graph.get_experiment(answer.experiment_id, wait_s=5, on_progress=bar.update)
    except asyncio.CancelledError:
        render.errors.print("cancelling the run …")
        answer = await graph.cancel_experiment(answer.experiment_id)
        told = f"{answer.experiment_id}: {plain_line(answer.reason) or answer.state.value}"
        render.errors.print(told, markup=False, highlight=False)
        raise
    return dataclasses.replace(answer, repeated=repeated)


@app.command(name="trust")
def trust_(
    directory: Annotated[Path, typer.Argument(help="Folder of a training loop.")] = Path(),
) -> None:
    """Say that a folder's command may be run; asked again when its loopgraph.toml changes."""
    where = load_workspace(directory)
    trust.accept(_settings(), where)
    told = f"{where.path}: `{trust.command(where)}` may be run here until {CONFIG_NAME} changes"
    render.console.print(told, markup=False, highlight=False, soft_wrap=True)


@app.command()
def status(
    *,
    workspace: WorkspaceOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    as_json: Json = False,
) -> None:
    """Follow what runs and what came of the last experiments; Ctrl-C ends only the view."""

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
                hint = "[dim]Ctrl-C ends the view; the runs go on[/]"
                live.update(Group(render.results_table(answers), hint), refresh=True)
                await asyncio.sleep(1)
                answers = await graph.list_experiments(workspace=workspace, limit=10)

    _with_graph(work)


@app.command()
def results(
    *,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 50,
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
        render.console.print("no experiments here yet; `loopgraph run --description baseline` makes the first")


@app.command()
def cancel(
    experiment: Annotated[str, typer.Argument(help="An experiment from `loopgraph status`.")], *, as_json: Json = False
) -> None:
    """End a queued or running experiment and everything it started."""
    answer = _with_graph(lambda graph: graph.cancel_experiment(experiment))
    render.print_json(answer) if as_json else render.show_experiment(answer)


@app.command()
def trace(
    identity: Annotated[
        str,
        typer.Argument(metavar="ID", help="An experiment, edit, retrieval, method, paper, passage, recipe or pack."),
    ],
    *,
    as_json: Json = False,
) -> None:
    """Show what led to a row, from paper and pack on, and what came of it."""
    answer = _with_graph(lambda graph: graph.trace(identity))
    render.print_json(answer) if as_json else render.show_trace(answer)


@app.command()
def merge(other: Annotated[Path, typer.Argument(help="The other loopgraph.db.")], *, as_json: Json = False) -> None:
    """Take in what another machine's memory holds beside this one; merging again adds only what is new."""
    added = _with_graph(lambda graph: graph.merge_store(other))
    if as_json:
        render.print_json(added)
    else:
        told = ", ".join(f"{count} of {table}" for table, count in added.items())
        render.console.print(told or "Nothing new.", markup=False)


@app.command(name="import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="results.tsv, log.jsonl, or an MLflow, W&B or Optuna export.")],
    *,
    repo: Annotated[
        Path | None, typer.Option(help="A checkout that holds the rows' commits, if not around the file.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="What it ran on, such as 'H100'.")] = None,
    budget: Annotated[float | None, typer.Option(help="Training seconds of its runs.", min=0.001)] = None,
    metric: Annotated[str | None, typer.Option(help="The column of the metric, if not the usual one.")] = None,
    direction: Annotated[
        Direction | None, typer.Option(help="Which way the metric improves, whatever the file says.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is understood.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Show each row, not only a summary.")] = False,
    as_json: Json = False,
) -> None:
    """Take other people's experiments into the memory; importing again adds only what is new."""
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
            except HistoryError as error:  # the other files are imported all the same
                failed.append(error)
            else:
                answers.append(answer)

    with render.errors.status("opening the memory") as shown:
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
        typer.Argument(help="arXiv ids, URLs or titles, GitHub URLs, files, folders, packs.", metavar="SOURCE..."),
    ],
    *,
    query: Annotated[str, typer.Option("--query", "-q", help="What the passages shown should tell.")] = "",
    sha256: Annotated[str | None, typer.Option("--sha256", help="What a pack's content must hash to.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Read only what was fetched before.")] = False,
    as_json: Json = False,
) -> None:
    """Take papers, repositories, files and packs into the memory; again adds only what is new."""
    answers, failed = list[IngestAnswer](), list[LoopGraphError]()

    async def work(graph: LoopGraph, shown: Status) -> None:
        async def step(share: float, words: str) -> None:
            shown.update(escape(f"{share:.0%} {words}"))

        for named in map(render.named, sources):
            try:
                answers.append(await graph.ingest(named, query=query, sha256=sha256, offline=offline, on_step=step))
            except LoopGraphError as error:  # the other sources are ingested all the same
                failed.append(error)

    with render.errors.status("opening the memory") as shown:
        _with_graph(lambda graph: work(graph, shown))
    if as_json:
        render.print_json(answers)
    else:
        for answer in answers:
            render.show_ingest(answer)
    render.end_with(failed)


@app.command()
def backtest(
    files: Annotated[list[Path], typer.Argument(help="Histories to replay: results.tsv and its kin.")],
    *,
    memory: Annotated[
        list[Path] | None, typer.Option("--memory", "-m", help="Histories to learn from, each file one.")
    ] = None,
    day_one: Annotated[
        bool, typer.Option("--day-one/--no-day-one", help="Learn from the 50 published histories in LoopGraph too.")
    ] = True,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Replay only histories of the owners set aside to judge the prior.")
    ] = False,
    own_searches: Annotated[
        bool, typer.Option("--own-searches", help="Learn from the other histories of a history's owner as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how well LoopGraph predicts which changes were kept, leaving out each history's owner."""
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


packs_app = typer.Typer(help="Write method packs for others, and check them.", no_args_is_help=True)
app.add_typer(packs_app, name="pack")


@packs_app.command(name="export")
def export_pack(
    name: Annotated[str, typer.Argument(help="The pack's name: lower-case words joined by -.")],
    directory: Annotated[Path, typer.Argument(help="A new folder.")],
    *,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="A method, as often as needed; all learned or local otherwise.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write methods with their recipes and what came of them here."""
    with permissions.users_mask():
        answer = _with_graph(lambda graph: graph.export_pack(name, resolved(directory), method_ids=method or []))
    render.print_json(answer) if as_json else render.show_export(answer)


@packs_app.command(name="check")
def check_pack(
    directory: Annotated[Path, typer.Argument(help="The pack's folder.")],
    *,
    against: Annotated[list[Path] | None, typer.Option(help="A train.py, beside the bundled trainer's.")] = None,
    as_json: Json = False,
) -> None:
    """Check a pack: its format, and whether each recipe applies, is present or is refused."""
    programs = {"trainer/train.py": bundled("trainer") / "train.py", **{str(each): each for each in against or []}}
    answer = packs.check_pack(resolved(directory), programs)
    render.print_json(answer) if as_json else render.show_pack_check(answer)


methods_app = typer.Typer(
    help="Look at a method; register one that you read of, amend or retire it.", no_args_is_help=True
)
app.add_typer(methods_app, name="method")

MethodId = Annotated[str, typer.Argument(metavar="METHOD", help="Its id: lower-case words joined by -.")]


@methods_app.command(name="show")
def show_method(method: MethodId, *, as_json: Json = False) -> None:
    """Show what is known of a method, with the passages that tell of it."""
    answer = _with_graph(lambda graph: graph.show_method(method))
    render.print_json(answer) if as_json else render.show_method(answer)


@methods_app.command(name="add")
def add_method(
    method: MethodId,
    file: Annotated[
        Path | None, typer.Argument(help="Its definition, as in a method pack; to link a known one, none.")
    ] = None,
    *,
    cite: Annotated[list[str], typer.Option(metavar="PASSAGE", help="A passage that tells of it, from `ingest`.")],
    workspace: WorkspaceOption = None,
    as_json: Json = False,
) -> None:
    """Register a method with the passages it was read in, amend it, or link passages to a known one."""
    definition = None if file is None else read_definition(resolved(file))
    answer = _with_graph(lambda graph: graph.add_method(method, cite, definition, workspace=workspace))
    render.print_json(answer) if as_json else render.show_method(answer)


@methods_app.command(name="retire")
def retire_method(method: MethodId, *, as_json: Json = False) -> None:
    """Take a registered method out of searches; its experiments stay."""
    answer = _with_graph(lambda graph: graph.retire_method(method))
    render.print_json(answer) if as_json else render.show_method(answer)


def _clients_like(incomplete: str) -> list[str]:
    return [each for each in clients.CLIENTS if each.startswith(incomplete)]


@app.command()
def config(
    client: Annotated[str, typer.Argument(help=f"One of {', '.join(clients.CLIENTS)}.", autocompletion=_clients_like)],
    *,
    write: Annotated[bool, typer.Option("--write", help="Write the entry to the client's file.")] = False,
    url: Annotated[
        str | None, typer.Option(help="A server's address, such as http://127.0.0.1:8848/mcp, in place of one here.")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Print, or write, the entry that makes an MCP client start LoopGraph, or call a server that runs."""
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
        told = f"{file}: {'written' if changed else 'already so'}"
        render.console.print(told, markup=False, highlight=False, soft_wrap=True)
        return
    render.errors.print(f"[dim]for {escape(str(file))} (--write puts it there):[/]", highlight=False, soft_wrap=True)
    print(clients.as_text(known, made), end="")  # noqa: T201 - to be piped, unwrapped
    if (command := clients.as_command(known, made)) is not None:
        render.errors.print("[dim]or run:[/]")
        render.errors.print(command, soft_wrap=True, markup=False, highlight=False)


def _context_env(folder: Path) -> tuple[str, ...]:
    """Return the variables that a workspace declares to matter; none where the folder is no workspace yet."""
    try:
        return load_workspace(folder).context_env
    except LoopGraphError:
        return ()


@app.command()
def skill() -> None:
    """Print the skill file that teaches an agent to use the memory well: save it among your agent's skills."""
    typer.echo(SKILL.read_text("utf-8"), nl=False)


@app.command(name="doctor")
def examine(*, as_json: Json = False) -> None:
    """Look at everything LoopGraph needs and say what is missing."""
    checks = asyncio.run(doctor.examine(_settings(), home=Path.home(), cwd=Path.cwd()))
    render.print_json(checks) if as_json else render.show_checks(checks)
    if doctor.failed(checks):
        raise typer.Exit(1)
