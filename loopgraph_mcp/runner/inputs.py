"""The record beside a run's copy, `inputs.json`: what the run saw, what is only linked, and whether it changed that."""

import json
import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from loopgraph_mcp.runner import contents, patterns
from loopgraph_mcp.runner.plain_files import read_plain
from loopgraph_mcp.runner.workspace import CONFIG_NAME

CODE_DIR = "code"
INPUTS_NAME = "inputs.json"
_MAX_NAMED = 3  # files named in one message
_MOST_RECORD_BYTES = 64 * 2**20  # 200,000 names and what each is known by
_MAX_WORDS = 400  # words of a log's end that may be file names; each costs a look at the disk
_MISSING = re.compile(
    r"no such file|cannot find|can't (?:open|find)|cannot open|not found|no module named|does not exist|ENOENT",
    re.IGNORECASE,
)
# The second is said where a program moves a file of its own over one that is read-only to it.
_READ_ONLY = re.compile(r"Read-only file system|\bEROFS\b|os error 30\)|Invalid cross-device link|\bEXDEV\b")
_QUOTES = "'\"`\u2018\u2019"  # coreutils quote names in typographic marks
_QUOTED = re.compile(f"[{_QUOTES}]([^{_QUOTES}]{{1,400}})[{_QUOTES}]")
_AROUND = f"{_QUOTES}:,;()[]<>"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a linked file or folder of the user's looked like."""

    target: str
    text: str


@dataclass(frozen=True, slots=True)
class Copied:
    """A large file that was copied, as the original was then."""

    source: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Made:
    """What was made for a run.

    Args:
        code: The copy of the workspace, relative to the run's folder: where the command runs.
        made_ns: When the copy was begun.
        inputs_hash: Hash of all that the run could see beside its program.
        inputs: What each part of that was known by.
        linked: What is only linked, by its path in the workspace.
        copied: Files of a MiB and more that were copied.
        ignore: Patterns of what may change.
        without: Paths of LoopGraph's own, which may change.
    """

    code: str
    made_ns: int
    inputs_hash: str
    inputs: Mapping[str, str]
    linked: Mapping[str, Stamp]
    copied: Mapping[str, Copied]
    ignore: tuple[str, ...]
    without: tuple[str, ...]


def write_made(run_dir: Path, made: Made) -> None:
    """Write a run's record.

    Raises:
        OSError: It cannot be written.
    """
    (run_dir / INPUTS_NAME).write_text(json.dumps(asdict(made)), encoding="utf-8")


def read_made(run_dir: Path) -> Made | None:
    """Return a run's record, or None if there is none that can be read: an older version made none."""
    try:
        found = json.loads(read_plain(run_dir / INPUTS_NAME, _MOST_RECORD_BYTES))
        return Made(
            code=found["code"],
            made_ns=found["made_ns"],
            inputs_hash=found["inputs_hash"],
            inputs=found["inputs"],
            linked={path: Stamp(**each) for path, each in found["linked"].items()},
            copied={path: Copied(**each) for path, each in found["copied"].items()},
            ignore=tuple(found["ignore"]),
            without=tuple(found["without"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def skips(path: str, target: str, ignore: Collection[str], without: Collection[str]) -> Callable[[str], bool]:
    """Return what does not count in a folder that is linked at a path of the workspace."""
    is_modules = posixpath.basename(path) == "node_modules"

    def skip(inside: str) -> bool:
        if is_modules and inside.startswith("."):
            return True  # .cache, .vite and the like: build tools write there
        if without and os.path.join(target, inside) in without:
            return True
        return bool(ignore) and any(patterns.matches(each, f"{path}/{inside}") for each in ignore)

    return skip


def changed_links(made: Made) -> list[str]:
    """Return the names of what is linked and not as it was: files, or a folder where nothing young is left in it."""
    changed = list[str]()
    for path, before in made.linked.items():
        skip = skips(path, before.target, made.ignore, made.without)
        try:
            seen = os.stat(before.target)
        except OSError:
            if before.text:
                changed.append(path)
            continue
        if not os.path.isdir(before.target):
            if contents.file_stamp(seen) != before.text:
                changed.append(path)
        elif contents.listing(before.target, skip).stamp != before.text:
            young = [f"{path}/{name}" for name in _younger(before.target, made.made_ns, skip)]
            changed += young or [path]
    return changed


def harm_done(made: Made, workspace: Path) -> str:
    """Return what to say of the user's files that a run changed, or what changed beside it; empty where none did."""
    changed = changed_links(made)
    if not changed:
        return ""
    return (
        f"YOUR FILES CHANGED since it began: {shown(changed)} in {workspace}, only linked into the run's folder. "
        "Restore what you need; then let the program write to another folder, or name what no run reads under "
        f"`ignore` in {CONFIG_NAME}"
    )


def missing_for_it(log_tail: str, workspace: Path, code: Path) -> str:
    """Return what to say of files that a run looked for and only the user's folder has; empty if there are none."""
    names = only_with_the_user(log_tail, workspace, code)
    if not names:
        return ""
    outside = {"/".join(name.split("/")[: name.count("../") + 1]) for name in names if name.startswith("../")}
    link = json.dumps(sorted(outside) or names[:1])
    return f"{shown(names)} exists in your folder, not in the run's copy: add link = {link} to {CONFIG_NAME}"


def read_only_for_it(log_tail: str, made: Made | None) -> str:
    """Return what to say where a run may have tried to write what is only linked; empty where its log shows nothing."""
    if made is None or not made.linked or _READ_ONLY.search(log_tail) is None:
        return ""
    return (
        f"a run sees what is only linked into its folder ({shown(made.linked)}) read-only: let the program write to "
        f"another folder, or name what it writes there under `ignore` in {CONFIG_NAME}"
    )


def _younger(folder: str, since_ns: int, skip: Callable[[str], bool]) -> Iterator[str]:
    """Yield a few files of a folder that changed since a moment."""
    pending, seen, named = [""], 0, 0
    while pending and seen < contents.MAX_LISTED:
        inside = pending.pop()
        try:
            with os.scandir(os.path.join(folder, inside)) as found:
                for entry in found:
                    path = f"{inside}/{entry.name}" if inside else entry.name
                    seen += 1
                    if contents.is_by_product(entry.name) or skip(path):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(path)
                    elif entry.stat(follow_symlinks=False).st_ctime_ns >= since_ns:
                        yield path
                        named += 1
                    if named >= _MAX_NAMED or seen >= contents.MAX_LISTED:
                        return
        except OSError:
            continue


def drop_copies(run_dir: Path, made: Made) -> None:
    """Put links in place of large copies that the run left as they were: they only kept the originals safe."""
    for path, copied in made.copied.items():
        copy = run_dir / made.code / path
        try:
            seen = copy.lstat()
            if (seen.st_size, seen.st_mtime_ns) == (copied.size, copied.mtime_ns):
                copy.unlink()
                copy.symlink_to(copied.source)
        except OSError:  # the run moved or removed it
            continue


def shown(names: Collection[str]) -> str:
    """Return a few of some names as a line of text, whatever characters they hold."""
    few = [_printable(name) for name in list(names)[:_MAX_NAMED]]
    return ", ".join(few) + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")


def _printable(name: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)[:200]


def only_with_the_user(log_tail: str, workspace: Path, code: Path) -> list[str]:
    """Return the files that a log says are missing, and that the user's folder has while the run's copy does not."""
    words = dict[str, None]()
    for line in log_tail.splitlines()[-_MAX_WORDS:]:
        if _MISSING.search(line[:2_000]):
            quoted = _QUOTED.findall(line[:2_000])
            words.update(dict.fromkeys([*quoted, *(word.strip(_AROUND) for word in line[:2_000].split())]))
    found = dict[str, None]()
    for word in list(words)[:_MAX_WORDS]:
        for path in _paths(word, code):
            if _is_only_at(workspace, code, path):
                found[path] = None
    return list(found)


def _paths(word: str, code: Path) -> list[str]:
    """Return the paths, relative to the workspace, that a word of a log may mean: a file, a module, a package."""
    if "\0" in word or not word.strip("./"):
        return []
    if word.startswith("/"):
        inside = os.path.relpath(word, code)
        return [inside] if not inside.startswith("../../..") else []
    plain = posixpath.normpath(word)
    module = plain.replace(".", "/")
    return [plain, f"{plain}.py", f"{module}.py", module, f"node_modules/{plain}"]


def _is_only_at(workspace: Path, code: Path, path: str) -> bool:
    if any(contents.is_by_product(name) for name in path.split("/")):
        return False
    try:
        return os.path.exists(workspace / path) and not os.path.exists(code / path)
    except (OSError, ValueError):
        return False
