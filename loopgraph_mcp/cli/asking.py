"""Asks a person at a terminal whether a folder's command may be run."""

import sys
from pathlib import Path

import typer

from loopgraph_mcp.api import trust
from loopgraph_mcp.cli import render
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import AccessError, LoopGraphError
from loopgraph_mcp.runner.workspace import CONFIG_NAME, load_workspace


def check_folder(settings: Settings, workspace: str | None, *, yes: bool) -> None:
    """Ask whether a folder's command may run where nobody has said so yet; a yes is kept.

    Args:
        settings: Where trust is kept, and the folder that is worked on.
        workspace: Another folder, as a person named it.
        yes: Whether the person has said yes already.

    Raises:
        AccessError: It may not, or it looks like somebody else's and there is no terminal to ask at.
    """
    try:
        where = load_workspace(settings.workspace if workspace is None else Path(workspace))
    except LoopGraphError:
        return  # whoever runs it says what is wrong
    if yes:
        trust.accept(settings, where)
        return
    at_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if not at_terminal and not trust.is_trusted(settings, where, by_agent=False):
        raise AccessError(
            f"{where.path}: {CONFIG_NAME} came with a repository or an archive, and a run starts "
            f"`{trust.command(where)}`; look at it, then add --trust, or say so once: {trust.how(settings, where)}"
        )
    if not at_terminal or not trust.is_declared(settings, where):
        return
    told = f"{where.path}/{CONFIG_NAME} says that a run starts\n  {trust.command(where)}"
    render.errors.print(told, markup=False, highlight=False, soft_wrap=True)
    if not typer.confirm("Run it, now and later while the file stays as it is?", err=True):
        raise AccessError(f"{where.path}: not run; change {CONFIG_NAME}, or say yes")
    trust.accept(settings, where)
