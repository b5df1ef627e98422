"""Asks a person at a terminal whether to run a folder's command."""

import sys
from pathlib import Path

import typer

from loopgraph_mcp.api import trust
from loopgraph_mcp.cli import render
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import AccessError, LoopGraphError
from loopgraph_mcp.runner.workspace import CONFIG_NAME, load_workspace


def check_folder(settings: Settings, workspace: str | None, *, yes: bool) -> None:
    """Ask whether a folder's command may run, unless it is trusted already; a yes is stored.

    Args:
        settings: They name the trust file and the default workspace.
        workspace: Another folder, named by the person.
        yes: Whether the person has said yes already.

    Raises:
        AccessError: The answer is no, or the folder is a clone and there is no terminal to ask at.
    """
    try:
        where = load_workspace(settings.workspace if workspace is None else Path(workspace))
    except LoopGraphError:
        return  # the run itself reports the error
    if yes:
        trust.accept(settings, where)
        return
    at_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if not at_terminal and not trust.is_trusted(settings, where, by_agent=False):
        raise AccessError(
            f"{where.path}: {CONFIG_NAME} came with a repository or an archive, and a run starts "
            f"`{trust.command(where)}`; read it, then add --trust, or run once: {trust.how(settings, where)}"
        )
    if not at_terminal or not trust.is_declared(settings, where):
        return
    question = f"{where.path}/{CONFIG_NAME} makes each run start\n  {trust.command(where)}"
    render.errors.print(question, markup=False, highlight=False, soft_wrap=True)
    if not typer.confirm("Allow it until the file changes?", err=True):
        raise AccessError(f"{where.path}: not run; change {CONFIG_NAME}, or answer yes")
    trust.accept(settings, where)
