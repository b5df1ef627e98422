"""Opens the SQLite file: one writing connection, separate readers, migrations at opening."""

import asyncio
import hashlib
import logging
import math
import re
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from loopgraph_mcp.errors import LoopGraphError, StoreError, UnwritableError
from loopgraph_mcp.store.damage import find_damage, find_strays
from loopgraph_mcp.store.files import PATIENCE_S, READ_ERRORS, beside, uri_to_read

MIGRATIONS_DIR = Path(__file__).parent / "migrations"
T = TypeVar("T")
Rows = tuple[str, Sequence[Mapping[str, Any]]]  # an INSERT and what it is to insert
_COMMITS = 64  # between two moves of what was written from the log into the file
_PAGES = 4_000  # of the log, after which a commit moves them itself
_CHECK_EVERY = 10_000  # SQLite's own instructions between looks at the clock: about a millisecond
_WAITING = 1_000  # groups of rows that wait for a disk with space, the newest: some hundred KiB
_DAMAGED = (
    "the file is damaged. `loopgraph doctor` shows where. End LoopGraph's servers; then `loopgraph restore BACKUP` "
    "restores a backup, or `loopgraph salvage FILE NEW` copies the readable rows. "
    "LOOPGRAPH_DB selects another file"
)
# What SQLite says where bytes of the file are not what it or a migration wrote, beside "malformed".
_SIGNS = (
    "malformed",
    "Could not decode",
    "vtable constructor failed",
    "no such table",
    "no such column",
    "SQL logic error",
)
_NEXT_STEP = "Free disk space, or end the process that holds the database, and try again"
# What SQLite says where it can read and not write: the file, its folder or its disk is why.
_UNWRITABLE = ("readonly", "full", "disk I/O", "unable to open")
logger = logging.getLogger("loopgraph.store")
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

    def executemany(self, sql: str, parameters: Any, /) -> "_Cursor":
        try:
            super().executemany(sql, parameters)
        except _TROUBLE as error:
            _explain(error, self.connection)
            raise
        return self

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except _TROUBLE as error:
            _explain(error, self.connection)
            raise

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

    def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
        return self.cursor(_Cursor).executemany(sql, parameters)


_OF_DAMAGE = (sqlite3.Error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_TROUBLE = (sqlite3.DatabaseError, UnicodeError)


def _explain(error: Exception, conn: sqlite3.Connection) -> None:
    """Raise what says what to do of an error, where there is more to say than it does."""
    # SQLite's own messages quote names as they are in the file: they may be no UTF-8 there.
    if (
        isinstance(error, UnicodeDecodeError)
        or type(error) is sqlite3.DatabaseError
        or any(sign in str(error) for sign in _SIGNS)
    ):
        raise StoreError(f"{getattr(conn, 'file', '')}: {error}: {_DAMAGED}") from error
    if isinstance(error, UnicodeEncodeError):
        wrong = ascii(error.object[error.start : error.end])
        raise StoreError(
            f"{wrong} is not a valid character: text with it can be neither stored nor searched"
        ) from error


@dataclass(slots=True)
class _Batch:
    """Rows that several wait to see inserted."""

    rows: list[Rows] = field(default_factory=list)
    inserted: bool = False


class _Lane:
    """A connection on a thread of its own, where one job takes place at a time, all its statements in one go."""

    def __init__(self, file: Path | str, name: str, set_up: Callable[[sqlite3.Connection], object]) -> None:
        self._file = file
        self._set_up = set_up
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._conn: sqlite3.Connection | None = None

    def run(self, job: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Put a job in line, and return what awaits its result; one that has begun runs through."""
        return asyncio.get_running_loop().run_in_executor(self._thread, lambda: job(self._conn or self._connect()))

    def _connect(self) -> sqlite3.Connection:
        """Connect on the thread of the jobs: SQLite's module ties the two together."""
        conn = _connect(self._file)
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


def _connect(file: Path | str) -> sqlite3.Connection:
    """Connect to a file, or as a URI says."""
    return sqlite3.connect(
        file, isolation_level=None, timeout=PATIENCE_S, factory=_Connection, uri=isinstance(file, str)
    )


class Database:
    """One SQLite file in WAL mode, safe with other processes writing to it.

    Tasks that shared one connection would interleave, and a rollback in one would erase the insert of another. So each
    write is one job, and jobs run one after another on the writing connection's thread; reads have a connection of
    their own. Searches have a third one with its own thread, where one takes place at a time. What was written is moved
    from SQLite's log into the file on a fourth: that waits for the disk, and no caller should.
    """

    def __init__(self, path: Path, file: Path | str, *, read_only: str = "") -> None:
        self.path = path
        self._file = file
        self.ids: dict[object, str] = {}  # of workspaces by path and of contexts: their rows are never deleted
        self.word_counts: dict[str, tuple[tuple[int, int], dict[str, int]]] = {}  # see store.search
        self.read_only = read_only  # why nothing can be written; empty where it can
        set_up = _only_read if read_only else _keep_safe
        self._writes = _Lane(file, "write", set_up)
        self._searches = _Lane(file, "search", self._limit)
        self._log = _Lane(file, "log", set_up)
        self._commits = 0
        self._reader = aiosqlite.connect(
            file, isolation_level=None, timeout=PATIENCE_S, factory=_Connection, uri=isinstance(file, str)
        )  # connects when it is awaited
        self._appending = asyncio.Lock()
        self._batch = _Batch()
        self._waiting: deque[Sequence[Rows]] = deque(maxlen=_WAITING)
        self._refusal = ""
        self._writing_waiting = asyncio.Lock()
        self._deadline = math.inf

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator["Database"]:
        """Open the file, making it and migrating it as needed; only to read where it cannot be written.

        Raises:
            StoreError: The file cannot be opened, is no database, or was written by a newer version.
        """
        with ExitStack() as stack:
            db = await cls._opened(path, stack)
            try:
                yield db
            except Exception as error:
                await db.blame(error)
                raise
            finally:
                await _to_the_end(db.close())

    @classmethod
    async def _opened(cls, path: Path, stack: ExitStack) -> "Database":
        try:
            if (reason := _make_file(path)) is None:
                try:
                    return await cls(path, path).connect()
                except sqlite3.OperationalError as error:
                    if not any(sign in str(error) for sign in _UNWRITABLE):
                        raise
                    reason = str(error)
            return await cls(path, _to_read(path, stack), read_only=reason).connect()
        except READ_ERRORS as error:
            raise StoreError(f"{path}: {error}; {_DAMAGED}") from error

    async def connect(self) -> "Database":
        """Connect, and bring the file to this version's schema."""
        try:
            await self._writes.run(lambda conn: _migrate(conn, self.path))
            await self._reader
            self._reader.row_factory = sqlite3.Row
            await self._reader.execute("PRAGMA query_only = ON")
        except BaseException:
            await _to_the_end(self.close())
            raise
        return self

    async def close(self) -> None:
        """Write what waits, where that can be, and end the connections."""
        self._deadline = -math.inf  # cuts off what is still looked for
        with suppress(StoreError):  # what still waits then is lost
            await self._write_waiting()
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
            UnwritableError: The disk is full, or another process held the database for half a minute.
        """
        await self._write_waiting()
        return await self._write(job)

    async def _write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        if self.read_only:
            raise UnwritableError(f"{self.path}: {self.read_only}; nothing was written. {_NEXT_STEP}")
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
            raise UnwritableError(f"{self.path}: {error}; nothing was written. {_NEXT_STEP}") from error
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

    async def append_or_wait(self, rows: Sequence[Rows]) -> bool:
        """Insert rows now, or keep them in memory until the store can be written; return whether they are in it.

        For rows without which an answer is still right: a full disk must not keep anybody from reading. Of many that
        wait the oldest are dropped, and all of them where the store can only be read.
        """
        if self.read_only:
            return False
        try:
            await self.append(rows)
        except UnwritableError as error:
            self._refusal = str(error.__cause__)
            logger.warning("%s; %d records are waiting", error, len(self._waiting) + 1)
            self._waiting.append(rows)
            return False
        return True

    @property
    def unrecorded(self) -> str:
        """Why answers are not recorded now; empty where they are."""
        return self.read_only or (self._refusal if self._waiting else "")

    async def _write_waiting(self) -> None:
        """Insert what waits, in its order.

        Raises:
            UnwritableError: The store can still not be written.
        """
        if not self._waiting:
            return
        async with self._writing_waiting:
            while self._waiting:
                rows = self._waiting[0]
                try:
                    await self._write(lambda conn, rows=rows: insert(conn, rows))  # type: ignore[misc]
                except sqlite3.IntegrityError as error:  # what they point at is not there any more
                    logger.warning("a waiting record was lost: %s", error)
                if self._waiting and self._waiting[0] is rows:  # not dropped meanwhile
                    self._waiting.popleft()

    async def blame(self, error: Exception) -> None:
        """Raise what to do about damage where a damaged file may be why something failed.

        Text of a damaged row may be no JSON, a number, or a word that nothing knows: that fails anywhere.

        Raises:
            StoreError: The file is damaged.
        """
        if isinstance(error, LoopGraphError) or not isinstance(error, _OF_DAMAGE):
            return
        if damage := await self.check():
            raise StoreError(f"{self.path}: {damage[0]} ({type(error).__name__}: {error}): {_DAMAGED}") from error

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
        """Return what is damaged in the file; every row, index and full-text index is read."""
        return await asyncio.to_thread(find_damage, self._whole)

    async def strays(self) -> dict[str, int]:
        """Return how many rows point at rows that are not there, by `table -> other table`."""
        return await asyncio.to_thread(find_strays, self._whole)

    @property
    def _whole(self) -> Path:
        """The file that is read: a copy where the store cannot be read in place."""
        return self._file if isinstance(self._file, Path) else self.path


def _make_file(path: Path) -> str | None:
    """Make the file if there is none; return why it cannot be written, or None where it can.

    Raises:
        StoreError: There is none and none can be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # aiosqlite leaves a thread behind where connecting fails: fail before it
    except OSError as error:
        if not path.is_file():
            raise StoreError(f"{path}: cannot open the database ({error}); set LOOPGRAPH_DB to another file") from error
        return error.strerror or str(error)
    return None


def _to_read(path: Path, stack: ExitStack) -> Path | str:
    """Return what to open where a store cannot be written: itself, or a copy of it where that cannot be read in place.

    A store of an older schema is migrated in a copy. So is one that was not closed, whose log SQLite reads only where
    it can write an index beside it.
    """
    try:
        uri = uri_to_read(path)
        with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE_S)) as conn:
            if _schema_version(conn) >= migration_files()[-1][0]:
                return uri
    except sqlite3.OperationalError:
        uri = None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loopgraph-")))
    copy = folder / path.name
    try:
        if uri is None:
            for name in (path, beside(path, "-wal")):
                if name.exists():
                    shutil.copyfile(name, folder / name.name)
        else:
            with (
                closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE_S)) as conn,
                closing(sqlite3.connect(copy)) as copied,
            ):
                conn.backup(copied)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read in place or copied ({error}); free disk space") from error
    return copy


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


def _only_read(conn: sqlite3.Connection) -> None:
    """Migrate no file that is read in place; the copy of an older one may be."""


def _keep_safe(conn: sqlite3.Connection) -> None:
    _begin_log(conn)
    conn.execute("PRAGMA synchronous = NORMAL")
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute(f"PRAGMA wal_autocheckpoint = {_PAGES}")
    conn.execute(f"PRAGMA journal_size_limit = {4096 * _PAGES}")  # what a moment of much writing made of the log


def _begin_log(conn: sqlite3.Connection) -> None:
    """Set WAL mode: where another process begins to write a file that is not in it yet, SQLite does not wait."""
    until = time.monotonic() + PATIENCE_S
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
    newest = migration_files()[-1][0]
    version = _schema_version(conn)
    if version > newest:
        raise StoreError(
            f"{path}: written by a newer LoopGraph (schema {version}, this one knows {newest}); "
            "upgrade with `pip install -U loopgraph-mcp`"
        )
    apply_migrations(conn, up_to=newest)


def apply_migrations(conn: sqlite3.Connection, *, up_to: int) -> None:
    """Bring a store, which may be empty, to a version of the schema."""
    version = _schema_version(conn)
    for number, file in migration_files():
        if version < number <= up_to:
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
