"""Bearer tokens by name: secrets are shown once and stored as hashes."""

import secrets
import sqlite3
from dataclasses import dataclass

from loopgraph_mcp.auth import Grant, Scope
from loopgraph_mcp.errors import AccessError, NotFoundError
from loopgraph_mcp.store.database import Database, text_hash

PREFIX = "lg_"  # lets secret scanners find one that got into a repository


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token as stored; `hash` is that of its secret."""

    grant: Grant
    hash: str
    created_at: float
    revoked_at: float | None

    def state(self, *, now: float) -> str:
        """Return `good`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.grant.expires_at is not None and self.grant.expires_at <= now else "good"


async def add_token(db: Database, grant: Grant, *, now: float) -> str:
    """Make a token and return its secret, which is stored nowhere.

    Raises:
        AccessError: There is one of this name.
    """
    secret = _new_secret()
    added = await db.change(
        "INSERT INTO access_token (name, hash, scope, calls_per_minute, runs_at_once, created_at, expires_at) "
        "VALUES (:name, :hash, :scope, :calls, :runs, :now, :expires) ON CONFLICT (name) DO NOTHING",
        {
            "name": grant.name,
            "hash": text_hash(secret),
            "scope": grant.scope.value,
            "calls": grant.calls_per_minute,
            "runs": grant.runs_at_once,
            "now": now,
            "expires": grant.expires_at,
        },
    )
    if not added:
        raise AccessError(
            f"the name {grant.name!r} is taken, perhaps by a revoked token; `loopgraph token rotate` makes a new "
            "secret, or use another name"
        )
    return secret


async def rotate_token(db: Database, name: str) -> str:
    """Give a token a new secret and return it; the old one is worth nothing from now on, and a revoked one is back.

    Raises:
        NotFoundError: There is none of this name.
    """
    secret = _new_secret()
    await _update(db, name, "hash = :value, revoked_at = NULL", text_hash(secret))
    return secret


async def revoke_token(db: Database, name: str, *, now: float) -> None:
    """Take a token's rights away.

    Raises:
        NotFoundError: There is none of this name.
    """
    await _update(db, name, "revoked_at = coalesce(revoked_at, :value)", now)


async def all_tokens(db: Database) -> list[StoredToken]:
    """Return every token, those revoked too, oldest first."""
    rows = await db.reader.execute_fetchall("SELECT * FROM access_token ORDER BY created_at, name")
    return [_row(row) for row in rows]


def _new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


async def _update(db: Database, name: str, change: str, value: str | float) -> None:
    changed = await db.change(
        f"UPDATE access_token SET {change} WHERE name = :name",  # noqa: S608 - our columns
        {"name": name, "value": value},
    )
    if not changed:
        raise NotFoundError(f"no token {name!r}; `loopgraph token list` shows all tokens")


def _row(row: sqlite3.Row) -> StoredToken:
    grant = Grant(
        row["name"], Scope(row["scope"]), row["calls_per_minute"], row["runs_at_once"], expires_at=row["expires_at"]
    )
    return StoredToken(grant, row["hash"], row["created_at"], row["revoked_at"])
