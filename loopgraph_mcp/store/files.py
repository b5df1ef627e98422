"""The store as a file: how to open it, whether another process has it open, how to replace it."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from loopgraph_mcp.errors import StoreError

# Where SQLite locks a file: each process that has it open in WAL mode holds part of these bytes.
_LOCK_AT, _LOCK_BYTES = 0x40000002, 510
BESIDE = ("-wal", "-shm")
PATIENCE_S = 30.0  # another process may hold the write lock while it merges an index
READ_ERRORS = (sqlite3.Error, UnicodeDecodeError)  # of a damaged file: SQLite quotes names that are no UTF-8 in it


def beside(path: Path, ending: str) -> Path:
    """Return the path of a file that SQLite keeps beside a store."""
    return path.with_name(path.name + ending)


def log_is_empty(path: Path) -> bool:
    """Return whether a store's log holds nothing that its file lacks."""
    try:
        return beside(path, "-wal").stat().st_size == 0
    except FileNotFoundError:
        return True
    except OSError:
        return False


def uri_to_read(path: Path) -> str:
    """Return how a store that may not be written can be opened, having read from it so.

    Where nothing is in its log and no file can be made beside it, the file alone is all there is.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    uris = [f"{path.absolute().as_uri()}?mode=ro"]
    if log_is_empty(path):
        uris.append(uris[0] + "&immutable=1")
    for uri in uris[:-1]:
        with suppress(sqlite3.OperationalError):
            _read_from(uri)
            return uri
    _read_from(uris[-1])
    return uris[-1]


def _read_from(uri: str) -> None:
    with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE_S)) as conn:
        conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()


@contextmanager
def alone(path: Path, *, to: str) -> Iterator[None]:
    """Keep other processes from opening a store for the body.

    Nothing in the body may open the file: closing it again would end the lock.

    Raises:
        StoreError: Another process has it open.
    """
    try:
        file = path.open("r+b")
    except OSError:  # it is not there, or nobody can write it
        yield
        return
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCK_BYTES, _LOCK_AT)
        except OSError as error:
            raise StoreError(
                f"{path}: a server, a run or a command has it open; wait for the runs, or cancel them, end LoopGraph's "
                f"servers (clients start some), then {to} again"
            ) from error
        yield


def private_file(path: Path) -> None:
    """Make an empty file that only its user can read: a store holds prompts and programs."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def sync(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
