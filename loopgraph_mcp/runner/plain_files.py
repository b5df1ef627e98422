"""Reads files that others can replace: only regular files, up to a size, without blocking."""

import os
import stat
from pathlib import Path

MAX_PROGRAM_BYTES = 2**20
"""Of a program, a declaration or another text that a person edits."""


class NotPlainError(OSError):
    """A pipe, a device, a folder, or a file over a size."""


def read_plain(path: Path, most: int = MAX_PROGRAM_BYTES) -> bytes:
    """Return a plain file's bytes.

    Raises:
        NotPlainError: It is no plain file, or is over the size; the message says what it is, and how large.
        OSError: It cannot be read.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""
    if max(size, len(data)) > most:
        shown = f"{most >> 20} MiB" if most >= 2**20 else f"{most:,} bytes"
        raise NotPlainError(f"{max(size, len(data)):,} bytes, over the limit of {shown}; make it smaller")
    return data


def open_plain(path: Path) -> int:
    """Return the descriptor of a plain file opened for reading; to open a pipe without O_NONBLOCK waits for a writer.

    Raises:
        NotPlainError: It is no plain file.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlainError(f"it is {_kind(mode)}; replace it by a plain file")
    return descriptor


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
