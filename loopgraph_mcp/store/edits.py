"""Workspaces, contexts, programs and edits: what was changed, from which exact text to which."""

import hashlib
import json
import sqlite3
from collections.abc import Collection
from dataclasses import asdict, dataclass

from loopgraph_mcp.models import Context, Direction, KnobValues
from loopgraph_mcp.store.database import Database, new_id, text_hash

# What an edit was asked for beside knob values; no knob can have such a name.
METHODS = "+methods"
COMPANIONS = "+companions"
REVERTS = "+reverts"
PROGRAM_OF = "+program of"
_ADDED = frozenset({"editable", "command", "reading", "environment"})  # an imported history has none of them
_EDITS = (
    "SELECT edit.*, base.text AS base_text, new.text AS new_text FROM edit "
    "JOIN program AS base ON base.hash = edit.base_hash JOIN program AS new ON new.hash = edit.new_hash "
)


@dataclass(frozen=True, slots=True)
class EditRow:
    """One stored edit with both its texts."""

    id: str
    workspace_id: str
    method_id: str | None
    retrieval_id: str | None
    base_hash: str
    new_hash: str
    base_text: str
    new_text: str
    diff: str
    knobs: str

    @property
    def method_ids(self) -> tuple[str, ...]:
        """The methods that it puts into practice."""
        several = json.loads(self.knobs).get(METHODS)
        return tuple(several.split()) if several else (() if self.method_id is None else (self.method_id,))


async def workspace_id(db: Database, path: str, *, now: float) -> str:
    """Return the id of the workspace at a resolved path, making it at the first sight."""
    known = db.ids
    if path in known:
        return known[path]
    select = "SELECT id FROM workspace WHERE path = :path"
    rows = list(await db.reader.execute_fetchall(select, {"path": path}))
    made = new_id("ws")
    if not rows and await db.append_or_wait(
        [
            (
                "INSERT INTO workspace (id, path, created_at) VALUES (:id, :path, :now) ON CONFLICT (path) DO NOTHING",
                [{"id": made, "path": path, "now": now}],
            )
        ]
    ):
        rows = list(await db.reader.execute_fetchall(select, {"path": path}))
    known[path] = str(rows[0]["id"]) if rows else made
    return known[path]


def context_key(context: Context) -> str:
    """Return the id that a context has or would have: equal contexts have one."""
    known = {name: value for name, value in asdict(context).items() if value or name not in _ADDED}
    return f"ctx_{hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]}"


def add_context_row(context: Context) -> tuple[str, dict[str, str | float]]:
    """Return the statement that keeps a context, and its values, which lack the id."""
    columns = list(asdict(context))
    names, values = ", ".join(columns), ", ".join(f":{each}" for each in columns)
    statement = f"INSERT INTO context (id, {names}) VALUES (:id, {values}) ON CONFLICT (id) DO NOTHING"  # noqa: S608 - our own columns
    return statement, asdict(context)


async def context_id(db: Database, context: Context) -> str:
    """Return the id of a context, making its row at the first sight."""
    if context in (known := db.ids):
        return known[context]
    identity = context_key(context)
    rows = await db.reader.execute_fetchall("SELECT 1 FROM context WHERE id = :id", {"id": identity})
    if not list(rows):
        statement, values = add_context_row(context)
        await db.append_or_wait([(statement, [{**values, "id": identity}])])
    known[context] = identity
    return identity


async def get_context(db: Database, identity: str) -> Context:
    """Return a context by its id, which must exist; its row never changes."""
    rows = list(await db.reader.execute_fetchall("SELECT * FROM context WHERE id = :id", {"id": identity}))
    return context_of(rows[0])


async def all_contexts(db: Database) -> dict[str, Context]:
    """Return every context by its id."""
    rows = await db.reader.execute_fetchall("SELECT * FROM context ORDER BY rowid")
    return {str(row["id"]): context_of(row) for row in rows}


def context_of(row: sqlite3.Row) -> Context:
    """Return the context whose columns a row holds."""
    return Context(
        workspace_id=row["workspace_id"],
        device=row["device"],
        budget_s=row["budget_s"],
        dataset_hash=row["dataset_hash"],
        harness_hash=row["harness_hash"],
        metric=row["metric"],
        direction=Direction(row["direction"]),
        editable=row["editable"],
        command=row["command"],
        reading=row["reading"],
        environment=row["environment"],
    )


async def add_program(db: Database, text: str, tree_hash: str) -> str:
    """Keep an exact text of the editable file; return its hash."""
    identity = text_hash(text)
    await db.change(
        "INSERT INTO program (hash, tree_hash, text) VALUES (:hash, :tree, :text) ON CONFLICT (hash) DO NOTHING",
        {"hash": identity, "tree": tree_hash, "text": text},
    )
    return identity


async def program_text(db: Database, program_hash: str) -> str:
    """Return the text of a program, which must exist."""
    rows = await db.reader.execute_fetchall("SELECT text FROM program WHERE hash = :hash", {"hash": program_hash})
    return str(next(iter(rows))["text"])


async def program_texts(db: Database, hashes: Collection[str]) -> dict[str, str]:
    """Return the texts of programs by their hashes."""
    rows = await db.reader.execute_fetchall(
        "SELECT hash, text FROM program WHERE hash IN (SELECT value FROM json_each(:hashes))",
        {"hashes": json.dumps(sorted(hashes))},
    )
    return {row["hash"]: row["text"] for row in rows}


async def add_edit(
    db: Database,
    *,
    workspace: str,
    method_id: str | None,
    retrieval_id: str | None,
    base_hash: str,
    new_hash: str,
    knobs: KnobValues,
    diff: str,
    now: float,
) -> str:
    """Record an edit between two stored programs; the same edit asked for again keeps its id."""
    key = {
        "workspace": workspace,
        "method": method_id,
        "retrieval": retrieval_id,
        "base": base_hash,
        "new": new_hash,
        "knobs": json.dumps(dict(knobs), sort_keys=True),
    }
    rows = await db.reader.execute_fetchall(
        "SELECT id FROM edit WHERE workspace_id = :workspace AND method_id IS :method AND retrieval_id IS :retrieval "
        "AND base_hash = :base AND new_hash = :new AND knobs = :knobs",
        key,
    )
    for row in rows:
        return str(row["id"])
    edit_id = new_id("edit")
    await db.change(
        "INSERT INTO edit (id, workspace_id, method_id, retrieval_id, base_hash, new_hash, knobs, diff, "
        "created_at) VALUES (:id, :workspace, :method, :retrieval, :base, :new, :knobs, :diff, :now)",
        {**key, "id": edit_id, "diff": diff, "now": now},
    )
    return edit_id


async def get_edit(db: Database, edit_id: str) -> EditRow | None:
    """Return one edit, or None where the id names none."""
    rows = await db.reader.execute_fetchall(f"{_EDITS} WHERE edit.id = :id", {"id": edit_id})
    return next((_edit_of(row) for row in rows), None)


async def edits_to_revert(db: Database, workspace: str, wanted: str) -> list[EditRow]:
    """Return the newest edits of a method in a workspace, alone or among others, or the one edit of that id."""
    rows = await db.reader.execute_fetchall(
        f"{_EDITS} WHERE edit.workspace_id = :workspace AND (edit.id = :wanted OR edit.method_id = :wanted) "
        "ORDER BY edit.created_at DESC, edit.rowid DESC LIMIT 20",
        {"workspace": workspace, "wanted": wanted},
    )
    return [_edit_of(row) for row in rows]


def _edit_of(row: sqlite3.Row) -> EditRow:
    return EditRow(**{name: row[name] for name in EditRow.__dataclass_fields__})
