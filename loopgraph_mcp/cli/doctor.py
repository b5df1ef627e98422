"""Checks everything LoopGraph needs and reports what is missing and how to get it."""

import asyncio
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from loopgraph_mcp import __version__
from loopgraph_mcp.api import permissions
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli.clients import CLIENTS, mentions
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import LoopGraphError, WorkspaceError
from loopgraph_mcp.runner import confinement, environment
from loopgraph_mcp.runner.device import choose_device
from loopgraph_mcp.runner.workspace import Workspace, load_workspace, python_of
from loopgraph_mcp.store import tokens
from loopgraph_mcp.store.database import Database

_IMPORT_TIMEOUT_S = 60  # importing torch from a cold disk is slow
_SAVE = (
    "end LoopGraph's servers, then `loopgraph restore BACKUP`; without a backup, `loopgraph salvage FILE NEW` copies "
    "the readable rows, and `loopgraph restore NEW` makes them the store"
)


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    NOTE = "note"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its result, what was found, and what to do about it."""

    name: str
    level: Level
    found: str
    next_step: str = ""


async def examine(settings: Settings, *, home: Path, cwd: Path) -> list[Check]:
    """Run every check; none changes anything, except that a missing store is created."""
    checks = [_python(), _platform()]
    workspace, check = await asyncio.to_thread(_workspace, settings)
    count = None if workspace is None else workspace.devices_per_run
    checks.append(await asyncio.to_thread(_device, settings, count))
    checks += [await store(settings), check]
    if workspace is not None:
        checks.append(await asyncio.to_thread(_trainer, workspace))
    checks += [_git(), _private(settings), await asyncio.to_thread(_confinement, workspace)]
    checks += [_clients(home, cwd), _skill(home, cwd), await _tokens(settings), _uv(), _completion(home)]
    return checks


def _python() -> Check:
    found = f"Python {platform.python_version()} at {sys.executable}, loopgraph-mcp {__version__}"
    return Check("python", Level.OK, found)


def _platform() -> Check:
    if platform.system() in {"Linux", "Darwin"}:
        return Check("platform", Level.OK, platform.platform())
    return Check("platform", Level.FAIL, platform.platform(), "use Linux or macOS; on Windows, WSL")


def _device(settings: Settings, count: int | None) -> Check:
    """Report the device that a run of the workspace would get."""
    try:
        device = choose_device(settings.device, settings.visible_gpus, count)
    except WorkspaceError as error:
        return Check("device", Level.FAIL, str(error))
    except LoopGraphError as error:
        return Check("device", Level.FAIL, str(error), "unset LOOPGRAPH_DEVICE")
    if device.kind == "cpu":
        return Check("device", Level.NOTE, device.label, "no GPU found; runs work, with a smaller model")
    gets = f"; a run gets CUDA_VISIBLE_DEVICES={','.join(device.ids)}" if device.kind == "cuda" else ""
    return Check("device", Level.OK, f"{device.label} ({device.slot}){gets}")


async def store(settings: Settings) -> Check:
    """Open the store, count its rows, and read all of it to look for damage."""
    try:
        async with LoopGraph.open(settings) as graph:
            damage = await graph.db.check()
            if damage:
                return Check("ResearchFS", Level.FAIL, f"{settings.db_path}: {'; '.join(damage)}", _SAVE)
            answer = await graph.count()
            strays = await graph.db.strays()
            read_only = graph.db.read_only
    except LoopGraphError as error:
        return Check("ResearchFS", Level.FAIL, str(error), f"{_SAVE}; or set LOOPGRAPH_DB to another file")
    rows = f"{settings.db_path}: " + ", ".join(f"{count} {name}" for name, count in answer.items())
    if read_only:
        return Check(
            "ResearchFS", Level.NOTE, f"{rows}; read-only ({read_only})", "make the file writable, or free disk space"
        )
    if strays:
        lost = ", ".join(f"{count} of {tables}" for tables, count in strays.items())
        next_step = "`loopgraph merge` a store that has the missing rows; all other rows are intact"
        return Check("ResearchFS", Level.NOTE, f"{rows}; rows that refer to missing rows: {lost}", next_step)
    return Check("ResearchFS", Level.OK, rows)


def _workspace(settings: Settings) -> tuple[Workspace | None, Check]:
    try:
        where = load_workspace(settings.workspace)
        where.read_program()
    except LoopGraphError as error:
        return None, Check("workspace", Level.NOTE, str(error), "loopgraph init DIR, then cd there")
    found = f"{where.path}: {where.editable}, {where.metric}, {where.budget_s:g} s, `{' '.join(where.command)}`"
    return where, Check("workspace", Level.OK, found)


def _trainer(where: Workspace) -> Check:
    """Check the training interpreter for torch; LoopGraph itself never imports it."""
    python = python_of(where.path)
    code = "import torch, tokenizers; print('torch', torch.__version__, '+ tokenizers', tokenizers.__version__)"
    try:
        with tempfile.TemporaryDirectory() as empty:  # Python imports from where it starts: a workspace's torch.py
            done = subprocess.run(  # noqa: S603 - the workspace's own interpreter and fixed code
                [python, "-c", code],  # without -P, which Python 3.10 lacks
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_IMPORT_TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
                env={**environment.for_probe(os.environ), "PYTHONSAFEPATH": "1"},
                cwd=empty,
            )
    except (OSError, subprocess.SubprocessError) as error:
        return Check("trainer", Level.FAIL, f"{python}: {error}", "fix the workspace's .venv")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it failed"]
        return Check("trainer", Level.NOTE, f"{python}: {lines[-1]}", "pip install 'loopgraph-mcp[trainer]'")
    return Check("trainer", Level.OK, f"{done.stdout.strip()} in {python}")


def _git() -> Check:
    found = shutil.which("git")
    if found is None:
        return Check("git", Level.NOTE, "not found", "without git, results.tsv has program hashes instead of commits")
    return Check("git", Level.OK, found)


def _private(settings: Settings) -> Check:
    """Look for files that other users may read; opening the store has already restricted what it could."""
    found = permissions.open_to_others(settings)
    if found:
        names = ", ".join(map(str, found))
        return Check("private", Level.FAIL, f"other users may read {names}", f"as its owner: chmod -R go= {names}")
    return Check("private", Level.OK, f"only this user can read {settings.db_path.parent}")


def _confinement(where: Workspace | None) -> Check:
    """Say what keeps a run from writing the user's data."""
    what = "what a run's copy only links, the store and other runs' folders"
    if where is not None and not where.confine:
        found = f"{where.path} says `confine = false`: a run may write {what}"
        return Check("confinement", Level.NOTE, f"{found}; links are compared afterwards")
    if not confinement.is_allowed():
        found = f"this system lets a run write {what}; links are compared afterwards, and a change is void"
        next_step = (
            "" if sys.platform != "linux" else "allow user namespaces (or CAP_SYS_ADMIN in a container), Linux 5.12"
        )
        return Check("confinement", Level.NOTE, found, next_step)
    return Check("confinement", Level.OK, f"a run sees read-only {what}")


def _clients(home: Path, cwd: Path) -> Check:
    found = [client.title for client in CLIENTS.values() if mentions(client, home, cwd)]
    if not found:
        return Check("clients", Level.NOTE, "no client is connected yet", "loopgraph config CLIENT --write")
    return Check("clients", Level.OK, ", ".join(found))


def _skill(home: Path, cwd: Path) -> Check:
    plugins = (home / ".claude" / "plugins" / "cache").glob("*/loopgraph/*")
    places = [home / ".claude", home / ".codex", cwd / ".claude", *plugins]
    found = [str(each) for each in places if (each / "skills" / "loopgraph" / "SKILL.md").is_file()]
    if not found:
        return Check(
            "skill",
            Level.NOTE,
            "not installed for any agent",
            "save the output of `loopgraph skill` in your agent's skills folder",
        )
    return Check("skill", Level.OK, ", ".join(found))


def _uv() -> Check:
    found = shutil.which("uvx")
    if found is None:
        return Check("uv", Level.NOTE, "not found", "needed only for one-click links, the bundle and the plugin")
    return Check("uv", Level.OK, found)


async def _tokens(settings: Settings) -> Check:
    """Count valid HTTP tokens; another check reports a store that does not open."""
    try:
        async with Database.open(settings.db_path) as db:
            stored = await tokens.all_tokens(db)
    except LoopGraphError:
        return Check("tokens", Level.NOTE, "the store does not open")
    good = sum(each.state(now=time.time()) == "good" for each in stored)
    if not good:
        return Check("tokens", Level.NOTE, "no valid token for HTTP", "`loopgraph-mcp --http` creates the first one")
    return Check("tokens", Level.OK, f"{good} of {len(stored)} valid; `loopgraph token list` shows them")


def _completion(home: Path) -> Check:
    """Look in the files that --install-completion writes."""
    places = (".bash_completions/loopgraph.sh", ".zfunc/_loopgraph", ".config/fish/completions/loopgraph.fish")
    found = [str(home / each) for each in places if (home / each).is_file()]
    if not found:
        return Check("completion", Level.NOTE, "not installed for any shell", "loopgraph --install-completion")
    return Check("completion", Level.OK, ", ".join(found))


def failed(checks: Sequence[Check]) -> bool:
    """Return whether any check failed: LoopGraph does not work without these."""
    return any(check.level is Level.FAIL for check in checks)
