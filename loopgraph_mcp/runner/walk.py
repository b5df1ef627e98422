"""Lists a workspace: its files, and the folders that are too large to copy for every run."""

import os
import posixpath
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.runner import contents, patterns
from loopgraph_mcp.runner.workspace import Workspace, git

# A copied file costs about 0.1 ms and as much of the disk as it holds, for each run of a night. What git ignores is
# data, caches and the outputs of earlier programs, so the bound is lower there.
_MANY_FILES, _MANY_BYTES = 5_000, 64 * 2**20
_MANY_IGNORED_FILES, _MANY_IGNORED_BYTES = 1_000, 16 * 2**20
MOST_FILES = 20_000  # after so many a folder is not looked through to its end
_MOST_DEEP = 100  # folders in one another
_MOST_REPOSITORIES = 50  # git is asked about each, which takes some 4 ms
# Folders that programs write their results to. They are not linked as a whole, for then each run would add to them.
_OUTPUTS = frozenset(
    {
        "artifacts",
        "checkpoint",
        "checkpoints",
        "ckpt",
        "ckpts",
        "exp",
        "experiments",
        "lightning_logs",
        "log",
        "logs",
        "mlruns",
        "multirun",
        "out",
        "output",
        "outputs",
        "results",
        "runs",
        "saved",
        "tb_logs",
        "tensorboard",
        "wandb",
        "weights",
    }
)
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")
SOURCES = (
    *(".py", ".pyx", ".pyi", ".c", ".cc", ".cpp", ".cxx", ".cu", ".cuh", ".h", ".hpp", ".rs", ".go", ".js", ".mjs"),
    *(".cjs", ".ts", ".jl", ".r", ".lua", ".sh", ".java", ".f90", ".toml"),
)
_SECRET = re.compile(r"\.env(\..*)?|.*\.pem|id_(rsa|dsa|ecdsa|ed25519).*|\.netrc|\.git-credentials|\.pypirc", re.DOTALL)


@dataclass(frozen=True, slots=True)
class File:
    """A file to place in a run's folder: where its bytes are, and what it looked like."""

    source: str
    seen: os.stat_result


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the workspace, and what a run's copy of it is made of.

    Args:
        path: Relative to the workspace; empty for the workspace.
        files: Files by name, those that a link outside leads to included.
        folders: Folders by name.
        links: Links by name that stay links: the text of one that leads inside or nowhere, or an outer folder's path.
        unseen: Names of folders that were not looked into, for this one is large.
    """

    path: str
    files: dict[str, File] = field(default_factory=dict)
    folders: "dict[str, Folder]" = field(default_factory=dict)
    links: "dict[str, Leads]" = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Leads:
    """Where a link leads: the text to write, and whether that is a folder whose content counts."""

    text: str
    watched: bool


@dataclass(slots=True)
class Rules:
    """What belongs to a run's copy of one workspace, as its declaration and git say.

    Args:
        workspace: The workspace.
        protected: Its protected files, which are always copied.
        real: Folders that may not be linked as a whole, for a protected file or the editable one lies below.
        tracked: Files that git tracks.
        known: Files that git knows and does not ignore; None without git.
        known_folders: The folders that hold them.
        forced: What `link` names inside of the workspace.
        without: Paths of LoopGraph's own files, which may lie in the workspace.
    """

    workspace: Workspace
    protected: frozenset[str]
    real: set[str]
    forced: frozenset[str]
    tracked: set[str] = field(default_factory=set)
    known: set[str] | None = None
    known_folders: set[str] = field(default_factory=set)
    without: frozenset[str] = frozenset()
    repositories: int = 0

    def leaves_out(self, path: str, name: str) -> bool:
        """Return whether a file or folder is never part of what a run sees."""
        if path in self.protected or path in self.real or path in self.forced:
            return False
        if contents.is_by_product(name) or path in contents.ROOT_BY_PRODUCTS:
            return True
        if any(patterns.matches(each, path) for each in self.workspace.ignore):
            return True
        if name.endswith(".tmp") and name.startswith(f".{posixpath.basename(self.workspace.editable)}."):
            return True  # the editable file's next text, for a moment
        if self.without and os.path.join(self.workspace.path, path) in self.without:
            return True
        return self.is_secret(path, name)

    def is_secret(self, path: str, name: str) -> bool:
        """Return whether a file looks like one of keys, and neither git nor the declaration makes it part of it."""
        if not _SECRET.fullmatch(name) or path in self.tracked:
            return False
        return not any(patterns.matches(each, path) for each in self.workspace.dataset if "/" in each or each == name)

    def is_ignored(self, folder: str) -> bool:
        """Return whether git ignores all that a folder holds."""
        return self.known is not None and folder not in self.known_folders

    def learn(self, folder: str) -> None:
        """Ask git what it knows of a repository at a folder of the workspace."""
        self.repositories += 1
        if self.repositories > _MOST_REPOSITORIES:
            return
        path = self.workspace.path / folder
        listed = git(path, "ls-files", "-t", "-z", "--cached", "--others", "--exclude-standard", "--", ".")
        known = set(self.known or ())
        for line in (listed or "").split("\0"):
            name = posixpath.join(folder, line[2:].removesuffix("/"))
            if not line or name == folder:
                continue
            known.add(name)
            if line[0] != "?":
                self.tracked.add(name)
            above = posixpath.dirname(name)
            while above and above not in self.known_folders:
                self.known_folders.add(above)
                above = posixpath.dirname(above)
        if known:  # a repository around it that ignores the whole workspace says nothing of its files
            self.known = known


def rules_of(workspace: Workspace, without: Iterable[Path] = ()) -> Rules:
    """Return what belongs to a run's copy of a workspace."""
    root = str(workspace.path)
    protected = frozenset(patterns.expand(root, workspace.protected, editable=workspace.editable))
    named = {*protected, posixpath.normpath(workspace.editable)}
    led_to = {os.path.relpath(os.path.realpath(os.path.join(root, name)), root) for name in named}
    rules = Rules(
        workspace,
        protected,
        real={above for name in named | led_to for above in _above(name)},
        forced=frozenset(name for name in workspace.link if not name.startswith(("../", "/"))),
        without=frozenset(str(each) for each in without),
    )
    rules.learn("")
    return rules


def _above(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def look_through(rules: Rules) -> Folder:
    """Return what the workspace holds that belongs to a run's copy.

    Raises:
        WorkspaceError: The workspace cannot be read, or holds too many files beside the editable one.
    """
    found = Folder("")
    _look_into(rules, found, [0])
    return found


def _look_into(rules: Rules, folder: Folder, seen: list[int]) -> bool:
    """Fill a folder; return False where it is too large or cannot be read, and is to be linked as a whole.

    `seen` counts the entries below the outermost folder that may be linked.
    """
    is_real = not folder.path or folder.path in rules.real
    try:
        entries = _entries(rules, folder)
        if folder.path and any(entry.name == ".git" for entry in entries):
            rules.learn(folder.path)
        below = [entry.name for entry in entries if _belongs(rules, folder, entry)]
    except OSError as error:
        if not is_real:
            return False
        where = f"{rules.workspace.path}/{folder.path}".rstrip("/")
        raise WorkspaceError(f"{where}: cannot be copied ({error.strerror or error})") from error
    seen[0] += len(entries)
    for name in below:
        child = Folder(f"{folder.path}/{name}" if folder.path else name)
        is_full = seen[0] > MOST_FILES and not is_real and child.path not in rules.real
        if not is_full and _look_into(rules, child, [0] if is_real or child.path in rules.real else seen):
            folder.folders[name] = child
        else:
            folder.unseen.append(name)
    return True


def _entries(rules: Rules, folder: Folder) -> "list[os.DirEntry[str]]":
    """Return the entries of a folder in order.

    Raises:
        OSError: It cannot be read, or holds more than may be looked at.
    """
    most = contents.MAX_LISTED if not folder.path or folder.path in rules.real else MOST_FILES
    if most == MOST_FILES and folder.path.count("/") >= _MOST_DEEP:
        raise OSError(f"over {_MOST_DEEP} nested folders")
    with os.scandir(os.path.join(rules.workspace.path, folder.path)) as found:
        entries = list(islice(found, most + 1))
    if len(entries) > most:
        raise OSError(f"it has over {most:,} files besides the editable one; move data to another folder")
    return sorted(entries, key=lambda entry: entry.name)


def _belongs(rules: Rules, folder: Folder, entry: "os.DirEntry[str]") -> bool:
    """Add an entry to its folder if it is part of what a run sees; return whether it is a folder to look into."""
    path = f"{folder.path}/{entry.name}" if folder.path else entry.name
    return not rules.leaves_out(path, entry.name) and _add(rules, folder, entry, path)


def _add(rules: Rules, folder: Folder, entry: "os.DirEntry[str]", path: str) -> bool:
    """Add an entry to its folder; return whether it is a folder to look into."""
    if path in rules.forced:
        folder.links[entry.name] = Leads(os.path.realpath(entry.path), watched=True)
        return False
    try:
        if entry.is_symlink():
            return _add_link(rules, folder, entry, path)
        if entry.is_dir(follow_symlinks=False):
            if path in rules.real:
                return True
            if contents.is_environment(entry.path):
                if _is_in_command(rules.workspace, path):
                    folder.links[entry.name] = Leads(entry.path, watched=False)
                return False
            if entry.name == "node_modules":
                folder.links[entry.name] = Leads(entry.path, watched=True)
                return False
            return True
        seen = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # gone since
        return False
    if stat.S_ISREG(seen.st_mode):  # what is a socket, a pipe or a device is no part of a program
        folder.files[entry.name] = File(entry.path, seen)
    return False


def _add_link(rules: Rules, folder: Folder, entry: "os.DirEntry[str]", path: str) -> bool:
    """Add a link: one that leads inside stays as it is, one that leads to a file outside becomes that file."""
    root = str(rules.workspace.path)
    text = os.readlink(entry.path)
    try:
        seen = entry.stat()
    except OSError:  # broken, or a circle: so it is in the copy
        folder.links[entry.name] = Leads(text, watched=False)
        return False
    target = os.path.realpath(entry.path)
    inside = os.path.relpath(target, root)
    stays = target == root or (not inside.startswith("../") and not _is_left_out(rules, inside))
    if stays and path not in rules.protected:
        here = os.path.relpath(os.path.realpath(os.path.dirname(entry.path)), root)
        folder.links[entry.name] = Leads(os.path.relpath(inside, here), watched=False)
        return False
    if stat.S_ISREG(seen.st_mode):
        folder.files[entry.name] = File(target, seen)
    elif stat.S_ISDIR(seen.st_mode) and path in rules.real:
        return True
    elif stat.S_ISDIR(seen.st_mode):
        holds_workspace = root.startswith(f"{target.rstrip('/')}/")
        folder.links[entry.name] = Leads(target, watched=not holds_workspace and not contents.is_environment(target))
    return False


def _is_left_out(rules: Rules, path: str) -> bool:
    """Return whether a path inside of the workspace, or a folder above it, has no place in a run's copy."""
    root = str(rules.workspace.path)
    for each in (path, *_above(path)):
        if rules.leaves_out(each, posixpath.basename(each)):
            return True
        if contents.is_environment(os.path.join(root, each)) and not _is_in_command(rules.workspace, each):
            return True
    return False


def _is_in_command(workspace: Workspace, folder: str) -> bool:
    """Return whether the run command goes into a folder by a relative path."""
    words = (word.removeprefix("./") for part in workspace.command for word in part.replace(";", " ").split())
    return any(word.startswith(f"{folder}/") for word in words)


# ------------------------------------------------------------------------------------------ what to link


@dataclass(frozen=True, slots=True)
class Weight:
    """What copying a folder would take, and whether it may be linked as a whole."""

    files: int = 0
    size: int = 0
    is_code: bool = False
    is_output: bool = False
    holds_links: bool = False


def folders_to_link(rules: Rules, top: Folder) -> set[str]:
    """Return the folders that are linked as a whole: they are large, and nothing in them is code or output."""
    linked = set[str]()
    _weigh(rules, top, linked, is_output=False)
    return linked


def _weigh(rules: Rules, folder: Folder, linked: set[str], *, is_output: bool) -> Weight:
    is_output = is_output or posixpath.basename(folder.path) in _OUTPUTS
    below = [_weigh(rules, each, linked, is_output=is_output) for each in folder.folders.values()]
    children = [f"{folder.path}/{name}" if folder.path else name for name in folder.unseen]
    linked.update(children)
    weight = Weight(
        files=len(folder.files) + len(folder.links) + len(folder.unseen) + sum(each.files for each in below),
        size=sum(each.seen.st_size for each in folder.files.values()) + sum(each.size for each in below),
        is_code=_any_ends(folder.files, SOURCES) or any(each.is_code for each in below),
        is_output=is_output or _any_ends(folder.files, CHECKPOINTS) or any(each.is_output for each in below),
        holds_links=bool(folder.unseen) or any(each.holds_links for each in below),
    )
    if not folder.path or folder.path in rules.real:
        return weight
    few = rules.is_ignored(folder.path) or _is_data(rules.workspace, folder.path)
    files, size = (_MANY_IGNORED_FILES, _MANY_IGNORED_BYTES) if few else (_MANY_FILES, _MANY_BYTES)
    is_large = weight.files > files or weight.size > size or weight.holds_links
    if is_large and (
        weight.files > MOST_FILES or len(folder.files) > files or not (weight.is_code or weight.is_output)
    ):
        linked.difference_update([each for each in linked if each.startswith(f"{folder.path}/")])
        linked.add(folder.path)
        return Weight(files=1, holds_links=True)
    if weight.files > files and is_output:  # its folders are linked one by one, and new ones stay in the run's copy
        own = {each.path for each in folder.folders.values() if each.path not in rules.real}
        for each in own:
            linked.difference_update([inner for inner in linked if inner.startswith(f"{each}/")])
        linked |= own
        return Weight(files=len(folder.files) + len(own), is_output=True, holds_links=True)
    return weight


def _any_ends(names: Collection[str], endings: Collection[str]) -> bool:
    return any(name.lower().endswith(tuple(endings)) for name in names)


def _is_data(workspace: Workspace, folder: str) -> bool:
    return any(patterns.matches(name, folder) for name in workspace.dataset if "/" in name or name == folder)
