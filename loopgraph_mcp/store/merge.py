"""Adds the rows of another store: of another machine, or a colleague's."""

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from loopgraph_mcp.errors import StoreError
from loopgraph_mcp.store.database import Database

# Rows are known by their ids, which are random or hashes of what they hold, so that equal ids are equal rows. Tables
# whose rows have none are compared whole. Other columns named `row` only number a table in its own file.
_NUMBER = "row"


async def merge(db: Database, other: Path) -> dict[str, int]:
    """Add the rows of another store that this one lacks, all or none; return how many by table.

    Runs that are active there are skipped until they are done. A workspace that both have at one path under two ids
    gets a second path here, since its programs need not be the same.

    Raises:
        StoreError: The other file is no store of this version, or is this one.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "theirs.db"
        await asyncio.to_thread(_copy, other, copy, db.path)
        async with Database.open(copy) as opened:  # brings it to this version, and says so if it is no store
            tables = await opened.reader.execute_fetchall(_TABLES)
        try:
            counts = await db.write_with(copy, "theirs", lambda conn: _add_rows(conn, tables))
        except sqlite3.IntegrityError as error:
            raise StoreError(f"{other}: {error}; nothing was added. `loopgraph doctor` checks the store") from error
    return {table: count for table, count in counts.items() if count}


def _add_rows(conn: sqlite3.Connection, tables: Iterable[sqlite3.Row]) -> dict[str, int]:
    """Add what each of the attached store's tables has beside ours; return how many rows that is, by table."""
    counts = {}
    for table in tables:
        columns = conn.execute(f"PRAGMA main.table_info({table['name']})")
        names = [str(column["name"]) for column in columns if column["name"] != _NUMBER]
        ordered = "WITHOUT ROWID" not in table["sql"]
        points_at = conn.execute(f"PRAGMA main.foreign_key_list({table['name']})").fetchall()
        statement = _statement(table["name"], names, _known(table["name"], points_at), ordered=ordered)
        counts[str(table["name"])] = conn.execute(statement).rowcount
    return counts


def _copy(other: Path, copy: Path, ours: Path) -> None:
    """Copy a store in a consistent state; the original is only read."""
    if not other.is_file() or other.samefile(ours):
        raise StoreError(f"{other}: name another machine's loopgraph.db, or a copy of it")
    try:
        with closing(sqlite3.connect(f"file:{other}?mode=ro", uri=True)) as conn:
            conn.execute("VACUUM INTO ?", (str(copy),))
    except sqlite3.Error as error:
        raise StoreError(f"{other}: {error}; name another machine's loopgraph.db, or a copy of it") from error


# In the order in which migrations made them: what is pointed at comes first.
_TABLES = """
    SELECT name, sql FROM sqlite_schema
    WHERE type = 'table' AND sql LIKE '%STRICT%' AND name <> 'alias' -- which triggers make
    AND name <> 'access_token' -- whose rights end with this store
    ORDER BY rowid
"""


def _known(table: str, points_at: Iterable[sqlite3.Row]) -> str:
    """Return what holds of a row that points only at rows which this store has, or gets with it.

    A salvaged store has rows that point at lost ones.
    """
    pairs: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for key in points_at:
        pairs.setdefault((key["id"], key["table"]), []).append((key["from"], key["to"]))
    found = ["TRUE"]
    for (_, parent), columns in pairs.items():
        nothing = " OR ".join(f"theirs.{column} IS NULL" for column, _ in columns)
        same = " AND ".join(f"known.{there} = theirs.{column}" for column, there in columns)
        where = [f"main.{parent}"] if parent != table else [f"main.{parent}", f"theirs.{parent}"]
        known = " OR ".join(f"EXISTS (SELECT 1 FROM {each} AS known WHERE {same})" for each in where)  # noqa: S608 - our schema
        found.append(f"({nothing} OR {known})")
    return " AND ".join(found)


def _statement(table: str, columns: list[str], known: str, *, ordered: bool) -> str:
    """Return SQL that adds the rows of a table that this store lacks."""
    values = ["theirs." + column for column in columns]
    where = "theirs.state = 'done'" if table == "experiment" else "TRUE"
    if table == "workspace":
        taken = "SELECT 1 FROM main.workspace AS ours WHERE ours.path = theirs.path AND ours.id <> theirs.id"
        values[columns.index("path")] = f"theirs.path || iif(EXISTS ({taken}), ' (' || theirs.id || ')', '')"
    same = " AND ".join(f"ours.{column} IS theirs.{column}" for column in columns)
    whole = f"NOT EXISTS (SELECT 1 FROM main.{table} AS ours WHERE {same})"  # noqa: S608 - our schema
    order = " ORDER BY theirs.rowid" if ordered else ""
    return (
        f"INSERT OR IGNORE INTO main.{table} ({', '.join(columns)}) SELECT {', '.join(values)} "  # noqa: S608 - our schema
        f"FROM theirs.{table} AS theirs WHERE {where} AND {known} AND {whole}{order}"
    )
