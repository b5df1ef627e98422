"""Locks that end with their process: one run at a time on a device, and one supervisor for each experiment."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def hold_lock(locks_dir: Path, name: str) -> Iterator[TextIO | None]:
    """Try to hold a lock for the body; give its open file, or None where another process holds it.

    The kernel lets go of it when every process that has this file open has ended, however they end. Unlike a pid it
    cannot be mistaken for another process's, and no clock that is set back confuses it.

    Raises:
        OSError: The folder cannot be written.
    """
    locks_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _path(locks_dir, name).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file


@contextmanager
def try_lock(locks_dir: Path, name: str) -> Iterator[bool]:
    """Try to hold a lock for the body; give whether it is held.

    Raises:
        OSError: The folder cannot be written.
    """
    with hold_lock(locks_dir, name) as file:
        yield file is not None


def inherited_lock(locks_dir: Path, name: str, held: int) -> TextIO | None:
    """Return the open file of a lock that another process passed on; None where the descriptor is of something else."""
    try:
        if not os.path.samestat(os.fstat(held), _path(locks_dir, name).stat()):
            return None
        os.set_inheritable(held, False)  # noqa: FBT003 - what this process starts must not hold the lock when it is gone
        return os.fdopen(held, "a")
    except OSError:
        return None


@contextmanager
def hold(locks_dir: Path, name: str) -> Iterator[None]:
    """Hold a lock for the body; wait for its present holder, which keeps it only for a moment."""
    locks_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (locks_dir / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def alone_in(locks_dir: Path, workspace: Path) -> Iterator[None]:
    """Keep other processes of this store from writing to a workspace's own files for the body."""
    name = hashlib.sha256(os.fsencode(workspace)).hexdigest()[:16]
    with hold(locks_dir, f"workspace-{name}"):
        yield


def is_held(locks_dir: Path, name: str) -> bool:
    """Return whether some process holds a lock; asking does not keep others who ask from an answer.

    Raises:
        OSError: Its file cannot be read.
    """
    try:
        with _path(locks_dir, name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _path(locks_dir: Path, name: str) -> Path:
    return locks_dir / f"{name}.lock"
