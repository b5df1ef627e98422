"""The commands `loopgraph ui` and `loopgraph report`: a search to look at, and to hand on."""

import asyncio
import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from loopgraph_mcp import screen
from loopgraph_mcp.config import read_settings

app = typer.Typer()


@app.command()
def ui(
    *,
    port: Annotated[int, typer.Option(help="The port; a free one by default.", min=0, max=65_535)] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Show the searches on a page in the browser, live; on this machine alone, by a link that is good once."""
    from loopgraph_mcp.web import serve  # noqa: PLC0415 - an extra, and no other command should wait for it

    def ready(link: str) -> None:
        opened = browser and webbrowser.open(link)
        screen.say(f"The page{' is open' if opened else ''}; this link is good once, for ten minutes:\n{link}")
        screen.errors.print("[dim]Ctrl-C ends the page; the runs go on[/]", highlight=False)

    asyncio.run(serve.serve(read_settings(os.environ, Path.cwd()), port=port, ready=ready))
