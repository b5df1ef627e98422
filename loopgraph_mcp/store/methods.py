"""Packs and methods: imported whole, read by id."""

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from pydantic import TypeAdapter

from loopgraph_mcp.code import by_role
from loopgraph_mcp.models import (
    ByRole,
    Knob,
    Method,
    Pack,
    Recipe,
    SetConst,
    SetDefault,
    SetKwarg,
    SetLocal,
    all_ops,
)
from loopgraph_mcp.store.database import Database, text_hash
from loopgraph_mcp.store.version import Newest, read_newest

logger = logging.getLogger("loopgraph.store")


@cache
def _card() -> TypeAdapter[Method]:
    """Return what reads and writes a method; to build it takes a tenth of an import, so it waits for the first use."""
    return TypeAdapter(Method)


async def import_pack(db: Database, pack: Pack, *, now: float) -> bool:
    """Bring the store's methods up to a pack's; return whether anything changed."""
    rows = await db.reader.execute_fetchall("SELECT content_hash FROM pack WHERE name = :name", {"name": pack.name})
    if [row["content_hash"] for row in rows] == [pack.content_hash]:
        return False

    def write(conn: sqlite3.Connection) -> None:
        conn.execute(
            "INSERT INTO pack (name, version, content_hash, imported_at) VALUES (:name, :version, :hash, :now) "
            "ON CONFLICT (name) DO UPDATE SET version = :version, content_hash = :hash, imported_at = :now",
            {"name": pack.name, "version": pack.version, "hash": pack.content_hash, "now": now},
        )
        conn.execute(
            "UPDATE method SET retired_at = :now WHERE pack_name = :name AND retired_at IS NULL",
            {"name": pack.name, "now": now},
        )
        for method in pack.methods:
            _put(conn, method, pack.name)

    await db.write(write)
    return True


def _put(conn: sqlite3.Connection, method: Method, pack_name: str) -> None:
    conn.execute(
        "INSERT INTO method (id, pack_name, family, name, aliases, summary, description, identifiers, card) "
        "VALUES (:id, :pack, :family, :name, :aliases, :summary, :description, :identifiers, :card) "
        "ON CONFLICT (id) DO UPDATE SET pack_name = :pack, family = :family, name = :name, "
        "aliases = :aliases, summary = :summary, description = :description, identifiers = :identifiers, "
        "card = :card, retired_at = NULL",
        _method_row(method, pack_name),
    )
    conn.execute("DELETE FROM method_paper WHERE method_id = :id", {"id": method.id})
    for source in method.sources:
        paper_id = f"{source.kind}:{source.ref}"
        conn.execute(
            "INSERT INTO paper (id, kind, ref, title) VALUES (:id, :kind, :ref, :title) "
            "ON CONFLICT (id) DO UPDATE SET title = :title",
            {"id": paper_id, "kind": source.kind, "ref": source.ref, "title": source.title},
        )
        conn.execute(
            "INSERT OR IGNORE INTO method_paper (method_id, paper_id) VALUES (:method, :paper)",
            {"method": method.id, "paper": paper_id},
        )


# ------------------------------------------------------------------------------------ registered by agents

LOCAL = "local"  # the pack of the methods that were registered here


@dataclass(frozen=True, slots=True)
class MethodVersion:
    """A method as somebody registered it once."""

    added_by: str
    created_at: float


async def put_local(db: Database, method: Method, chunk_ids: Sequence[str], *, added_by: str, now: float) -> None:
    """Register a method, or a new version of it, with the passages it was read in."""

    def write(conn: sqlite3.Connection) -> None:
        _touch_local(conn, _encode(method), now)
        _put(conn, method, LOCAL)
        conn.executemany(
            "INSERT INTO method_chunk (method_id, chunk_id, words) VALUES (?, ?, '') "
            "ON CONFLICT (method_id, chunk_id) DO UPDATE SET words = ''",
            [(method.id, each) for each in chunk_ids],
        )
        conn.execute(
            "INSERT INTO method_version (method_id, card, chunk_ids, added_by, created_at) "
            "VALUES (:method, :card, :chunks, :by, :now)",
            {
                "method": method.id,
                "card": _encode(method),
                "chunks": json.dumps(list(chunk_ids)),
                "by": added_by,
                "now": now,
            },
        )

    await db.write(write)


async def retire_local(db: Database, method_id: str, *, now: float) -> None:
    """Take a registered method out of searches."""

    def write(conn: sqlite3.Connection) -> None:
        _touch_local(conn, f"retired {method_id}", now)
        conn.execute(
            "UPDATE method SET retired_at = :now WHERE id = :id AND pack_name = :local",
            {"now": now, "id": method_id, "local": LOCAL},
        )

    await db.write(write)


def _touch_local(conn: sqlite3.Connection, change: str, now: float) -> None:
    """Count a change of the registered methods: what is kept of all methods in memory is read again."""
    rows = conn.execute("SELECT version, content_hash FROM pack WHERE name = :n", {"n": LOCAL})
    held = next(((int(row["version"]), str(row["content_hash"])) for row in rows), (0, ""))
    conn.execute(
        "INSERT INTO pack (name, version, content_hash, imported_at) VALUES (:name, :version, :hash, :now) "
        "ON CONFLICT (name) DO UPDATE SET version = :version, content_hash = :hash, imported_at = :now",
        {"name": LOCAL, "version": str(held[0] + 1), "hash": text_hash(held[1] + change), "now": now},
    )


async def pack_of(db: Database, method_id: str) -> str | None:
    """Return the pack that holds a method; None for one that is unknown or retired."""
    rows = await db.reader.execute_fetchall(
        "SELECT pack_name FROM method WHERE id = :id AND retired_at IS NULL", {"id": method_id}
    )
    return next((str(row["pack_name"]) for row in rows), None)


async def versions_of(db: Database, method_id: str) -> list[MethodVersion]:
    """Return how often a method was registered and by whom, the newest first."""
    rows = await db.reader.execute_fetchall(
        "SELECT added_by, created_at FROM method_version WHERE method_id = :id ORDER BY row DESC", {"id": method_id}
    )
    return [MethodVersion(row["added_by"], row["created_at"]) for row in rows]


async def holds_pack(db: Database, content_hash: str) -> bool:
    """Return whether the store's methods are those of a pack with this content."""
    return bool(await db.reader.execute_fetchall("SELECT 1 FROM pack WHERE content_hash = :h", {"h": content_hash}))


async def held_pack(db: Database, name: str) -> tuple[str, str] | None:
    """Return the version and content hash of a pack that the store holds, or None."""
    rows = await db.reader.execute_fetchall("SELECT version, content_hash FROM pack WHERE name = :n", {"n": name})
    return next(((str(row["version"]), str(row["content_hash"])) for row in rows), None)


async def owned_by_others(db: Database, pack: Pack) -> list[tuple[str, str]]:
    """Return the ids of a pack's methods that other packs hold, each with that pack's name."""
    rows = await db.reader.execute_fetchall(
        "SELECT id, pack_name FROM method WHERE pack_name <> :name AND id IN (SELECT value FROM json_each(:ids)) "
        "AND retired_at IS NULL ORDER BY id",
        {"name": pack.name, "ids": json.dumps([method.id for method in pack.methods])},
    )
    return [(str(row["id"]), str(row["pack_name"])) for row in rows]


async def get_method(db: Database, method_id: str) -> Method | None:
    """Return one method, retired or not."""
    rows = await db.reader.execute_fetchall("SELECT card FROM method WHERE id = :id", {"id": method_id})
    return next(_readable(rows), None)


async def ids_beside(db: Database, pack_name: str) -> set[str]:
    """Return the methods that other packs than one hold."""
    rows = await db.reader.execute_fetchall(
        "SELECT id FROM method WHERE pack_name <> :name AND retired_at IS NULL", {"name": pack_name}
    )
    return {str(row["id"]) for row in rows}


async def families(db: Database) -> dict[str, str]:
    """Return the family of each method, retired or not."""
    rows = await db.reader.execute_fetchall("SELECT id, family FROM method")
    return {str(row["id"]): str(row["family"]) for row in rows}


_LIBRARIES: dict[str, dict[str, Method]] = {}


async def library(db: Database, newest: Newest | None = None) -> Mapping[str, Method]:
    """Return every method that a pack still holds by its id, in their order, read again only when one changes."""
    held = f"{db.path} {(newest or await read_newest(db)).methods}"
    if held not in _LIBRARIES:
        cards = await db.reader.execute_fetchall("SELECT card FROM method WHERE retired_at IS NULL ORDER BY id")
        _LIBRARIES.clear()
        _LIBRARIES[held] = {method.id: method for method in _readable(cards)}
    return _LIBRARIES[held]


async def all_methods(db: Database) -> tuple[Method, ...]:
    """Return every method that a pack still holds, ordered by id."""
    return tuple((await library(db)).values())


def _method_row(method: Method, pack_name: str) -> dict[str, Any]:
    return {
        "id": method.id,
        "pack": pack_name,
        "family": method.family,
        "name": method.name,
        "aliases": "\n".join([*method.aliases, method.id.replace("-", " "), method.family.replace("-", " ")]),
        "summary": method.summary,
        "description": method.description,
        "identifiers": " ".join(_identifiers(method)),
        "card": _encode(method),
    }


def _identifiers(method: Method) -> list[str]:
    """Return the names of the code that a recipe touches, whole and split at underscores."""
    ops = all_ops(method.recipe) if method.recipe else []
    names = dict.fromkeys(op.name for op in ops if isinstance(op, SetConst | SetLocal | SetDefault | SetKwarg))
    names |= dict.fromkeys(name for op in ops if isinstance(op, ByRole) for name in by_role.constant_names(op.edit))
    return [word for name in names for word in dict.fromkeys([name, *name.split("_")]) if word]


def _encode(method: Method) -> str:
    return json.dumps(_card().dump_python(method, mode="json"), ensure_ascii=False, sort_keys=True)


def encode_recipe(recipe: Recipe, knobs: Sequence[Knob]) -> str:
    """Return a recipe and its knobs as JSON, as a method's card has them."""
    card = _card().dump_python(Method("", "", "", "", "", knobs=tuple(knobs), recipe=recipe), mode="json")
    return json.dumps({"recipe": card["recipe"], "knobs": card["knobs"]}, ensure_ascii=False, sort_keys=True)


def decode_recipe(card: Mapping[str, Any]) -> tuple[Recipe, tuple[Knob, ...]]:
    """Return the recipe and the knobs that JSON holds."""
    nameless = dict.fromkeys(("id", "name", "family", "summary", "description"), "")
    method = _card().validate_python({**nameless, "recipe": card["recipe"], "knobs": card["knobs"]})
    if method.recipe is None:
        raise ValueError("no recipe")
    return method.recipe, method.knobs


def _readable(rows: Iterable[sqlite3.Row]) -> Iterator[Method]:
    """Yield the methods whose cards can be read; one that was damaged takes no other with it."""
    for row in rows:
        try:
            yield _decode(row["card"])
        except (ValueError, LookupError, TypeError) as error:
            logger.warning("a stored method cannot be read (%s); `loopgraph doctor` checks the store", error)


@lru_cache(maxsize=4_096)
def _decode(card_json: str) -> Method:
    return _card().validate_json(card_json)
