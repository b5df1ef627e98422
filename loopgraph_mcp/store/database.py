"""Opens the SQLite file: writes one after another, a reader of its own, migrations at the door."""

import asyncio
import hashlib
import math
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from loopgraph_mcp.errors import StoreError

MIGRATIONS_DIR = Path(__file__).parent / "migrations"
T = TypeVar("T")
Rows = tuple[str, Sequence[Mapping[str, Any]]]  # an INSERT and what it is to insert
_BUSY_TIMEOUT_S = 30.0
_COMMITS = 64  # between two moves of what was written from the log into the file
_PAGES = 4_000  # of the log, after which a commit moves them itself
_CHECK_EVERY = 10_000  # SQLite's own instructions between looks at the clock: about a millisecond
_DAMAGED = (
    "the file is damaged. `loopgraph doctor` says where; bring back a copy of it, save what is left with "
    "`sqlite3 FILE .recover | sqlite3 NEW`, or set LOOPGRAPH_DB to another file"
)
_NEXT_STEP = "Free disk space, or end the process that holds the database, and try again"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads like something else


def new_id(prefix: str) -> str:
    """Return a short random id such as `exp_3v9k2m7q4t`: 50 bits, unique across machines' stores."""
    bits = secrets.randbits(50)
    return f"{prefix}_" + "".join(_ALPHABET[bits >> shift & 31] for shift in range(0, 50, 5))


def text_hash(text: str) -> str:
    """Return the sha256 of a text; its newlines and encoding count."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Cursor(sqlite3.Cursor):
    """Says what to do of a damaged file and of what is no text; busy, full and refused rows are others' to explain."""

    def execute(self, sql: str, parameters: Any = (), /) -> "_Cursor":
        try:
            super().execute(sql, parameters)
        except _TROUBLE as error:
            _explain(error, self.connection)
            raise
        return self

    def fetchone(self) -> Any:
        try:
            return super().fetchone()
        except _TROUBLE as error:
            _explain(error, self.connection)
            raise

    def fetchall(self) -> list[Any]:
        try:
            return super().fetchall()
        except _TROUBLE as error:
            _explain(error, self.connection)
            raise


class _Connection(sqlite3.Connection):
    def __init__(self, database: Path, *args: Any, **named: Any) -> None:
        super().__init__(database, *args, **named)
        self.file = database

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(sql, parameters)


_TROUBLE = (sqlite3.DatabaseError, UnicodeEncodeError)


def _explain(error: Exception, conn: sqlite3.Connection) -> None:
    """Raise what says what to do of an error, where there is more to say than it does."""
    if type(error) is sqlite3.DatabaseError or "malformed" in str(error):
        raise StoreError(f"{getattr(conn, 'file', '')}: {error}: {_DAMAGED}") from error
    if isinstance(error, UnicodeEncodeError):
        wrong = ascii(error.object[error.start : error.end])
        raise StoreError(f"{wrong} is no character: text that holds it cannot be stored or looked for") from error


@dataclass(slots=True)
class _Batch:
    """Rows that several wait to see inserted."""

    rows: list[Rows] = field(default_factory=list)
    inserted: bool = False


class _Lane:
    """A connection on a thread of its own, where one job takes place at a time, all its statements in one go."""

    def __init__(self, path: Path, name: str, set_up: Callable[[sqlite3.Connection], object]) -> None:
        self._path = path
        self._set_up = set_up
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._conn: sqlite3.Connection | None = None

    def run(self, job: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Put a job in line, and return what awaits its result; one that has begun runs through."""
        return asyncio.get_running_loop().run_in_executor(self._thread, lambda: job(self._conn or self._connect()))

    def _connect(self) -> sqlite3.Connection:
        """Connect on the thread of the jobs: SQLite's module ties the two together."""
        conn = sqlite3.connect(self._path, isolation_level=None, timeout=_BUSY_TIMEOUT_S, factory=_Connection)
        try:
            conn.row_factory = sqlite3.Row
            self._set_up(conn)
        except BaseException:
            conn.close()
            raise
        self._conn = conn
        return conn

    async def end(self) -> None:
        """Wait for the jobs that are left, and close the connection."""
        if self._conn is not None:
            self._thread.submit(self._conn.close)
        await asyncio.to_thread(self._thread.shutdown)


class Database:
    """One SQLite file in WAL mode, safe with other processes writing to it.

    Tasks that shared one connection would interleave, and one's rollback would erase another's insert. So each write
    is one job, and jobs run through one after another on the writing connection's thread; reads have a connection of
    their own. Searches have a third one with its own thread, where one takes place at a time. What was written is moved
    from SQLite's log into the file on a fourth: that waits for the disk, and no caller should.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writes = _Lane(path, "write", _keep_safe)
        self._searches = _Lane(path, "search", self._limit)
        self._log = _Lane(path, "log", _keep_safe)
        self._commits = 0
        self._reader = aiosqlite.connect(
            path, isolation_level=None, timeout=_BUSY_TIMEOUT_S, factory=_Connection
        )  # connects when it is awaited
        self._appending = asyncio.Lock()
        self._batch = _Batch()
        self._deadline = math.inf

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator["Database"]:
        """Open the file, making it and migrating it as needed.

        Raises:
            StoreError: The file cannot be opened, is no database, or was written by a newer version.
        """
        db = cls(path)
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.close(
                    os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
                )  # aiosqlite leaves a thread behind where connecting fails: fail before it
            except OSError as error:
                raise StoreError(
                    f"{path}: cannot open the database ({error}); set LOOPGRAPH_DB to another file"
                ) from error
            try:
                await db._writes.run(lambda conn: _migrate(conn, path))
                await db._reader
            except sqlite3.Error as error:
                raise StoreError(
                    f"{path}: {error}; the file is damaged, no SQLite database, or its disk is full. "
                    "Move it aside, or set LOOPGRAPH_DB to another file"
                ) from error
            db._reader.row_factory = sqlite3.Row
            await db._reader.execute("PRAGMA query_only = ON")
            yield db
        finally:
            await _to_the_end(db._close())

    async def _close(self) -> None:
        self._deadline = -math.inf  # cuts off what is still looked for
        await self._log.end()
        await self._searches.end()
        try:
            await self._reader.close()
        finally:
            await self._writes.end()

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a job returns; what it writes is written together, or not at all where it raises.

        A caller that is cancelled before the commit leaves nothing written.

        Raises:
            StoreError: The disk is full, or another process held the database for half a minute.
        """
        cancelled = threading.Event()

        def undone_if_cancelled(conn: sqlite3.Connection) -> T:
            done = job(conn)
            if cancelled.is_set():
                raise CancelledError
            return done

        try:
            done = await self._writes.run(lambda conn: _transact(conn, undone_if_cancelled))
        except asyncio.CancelledError:
            cancelled.set()
            raise
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self.path}: {error}; nothing was written. {_NEXT_STEP}") from error
        self._commits += 1
        if self._commits % _COMMITS == 0:
            with suppress(RuntimeError):  # the store was closed meanwhile, which moves all
                self._log.run(_move_log)
        return done

    async def change(self, statement: str, values: Mapping[str, Any] | Sequence[Any] = ()) -> int:
        """Write with one statement; return how many rows it changed.

        Raises:
            StoreError: As for `write`.
        """
        return await self.write(lambda conn: conn.execute(statement, values).rowcount)

    async def append(self, rows: Sequence[Rows]) -> None:
        """Insert rows, all or none; those of all who append at one moment share a transaction and its commit.

        Raises:
            StoreError: As for `write`.
        """
        batch = self._batch
        batch.rows += rows
        async with self._appending:
            if batch is self._batch:
                self._batch = _Batch()
                with suppress(StoreError, sqlite3.IntegrityError):  # one row's fault is not the others'
                    await self.write(lambda conn: insert(conn, batch.rows))
                    batch.inserted = True
        if not batch.inserted:
            await self.write(lambda conn: insert(conn, rows))

    async def write_with(self, other: Path, name: str, job: Callable[[sqlite3.Connection], T]) -> T:
        """Write with a job that reads another file's tables as well, under a name.

        Raises:
            StoreError: As for `write`.
        """
        await self._writes.run(lambda conn: conn.execute("ATTACH ? AS " + name, (str(other),)))
        try:
            return await self.write(job)
        finally:
            await self._writes.run(lambda conn: conn.execute("DETACH " + name))

    async def sync_every_commit(self) -> None:
        """Make each commit reach the disk before it returns, so that not even a power cut loses it.

        Without this, SQLite in WAL mode keeps the file sound but may lose the last commits.
        """
        await self._writes.run(lambda conn: conn.execute("PRAGMA synchronous = FULL"))

    @property
    def reader(self) -> aiosqlite.Connection:
        """The connection for reads; it cannot write and never waits for a writer."""
        return self._reader

    def search(self, ask: Callable[[sqlite3.Connection], T], *, limit_s: float) -> asyncio.Future[T]:
        """Ask on the searches' own thread and connection, which cannot write; a statement past the limit is cut off.

        It is put in line at once, and its answer is to be awaited. A statement that is cut off fails with an
        OperationalError, `interrupted`. Each row that is fetched costs a turn of Python's lock, for which a busy
        process lets one wait: ask for many as one, in JSON.
        """

        def job(conn: sqlite3.Connection) -> T:
            self.limit_search(limit_s)
            conn.execute("BEGIN")  # one look at the file, as it is at one moment, in place of one for each statement
            try:
                return ask(conn)
            finally:
                conn.execute("COMMIT")

        return self._searches.run(job)

    def limit_search(self, seconds: float) -> None:
        """Within a search, give what is left of it so many seconds from now; none where the store is being closed."""
        if self._deadline > -math.inf:
            self._deadline = time.monotonic() + seconds

    def _limit(self, conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA query_only = ON")
        conn.set_progress_handler(lambda: time.monotonic() > self._deadline, _CHECK_EVERY)

    async def check(self) -> list[str]:
        """Return what is wrong with the file: damaged pages, rows that point nowhere, text that is no JSON."""
        found = [str(row[0]) for row in await self._reader.execute_fetchall("PRAGMA integrity_check(20)")]
        strays = await self._reader.execute_fetchall("PRAGMA foreign_key_check")
        found += [f"a row of {row['table']} points at a row of {row['parent']} that is not there" for row in strays]
        return [each for each in found if each != "ok"]


async def _to_the_end(closing: Coroutine[Any, Any, None]) -> None:
    """Wait until something is closed, however often one is cancelled: a thread that is left keeps its process alive."""
    task, cancelled = asyncio.create_task(closing), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


@contextmanager
def interruptible() -> Iterator[None]:
    """Leave off quietly where a search's time is up."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise


def insert(conn: sqlite3.Connection, rows: Sequence[Rows]) -> None:
    """Insert rows within a write, those of one statement in one go."""
    statements: dict[str, list[Mapping[str, Any]]] = {}
    for statement, values in rows:
        statements.setdefault(statement, []).extend(values)
    for statement, all_values in statements.items():
        conn.executemany(statement, all_values)


def _keep_safe(conn: sqlite3.Connection) -> None:
    _begin_log(conn)
    conn.execute("PRAGMA synchronous = NORMAL")
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute(f"PRAGMA wal_autocheckpoint = {_PAGES}")
    conn.execute(f"PRAGMA journal_size_limit = {4096 * _PAGES}")  # what a moment of much writing made of the log


def _begin_log(conn: sqlite3.Connection) -> None:
    """Set WAL mode: where another process begins to write a file that is not in it yet, SQLite does not wait."""
    until = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            conn.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _move_log(conn: sqlite3.Connection) -> None:
    """Move what was written into the file, as far as nobody reads what was there before; it waits for nobody."""
    with suppress(sqlite3.Error, StoreError):  # a later one moves it
        conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _transact(conn: sqlite3.Connection, job: Callable[[sqlite3.Connection], T]) -> T:
    conn.execute("BEGIN IMMEDIATE")
    try:
        done = job(conn)
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:  # a full disk has ended it already
            conn.execute("ROLLBACK")
        raise
    return done


def migration_files() -> list[tuple[int, Path]]:
    """Return the numbered migrations in order."""
    files = sorted(MIGRATIONS_DIR.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    return [(int(re.split("_", file.name)[0]), file) for file in files]


def _migrate(conn: sqlite3.Connection, path: Path) -> None:
    """Apply what is missing, each migration in one transaction with its record in user_version."""
    migrations = migration_files()
    newest = migrations[-1][0]
    version = _schema_version(conn)
    if version > newest:
        raise StoreError(
            f"{path}: written by a newer LoopGraph (schema {version}, this one knows {newest}); "
            "upgrade with `pip install -U loopgraph-mcp`"
        )
    for number, file in migrations:
        if number > version:
            _transact(conn, partial(_apply, number=number, script=file.read_text(encoding="utf-8")))


def _apply(conn: sqlite3.Connection, *, number: int, script: str) -> None:
    if _schema_version(conn) >= number:  # another process came first
        return
    for statement in split_statements(script):
        conn.execute(statement)
    conn.execute(f"PRAGMA user_version = {number}")


def _schema_version(conn: sqlite3.Connection) -> int:
    return int(conn.execute("PRAGMA user_version").fetchone()[0])


def split_statements(script: str) -> list[str]:
    """Split SQL at the semicolons that end statements (`executescript` would commit our transaction)."""
    statements, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    return statements
