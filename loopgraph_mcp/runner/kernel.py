"""Linux system calls that Python lacks: who may read a process, and who inherits its orphans."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_CHILD_SUBREAPER = 1, 4, 36  # linux/prctl.h


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0) == 0)
    except (OSError, AttributeError):  # a libc without it
        return False


def hide_memory() -> bool:
    """Hide this process's memory and environment from other processes of its user; return whether that worked.

    A run is such a process, and this environment holds the user's keys. The superuser reads everything all the same.
    """
    return _prctl(_SET_DUMPABLE, 0)


def adopt_orphans() -> bool:
    """Make this process the parent of every descendant whose own parent ends; return whether it worked."""
    return _prctl(_SET_CHILD_SUBREAPER, 1)


def dies_with_parent() -> Callable[[], None] | None:
    """Return what a new process calls before it starts its program to end when this one does; None where it cannot."""
    if sys.platform != "linux":
        return None
    try:
        prctl = ctypes.CDLL(None).prctl  # looked up here: a new process of one with threads must not take locks
    except (OSError, AttributeError):
        return None
    parent, kill = os.getpid(), ctypes.c_ulong(signal.SIGKILL)

    def ask() -> None:
        prctl(_SET_PDEATHSIG, kill, 0, 0, 0)
        if os.getppid() != parent:  # it ended before it was asked
            os._exit(1)

    return ask
