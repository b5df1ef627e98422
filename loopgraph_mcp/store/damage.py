"""Checks a store for damage by reading every row of every table and every index."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from loopgraph_mcp.store.files import PATIENCE_S, READ_ERRORS, uri_to_read

_SHOWN = 20  # findings; a badly damaged store has thousands


def find_damage(path: Path) -> list[str]:
    """Return what is damaged in a store, the first twenty findings; empty where all of it can be read.

    `PRAGMA integrity_check` alone passes text that is no UTF-8, and full-text indexes that do not fit their rows.
    """
    try:
        with closing(_connect(path)) as conn:
            return list(islice(_findings(conn), _SHOWN))
    except READ_ERRORS as error:
        return [str(error)]


def find_strays(path: Path) -> dict[str, int]:
    """Return how many rows point at rows that are not there, by `table -> other table`.

    Raises:
        sqlite3.Error: The file cannot be read.
    """
    found: dict[str, int] = {}
    with closing(_connect(path)) as conn:
        for table, _, parent, _ in conn.execute("PRAGMA foreign_key_check"):
            named = f"{table.decode()} -> {parent.decode()}"
            found[named] = found.get(named, 0) + 1
    return found


def count_rows(path: Path) -> dict[str, int]:
    """Return how many rows each table of a store has.

    Raises:
        sqlite3.Error: The file cannot be read.
    """
    with closing(_connect(path)) as conn:
        return {
            name: int(conn.execute(f'SELECT count(*) FROM "{name}" NOT INDEXED').fetchone()[0])  # noqa: S608 - a schema's own name
            for name, sql in _of_kind(conn, "table")
            if "STRICT" in sql
        }


def _connect(path: Path) -> sqlite3.Connection:
    """Connect so that a full-text index can be checked, which SQLite takes for a write; only to read where it must."""
    conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=PATIENCE_S, isolation_level=None)
    try:
        conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        conn.close()
        conn = sqlite3.connect(uri_to_read(path), uri=True, timeout=PATIENCE_S, isolation_level=None)
    except BaseException:
        conn.close()
        raise
    conn.text_factory = bytes
    return conn


def _of_kind(conn: sqlite3.Connection, kind: str) -> list[tuple[str, str]]:
    """Return the names of a schema's tables, or indexes, with the SQL that made them."""
    rows = conn.execute("SELECT name, coalesce(sql, '') FROM sqlite_schema WHERE type = ? ORDER BY rowid", (kind,))
    return [(name.decode(errors="replace"), sql.decode(errors="replace")) for name, sql in rows]


def _findings(conn: sqlite3.Connection) -> Iterator[str]:
    try:
        for (line,) in conn.execute(f"PRAGMA integrity_check({_SHOWN})"):
            if line != b"ok":
                yield line.decode(errors="replace")
    except READ_ERRORS as error:
        yield f"integrity_check: {error}"
    tables = _of_kind(conn, "table")
    for name, sql in tables:
        if sql.upper().startswith("CREATE VIRTUAL"):
            yield from _in_full_text(conn, name)
        else:
            yield from _in_rows(conn, name, is_text="STRICT" in sql)
    for name, sql in _of_kind(conn, "index"):
        yield from _in_index(conn, name, sql)


def _in_rows(conn: sqlite3.Connection, table: str, *, is_text: bool) -> Iterator[str]:
    """Read each row of a table; the shadows of a full-text index hold bytes of their own."""
    try:
        rows = conn.execute(f'SELECT * FROM "{table}" NOT INDEXED')  # noqa: S608 - a schema's own name
        names = [str(column[0]) for column in rows.description]
        for number, row in enumerate(rows, start=1):
            for name, value in zip(names, row, strict=True):
                if is_text and isinstance(value, bytes) and not _is_text(value):
                    yield f"{table}: {name} of row {number} has bytes that are not text"
    except READ_ERRORS as error:
        yield f"{table}: {error}"


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _in_index(conn: sqlite3.Connection, index: str, sql: str) -> Iterator[str]:
    """Read each entry of an index."""
    where = re.search(r"\bWHERE\b.*", sql, re.DOTALL | re.IGNORECASE)  # a partial one is used only for its own rows
    try:
        (table,) = conn.execute("SELECT tbl_name FROM sqlite_schema WHERE name = ?", (index,)).fetchone()
        columns = [each[2] for each in conn.execute(f'PRAGMA index_info("{index}")')]
        listed = ", ".join(f'"{each.decode()}"' for each in columns)
        rows = conn.execute(
            f'SELECT {listed} FROM "{table.decode()}" INDEXED BY "{index}" '  # noqa: S608 - a schema's own names
            f"{where.group() if where else ''} ORDER BY {listed}"
        )
        for _ in rows:
            pass
    except READ_ERRORS as error:
        yield f"{index}: {error}"


def _in_full_text(conn: sqlite3.Connection, table: str) -> Iterator[str]:
    """Compare a full-text index with the rows that it is of; where that cannot be, read all of it."""
    try:
        conn.execute("BEGIN IMMEDIATE")
        try:
            conn.execute(f'INSERT INTO "{table}" ("{table}", rank) VALUES (\'integrity-check\', 1)')  # noqa: S608 - likewise
        finally:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
    except sqlite3.OperationalError:
        yield from _in_words(conn, table)
    except READ_ERRORS as error:
        yield f"{table}: {error}"


def _in_words(conn: sqlite3.Connection, table: str) -> Iterator[str]:
    try:
        conn.execute(f"CREATE VIRTUAL TABLE temp.word USING fts5vocab (main, '{table}', instance)")
        conn.execute("SELECT count(*), max(length(term)), max(offset) FROM temp.word").fetchone()
        conn.execute("DROP TABLE temp.word")
    except READ_ERRORS as error:
        yield f"{table}: {error}"
