"""Names of files and folders as loopgraph.toml writes them: `eval`, `eval/*.py`, `**/*.json`."""

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice

from loopgraph_mcp.runner.contents import MAX_LISTED, ROOT_BY_PRODUCTS, is_by_product, is_environment


def matches(pattern: str, path: str) -> bool:
    """Return whether a pattern names a path or a folder above it.

    `*`, `?` and `[...]` stay inside one name, `**` matches any folders. A pattern of one name matches in every
    folder: `*.log` is `**/*.log`.
    """
    wanted = _parts(pattern)
    if len(wanted) == 1 and wanted[0] != "**":
        return any(fnmatchcase(name, wanted[0]) for name in path.split("/"))
    reached = _start(wanted)
    for name in path.split("/"):
        reached = _step(wanted, reached, name)
        if len(wanted) in reached:
            return True
    return False


def expand(root: str, names: Iterable[str], *, editable: str = "") -> list[str]:
    """Return the files that names stand for, relative to a root: a file, all files of a folder, or what matches.

    By-products and the editable file are never among them. A name of no file or folder that is there, and with no
    wildcard, matches nothing.
    """
    found = set[str]()
    for name in names:
        found.update(islice(expand_one(root, name), MAX_LISTED))
    return sorted(found - ROOT_BY_PRODUCTS - {editable})


def expand_one(root: str, name: str) -> Iterator[str]:
    """Return the files that one name matches, in no order."""
    name = posixpath.normpath(name)
    path = os.path.join(root, name)
    if os.path.isfile(path):
        yield name
    elif os.path.isdir(path):
        yield from _files_below(root, "" if name == "." else name)
    elif is_pattern(name):
        wanted = _parts(name)
        fixed = next(number for number, part in enumerate(wanted) if is_pattern(part))
        yield from _matching(root, "/".join(wanted[:fixed]), wanted[fixed:])


def is_pattern(name: str) -> bool:
    """Return whether a name holds a wildcard."""
    return any(character in name for character in "*?[")


def fixed_folder(root: str, name: str) -> str | None:
    """Return the folder whose files a name matches, all or some; None for one file and for the whole workspace."""
    name = posixpath.normpath(name)
    if os.path.isdir(os.path.join(root, name)):
        return None if name == "." else name
    if os.path.lexists(os.path.join(root, name)) or not is_pattern(name):
        return None
    parts = _parts(name)
    return "/".join(parts[: next(number for number, part in enumerate(parts) if is_pattern(part))]) or None


def _parts(pattern: str) -> list[str]:
    return posixpath.normpath(pattern).split("/")


def _start(wanted: Sequence[str]) -> set[int]:
    """Return the places in a pattern that are reached before the first name."""
    return _with_empty(wanted, {0})


def _step(wanted: Sequence[str], reached: set[int], name: str) -> set[int]:
    """Return the places that are reached one name further down; no path takes more than names times parts steps."""
    further = set[int]()
    for at in reached:
        if at < len(wanted) and wanted[at] == "**":
            further.add(at)
        elif at < len(wanted) and fnmatchcase(name, wanted[at]):
            further.add(at + 1)
    return _with_empty(wanted, further)


def _with_empty(wanted: Sequence[str], reached: set[int]) -> set[int]:
    """Return places and those behind them that are reached without a name: `**` may stand for no folder."""
    found = set(reached)
    for at in range(len(wanted)):
        if at in found and wanted[at] == "**":
            found.add(at + 1)
    return found


def _matching(root: str, start: str, wanted: Sequence[str]) -> Iterator[str]:
    """Yield the files below a folder that match, looking only into folders that may hold some."""
    pending = [(start, _start(wanted))]
    while pending:
        folder, reached = pending.pop()
        for entry in _entries(root, folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            further = _step(wanted, reached, entry.name)
            if len(wanted) in further and entry.is_dir():
                yield from _files_below(root, path)
            elif len(wanted) in further and entry.is_file():
                yield path
            elif further and entry.is_dir(follow_symlinks=False):
                pending.append((path, further))


def _files_below(root: str, folder: str) -> Iterator[str]:
    """Yield all files of a folder; a folder that a link leads to is looked into once."""
    pending, known = [folder], set[tuple[int, int]]()
    while pending:
        folder = pending.pop()
        try:
            seen = os.stat(os.path.join(root, folder))
        except OSError:
            continue
        if (seen.st_dev, seen.st_ino) in known:
            continue
        known.add((seen.st_dev, seen.st_ino))
        for entry in _entries(root, folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                pending.append(path)
            elif entry.is_file():
                yield path


def _entries(root: str, folder: str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(os.path.join(root, folder)) as found:
            return [each for each in found if not _is_passed_over(each)]
    except OSError:
        return []


def _is_passed_over(entry: "os.DirEntry[str]") -> bool:
    if is_by_product(entry.name) or entry.name == "node_modules":
        return True
    return entry.is_dir(follow_symlinks=False) and is_environment(entry.path)
