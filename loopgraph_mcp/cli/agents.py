"""The commands `loopgraph agent`, `bench`, `read` and `prompt`."""

import asyncio
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from loopgraph_mcp.agents.plan import Plan
from loopgraph_mcp.cli import asking, render
from loopgraph_mcp.config import Settings, read_settings
from loopgraph_mcp.errors import ConfigError

app = typer.Typer()
_EXPERIMENTS = 10

Provider = Annotated[
    str, typer.Option(help="openai, anthropic, openrouter, venice, ollama, llama.cpp, vllm or lmstudio.")
]
Model = Annotated[str, typer.Option(help="Model name, as the provider spells it.")]
Policy = Annotated[
    str, typer.Option(help="Scripted researcher instead of a model: greedy, random, textbook, forgetful or tpe.")
]
BaseUrl = Annotated[str | None, typer.Option(help="Address of another server with the provider's protocol.")]
KeyVariable = Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")]
ContextTokens = Annotated[int | None, typer.Option(help="Context window of the model, in tokens.", min=1_000)]
Prices = Annotated[Path | None, typer.Option(help="Price table (TOML) that overrides the bundled one.")]
MaxTokens = Annotated[int | None, typer.Option(help="Stop after this many tokens.", min=1)]
MaxUsd = Annotated[float | None, typer.Option(help="Stop after this many US dollars.", min=0.0001)]
BudgetS = Annotated[float | None, typer.Option("--budget-s", help="Stop after this many seconds.", min=1)]


class Switch(StrEnum):
    """On or off."""

    ON = "on"
    OFF = "off"


class Offer(StrEnum):
    """When numbered choices replace tool calls."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


Menu = Annotated[
    Offer, typer.Option(help="Numbered choices instead of tool calls; auto: only after calls keep failing.")
]


@app.command()
def agent(
    *,
    provider: Provider = "",
    model: Model = "",
    policy: Policy = "",
    experiments: Annotated[
        int | None, typer.Option("--experiments", "-n", help="Number of experiments. Default: 10.", min=1)
    ] = None,
    memory: Annotated[
        Switch, typer.Option(help="on: the agent can query LoopGraph and its runs are recorded there; off: neither.")
    ] = Switch.ON,
    skill: Annotated[bool, typer.Option("--skill", help="Add the skill's text to the model's prompt.")] = False,
    base_url: BaseUrl = None,
    key_variable: KeyVariable = None,
    context_tokens: ContextTokens = None,
    prices: Prices = None,
    budget_s: BudgetS = None,
    max_tokens: MaxTokens = None,
    max_usd: MaxUsd = None,
    menu: Menu = Offer.AUTO,
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Longest silence of the model, in seconds.")] = 180.0,
    seed: Annotated[int | None, typer.Option(help="Seed of every run and of a policy's choices.", min=0)] = None,
    resume: Annotated[str | None, typer.Option(help="Resume this session.")] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Folder of the training loop. Default: the current folder.")
    ] = None,
    trusted: Annotated[
        bool, typer.Option("--trust", help="Run the command of this folder's loopgraph.toml without asking.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Let a model or a scripted researcher run experiments, with or without LoopGraph's memory."""
    # The MCP SDK takes longer to import than most commands to run.
    from loopgraph_mcp.agents.opening import open_session, resume_session  # noqa: PLC0415
    from loopgraph_mcp.cli import sessions  # noqa: PLC0415
    from loopgraph_mcp.cli.live_view import Board  # noqa: PLC0415

    asking.check_folder(read_settings(os.environ, Path.cwd()), workspace, yes=trusted)
    settings = _settings(workspace)
    options = {  # what a resumed session may override
        "experiments": experiments, "budget_s": budget_s, "max_tokens": max_tokens, "max_usd": max_usd,
        "base_url": base_url, "key_variable": key_variable, "context_tokens": context_tokens,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    with Board(render.errors) as board:
        if resume is not None:
            opened = resume_session(
                settings,
                resume,
                os.environ,
                change=lambda plan: plan.model_copy(update=given),
                on_status=board.show,
            )
        else:
            check_researcher(provider, model, policy)
            plan = Plan(
                **{"experiments": _EXPERIMENTS, **given},
                provider=provider,
                model=model,
                policy=policy,
                prices=None if prices is None else str(prices.resolve()),
                memory=memory.value,
                skill=skill,
                menu="off" if policy else menu.value,
                timeout_s=timeout_s,
                seed=seed,
            )
            opened = open_session(settings, plan, os.environ, on_status=board.show)
        found = asyncio.run(sessions.work(opened))
    sessions.show(found, as_json=as_json)
    if found["baseline"] is None:
        raise typer.Exit(1)


def check_researcher(provider: str, model: str, policy: str) -> None:
    """Check that exactly one researcher is named.

    Raises:
        ConfigError: None is named, or two are.
    """
    if bool(policy) == bool(provider or model) or (not policy and not (provider and model)):
        raise ConfigError(
            "name one researcher: --provider and --model, such as --provider openai --model gpt-4o-mini, or --policy"
        )


def _settings(workspace: str | None) -> Settings:
    environment = dict(os.environ) | ({"LOOPGRAPH_WORKSPACE": workspace} if workspace else {})
    return read_settings(environment, Path.cwd())


@app.command()
def bench(
    *,
    provider: Provider = "",
    model: Model = "",
    policy: Policy = "",
    experiments: Annotated[int, typer.Option("--experiments", "-n", help="Experiments of each session.", min=1)] = 20,
    seeds: Annotated[int, typer.Option(help="Number of seeds.", min=1)] = 3,
    surrogate: Annotated[
        str,
        typer.Option(
            help="Surrogate model of real training instead of a workspace: nanochat-h200 and others, or a file. "
            "Without a researcher, scripts, optimisers and LoopGraph's values search it in this process."
        ),
    ] = "",
    about: Annotated[
        bool, typer.Option("--about", help="Show what the surrogate was fitted to, and how well.")
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes of a surrogate search; 0: one for each core.", min=0)] = 0,
    first_seed: Annotated[int, typer.Option(help="First seed, to add seeds to an earlier comparison.", min=1)] = 1,
    arms: Annotated[
        str,
        typer.Option(
            help="Any of none, outcomes, packs, both, both-skill, both-warm, tpe; the first is the reference. With "
            "--surrogate: none, random, tpe(-cold), cma-es(-cold), cold, no-prior, warm, warm-other, placebo (all)."
        ),
    ] = "",
    again: Annotated[
        int, typer.Option(help="Fresh seeds on which each session's final program is trained again.", min=0)
    ] = 3,
    out: Annotated[Path, typer.Option(help="New folder for results, workspaces and stores.")] = Path("bench"),
    base_url: BaseUrl = None,
    key_variable: KeyVariable = None,
    context_tokens: ContextTokens = None,
    prices: Prices = None,
    budget_s: BudgetS = None,
    max_tokens: MaxTokens = None,
    max_usd: MaxUsd = None,
    menu: Menu = Offer.AUTO,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", help="Folder of the training loop to copy. Default: the current folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure what LoopGraph's memory is worth: the same researcher with and without it, over seeds."""
    from loopgraph_mcp.agents import bench as benches  # noqa: PLC0415
    from loopgraph_mcp.cli import sessions  # noqa: PLC0415 - see agent
    from loopgraph_mcp.cli.live_view import Board  # noqa: PLC0415

    command = "loopgraph " + " ".join(sys.argv[1:])
    chosen = list(dict.fromkeys(arm.strip() for arm in arms.split(",") if arm.strip()))
    if surrogate and (about or not (provider or model or policy)):
        _in_process(
            surrogate,
            chosen,
            range(first_seed, first_seed + seeds),
            experiments,
            jobs,
            out,
            command,
            about=about,
            as_json=as_json,
        )
        return
    check_researcher(provider, model, policy)
    if surrogate:
        workspace = _surrogate_workspace(surrogate, out)
    plan = Plan(
        provider=provider,
        model=model,
        policy=policy,
        base_url=base_url,
        key_variable=key_variable,
        context_tokens=context_tokens,
        prices=None if prices is None else str(prices.resolve()),
        experiments=experiments,
        budget_s=budget_s,
        max_tokens=max_tokens,
        max_usd=max_usd,
        menu="off" if policy else menu.value,
    )
    chosen = chosen or ["none", "both"]

    async def compare(board: Board) -> tuple[benches.Result, list[Path]]:
        settings, over, where = _settings(workspace), range(first_seed, first_seed + seeds), out.resolve()
        async for found in benches.run(
            settings, plan, chosen, over, where, os.environ, again=again, on_status=board.show
        ):
            files = benches.write(
                found, where, command
            )  # after each seed, so that an interrupted comparison keeps its results
        return found, files

    with Board(render.errors) as board:
        found, files = asyncio.run(compare(board))
    sessions.show_bench(benches.rows(found), files, as_json=as_json)


def _in_process(
    surrogate: str,
    arms: list[str],
    seeds: range,
    experiments: int,
    jobs: int,
    out: Path,
    command: str,
    *,
    about: bool,
    as_json: bool,
) -> None:
    from loopgraph_mcp.agents import surrogate_arms, surrogate_bench  # noqa: PLC0415 - see agent
    from loopgraph_mcp.cli.sessions import show_bench  # noqa: PLC0415

    if about:
        print(json.dumps(surrogate_bench.about(surrogate), indent=2))  # noqa: T201 - for people and programs alike
        return
    wanted = arms or list(surrogate_arms.ARMS)
    surrogate_arms.check_arms(wanted)
    curves = []
    with render.errors.status("searching") as shown:
        for curve in surrogate_bench.run(
            surrogate, wanted, seeds, experiments=experiments, jobs=jobs or os.cpu_count() or 1
        ):
            curves.append(curve)
            shown.update(f"{len(curves)} of {len(wanted) * len(seeds)} sessions")
    files = surrogate_bench.write(curves, surrogate, out.resolve(), command=command)
    show_bench(surrogate_bench.table(surrogate_bench.summarise(curves)), files, as_json=as_json)


def _surrogate_workspace(surrogate: str, out: Path) -> str:
    from loopgraph_mcp.agents import surrogate_bench  # noqa: PLC0415 - see agent

    folder = out.resolve() / "surrogate"
    surrogate_bench.lay_out(surrogate, folder)
    return str(folder)


@app.command()
def read(
    sources: Annotated[list[str], typer.Argument(help="Sources, as for `loopgraph ingest`.", metavar="SOURCE...")],
    *,
    provider: Provider = "",
    model: Model = "",
    query: Annotated[
        str, typer.Option("--query", "-q", help="Let the model read the passages most relevant to this question.")
    ] = "",
    base_url: BaseUrl = None,
    key_variable: KeyVariable = None,
    context_tokens: ContextTokens = None,
    prices: Prices = None,
    max_tokens: Annotated[int | None, typer.Option(help="Stop each source after this many tokens.", min=1)] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Folder of the training loop. Default: the current folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Ingest sources and let a model register the methods that their passages describe."""
    from loopgraph_mcp.agents.providers import find_endpoint  # noqa: PLC0415
    from loopgraph_mcp.cli import read_paper  # noqa: PLC0415 - see agent

    check_researcher(provider, model, "")
    endpoint = find_endpoint(
        provider, model, os.environ, base_url=base_url, key_variable=key_variable, context_tokens=context_tokens
    )
    with render.errors.status("opening the store") as shown:
        found, failed = asyncio.run(
            read_paper.read_sources(
                _settings(workspace),
                [render.named(each) for each in sources],
                endpoint,
                prices=prices,
                query=query,
                max_tokens=max_tokens,
                on_step=lambda words: shown.update(escape(words)),
            )
        )
    read_paper.show(found, as_json=as_json)
    render.end_with(failed)


@app.command()
def prompt(
    turn: Annotated[str, typer.Argument(help="SESSION:TURN, from `loopgraph trace`.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show the exact prompt of one turn and the reply."""
    session_id, _, number = turn.partition(":")
    if not number.isdigit():
        raise typer.BadParameter(f"{turn!r} is not SESSION:TURN", param_hint="TURN")
    from loopgraph_mcp.cli import sessions  # noqa: PLC0415 - see agent

    sessions.show_prompt(asyncio.run(sessions.recall_prompt(_settings(None), session_id, int(number))), as_json=as_json)
