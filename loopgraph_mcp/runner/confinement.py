"""What a run sees read-only, where Linux allows it: what its copy only links, the store, and the folders of other runs.

A training starts in a mount namespace of its own, in which these files and folders are mounted over themselves. Only it
and what it starts see that, and the kernel takes the mounts away with the last of them. Who is not root needs a user
namespace for it, with the same ids inside as outside. A system that refuses either runs the training as it is, and what
is linked is compared afterwards (`inputs.changed_links`).
"""

import ctypes
import os
import posixpath
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from loopgraph_mcp.runner import patterns
from loopgraph_mcp.runner.inputs import INPUTS_NAME, Made

_NEW_MOUNTS, _NEW_USERS = 0x20000, 0x10000000  # linux/sched.h
_BIND, _RECURSIVELY, _FOLLOWING = 0x1000, 0x4000, 0x80000  # linux/mount.h: the last is MS_SLAVE, mounts still come in
_SET_ATTRIBUTES, _AT_CWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1  # mount_setattr, of Linux 5.12
_DUMPABLE = 4  # linux/prctl.h
# Programs share memory and write what they pass on here, whatever is linked or named for LoopGraph above it.
_SHARED = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp")  # noqa: S108 - nothing is written there by us
_CHECK_S = 10.0


@dataclass(frozen=True, slots=True)
class View:
    """How a run sees a file, or a folder with all it holds."""

    path: str
    is_writable: bool


@dataclass(frozen=True, slots=True)
class Own:
    """Where LoopGraph keeps what is its own, and a run's part of that.

    Args:
        home: The folder of locks, tokens and trust.
        db_path: The store.
        run_dir: The run's folder, among those of other runs.
        records: Names of files in it that say what the run was and what came of it.
    """

    home: Path
    db_path: Path
    run_dir: Path
    records: tuple[str, ...] = ()


def views_of(own: Own, made: Made | None, workspace: Path, environment: Mapping[str, str]) -> tuple[View, ...]:
    """Return what a run sees read-only, and what below that it may write, outer folders first.

    Folders for temporary files and the like, and the workspace itself, stay as they are where they lie in a folder of
    LoopGraph's, or in one that is linked.

    Args:
        own: LoopGraph's files.
        made: The record of the run's copy.
        workspace: The user's folder.
        environment: The training's: what it names in LoopGraph's folders, such as a cache, may be written.
    """
    wanted = dict[str, bool]()
    for folder in (own.home, own.run_dir.parent):
        wanted[os.path.realpath(folder)] = False
    for end in ("", "-wal", "-shm"):
        wanted[f"{os.path.realpath(own.db_path)}{end}"] = False
    of_store = tuple(wanted)
    if made is not None:
        for path, stamp in made.linked.items():
            wanted |= _views_of_link(path, os.path.realpath(stamp.target), made.ignore)
    named = [os.path.realpath(value) for value in environment.values() if value.startswith("/") and "\0" not in value]
    spared = [path for path in named if any(_is_within(path, each) for each in of_store)]
    for place in (
        *_SHARED,
        tempfile.gettempdir(),
        environment.get("HOME", "/"),
        str(workspace),
        str(own.run_dir),
        *spared,
    ):
        wanted[os.path.realpath(place)] = True
    for name in (INPUTS_NAME, *own.records):
        wanted[os.path.realpath(own.run_dir / name)] = False
    return _needed(wanted)


def _views_of_link(path: str, target: str, ignore: Sequence[str]) -> dict[str, bool]:
    """Return how a run sees what is linked at a path of the workspace: what `ignore` names in it may change.

    A folder in which a pattern may name files that are not there yet is not made read-only, nor is one of modules, in
    which build tools keep caches.
    """
    if posixpath.basename(path) == "node_modules":
        return {}
    found = {target: False}
    for pattern in ignore:
        parts = posixpath.normpath(pattern).split("/")
        if len(parts) == 1 and parts[0] != "**":
            found |= {posixpath.join(target, name): True for name in _names_in(target) if fnmatchcase(name, parts[0])}
            continue
        fixed = posixpath.normpath(pattern.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0])
        if not patterns.is_pattern(pattern):
            inside = posixpath.relpath(posixpath.normpath(pattern), path)
            if inside.startswith(".."):
                continue
            if not os.path.lexists(posixpath.join(target, inside)):
                return {}
            found[posixpath.join(target, inside)] = True
        elif fixed == "." or _is_within(fixed, path) or _is_within(path, fixed):
            return {}
    return found


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is wanted
    except OSError:  # a file, or one that cannot be read
        return []


def _needed(wanted: Mapping[str, bool]) -> tuple[View, ...]:
    """Return the views that differ from that of what is above them, of what is there."""
    kept = list[View]()
    for path in sorted(wanted, key=lambda each: each.count("/")):
        above = [each for each in kept if _is_within(path, each.path)]
        is_so = above[-1].is_writable if above else True
        if wanted[path] != is_so and path != "/" and Path(path).exists():
            kept.append(View(path, wanted[path]))
    return tuple(kept)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def entering(views: Sequence[View], cwd: Path | str) -> Callable[[], None] | None:
    """Return what a new process calls before it starts its program to see files so; None where this system cannot.

    The call raises OSError where it is refused; the process has to be given up then.
    """
    if sys.platform != "linux" or not views or _needs_setuid():
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        unshare, mount, syscall, prctl = libc.unshare, libc.mount, libc.syscall, libc.prctl
    except (OSError, AttributeError):  # a libc without them
        return None
    user, group = os.geteuid(), os.getegid()
    paths = [(os.fsencode(each.path), each.is_writable) for each in views]
    attributes = {can: (ctypes.c_uint64 * 4)(0 if can else _READ_ONLY, _READ_ONLY if can else 0) for can in (0, 1)}

    def check(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), "refused")

    def enter() -> None:
        check(unshare(_NEW_MOUNTS if user == 0 else _NEW_MOUNTS | _NEW_USERS))
        if user != 0:
            prctl(_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)  # else /proc/self is root's; others are outside by now
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
        check(mount(None, b"/", None, ctypes.c_ulong(_RECURSIVELY | _FOLLOWING), None))
        for path, can in paths:
            check(mount(path, path, None, ctypes.c_ulong(_BIND | _RECURSIVELY), None))
            attribute = attributes[can]
            check(syscall(ctypes.c_long(_SET_ATTRIBUTES), _AT_CWD, path, _AT_RECURSIVE, attribute, ctypes.c_size_t(32)))
        os.chdir(cwd)  # where it is reached through the new mounts: `..` leads to them

    return enter


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _needs_setuid() -> bool:
    """Return whether the first program that uses a GPU must make its device file by a tool that is root's.

    That tool, nvidia-modprobe, gains nothing in a user namespace.
    """
    return os.geteuid() != 0 and Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidia-uvm").exists()


def is_allowed() -> bool:
    """Return whether this system lets a run see a folder read-only, tried with a process that writes to one."""
    with tempfile.TemporaryDirectory() as folder:
        enter = entering([View(os.path.realpath(folder), is_writable=False)], "/")
        if enter is None:
            return False
        try:
            done = subprocess.run(  # noqa: S603 - fixed words, no shell syntax of anybody's
                ["/bin/sh", "-c", ': > "$1/written"', "sh", folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=enter,
                timeout=_CHECK_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode != 0 and not Path(folder, "written").exists()
