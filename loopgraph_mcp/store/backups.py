"""Backups of a store: made while others write to it, and restored."""

import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loopgraph_mcp.errors import StoreError
from loopgraph_mcp.store.damage import count_rows, find_damage
from loopgraph_mcp.store.database import migration_files
from loopgraph_mcp.store.files import BESIDE, PATIENCE_S, alone, beside, private_file, sync, uri_to_read

_NAME = re.compile(r"loopgraph-\d{8}T\d{6}Z(?:-\d+)?\.db")
_SAVE = "`loopgraph salvage {path} NEW` copies the readable rows"


@dataclass(frozen=True, slots=True)
class Copied:
    """A store that was copied.

    Args:
        path: The copy.
        rows: How many rows each of its tables has.
        removed: Older backups that were removed.
    """

    path: Path
    rows: dict[str, int]
    removed: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """A store that was put in another's place.

    Args:
        path: Where it is now.
        rows: How many rows each of its tables has.
        aside: Where the one before it is now; None where there was none.
    """

    path: Path
    rows: dict[str, int]
    aside: Path | None


def back_up(path: Path, folder: Path, *, now: datetime, keep: int | None = None) -> Copied:
    """Copy a store as it is at one moment into a folder, under a name with the time; readers and writers go on.

    The copy gets its name once all of it was read again.

    Args:
        path: The store.
        folder: Where backups are; it is made if there is none.
        now: The time in the file's name.
        keep: How many backups to keep there, this one included; all by default.

    Raises:
        StoreError: There is no store, it is damaged, or the copy cannot be written.
    """
    if not path.is_file():
        raise StoreError(f"{path}: no store to back up; set LOOPGRAPH_DB to the right file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = _copy(path, _free_name(folder, now), then=Path.rename)
        sync(folder)
        removed = [] if keep is None else _older(folder, besides=made, keep=keep)
        for each in removed:
            each.unlink(missing_ok=True)
        return Copied(made, count_rows(made), tuple(removed))
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"{path}: cannot be backed up to {folder} ({error}); free space, or name another folder"
        ) from error


def _free_name(folder: Path, now: datetime) -> Path:
    """Return a path in a folder that nothing has."""
    time = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    path, number = folder / f"loopgraph-{time}.db", 2
    while path.exists():
        path, number = folder / f"loopgraph-{time}-{number}.db", number + 1
    return path


def _older(folder: Path, *, besides: Path, keep: int) -> list[Path]:
    """Return a folder's backups but the newest; other files are left alone."""
    found = sorted(each for each in folder.iterdir() if _NAME.fullmatch(each.name) and each != besides)
    return found[: max(0, len(found) - (keep - 1))]


def restore(path: Path, source: Path, *, now: datetime) -> Restored:
    """Put a backup, or a salvaged store, in a store's place; the store of before is kept beside it.

    Raises:
        StoreError: Another process has the store open, or the source is no sound store of this version or an older one.
    """
    if not source.is_file():
        raise StoreError(f"{source}: no file; name a backup that `loopgraph backup` made, or a salvaged store")
    if path.exists() and source.samefile(path):
        raise StoreError(f"{source}: is the store itself; name a backup of it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path, to="restore"):
            aside = _aside(path, now) if path.exists() else None

            def take_its_place(part: Path, _: Path) -> Path:
                if aside is not None:
                    _keep(path, aside)
                for ending in BESIDE:  # the log of before holds pages of another file
                    beside(path, ending).unlink(missing_ok=True)
                return part.replace(path)

            _copy(source, path, then=take_its_place)
            sync(path.parent)
        return Restored(path, count_rows(path), aside)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{source}: cannot be restored to {path} ({error}); free space and try again") from error


def _aside(path: Path, now: datetime) -> Path:
    """Return a path beside a store that nothing has."""
    time = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside, number = path.with_name(f"{path.name}.before-{time}"), 2
    while aside.exists():
        aside, number = path.with_name(f"{path.name}.before-{time}-{number}"), number + 1
    return aside


def _keep(path: Path, aside: Path) -> None:
    """Give a store a second name, and its log: whenever this ends, all of it is under the old name or the new one."""
    for ending in ("-wal", ""):
        was, becomes = beside(path, ending), beside(aside, ending)
        if was.exists():
            try:
                becomes.hardlink_to(was)
            except OSError:  # not every file system has second names
                shutil.copy2(was, becomes)


def _copy(source: Path, target: Path, *, then: Callable[[Path, Path], Path]) -> Path:
    """Copy a store to a file beside a target, read all of the copy, and only then do what gives it its name.

    Raises:
        StoreError: The source is damaged, or no store that this version can open.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        private_file(part)
        try:
            _write_copy(source, part)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise
            raise StoreError(f"{source}: {error}; {_SAVE.format(path=source)}") from error
        if damage := find_damage(part):
            raise StoreError(f"{source}: is damaged ({damage[0]}); {_SAVE.format(path=source)}")
        _check_schema(source, part)
        sync(part)
        return then(part, target)
    finally:
        for each in (part, *(beside(part, ending) for ending in ("-wal", "-shm", "-journal"))):
            with suppress(OSError):
                each.unlink(missing_ok=True)


def _write_copy(source: Path, part: Path) -> None:
    """Copy page by page within one read, so that writers are neither waited for nor half copied."""
    with (
        closing(sqlite3.connect(uri_to_read(source), uri=True, timeout=PATIENCE_S)) as conn,
        closing(sqlite3.connect(part)) as copy,
    ):
        conn.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, which can be read where nothing can be written


def _check_schema(source: Path, part: Path) -> None:
    """Refuse a database that is none of ours, or of a newer version."""
    newest = migration_files()[-1][0]
    with closing(sqlite3.connect(part)) as conn:
        (version,) = conn.execute("PRAGMA user_version").fetchone()
        ours = conn.execute("SELECT count(*) FROM sqlite_schema WHERE name IN ('experiment', 'outcome')").fetchone()[0]
    if ours != 2 or version < 1:
        raise StoreError(f"{source}: is not a LoopGraph store; name a loopgraph.db or a backup")
    if version > newest:
        raise StoreError(
            f"{source}: written by a newer LoopGraph (schema {version}, this one knows {newest}); "
            "upgrade with `pip install -U loopgraph-mcp`"
        )
