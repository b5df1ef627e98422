"""The commands that keep the store: `loopgraph backup`, `restore` and `salvage`."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from loopgraph_mcp.cli import render
from loopgraph_mcp.config import read_settings
from loopgraph_mcp.store import backups
from loopgraph_mcp.store import salvage as saving

app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _store() -> Path:
    return read_settings(os.environ, Path.cwd()).db_path


@app.command()
def backup(
    directory: Annotated[Path, typer.Argument(help="Folder of the backups; created if missing.")],
    *,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Keep this many backups in the folder and delete older ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Back up the store while servers and runs use it; the copy is verified before it gets its final name."""
    made = backups.back_up(_store(), directory.expanduser(), now=datetime.now(UTC), keep=keep)
    if as_json:
        render.print_json(made)
        return
    render.say(f"{made.path}: {_counted(made.rows)}")
    for each in made.removed:
        render.say(f"removed {each}")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="Backup, or a store that `loopgraph salvage` wrote.")],
    *,
    as_json: Json = False,
) -> None:
    """Replace the store by a backup. End all servers and runs first; the old store is kept beside the new one."""
    done = backups.restore(_store(), file.expanduser(), now=datetime.now(UTC))
    if as_json:
        render.print_json(done)
        return
    render.say(f"{done.path}: {_counted(done.rows)}")
    if done.aside is not None:
        render.say(f"the old store: {done.aside} (`loopgraph merge` adds its rows to the new one)")


@app.command()
def salvage(
    damaged: Annotated[Path, typer.Argument(help="Damaged loopgraph.db; it is only read.")],
    new: Annotated[Path, typer.Argument(help="New file for the rows that can be read.")],
    *,
    as_json: Json = False,
) -> None:
    """Copy every readable row of a damaged store into a new one, and report what is lost."""
    saved = saving.salvage(damaged.expanduser(), new.expanduser())
    if as_json:
        render.print_json(saved)
        return
    render.say(f"{new}: {_counted({each.table: each.kept for each in saved})}")
    for each in saved:
        if each.lost:
            render.say(f"lost: at least {each.lost} rows of {each.table}")
        if each.altered:
            render.say(f"altered: {each.altered} rows of {each.table} contain unreadable characters")
    if not any(each.lost or each.altered for each in saved):
        render.say("no loss found")
    render.say(f"next: loopgraph restore {new}")


def _counted(rows: dict[str, int]) -> str:
    return ", ".join(f"{count} {table}" for table, count in rows.items() if count) or "no rows"
