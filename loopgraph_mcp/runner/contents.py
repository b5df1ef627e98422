"""The identity of a file or folder: by its bytes, its syntax tree, or the sizes and times of its files."""

import errno
import hashlib
import json
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from loopgraph_mcp.code.hashes import tree_hash

SMALL_BYTES = 16 * 2**20  # a file up to this is known by its bytes: hashing it takes about 10 ms
MAX_LISTED = 200_000  # entries of one folder; more would take seconds for every run
_MAX_CACHED = 20_000  # file hashes remembered; bounds the memory
_SETTLED_NS = 2 * 10**9  # a file system may keep times in steps of up to 2 s, so a younger file may change unseen
BY_PRODUCTS = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        "__pycache__",
        ".loopgraph",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".ipynb_checkpoints",
        ".DS_Store",
    }
)
ROOT_BY_PRODUCTS = frozenset({"results.tsv", "run.log"})  # of the workspace's own folder alone

_cache: OrderedDict[tuple[object, ...], str] = OrderedDict()
_cache_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Listing:
    """All that is below a folder, by two hashes.

    Args:
        id: Of paths, sizes and modification times: equal where a run would see the same.
        stamp: With modes and change times too, which a program cannot set back: shows any change to what is there.
        partial: Whether the folder holds more than was looked at.
    """

    id: str
    stamp: str
    partial: bool


def is_by_product(name: str) -> bool:
    """Return whether a file or folder of this name is made by tools as they run, and is no part of any program."""
    return name in BY_PRODUCTS or name.endswith(".pyc")


def is_environment(folder: str) -> bool:
    """Return whether a folder is a Python environment, by its name or by what it holds."""
    name = os.path.basename(folder)
    return name in {".venv", "venv"} or os.path.exists(os.path.join(folder, "pyvenv.cfg"))


def file_id(seen: os.stat_result) -> str:
    """Return what a file is known by where its bytes are not read."""
    return f"{seen.st_size}@{seen.st_mtime_ns}"


def file_stamp(seen: os.stat_result) -> str:
    """Return what shows any change of a file: the change time cannot be set back."""
    return f"{seen.st_size}@{seen.st_mtime_ns}@{seen.st_ctime_ns}@{seen.st_mode:o}"


def open_file(path: str) -> int:
    """Open a regular file for reading; a pipe or a device is refused and never waited for.

    Raises:
        OSError: It is no regular file, or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def hash_of(ids: Mapping[str, str]) -> str:
    """Return the hash of what several files are known by, in whichever order they are."""
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()[:16]


def bytes_hash(path: str) -> str:
    """Return the sha256 of a file's bytes; it is read again only where it changed.

    Raises:
        OSError: It cannot be read.
    """
    return _cached("bytes", path, _hash_of_bytes)


def program_id(path: str) -> str:
    """Return what a Python file is known by: its syntax tree with docstrings, or its bytes where it does not parse.

    Raises:
        OSError: It cannot be read.
    """
    return _cached("tree", path, _hash_of_tree)


def _cached(kind: str, path: str, compute: Callable[[str], str]) -> str:
    seen = os.stat(path)
    key = (kind, path, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev)
    with _cache_lock:
        known = _cache.get(key)
        if known is not None:
            _cache.move_to_end(key)
            return known
    found = compute(path)
    if time.time_ns() - max(seen.st_mtime_ns, seen.st_ctime_ns) > _SETTLED_NS:
        with _cache_lock:
            _cache[key] = found
            while len(_cache) > _MAX_CACHED:
                _cache.popitem(last=False)
    return found


def _hash_of_bytes(path: str) -> str:
    with os.fdopen(open_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_tree(path: str) -> str:
    with os.fdopen(open_file(path), "rb") as file:
        source = file.read()
    tree = tree_hash(source)
    return hashlib.sha256(source).hexdigest() if tree is None else f"tree:{tree}"


def listing(folder: str, skips: Callable[[str], bool] = lambda _: False, *, most: int = MAX_LISTED) -> Listing:
    """Return what a folder is known by, without opening a file.

    Links are known by where they lead, and are not followed. By-products do not count.

    Args:
        folder: The folder.
        skips: Whether a path relative to the folder does not count.
        most: Entries after which it stops; a folder of so many is known by the first of them.
    """
    known, watched = hashlib.sha256(), hashlib.sha256()
    pending, count = [""], 0
    while pending and count < most:
        inside = pending.pop()
        try:
            with os.scandir(os.path.join(folder, inside)) as found:
                entries = sorted(islice(found, most - count + 1), key=lambda entry: entry.name)
        except OSError as error:
            entries = []
            _put(f"{inside}\0{errno.errorcode.get(error.errno or 0)}", known, watched)
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            if is_by_product(entry.name) or skips(path):
                continue
            count += 1
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
                _put(f"{path}/", known, watched)
                continue
            identity, stamp = _entry(entry)
            _put(f"{path}\0{identity}", known)
            _put(f"{path}\0{stamp}", watched)
    return Listing(known.hexdigest(), watched.hexdigest(), bool(pending) or count >= most)


def _entry(entry: "os.DirEntry[str]") -> tuple[str, str]:
    """Return id and stamp of an entry of a folder that is itself none."""
    try:
        if entry.is_symlink():
            text = os.readlink(entry.path)
            try:
                return f"{text}\0{file_id(entry.stat())}", f"{text}\0{file_stamp(entry.stat())}"
            except OSError:
                return text, text
        seen = entry.stat(follow_symlinks=False)
    except OSError:  # gone since
        return "", ""
    return file_id(seen), file_stamp(seen)


def _put(text: str, *hashes: "hashlib._Hash") -> None:
    for each in hashes:
        each.update(f"{text}\0\0".encode("utf-8", "surrogateescape"))
