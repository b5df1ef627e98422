"""Trust on first use: whether a folder's own loopgraph.toml may say what is run, kept by the content of that file.

A run starts the command of `loopgraph.toml` as the user. In a folder that the user chose for LoopGraph that is what the
user wants; in a repository that was cloned, or a folder that an agent names, somebody else may have written it.
"""

import hashlib
import json
import os
import shlex

from loopgraph_mcp.config import DEFAULT_HOME, Settings
from loopgraph_mcp.errors import AccessError, WorkspaceError
from loopgraph_mcp.runner.plain_files import read_plain
from loopgraph_mcp.runner.workspace import CONFIG_NAME, Workspace, is_cloned, is_unpacked
from loopgraph_mcp.text import plain_line

FILE_NAME = "trusted.json"
_MAX_BYTES = 4 * 2**20
_DETECTED = "detected"  # in place of the hash, where there is no loopgraph.toml


def check(settings: Settings, where: Workspace, *, by_agent: bool) -> None:
    """Refuse to run a folder's command before its user has looked at it.

    Raises:
        AccessError: The user has not.
    """
    if is_trusted(settings, where, by_agent=by_agent):
        return
    raise AccessError(
        f"{_path(where)}: its user has not said yet that it may be run; a run starts `{command(where)}` in it. Ask the "
        f"user to look at {CONFIG_NAME if _content(where) != _DETECTED else where.editable} there, then to run: "
        f"{how(settings, where)}"
    )


def how(settings: Settings, where: Workspace) -> str:
    """Return the command by which a person says that a folder's command may run, for a shell of theirs to read.

    Their shell may know nothing of the LOOPGRAPH_HOME that a client's entry gave this server.
    """
    home = "" if settings.home == DEFAULT_HOME else f"LOOPGRAPH_HOME={shlex.quote(str(settings.home))} "
    return plain_line(f"{home}loopgraph trust {shlex.quote(str(where.path))}", limit=2_000)


def is_trusted(settings: Settings, where: Workspace, *, by_agent: bool) -> bool:
    """Return whether a folder's command may run without asking.

    Args:
        settings: Which folder the user chose, and where trust is kept.
        where: The folder.
        by_agent: Whether an agent named it, and no person.
    """
    if _known(settings).get(str(where.path)) == _content(where):
        return True
    own = where.path == settings.workspace.resolve()
    if own and settings.workspace_is_given:
        return True
    if by_agent and not own:
        return False
    return _content(where) == _DETECTED or not (is_unpacked(where.path) or is_cloned(where.path))


def is_declared(settings: Settings, where: Workspace) -> bool:
    """Return whether a folder has a declaration that nobody has said yes to: at a terminal one can ask."""
    own = where.path == settings.workspace.resolve() and settings.workspace_is_given
    return not own and _content(where) not in {_DETECTED, _known(settings).get(str(where.path))}


def accept(settings: Settings, where: Workspace) -> None:
    """Write down that a folder's command may run, until its loopgraph.toml changes.

    Raises:
        WorkspaceError: It cannot be written down.
    """
    file = settings.home / FILE_NAME
    temporary = file.with_name(f".{FILE_NAME}.{os.getpid()}.tmp")
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = {**_known(settings), str(where.path): _content(where)}
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WorkspaceError(f"{file}: cannot be written ({error}); make room, or set LOOPGRAPH_HOME") from error


def command(where: Workspace) -> str:
    """Return what a run would start, as one line."""
    verify = f"; and to verify a run: {' '.join(where.verify)}" if where.verify else ""
    return plain_line(" ".join(where.command) + verify, limit=200)


def _path(where: Workspace) -> str:
    return plain_line(str(where.path), limit=1_000)


def _content(where: Workspace) -> str:
    """Return the hash of a folder's declaration."""
    try:
        return hashlib.sha256(read_plain(where.path / CONFIG_NAME)).hexdigest()
    except OSError:
        return _DETECTED


def _known(settings: Settings) -> dict[str, str]:
    """Return the folders that are trusted with the hash of each; none where the file cannot be read."""
    file = settings.home / FILE_NAME
    try:
        known = json.loads(read_plain(file, _MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(path): str(content) for path, content in known.items()} if isinstance(known, dict) else {}
