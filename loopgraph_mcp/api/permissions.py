"""Keeps the store, its runs, locks and logs their user's alone: they hold code, prompts and what programs printed."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loopgraph_mcp.api.trust import FILE_NAME as TRUSTED
from loopgraph_mcp.config import Settings
from loopgraph_mcp.store.files import BESIDE, beside

PRIVATE_MASK = 0o077
_user_mask: list[int] = []  # what the user's shell had set, once it was changed


def close_mask() -> None:
    """Let only the user read what this process creates from now on; an entry point calls it once."""
    before = os.umask(PRIVATE_MASK)
    if not _user_mask:
        _user_mask.append(before)


@contextmanager
def users_mask() -> Iterator[None]:
    """Create files as the user's shell would: a workspace and an exported pack are the user's to share."""
    if not _user_mask:
        yield
        return
    os.umask(_user_mask[0])
    try:
        yield
    finally:
        os.umask(PRIVATE_MASK)


def tighten(settings: Settings) -> None:
    """Take others' rights away from what is there: the store, and the top folders, which hide all below them."""
    for path in open_to_others(settings):
        with suppress(OSError):  # somebody else's: `loopgraph doctor` names it
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~PRIVATE_MASK)


def open_to_others(settings: Settings) -> list[Path]:
    """Return what of the store's others may read, write or enter."""
    home, db = settings.home, settings.db_path
    folders = (settings.runs_dir, settings.locks_dir, settings.fetched_dir, settings.packs_dir)
    files = (db, *(beside(db, ending) for ending in BESIDE), home / TRUSTED)
    found = list[Path]()
    for path in (*folders, *files):
        try:
            seen = path.lstat()
        except OSError:
            continue
        if not stat.S_ISLNK(seen.st_mode) and stat.S_IMODE(seen.st_mode) & PRIVATE_MASK:
            found.append(path)
    return found
