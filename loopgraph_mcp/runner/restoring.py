"""Puts all code in a run's copy back to what the workspace holds: what measures a run again must be none of its making.

A run may leave a module that shadows another (`torch.py`), compiled code in `__pycache__`, a link in place of a
folder. Its data, such as a saved state, stays.
"""

import filecmp
import os
import re
import shutil
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from loopgraph_mcp.runner import patterns
from loopgraph_mcp.runner.workspace import Workspace, verify_command

_CODE = re.compile(
    r"\.(?:py|pyc|pyd|pyo|pyx|pyz|so|dylib|dll|pth|egg-link|sh|bash|js|mjs|cjs|ts|mts|node|wasm|jl|r|rb|pl|lua|exe)$"
    # what interpreters and launchers read before or beside a program
    r"|^(?:pyvenv\.cfg|pyproject\.toml|setup\.cfg|uv\.toml|\.python-version|package\.json|tsconfig\.json|makefile"
    r"|\.env|\.npmrc)$",
    re.IGNORECASE,
)


def restore(workspace: Workspace, code: Path, program: str, linked: Collection[str]) -> None:
    """Put the program, the protected files and all other code in a run's copy back as they were before the run.

    Args:
        workspace: The user's folder.
        code: The run's copy of it.
        program: The text that the run began with.
        linked: What is only linked, by its path in the workspace: it is compared elsewhere, and left alone.

    Raises:
        OSError: Something cannot be put back.
    """
    _clean(workspace.path, code, "", frozenset(linked))
    protected = set(patterns.expand(str(workspace.path), workspace.protected, editable=workspace.editable))
    named = {name for name in verify_command(workspace) if _is_own_file(workspace.path, name)}
    for name in sorted(protected | named):
        if not any(name == each or name.startswith(f"{each}/") for each in linked):
            _put(workspace.path / name, code, name)
    for name in workspace.protected:  # a run may not bring a manifest of its own, where it may be absent
        if not patterns.is_pattern(name) and not (workspace.path / name).exists():
            _remove(code / name)
    _make_folders(code, workspace.editable)
    place = code / workspace.editable
    _remove(place)
    place.write_bytes(program.encode("utf-8"))
    place.chmod(stat.S_IMODE(workspace.editable_path.stat().st_mode) & 0o777 | stat.S_IWUSR)


def _clean(workspace: Path, code: Path, folder: str, linked: frozenset[str]) -> None:
    """Remove from a folder of the copy what the workspace does not have and could run; restore what differs."""
    with os.scandir(code / folder) as listed:
        entries = list(listed)
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if path in linked:
            continue
        if entry.is_symlink():
            if not _is_harmless_link(workspace, code, path):
                _remove(code / path)
        elif entry.is_dir(follow_symlinks=False):
            if entry.name == "__pycache__":
                shutil.rmtree(code / path)
            else:
                _clean(workspace, code, path, linked)
        elif not entry.is_file(follow_symlinks=False):
            _remove(code / path)  # a pipe would block its reader
        elif _is_code(entry.name) and not _is_same(workspace / path, code / path):
            _remove(code / path)
            if (workspace / path).is_file():
                shutil.copy(workspace / path, code / path)


def _is_code(name: str) -> bool:
    return _CODE.search(name) is not None


def _is_same(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


def _is_harmless_link(workspace: Path, code: Path, path: str) -> bool:
    """Return whether a link is the workspace's own, or leads to data inside of the copy (`latest` to a checkpoint)."""
    with_user, target = workspace / path, (code / path).resolve()
    if with_user.is_symlink() and with_user.readlink() == (code / path).readlink():
        return True
    inside = target.is_relative_to(code.resolve())
    return inside and target.is_file() and not _is_code(target.name) and not _is_code(path)


def _is_own_file(workspace: Path, name: str) -> bool:
    place = Path(os.path.normpath(workspace / name))
    return bool(name) and not name.startswith(("/", "-")) and place.is_relative_to(workspace) and place.is_file()


def _put(source: Path, code: Path, name: str) -> None:
    _make_folders(code, name)
    _remove(code / name)
    shutil.copy(source, code / name)


def _make_folders(code: Path, name: str) -> None:
    """Make the folders above a name in the copy; a link or a file in place of one is removed."""
    for folder in reversed(PurePosixPath(name).parents[:-1]):
        place = code / folder
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            place.unlink()
        place.mkdir(exist_ok=True)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
