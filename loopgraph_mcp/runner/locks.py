"""Locks that outlive no process: one run at a time on a device, and which experiments are looked after."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def try_lock(locks_dir: Path, name: str) -> Iterator[bool]:
    """Try to hold a lock for the body; the kernel lets go of it when this process ends, however it ends.

    Unlike a pid it cannot be mistaken for another process's, and no clock that is set back confuses it.
    """
    locks_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (locks_dir / f"{name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def is_held(locks_dir: Path, name: str) -> bool:
    """Return whether some process holds a lock; asking does not keep others who ask from an answer."""
    try:
        with (locks_dir / f"{name}.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
