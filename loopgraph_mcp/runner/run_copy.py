"""The copy of a workspace that a run works in: planned without writing, known by a hash, then made.

A run sees the workspace as its user has it. What it may overwrite is copied, so that nothing it writes reaches the
user's files; what is too large to copy is linked, and compared afterwards (`inputs.changed_links`).
"""

import errno
import fcntl
import os
import posixpath
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.runner import contents, patterns, walk
from loopgraph_mcp.runner import inputs as run_inputs
from loopgraph_mcp.runner.inputs import CODE_DIR, Copied, Made, Stamp
from loopgraph_mcp.runner.walk import File, Folder, Leads, Rules
from loopgraph_mcp.runner.workspace import CONFIG_NAME, Workspace, data_ids

# All that is copied for one run where the file system cannot share blocks: under a second on a common disk. A copy
# that the run left as it was is replaced by a link when it ends, so a night's runs do not fill the disk.
_MOST_COPIED_BYTES = 256 * 2**20
_MOST_COPIED_FILES = 10_000  # copying more would take seconds for every run
_MOST_PYTHON_BYTES = 2**20  # a second of parsing; programs of more are known by their bytes
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file until one of the two is written to
_CLONED_BYTES = 64 * 2**10  # below it a copy costs as little
_CHUNK = 2**20  # bytes of one read


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What a run will see beside the program to run, and how it is laid out.

    Args:
        workspace: The workspace.
        inside: Where in the run's code folder the workspace's copy is; deeper where `link` names what is beside it.
        folders: Folders to make, relative to the workspace.
        files: Files to copy by their path in the workspace.
        links: Links to make by their path in the workspace, and what each leads to.
        linked: What the links of files and folders of the user's looked like: a run must not change it.
        inputs: What all that the run sees is known by, by path; the editable file is left out.
        inputs_hash: Of these: two runs of the same program with the same hash saw the same.
        without: LoopGraph's own files in the workspace.
    """

    workspace: Workspace
    inside: str
    folders: tuple[str, ...]
    files: Mapping[str, File]
    links: Mapping[str, str]
    linked: Mapping[str, Stamp]
    inputs: Mapping[str, str]
    without: frozenset[str] = frozenset()
    inputs_hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs_hash", contents.hash_of(self.inputs))


def plan_copy(workspace: Workspace, *, without: Iterable[Path] = ()) -> CopyPlan:
    """Return what a run of a workspace will see, and how; nothing is written.

    Args:
        workspace: The workspace.
        without: LoopGraph's own files and folders, should they lie in it.

    Raises:
        WorkspaceError: A part of it cannot be read or placed.
    """
    rules = walk.rules_of(workspace, without)
    top = walk.look_through(rules)
    layout = _Layout(rules, walk.folders_to_link(rules, top))
    _lay_out(layout, top)
    _add_declared_links(layout)
    _link_what_is_too_much(layout)
    inputs = _identify(layout)
    return CopyPlan(
        workspace=workspace,
        inside=_inside(workspace),
        folders=tuple(layout.folders),
        files=layout.files,
        links={path: leads.text for path, leads in layout.links.items()},
        linked=layout.linked,
        inputs=inputs,
        without=rules.without,
    )


# ----------------------------------------------------------------------------------------------- planning


@dataclass(slots=True)
class _Layout:
    """A plan in the making."""

    rules: Rules
    whole: set[str]
    folders: list[str] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    links: dict[str, Leads] = field(default_factory=dict)
    linked: dict[str, Stamp] = field(default_factory=dict)


def _lay_out(layout: _Layout, folder: Folder) -> None:
    """Add a folder and what is below it, to its whole depth or as a link."""
    root = layout.rules.workspace.path
    if folder.path:
        layout.folders.append(folder.path)
    start = f"{folder.path}/" if folder.path else ""
    for name, file in folder.files.items():
        layout.files[start + name] = file
    for name, leads in folder.links.items():
        layout.links[start + name] = leads
    for name in (*folder.unseen, *folder.folders):
        path = start + name
        if path in layout.whole:
            layout.links[path] = Leads(str(root / path), watched=True)
        else:
            _lay_out(layout, folder.folders[name])


def _add_declared_links(layout: _Layout) -> None:
    """Add what `link` names and the walk did not come to."""
    workspace = layout.rules.workspace
    for name in sorted(workspace.link):
        above = name
        while above and above not in layout.links:
            above = posixpath.dirname(above).rstrip("/")
        if not above:  # else it is there, or below a folder that is linked
            layout.links[name] = Leads(os.path.realpath(workspace.path / name), watched=True)


def _inside(workspace: Workspace) -> str:
    """Return where in the code folder the workspace's copy is: as deep as `link` climbs, under the folders' own names.

    So `../input` is beside the copy as it is beside the workspace, and never among the files of LoopGraph.
    """
    climbs = [name.split("/").count("..") for name in workspace.link if not name.startswith("/")]
    up = max(climbs, default=0)
    return "/".join(workspace.path.parts[len(workspace.path.parts) - up :])


def _link_what_is_too_much(layout: _Layout) -> None:
    """Turn files into links where all files together are too much to copy for every run, the largest first.

    Checkpoints are copied before others of their size: programs overwrite them.
    """
    rules, count, size = layout.rules, 0, 0
    data = {name for name in rules.workspace.dataset if not patterns.is_pattern(name)}

    def worth(path: str) -> tuple[bool, bool, int, str]:
        file = layout.files[path]
        precious = path.lower().endswith((*walk.SOURCES, *walk.CHECKPOINTS))
        return path not in rules.protected, not precious, file.seen.st_size, path

    for path in sorted(layout.files, key=worth):
        taken = layout.files[path].seen.st_size
        if path in rules.protected or path == posixpath.normpath(rules.workspace.editable):
            continue
        is_data = taken > contents.SMALL_BYTES and any(path == name or path.startswith(f"{name}/") for name in data)
        if is_data or count >= _MOST_COPIED_FILES or size + taken > _MOST_COPIED_BYTES:
            _link_file(layout, path)
        else:
            count, size = count + 1, size + taken


def _link_file(layout: _Layout, path: str) -> None:
    file = layout.files.pop(path)
    layout.links[path] = Leads(file.source, watched=True)


def _identify(layout: _Layout) -> dict[str, str]:
    """Return what everything but the editable file is known by; note what the links lead to."""
    workspace = layout.rules.workspace
    root = str(workspace.path)
    editable = {
        posixpath.normpath(workspace.editable),
        os.path.relpath(os.path.realpath(workspace.editable_path), root),
    }
    uncounted = {*editable, CONFIG_NAME}  # what loopgraph.toml says is in the context of an outcome
    python = sum(
        file.seen.st_size for path, file in layout.files.items() if path.endswith(".py") and path not in editable
    )
    found = {}
    for path in list(layout.files):
        if path in uncounted:
            continue
        try:
            found[path] = _file_id(path, layout.files[path], as_tree=python <= _MOST_PYTHON_BYTES)
        except FileNotFoundError:  # gone since
            del layout.files[path]
        except OSError as error:
            if path in layout.rules.protected:
                raise WorkspaceError(f"{root}/{path}: protected, but cannot be read ({error.strerror})") from error
            _link_file(layout, path)  # the run can read it as little as we can
    for path, leads in layout.links.items():
        if not leads.watched:
            found[path] = f"-> {leads.text}"
            continue
        found[path], stamp = _link_id(layout.rules, path, leads.text)
        layout.linked[path] = Stamp(leads.text, stamp)
    found.update(dict.fromkeys(_empty_folders(layout), "folder"))
    return {path: found[path] for path in sorted(found)}


def _file_id(path: str, file: File, *, as_tree: bool) -> str:
    runs = "+x" if file.seen.st_mode & 0o111 else ""
    if file.seen.st_size > contents.SMALL_BYTES:
        return contents.file_id(file.seen) + runs
    if path.endswith(".py") and as_tree:
        return contents.program_id(file.source) + runs
    return contents.bytes_hash(file.source) + runs


def _link_id(rules: Rules, path: str, target: str) -> tuple[str, str]:
    """Return what a linked file or folder is known by, and what it must look like after the run."""
    try:
        seen = os.stat(target)
    except OSError:
        return "", ""
    if not stat.S_ISDIR(seen.st_mode):
        return contents.file_id(seen), contents.file_stamp(seen)
    skips = run_inputs.skips(path, target, rules.workspace.ignore, rules.without)
    listed = contents.listing(target, skips)
    if path in rules.workspace.dataset:  # small data is known by its bytes, wherever it is
        return f"data {contents.hash_of(data_ids(rules.workspace, path))}", listed.stamp
    return f"folder {listed.id}", listed.stamp


def _empty_folders(layout: _Layout) -> set[str]:
    holding = {posixpath.dirname(path) for path in (*layout.files, *layout.links, *layout.folders)}
    return set(layout.folders) - holding


# ------------------------------------------------------------------------------------------------- making


def make_copy(plan: CopyPlan, run_dir: Path, program: str) -> CopyPlan:
    """Make a run's folder: the copy with the program in the editable file's place, and the record of what it sees.

    Returns the plan as it was made: what changed since it was planned is known by what was copied.

    Raises:
        OSError: The copy failed, as on a full disk; nothing of it is left.
        WorkspaceError: Something cannot be placed.
    """
    code = run_dir / CODE_DIR / plan.inside
    made_ns = time.time_ns()
    try:
        made, copied = _fill(plan, code, program)
        record = Made(
            code=posixpath.join(CODE_DIR, plan.inside).rstrip("/"),
            made_ns=made_ns,
            inputs_hash=made.inputs_hash,
            inputs=made.inputs,
            linked=made.linked,
            copied=copied,
            ignore=plan.workspace.ignore,
            without=tuple(sorted(plan.without)),
        )
        run_inputs.write_made(run_dir, record)
    except BaseException:
        shutil.rmtree(run_dir / CODE_DIR, ignore_errors=True)
        raise
    return made


def snapshot(workspace: Workspace, target: Path, program: str) -> None:
    """Copy a workspace into a new folder, the program in the editable file's place, with no record beside it.

    Raises:
        OSError: The copy failed; the target may be half made.
        WorkspaceError: Something cannot be read or placed.
    """
    _fill(plan_copy(workspace), target, program)


def _fill(plan: CopyPlan, code: Path, program: str) -> tuple[CopyPlan, dict[str, Copied]]:
    code.mkdir(parents=True)
    for folder in plan.folders:
        (code / folder).mkdir(exist_ok=True)
    copier = _Copier()
    inputs, linked, copied = dict(plan.inputs), dict(plan.linked), dict[str, Copied]()
    for path, file in plan.files.items():
        if path == plan.workspace.editable:
            continue
        try:
            seen, shared = copier.copy(file.source, code / path)
        except FileNotFoundError:  # gone since it was planned; or its folder, which would be our fault
            if not (code / path).parent.is_dir():
                raise
            inputs.pop(path, None)
            continue
        if not shared and seen.st_size >= _CHUNK and path not in plan.workspace.protected:
            copied[path] = Copied(file.source, seen.st_size, seen.st_mtime_ns)
        if path in inputs and contents.file_stamp(seen) != contents.file_stamp(file.seen):
            inputs[path] = _file_id(path, File(str(code / path), seen), as_tree=inputs[path].startswith("tree:"))
    for path, target in plan.links.items():
        if _place(plan, code, path, target, copier if path in linked else None):
            del linked[path]
    _write_program(plan.workspace, code, program)
    return replace(plan, inputs=inputs, linked=linked), copied


def _place(plan: CopyPlan, code: Path, path: str, target: str, copier: "_Copier | None") -> bool:
    """Make a link in a run's folder, or a copy that shares its blocks where a copier can; return whether it is a copy.

    What leads out of the workspace is beside the run's copy, as it is beside the workspace.
    """
    if path.startswith("/"):
        return False  # reached by the same path from everywhere
    place = Path(os.path.normpath(code / path))
    place.parent.mkdir(parents=True, exist_ok=True)
    if copier is not None and copier.clone(target, place):
        return True
    try:
        place.symlink_to(target)
    except FileExistsError as error:
        if not (place.is_symlink() and os.readlink(place) == target):
            raise _collision(plan.workspace.path / path) from error
    return False


def _write_program(workspace: Workspace, code: Path, program: str) -> None:
    """Write the program to run; the executable bits are those of the editable file."""
    place = code / workspace.editable
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.write_bytes(program.encode("utf-8"))
    try:
        place.chmod(stat.S_IMODE(workspace.editable_path.stat().st_mode) & 0o777 | stat.S_IWUSR)
    except OSError:  # gone since; the program is here
        return


def _collision(path: Path | str) -> OSError:
    return OSError(
        errno.EEXIST,
        "the workspace has two names that differ only in upper and lower case, which is one name where runs are "
        "stored; rename one",
        str(path),
    )


class _Copier:
    """Copies files, sharing their blocks with the original where the file system can; it tries that until it fails."""

    def __init__(self) -> None:
        self._can_clone = sys.platform == "linux"

    def copy(self, source: str, target: Path) -> tuple[os.stat_result, bool]:
        """Copy a file; return what the original looked like, and whether the copy shares its blocks.

        Raises:
            OSError: It cannot be read, or there is no room.
        """
        reading = contents.open_file(source)
        try:
            seen = os.fstat(reading)
            try:
                writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, seen.st_mode & 0o777)
            except FileExistsError as error:
                raise _collision(source) from error
            try:
                shared = seen.st_size >= _CLONED_BYTES and self._share(reading, writing)
                if not shared:
                    _copy_bytes(reading, writing, seen.st_size)
                    seen = os.fstat(reading)
                os.fchmod(writing, seen.st_mode & 0o777)
                os.utime(writing, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        return seen, shared

    def clone(self, source: str, target: Path) -> bool:
        """Make a copy that shares its blocks with the original, if it is a file and that can be."""
        if not self._can_clone or not os.path.isfile(source):
            return False
        try:
            reading = contents.open_file(source)
        except OSError:
            return False
        try:
            seen = os.fstat(reading)
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, seen.st_mode & 0o777)
            try:
                shared = self._share(reading, writing)
                os.utime(writing, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        if not shared:
            target.unlink()
        return shared

    def _share(self, reading: int, writing: int) -> bool:
        if not self._can_clone:
            return False
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
        except OSError:  # another file system, or one that cannot
            self._can_clone = False
            return False
        return True


def _copy_bytes(reading: int, writing: int, size: int) -> None:
    """Copy as many bytes as the file had when it was opened: one that grows all the time comes to an end.

    Holes stay holes, so that sparse files take no time and no room.
    """
    at = 0
    while at < size:
        start, end = (at, size) if size <= _CHUNK else _next_data(reading, at, size)
        if start == size:  # a hole to the end
            os.ftruncate(writing, size)
        while start < end:
            part = os.pread(reading, min(end - start, _CHUNK), start)
            if not part:  # it was cut short meanwhile
                return
            written = 0
            while written < len(part):
                written += os.pwrite(writing, part[written:], start + written)
            start += len(part)
        at = end


def _next_data(descriptor: int, at: int, size: int) -> tuple[int, int]:
    """Return where the next bytes that are no hole begin and end; the end of the file where only a hole is left."""
    try:
        start = os.lseek(descriptor, at, os.SEEK_DATA)
        return start, min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
    except OSError as error:
        return (size, size) if error.errno == errno.ENXIO else (at, size)
