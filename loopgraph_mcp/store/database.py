"""Opens the SQLite file: one writer behind one lock, a reader of its own, migrations at the door."""

import asyncio
import hashlib
import math
import re
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from loopgraph_mcp.errors import StoreError

MIGRATIONS_DIR = Path(__file__).parent / "migrations"
T = TypeVar("T")
Rows = tuple[str, Sequence[Mapping[str, Any]]]  # an INSERT and what it is to insert
_BUSY_TIMEOUT_S = 30.0
_CHECK_EVERY = 10_000  # SQLite's own instructions between looks at the clock: about a millisecond
_DAMAGED = (
    "the file is damaged. `loopgraph doctor` says where; bring back a copy of it, save what is left with "
    "`sqlite3 FILE .recover | sqlite3 NEW`, or set LOOPGRAPH_DB to another file"
)
_NEXT_STEP = "Free disk space, or end the process that holds the database, and try again"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads like something else


def new_id(prefix: str) -> str:
    """Return a short random id such as `exp_3v9k2m7q4t`: 50 bits, unique across machines' stores."""
    return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(10))


def text_hash(text: str) -> str:
    """Return the sha256 of a text; its newlines and encoding count."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Cursor(sqlite3.Cursor):
    """Says of a damaged file what to do, whatever was asked; busy, full and refused rows are others' to explain."""

    def execute(self, sql: str, parameters: Any = (), /) -> "_Cursor":
        with _damage_told(self.connection):
            super().execute(sql, parameters)
        return self

    def fetchone(self) -> Any:
        with _damage_told(self.connection):
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        with _damage_told(self.connection):
            return super().fetchall()


class _Connection(sqlite3.Connection):
    def __init__(self, database: Path, *args: Any, **named: Any) -> None:
        super().__init__(database, *args, **named)
        self.file = database

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(sql, parameters)


@contextmanager
def _damage_told(conn: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) is sqlite3.DatabaseError or "malformed" in str(error):
            raise StoreError(f"{getattr(conn, 'file', '')}: {error}: {_DAMAGED}") from error
        raise


@dataclass(slots=True)
class _Batch:
    """Rows that several wait to see inserted."""

    rows: list[Rows] = field(default_factory=list)
    inserted: bool = False


class Database:
    """One SQLite file in WAL mode, safe with other processes writing to it.

    Tasks that shared one connection would interleave, and one's rollback would erase another's insert. So all
    writes go through `transaction()`, which holds a lock and BEGIN IMMEDIATE, and reads have their own connection.
    Searches have a third one with a thread of its own, where one takes place at a time, all its statements in one go.
    """

    def __init__(self, writer: aiosqlite.Connection, reader: aiosqlite.Connection, path: Path) -> None:
        self._writer = writer
        self._reader = reader
        self._lock = asyncio.Lock()
        self._appending = asyncio.Lock()
        self._batch = _Batch()
        self._searches = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
        self._searcher: sqlite3.Connection | None = None
        self._deadline = math.inf
        self.path = path

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator["Database"]:
        """Open the file, making it and migrating it as needed.

        Raises:
            StoreError: The file cannot be opened, is no database, or was written by a newer version.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()  # aiosqlite leaves a thread behind where connecting fails: fail before it
            writer = await _connect(path)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path}: cannot open the database ({error}); set LOOPGRAPH_DB to another file") from error
        try:
            try:
                await _migrate(writer, path)
                reader = await _connect(path)
            except sqlite3.Error as error:
                raise StoreError(
                    f"{path}: {error}; the file is damaged, no SQLite database, or its disk is full. "
                    "Move it aside, or set LOOPGRAPH_DB to another file"
                ) from error
            try:
                await reader.execute("PRAGMA query_only = ON")
                db = cls(writer, reader, path)
                try:
                    yield db
                finally:
                    await asyncio.shield(asyncio.to_thread(db.end_searches))
            finally:
                await reader.close()
        finally:
            await writer.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """Hold the write lock for a few statements that happen together or not at all.

        Raises:
            StoreError: The disk is full, or another process held the database for half a minute.
        """
        async with self._lock:
            try:
                await self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
            except BaseException as error:
                # Statements run in order on the connection's thread, so a BEGIN cut off by a cancel is undone too.
                with suppress(sqlite3.OperationalError):  # "no transaction is active": BEGIN itself failed
                    await asyncio.shield(self._writer.execute("ROLLBACK"))
                if isinstance(error, sqlite3.OperationalError):
                    raise StoreError(f"{self.path}: {error}; nothing was written. {_NEXT_STEP}") from error
                raise
            try:
                await asyncio.shield(self._writer.execute("COMMIT"))
            except sqlite3.OperationalError as error:
                with suppress(sqlite3.OperationalError):
                    await self._writer.execute("ROLLBACK")
                raise StoreError(f"{self.path}: {error}; nothing was written. {_NEXT_STEP}") from error

    async def append(self, rows: Sequence[Rows]) -> None:
        """Insert rows, all or none; those of all who append at one moment share a transaction and its commit.

        Raises:
            StoreError: As for `transaction`.
        """
        batch = self._batch
        batch.rows += rows
        async with self._appending:
            if batch is self._batch:
                self._batch = _Batch()
                with suppress(StoreError, sqlite3.IntegrityError):  # one row's fault is not the others'
                    await self._insert(batch.rows)
                    batch.inserted = True
        if not batch.inserted:
            await self._insert(rows)

    async def _insert(self, rows: Sequence[Rows]) -> None:
        statements: dict[str, list[Mapping[str, Any]]] = {}
        for statement, values in rows:
            statements.setdefault(statement, []).extend(values)
        async with self.transaction() as conn:
            # They reach the connection's thread in this order, and together.
            await asyncio.gather(*(conn.executemany(each, values) for each, values in statements.items()))

    @asynccontextmanager
    async def attached(self, other: Path, name: str) -> AsyncIterator[aiosqlite.Connection]:
        """Hold the write lock for one transaction that reads another file's tables as well, under a name."""
        async with self._lock:
            await self._writer.execute("ATTACH ? AS " + name, (str(other),))
        try:
            async with self.transaction() as conn:
                yield conn
        finally:
            async with self._lock:
                await self._writer.execute("DETACH " + name)

    async def sync_every_commit(self) -> None:
        """Make each commit reach the disk before it returns, so that not even a power cut loses it.

        Without this, SQLite in WAL mode keeps the file sound but may lose the last commits.
        """
        await self._writer.execute("PRAGMA synchronous = FULL")

    @property
    def reader(self) -> aiosqlite.Connection:
        """The connection for reads; it cannot write and never waits for a writer."""
        return self._reader

    async def search(self, ask: Callable[[sqlite3.Connection], T], *, limit_s: float) -> T:
        """Ask on the searches' own thread and connection, which cannot write; a statement past the limit is cut off.

        Such a statement fails with an OperationalError, `interrupted`.
        """

        def job() -> T:
            self._deadline = time.monotonic() + limit_s
            return ask(self._searcher or self._open_searcher())

        return await asyncio.get_running_loop().run_in_executor(self._searches, job)

    async def check(self) -> list[str]:
        """Return what is wrong with the file: damaged pages, rows that point nowhere, text that is no JSON."""
        found = [str(row[0]) for row in await self._reader.execute_fetchall("PRAGMA integrity_check(20)")]
        strays = await self._reader.execute_fetchall("PRAGMA foreign_key_check")
        found += [f"a row of {row['table']} points at a row of {row['parent']} that is not there" for row in strays]
        return [each for each in found if each != "ok"]

    def _open_searcher(self) -> sqlite3.Connection:
        """Connect on the thread that searches: SQLite's module ties the two together."""
        conn = sqlite3.connect(self.path, isolation_level=None, timeout=_BUSY_TIMEOUT_S, factory=_Connection)
        conn.row_factory = sqlite3.Row
        conn.execute("PRAGMA query_only = ON")
        conn.set_progress_handler(lambda: time.monotonic() > self._deadline, _CHECK_EVERY)
        self._searcher = conn
        return conn

    def end_searches(self) -> None:
        """Cut off what is still looked for and close the connection."""
        self._deadline = -math.inf
        if self._searcher is not None:
            self._searches.submit(self._searcher.close)
        self._searches.shutdown()


@contextmanager
def interruptible() -> Iterator[None]:
    """Leave off quietly where a search's time is up."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise


async def _connect(path: Path) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path, isolation_level=None, timeout=_BUSY_TIMEOUT_S, factory=_Connection)
    try:
        connection.row_factory = sqlite3.Row
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = NORMAL")
        await connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        await connection.close()
        raise
    return connection


def migration_files() -> list[tuple[int, Path]]:
    """Return the numbered migrations in order."""
    files = sorted(MIGRATIONS_DIR.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return [(int(re.split("_", file.name)[0]), file) for file in files]


async def _migrate(connection: aiosqlite.Connection, path: Path) -> None:
    """Apply what is missing, each migration in one transaction with its record in user_version."""
    migrations = migration_files()
    newest = migrations[-1][0]
    version = await _schema_version(connection)
    if version > newest:
        raise StoreError(
            f"{path}: written by a newer LoopGraph (schema {version}, this one knows {newest}); "
            "upgrade with `pip install -U loopgraph-mcp`"
        )
    for number, file in migrations:
        if number <= version:
            continue
        await connection.execute("BEGIN IMMEDIATE")
        try:
            if await _schema_version(connection) < number:  # another process may have come first
                for statement in split_statements(file.read_text(encoding="utf-8")):
                    await connection.execute(statement)
                await connection.execute(f"PRAGMA user_version = {number}")
        except BaseException:
            await connection.execute("ROLLBACK")
            raise
        await connection.execute("COMMIT")


async def _schema_version(connection: aiosqlite.Connection) -> int:
    async with connection.execute("PRAGMA user_version") as cursor:
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


def split_statements(script: str) -> list[str]:
    """Split SQL at the semicolons that end statements (`executescript` would commit our transaction)."""
    statements, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    return statements
