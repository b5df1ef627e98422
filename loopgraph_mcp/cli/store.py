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
    directory: Annotated[Path, typer.Argument(help="The folder of the backups; it is made where there is none.")],
    *,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Keep this many backups in the folder and remove older ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy the store while servers and runs use it, and read the whole copy before it gets its name."""
    made = backups.back_up(_store(), directory.expanduser(), now=datetime.now(UTC), keep=keep)
    if as_json:
        render.print_json(made)
        return
    render.say(f"{made.path}: {_counted(made.rows)}")
    for each in made.removed:
        render.say(f"removed {each}")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup, or a store that `loopgraph salvage` wrote.")],
    *,
    as_json: Json = False,
) -> None:
    """Put a backup in the store's place; no server or run may use it. The store of before is kept beside it."""
    done = backups.restore(_store(), file.expanduser(), now=datetime.now(UTC))
    if as_json:
        render.print_json(done)
        return
    render.say(f"{done.path}: {_counted(done.rows)}")
    if done.aside is not None:
        render.say(f"the store of before: {done.aside} (`loopgraph merge` takes in what it has beside this one)")


@app.command()
def salvage(
    damaged: Annotated[Path, typer.Argument(help="The damaged loopgraph.db; it is only read.")],
    new: Annotated[Path, typer.Argument(help="A new file for the rows that can be read.")],
    *,
    as_json: Json = False,
) -> None:
    """Save every row that can be read of a damaged store into a new one, and say what is lost."""
    saved = saving.salvage(damaged.expanduser(), new.expanduser())
    if as_json:
        render.print_json(saved)
        return
    render.say(f"{new}: {_counted({each.table: each.kept for each in saved})}")
    for each in saved:
        if each.lost:
            render.say(f"lost: at least {each.lost} of {each.table}")
        if each.altered:
            render.say(f"altered: {each.altered} of {each.table} hold characters that could not be read")
    if not any(each.lost or each.altered for each in saved):
        render.say("nothing is known to be lost")
    render.say(f"next: loopgraph restore {new}")


def _counted(rows: dict[str, int]) -> str:
    return ", ".join(f"{count} {table}" for table, count in rows.items() if count) or "no rows"
