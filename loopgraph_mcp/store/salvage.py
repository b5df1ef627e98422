"""Saves the rows of a damaged store into a new one: page by page, since SQLite gives up a table at its first bad page.

The shell's `.recover` ends with status 0 and an empty file where it cannot read the schema; here the schema is ours.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from loopgraph_mcp.errors import StoreError
from loopgraph_mcp.store.damage import find_damage
from loopgraph_mcp.store.database import apply_migrations, migration_files
from loopgraph_mcp.store.files import alone, private_file, sync
from loopgraph_mcp.store.pages import Leaf, PageFile, Record, Value

_VERSION_AT = 60  # in the file's head: user_version
_LEAVES = frozenset({13, 10, 2})  # kinds of pages with rows
_TYPES = {"TEXT": (str,), "INTEGER": (int,), "REAL": (int, float), "BLOB": (bytes,)}
_MADE_BY_TRIGGERS = frozenset({"alias"})


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the migrations make it.

    Args:
        columns: In the order in which its records are stored, each with its type.
        number: Its INTEGER PRIMARY KEY, which is the rowid and stored as NULL.
        has_rowid: Whether its rows are in a table's tree; else they are in an index's.
    """

    name: str
    columns: dict[str, str]
    number: str | None
    has_rowid: bool


@dataclass(slots=True)
class Saved:
    """What became of one table.

    Args:
        kept: Rows that the new store has.
        lost: Rows that are known to have been there and could not be read, at least.
        altered: Rows kept in which unreadable characters are now `�`.
    """

    table: str
    kept: int = 0
    lost: int = 0
    altered: int = 0


@dataclass(slots=True)
class _Found:
    """What the damaged file holds.

    Args:
        roots: The root page of each table and index, as far as its schema can be read.
        indexes: For each table the roots of its indexes that have an entry for each row.
        claimed: Pages of anything else than a table's rows.
        used: Pages whose rows were taken.
    """

    pages: PageFile
    roots: dict[str, int] = field(default_factory=dict)
    indexes: dict[str, list[int]] = field(default_factory=dict)
    claimed: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)


def salvage(damaged: Path, new: Path) -> list[Saved]:
    """Write every row that can be read of a damaged store into a new one; return what became of each table.

    The damaged file is only read. Rows that point at lost rows are kept.

    Raises:
        StoreError: Another process has it open, it holds no row, or the new file is there already.
    """
    if not damaged.is_file():
        raise StoreError(f"{damaged}: no file; name the damaged loopgraph.db")
    if new.exists():
        raise StoreError(f"{new}: exists already; name a new file")
    part = new.with_name(f".{new.name}.part")
    part.unlink(missing_ok=True)
    try:
        new.parent.mkdir(parents=True, exist_ok=True)
        private_file(part)
        with alone(damaged, to="salvage it"):
            found = _look(PageFile(damaged))
            with closing(sqlite3.connect(part, isolation_level=None)) as conn:
                saved = _save(conn, found)
        if not any(each.kept for each in saved):
            raise StoreError(f"{damaged}: has no readable row; restore a backup, or start with a new store")
        if left := find_damage(part):
            raise StoreError(f"{damaged}: the salvaged store is damaged ({left[0]}); restore a backup")
        sync(part)
        part.rename(new)
        sync(new.parent)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{damaged}: cannot be salvaged into {new} ({error}); try another folder or disk") from error
    finally:
        part.unlink(missing_ok=True)
        part.with_name(part.name + "-journal").unlink(missing_ok=True)
    return saved


def _look(pages: PageFile) -> _Found:
    """Read the schema, as far as it can be read, and find out which pages belong to what."""
    found = _Found(pages)
    for leaf in pages.tree(1, table=True):
        found.claimed.add(leaf.number)
        for record in leaf.records:
            if len(record.values) == 5:
                _learn(found, *record.values)
    return found


def _learn(found: _Found, kind: Value, name: Value, table: Value, root: Value, sql: Value) -> None:
    """Take in one row of the schema."""
    if not (isinstance(name, str) and isinstance(root, int) and 1 < root <= found.pages.count):
        return
    if kind == "table":
        found.roots[name] = root
    elif kind == "index":
        leaves = list(found.pages.tree(root, table=False))
        found.claimed.update(leaf.number for leaf in leaves)
        if isinstance(table, str) and not (isinstance(sql, str) and " WHERE " in sql.upper()):
            found.indexes.setdefault(table, []).append(sum(len(leaf.records) for leaf in leaves))


def _save(conn: sqlite3.Connection, found: _Found) -> list[Saved]:
    """Fill a new store with the rows of a damaged one."""
    version = _version_of(found)
    apply_migrations(conn, up_to=version)
    triggers = conn.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        conn.execute(f"DROP TRIGGER {name}")
    conn.execute("PRAGMA foreign_keys = OFF")
    tables = _tables(conn)
    for name in found.roots.keys() - {table.name for table in tables}:  # a full-text index's own
        for is_table in (True, False):
            found.claimed.update(leaf.number for leaf in found.pages.tree(found.roots[name], table=is_table))
    saved = {table.name: Saved(table.name) for table in tables}
    conn.execute("BEGIN")
    for table in tables:
        if (root := found.roots.get(table.name)) is not None:
            _save_tree(conn, found, table, root, saved[table.name])
    conn.execute("COMMIT")
    _save_orphans(conn, found, tables, saved)
    for table in tables:
        each = saved[table.name]
        (each.kept,) = conn.execute(f"SELECT count(*) FROM {table.name}").fetchone()  # noqa: S608 - our schema
        each.lost = max([each.lost, *(count - each.kept for count in found.indexes.get(table.name, []))])
    _rebuild(conn, triggers)
    apply_migrations(conn, up_to=migration_files()[-1][0])
    return list(saved.values())


def _version_of(found: _Found) -> int:
    """Return the schema's version: the file's head may be damaged, so the tables decide where they can be read."""
    said = int.from_bytes(found.pages.head[_VERSION_AT : _VERSION_AT + 4], "big")
    newest = migration_files()[-1][0]
    fitting = []
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        for number, _ in migration_files():
            apply_migrations(conn, up_to=number)
            if {table.name for table in _tables(conn)} <= found.roots.keys():
                fitting.append((sum(table.name in found.roots for table in _tables(conn)), number))
    most = max((count for count, _ in fitting), default=0)
    likely = [number for count, number in fitting if count == most] or range(1, newest + 1)
    return said if said in likely else max(likely)


def _tables(conn: sqlite3.Connection) -> list[Table]:
    """Return the tables with original data, referenced tables first."""
    rows = conn.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%' ORDER BY rowid"
    )
    return [_table(conn, name, sql) for name, sql in rows.fetchall() if name not in _MADE_BY_TRIGGERS]


def _table(conn: sqlite3.Connection, name: str, sql: str) -> Table:
    columns = conn.execute(f"PRAGMA table_info({name})").fetchall()
    has_rowid = "WITHOUT ROWID" not in sql
    keys = sorted((key, column) for _, column, _, _, _, key in columns if key)
    number = next((column for _, column, kind, _, _, key in columns if key and kind == "INTEGER"), None)
    first = [] if has_rowid else [column for _, column in keys]
    types = {column: kind for _, column, kind, *_ in columns}
    ordered = {column: types[column] for column in [*first, *types]}
    return Table(name, ordered, number if has_rowid and len(keys) == 1 else None, has_rowid)


def _save_tree(conn: sqlite3.Connection, found: _Found, table: Table, root: int, saved: Saved) -> None:
    """Keep the rows that can be reached from a table's root."""
    for leaf in found.pages.tree(root, table=table.has_rowid):
        kept = _insert(conn, table, leaf.records)
        saved.lost += leaf.broken + len(leaf.records) - len(kept)
        saved.altered += sum(record.altered for record in kept)
        if kept:
            found.used.add(leaf.number)


def _save_orphans(conn: sqlite3.Connection, found: _Found, tables: Sequence[Table], saved: Mapping[str, Saved]) -> None:
    """Keep the rows of pages that no tree leads to any more.

    A page goes to the table that takes most of its rows: their types, their checks and all that they point at must fit.
    So what others point at comes first; an experiment may point at one on a later page.
    """
    conn.execute("PRAGMA foreign_keys = ON")
    orphans = [leaf for leaf in _orphans(found) if leaf.records]
    for _ in range(2):
        left = list[Leaf]()
        for table in tables:
            left, tried = [], orphans
            for leaf in tried:
                if (found.pages.kind(leaf.number) == 13) is not table.has_rowid or not _take(conn, table, leaf, saved):
                    left.append(leaf)
            orphans = left
    conn.execute("PRAGMA foreign_keys = OFF")


def _take(conn: sqlite3.Connection, table: Table, leaf: Leaf, saved: Mapping[str, Saved]) -> bool:
    """Keep an orphaned page's rows if at least half of them fit a table."""
    conn.execute("BEGIN")
    kept = _insert(conn, table, [record for record in leaf.records if _fits(table, record)])
    if len(kept) * 2 < len(leaf.records):
        conn.execute("ROLLBACK")
        return False
    conn.execute("COMMIT")
    saved[table.name].lost += leaf.broken + len(leaf.records) - len(kept)
    saved[table.name].altered += sum(record.altered for record in kept)
    return True


def _fits(table: Table, record: Record) -> bool:
    """Return whether a record's values have the types of a table's columns: SQLite would store a number as text."""
    kinds = zip(record.values, table.columns.values(), strict=False)
    return all(value is None or isinstance(value, _TYPES[kind]) for value, kind in kinds)


def _orphans(found: _Found) -> Iterator[Leaf]:
    known = found.claimed | found.used | found.pages.free()
    for number in range(2, found.pages.count + 1):
        if number not in known and (kind := found.pages.kind(number)) in _LEAVES:
            yield found.pages.leaf(number, table=kind == 13, inner=kind == 2)


def _insert(conn: sqlite3.Connection, table: Table, records: Sequence[Record]) -> list[Record]:
    """Insert records one by one; return those that are in the table now."""
    kept = []
    for record in records:
        if len(table.columns) < len(record.values):
            continue
        values: dict[str, Value] = dict(zip(table.columns, record.values, strict=False))
        if table.number is not None:
            values[table.number] = record.rowid
        elif table.has_rowid:
            values["rowid"] = record.rowid  # some rows' order is asked for by it
        names = ", ".join(values)
        places = ", ".join("?" * len(values))
        statement = f"INSERT INTO {table.name} ({names}) VALUES ({places})"  # noqa: S608 - our schema
        try:
            conn.execute(statement, tuple(values.values()))
        except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
            if "UNIQUE" not in str(error):  # the same row, reached twice
                continue
        kept.append(record)
    return kept


def _rebuild(conn: sqlite3.Connection, triggers: Sequence[tuple[str, str]]) -> None:
    """Make what follows from the rows: the names of methods, the full-text indexes; then the triggers."""
    rows = conn.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
    contents = {name: found[1] for name, sql in rows if (found := re.search(r"content = '(\w+)'", sql))}
    conn.execute("BEGIN")
    if any(name == "alias" for name, _ in rows):
        conn.execute("DELETE FROM alias")
        conn.execute("INSERT INTO alias (words, method_id, place) SELECT words, method_id, place FROM method_name")
    for name, content in contents.items():  # FTS5's own 'rebuild' does not take a view for content
        columns = ", ".join(column for _, column, *_ in conn.execute(f"PRAGMA table_info({name})"))
        conn.execute(f"INSERT INTO {name} (rowid, {columns}) SELECT row, {columns} FROM {content} ORDER BY row")  # noqa: S608 - our schema
    for _, sql in triggers:
        conn.execute(sql)
    conn.execute("COMMIT")
