"""The command `loopgraph token`: access to the HTTP server. A secret is shown once, when it is made."""

import asyncio
import dataclasses
import os
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Table

from loopgraph_mcp.auth import CALLS_PER_MINUTE, RUNS_AT_ONCE, Grant, Scope
from loopgraph_mcp.cli import render
from loopgraph_mcp.config import read_settings
from loopgraph_mcp.store import tokens
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.tokens import StoredToken

app = typer.Typer(name="token", help="Manage access tokens of the HTTP server.", no_args_is_help=True)

_T = TypeVar("_T")
_DAY_S = 86_400
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")

Name = Annotated[str, typer.Argument(help="Name of the token, such as alice or night-agent-3.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@dataclasses.dataclass(frozen=True)
class TokenAnswer:
    """A token without its secret; times are epoch seconds."""

    name: str
    scope: Scope
    calls_per_minute: int
    runs_at_once: int
    state: str
    created_at: float
    expires_at: float | None


def _with_store(work: Callable[[Database], Awaitable[_T]]) -> _T:
    async def run() -> _T:
        async with Database.open(read_settings(os.environ, Path.cwd()).db_path) as db:
            return await work(db)

    return asyncio.run(run())


@app.command()
def add(
    name: Name,
    *,
    scope: Annotated[
        Scope, typer.Option(help="read: search and view; run: also experiments; admin: also other agents' experiments.")
    ] = Scope.RUN,
    calls_per_minute: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Limit on calls per minute.")
    ] = CALLS_PER_MINUTE,
    runs_at_once: Annotated[
        int, typer.Option(min=1, max=10_000, help="Limit on experiments queued or running.")
    ] = RUNS_AT_ONCE,
    expires_days: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="Days until the token expires.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a token and show its secret once."""
    if not _NAME.fullmatch(name):
        raise typer.BadParameter("use letters, digits, dots, hyphens and underscores, at most 60", param_hint="NAME")
    expires_at = None if expires_days is None else time.time() + expires_days * _DAY_S
    grant = Grant(name, scope, calls_per_minute, runs_at_once, expires_at=expires_at)
    secret = _with_store(lambda db: tokens.add_token(db, grant, now=time.time()))
    _show_secret(name, secret, as_json=as_json)


@app.command()
def rotate(name: Name, *, as_json: Json = False) -> None:
    """Give a token a new secret and show it once; the old one stops working within a second."""
    secret = _with_store(lambda db: tokens.rotate_token(db, name))
    _show_secret(name, secret, as_json=as_json)


@app.command()
def revoke(name: Name) -> None:
    """Revoke a token within a second; its experiments stay in the store."""
    _with_store(lambda db: tokens.revoke_token(db, name, now=time.time()))
    render.console.print(f"{name}: revoked", markup=False, highlight=False)


@app.command(name="list")
def list_(*, as_json: Json = False) -> None:
    """List all tokens, without their secrets."""
    answers = [_answer(each) for each in _with_store(tokens.all_tokens)]
    if as_json:
        render.print_json(answers)
        return
    table = Table("token", "scope", "calls a minute", "runs at once", "made", "state")
    for each in answers:
        made = datetime.fromtimestamp(each.created_at, UTC).date().isoformat()
        table.add_row(each.name, each.scope.value, str(each.calls_per_minute), str(each.runs_at_once), made, each.state)
    render.console.print(table if answers else "no tokens yet; create one with `loopgraph token add NAME`")


def _answer(stored: StoredToken) -> TokenAnswer:
    grant = stored.grant
    return TokenAnswer(
        grant.name,
        grant.scope,
        grant.calls_per_minute,
        grant.runs_at_once,
        stored.state(now=time.time()),
        stored.created_at,
        grant.expires_at,
    )


def _show_secret(name: str, secret: str, *, as_json: bool) -> None:
    if as_json:
        render.print_json({"name": name, "secret": secret})
        return
    render.errors.print(f"[dim]the secret of {name}, shown only once and stored as a hash:[/]", highlight=False)
    print(secret)  # noqa: T201 - to be piped, unwrapped
