"""The commands `loopgraph ui` and `loopgraph report`: a live page, and a report in one file."""

import asyncio
import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli import render
from loopgraph_mcp.config import Settings, read_settings
from loopgraph_mcp.errors import ConfigError, NotFoundError
from loopgraph_mcp.runner.workspace import resolved
from loopgraph_mcp.web import drawing, report
from loopgraph_mcp.web.words import Headline

app = typer.Typer()


@app.command()
def ui(
    *,
    port: Annotated[int, typer.Option(help="Port. Default: a free one.", min=0, max=65_535)] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Show all searches on a live page in the browser; only on this machine, by a one-time link."""
    try:
        from loopgraph_mcp.web import serve  # noqa: PLC0415 - an extra, and no other command should wait for it
    except ImportError as error:
        raise ConfigError(drawing.EXTRA) from error

    def ready(link: str) -> None:
        opened = browser and webbrowser.open(link)
        render.say(f"The page{' is open' if opened else ''}; this link is good once, for ten minutes:\n{link}")
        render.errors.print("[dim]Ctrl-C ends the page; runs continue[/]", highlight=False)

    asyncio.run(serve.serve(_settings(), port=port, ready=ready))


@app.command(name="report")
def report_(
    file: Annotated[
        Path, typer.Argument(help="File to write: .html, .md, or .png for a card to share.", metavar="FILE")
    ] = Path("report.html"),
    *,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Folder of the training loop. Default: the current folder.")
    ] = None,
) -> None:
    """Write a report of a search to one file: the best program and its changes, failures, next steps."""
    settings = _settings()
    folder = settings.workspace if workspace is None else resolved(Path(workspace))
    headline = asyncio.run(_write(settings, folder, file, named=workspace is not None))
    render.say(f"{headline.title}\n{headline.sentence}\n{file.absolute()}")


async def _write(settings: Settings, folder: Path, file: Path, *, named: bool) -> Headline:
    """Write a report of a folder's search; if no folder is named and the current one has none, of the newest search."""
    async with LoopGraph.open(settings) as graph:
        known = await graph.workspaces()
        found = next((each.id for each in known if each.path == str(folder)), None)
        if found is None and (named or not known):
            raise NotFoundError(f"{folder}: no experiments yet; `loopgraph run --description baseline` makes the first")
        gathered = await report.gather(graph, found)
    report.write(gathered, file)
    return gathered.headline


def _settings() -> Settings:
    return read_settings(os.environ, Path.cwd())
