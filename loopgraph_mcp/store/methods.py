"""Packs and methods: imported whole, found by full text."""

import json
import re
import sqlite3
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from loopgraph_mcp.models import (
    AddMethod,
    InsertAfter,
    Knob,
    Method,
    Pack,
    PublishedResult,
    Recipe,
    RecipeOp,
    ReplaceStmt,
    SetConst,
    SetDefault,
    SetKwarg,
    SetLocal,
    Source,
)
from loopgraph_mcp.store.database import Database

_OPS: dict[str, type[RecipeOp]] = {
    kind.__name__: kind for kind in (SetConst, SetLocal, SetDefault, SetKwarg, ReplaceStmt, InsertAfter, AddMethod)
}
_MAX_QUERY_TOKENS = 12
_MAX_QUERY_CHARS = 2_000
_SOME_WORDS = 0.3  # relevance of a method with some of the words, where another has them all
_LEAST_RELEVANCE = 0.05
# fmt: off
# Words that say nothing of a method; dropped unless they are all there is.
_STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "could", "do", "does", "for", "from", "how", "i", "if",
    "in", "into", "is", "it", "its", "make", "me", "of", "on", "or", "our", "should", "so", "some", "than", "that",
    "the", "then", "there", "these", "this", "to", "try", "use", "using", "want", "was", "we", "what", "when",
    "which", "with", "would", "you",
})
# fmt: on


async def import_pack(db: Database, pack: Pack, *, now: float) -> bool:
    """Bring the store's methods up to a pack's; return whether anything changed."""
    rows = await db.reader.execute_fetchall("SELECT content_hash FROM pack WHERE name = :name", {"name": pack.name})
    if [row["content_hash"] for row in rows] == [pack.content_hash]:
        return False
    async with db.transaction() as conn:
        await conn.execute(
            "INSERT INTO pack (name, version, content_hash, imported_at) VALUES (:name, :version, :hash, :now) "
            "ON CONFLICT (name) DO UPDATE SET version = :version, content_hash = :hash, imported_at = :now",
            {"name": pack.name, "version": pack.version, "hash": pack.content_hash, "now": now},
        )
        await conn.execute(
            "UPDATE method SET retired_at = :now WHERE pack_name = :name AND retired_at IS NULL",
            {"name": pack.name, "now": now},
        )
        for method in pack.methods:
            await conn.execute(
                "INSERT INTO method (id, pack_name, family, name, aliases, summary, description, identifiers, card) "
                "VALUES (:id, :pack, :family, :name, :aliases, :summary, :description, :identifiers, :card) "
                "ON CONFLICT (id) DO UPDATE SET pack_name = :pack, family = :family, name = :name, "
                "aliases = :aliases, summary = :summary, description = :description, identifiers = :identifiers, "
                "card = :card, retired_at = NULL",
                _method_row(method, pack.name),
            )
            await conn.execute("DELETE FROM method_paper WHERE method_id = :id", {"id": method.id})
            for source in method.sources:
                paper_id = f"{source.kind}:{source.ref}"
                await conn.execute(
                    "INSERT INTO paper (id, kind, ref, title) VALUES (:id, :kind, :ref, :title) "
                    "ON CONFLICT (id) DO UPDATE SET title = :title",
                    {"id": paper_id, "kind": source.kind, "ref": source.ref, "title": source.title},
                )
                await conn.execute(
                    "INSERT OR IGNORE INTO method_paper (method_id, paper_id) VALUES (:method, :paper)",
                    {"method": method.id, "paper": paper_id},
                )
    return True


async def get_method(db: Database, method_id: str) -> Method | None:
    """Return one method, retired or not."""
    rows = await db.reader.execute_fetchall("SELECT card FROM method WHERE id = :id", {"id": method_id})
    return next((_decode(row["card"]) for row in rows), None)


async def all_methods(db: Database) -> list[Method]:
    """Return every method that a pack still holds, ordered by id."""
    rows = await db.reader.execute_fetchall("SELECT card FROM method WHERE retired_at IS NULL ORDER BY id")
    return [_decode(row["card"]) for row in rows]


async def count_methods(db: Database) -> int:
    """Return how many methods the packs hold."""
    rows = await db.reader.execute_fetchall("SELECT count(*) AS n FROM method WHERE retired_at IS NULL")
    return int(next(iter(rows))["n"])


async def find_methods(db: Database, query: str, *, limit: int) -> list[tuple[Method, float]]:
    """Return methods whose text matches, with their relevance in (0, 1], best first, ties by id.

    Methods that match every word come first to be asked for; only if they are too few is any word enough.
    """
    tokens = query_tokens(query)
    if not tokens:
        return []
    quoted = [f'"{token}"' for token in tokens]
    found: dict[str, tuple[sqlite3.Row, float]] = {}
    for operator, share in ((" AND ", 1.0), (" OR ", _SOME_WORDS)):
        rows = await db.reader.execute_fetchall(
            "SELECT method.id, method.card, -bm25(method_fts, 8.0, 8.0, 3.0, 1.0, 4.0) AS score "
            "FROM method_fts JOIN method ON method.row = method_fts.rowid "
            "WHERE method_fts MATCH :match AND method.retired_at IS NULL ORDER BY score DESC, method.id LIMIT :limit",
            {"match": operator.join(quoted), "limit": limit},
        )
        any_in_full = bool(found)
        for row in rows:
            found.setdefault(row["id"], (row, share if any_in_full else 1.0))
        if len(found) >= limit or len(quoted) == 1:
            break
    # bm25 gives a word that stands in most rows nothing or less: relevance stays above zero all the same.
    best = max((row["score"] for row, _ in found.values()), default=0.0)
    ranked = [
        (_decode(row["card"]), share * max(_LEAST_RELEVANCE, row["score"] / best if best > 0 else 1.0))
        for row, share in found.values()
    ]
    ranked.sort(key=lambda pair: (-pair[1], pair[0].id))
    return ranked[:limit]


def query_tokens(query: str) -> list[str]:
    """Return the words of any string that are safe to quote for FTS5, common words dropped, the first twelve."""
    text = query[:_MAX_QUERY_CHARS].encode("utf-8", "ignore").decode("utf-8")
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    unique = list(dict.fromkeys(words))
    telling = [word for word in unique if word not in _STOP_WORDS]
    return (telling or unique)[:_MAX_QUERY_TOKENS]


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
    ops: Sequence[RecipeOp] = method.recipe.ops if method.recipe else ()
    names = dict.fromkeys(op.name for op in ops if isinstance(op, SetConst | SetLocal | SetDefault | SetKwarg))
    return [word for name in names for word in dict.fromkeys([name, *name.split("_")]) if word]


def _encode(method: Method) -> str:
    card = asdict(method)
    if method.recipe is not None:
        card["recipe"]["ops"] = [{"op": type(op).__name__, **asdict(op)} for op in method.recipe.ops]
    return json.dumps(card, ensure_ascii=False, sort_keys=True)


@lru_cache(maxsize=4_096)
def _decode(card_json: str) -> Method:
    card = json.loads(card_json)
    recipe = card.pop("recipe")
    return Method(
        **{key: card[key] for key in ("id", "name", "family", "summary", "description")},
        aliases=tuple(card["aliases"]),
        sources=tuple(Source(**source) for source in card["sources"]),
        published=tuple(PublishedResult(**result) for result in card["published"]),
        knobs=tuple(Knob(**{**knob, "choices": tuple(knob["choices"])}) for knob in card["knobs"]),
        recipe=None if recipe is None else _decode_recipe(recipe),
        change=card.get("change", ""),
    )


def _decode_recipe(recipe: dict[str, Any]) -> Recipe:
    ops = tuple(_OPS[op["op"]](**{key: value for key, value in op.items() if key != "op"}) for op in recipe["ops"])
    return Recipe(ops=ops, conflicts=tuple(recipe["conflicts"]))
