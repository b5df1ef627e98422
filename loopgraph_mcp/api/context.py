"""Where a question is asked: the workspace, its device, and the context that its outcomes can be compared in."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from loopgraph_mcp.code import hashes, seeds
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Context, WhatRan
from loopgraph_mcp.runner import contents, environment
from loopgraph_mcp.runner.device import Device, choose_device
from loopgraph_mcp.runner.locks import alone_in
from loopgraph_mcp.runner.run_copy import CopyPlan, plan_copy
from loopgraph_mcp.runner.workspace import (
    DECLARING,
    Workspace,
    dataset_hash,
    declared_stamps,
    harness_hash,
    load_workspace,
    resolved,
    write_program,
)
from loopgraph_mcp.store import edits
from loopgraph_mcp.store.database import Database

_MAX_VALUE = 200  # of an environment variable, as it is stored
_SEEDED = (".py", ".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".sh", ".h", ".c", ".cc", ".cpp", ".cu", ".js")
_SEEDED_BYTES = 2**20  # of files that are read for seeds: a few hundredths of a second


@dataclass(frozen=True, slots=True)
class _Seen:
    """A workspace, its device and hashes, with what the files that they were read from looked like before.

    Args:
        contexts: The context at the workspace's own budget, by the values of the variables that matter to it.
    """

    files: tuple[Path, ...]
    stamps: tuple[tuple[int, int, int] | None, ...]
    declared: tuple[str, ...]
    found: tuple[Workspace, Device, str, str]
    contexts: dict[tuple[str | None, ...], Context] = field(default_factory=dict)

    def is_stale(self) -> bool:
        """Return whether one of the files looks different by now."""
        return self.stamps != _stamps(self.files) or self.declared != declared_stamps(self.found[0])


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a run can see besides the editable file.

    Args:
        plan: What its copy of the workspace will hold.
        hash: Of all that.
        group_hash: The same as of files that differ in the values of seeds alone.
    """

    plan: CopyPlan
    hash: str
    group_hash: str

    @property
    def files(self) -> Mapping[str, str]:
        """Content ids by path."""
        return self.plan.inputs

    def identify(self, program: str, name: str) -> WhatRan:
        """Return what identifies a program that runs among these files."""
        return hashes.what_ran(program, name, (self.hash, self.group_hash))


def inputs_of(plan: CopyPlan) -> Inputs:
    """Return what identifies the files of a run's copy, and a seed in its command."""
    command = plan.workspace.command
    seeded = {} if seeds.hide_in_command(command) == list(command) else {"": json.dumps(command)}
    exact = contents.hash_of({**plan.inputs, **seeded}) if seeded else plan.inputs_hash
    return Inputs(plan, exact, contents.hash_of({**plan.inputs, **_seedless(plan)}))


def _seedless(plan: CopyPlan) -> dict[str, str]:
    """Return what the small files that mention a seed are known by, its value left out."""
    found, left = {}, _SEEDED_BYTES
    for name, file in sorted(plan.files.items()):
        if name not in plan.inputs or not name.endswith(_SEEDED) or not 0 < file.seen.st_size <= left:
            continue
        left -= file.seen.st_size
        with suppress(OSError):
            content = Path(file.source).read_bytes()
            if b"seed" in content.lower() or b"random_state" in content:
                found[name] = hashes.group_hash(content.decode("utf-8", "surrogateescape"), name)
    return found


@dataclass(frozen=True, slots=True)
class Sight:
    """A workspace as it is at a moment: its program, its device, and the hashes of its data and harness."""

    where: Workspace
    program: str
    device: Device
    data: str
    harness: str
    contexts: dict[tuple[str | None, ...], Context]


def _reading(where: Workspace) -> str:
    """Return how the metric is found in the log; empty for the default."""
    own = {"pattern": where.pattern, "take": where.take}
    return "" if own == {"pattern": None, "take": "last"} else json.dumps(own)


def _environment(where: Workspace) -> str:
    """Return the values of the variables that the workspace declares to matter; empty where it declares none."""
    values = {name: _as_stored(name, os.environ.get(name, "")) for name in sorted(set(where.context_env))}
    return json.dumps(values) if values else ""


def _as_stored(name: str, value: str) -> str:
    """Return what tells a variable's values apart: the value, or of a secret its hash."""
    if environment.is_secret(name, value):
        return f"sha256:{hashlib.sha256(value.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    return value[:_MAX_VALUE]


def _stamps(files: Iterable[Path]) -> tuple[tuple[int, int, int] | None, ...]:
    found = list[tuple[int, int, int] | None]()
    for file in files:
        try:
            seen = os.stat(file)  # noqa: PTH116 - for every search, and half as dear as Path.stat
        except OSError:
            found.append(None)
        else:
            found.append((seen.st_mtime_ns, seen.st_size, seen.st_ino))
    return tuple(found)


class Surroundings:
    """Finds workspace, device and context, and their rows in the store."""

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], float]) -> None:
        self._db = db
        self._settings = settings
        self._now = clock
        self._seen: dict[Path, _Seen] = {}
        self._contexts: dict[Context, Context] = {}

    async def workspace(self, path: str | None) -> Workspace:
        """Return the workspace asked for, or the settings' own.

        Raises:
            WorkspaceError: There is none, or it cannot be used.
        """
        return await asyncio.to_thread(load_workspace, self._settings.workspace if path is None else Path(path))

    async def found(self, path: str | None) -> tuple[Workspace, Device, Context]:
        """Return the workspace asked for, or the settings' own, its device, and its context at its own budget.

        All files are read on a thread, in one go.

        Raises:
            WorkspaceError: There is none, or it cannot be used.
        """
        where, device, data, harness = (await asyncio.to_thread(self._look_again, self._folder(path))).found
        return where, device, await self._context(where, where.budget_s, device, data, harness)

    def _look_again(self, folder: Path) -> _Seen:
        """Return a folder's workspace, device and hashes; its files are read again only where one of them changed."""
        known = self._seen.get(folder)
        if known is None or known.is_stale():
            declaring = tuple(folder / name for name in DECLARING)
            stamps = _stamps(declaring)
            where = load_workspace(folder)
            declared = declared_stamps(where)
            known = _Seen(declaring, stamps, declared, (where, *self._look(where)))
            self._seen[folder] = known
        return known

    def sight(self, path: str | None) -> Sight | None:
        """Return the workspace asked for as it is now; None where none is asked for or is. It reads files: on a thread.

        Raises:
            WorkspaceError: The one asked for cannot be used, or its program cannot be read.
        """
        try:
            seen = self._look_again(self._folder(path))
        except WorkspaceError:
            if path is not None:
                raise
            return None
        where, device, data, harness = seen.found
        return Sight(where, where.read_program(), device, data, harness, seen.contexts)

    async def context_of(self, seen: Sight) -> Context:
        """Return what makes outcomes of a workspace comparable, at its own budget."""
        where = seen.where
        values = tuple(os.environ.get(name) for name in where.context_env)
        if values not in seen.contexts:
            seen.contexts[values] = await self._context(where, where.budget_s, seen.device, seen.data, seen.harness)
        return seen.contexts[values]

    def _folder(self, path: str | None) -> Path:
        return self._settings.workspace if path is None else resolved(Path(path))

    async def inputs(self, where: Workspace) -> Inputs:
        """Return all that a run of a workspace can see besides the editable file.

        Raises:
            WorkspaceError: A part of it cannot be read or placed.
        """

        def look() -> Inputs:
            try:
                return inputs_of(plan_copy(where, without=self._settings.own_paths))
            except OSError as error:
                raise WorkspaceError(f"{where.path}: cannot be read for a run ({error})") from error

        return await asyncio.to_thread(look)

    def write_alone(self, where: Workspace, text: str, expected: str) -> bool:
        """Replace the editable file if it holds the expected text and no other process writes it; return whether so."""
        with alone_in(self._settings.locks_dir, where.path):
            return write_program(where, text, expected=expected)

    async def workspace_id(self, where: Workspace) -> str:
        """Return the id of a workspace's row."""
        return await edits.workspace_id(self._db, str(where.path), now=self._now())

    async def device(self, where: Workspace) -> Device:
        """Return the device that a workspace's runs are made on."""
        return await asyncio.to_thread(self._device, where)

    async def context(self, where: Workspace, budget_s: float) -> Context:
        """Return what makes outcomes of a workspace comparable, at a budget."""
        return await self._context(where, budget_s, *await asyncio.to_thread(self._look, where))

    def _look(self, where: Workspace) -> tuple[Device, str, str]:
        return self._device(where), dataset_hash(where), harness_hash(where)

    def _device(self, where: Workspace) -> Device:
        return choose_device(self._settings.device, self._settings.visible_gpus, where.devices_per_run)

    async def _context(self, where: Workspace, budget_s: float, device: Device, data: str, harness: str) -> Context:
        context = Context(
            workspace_id=await self.workspace_id(where),
            device=where.device or device.label,
            budget_s=budget_s,
            dataset_hash=data,
            harness_hash=harness,
            metric=where.metric,
            direction=where.direction,
            editable=where.editable,
            command=json.dumps(seeds.hide_in_command(where.command)),
            reading=_reading(where),
            environment=_environment(where),
        )
        return self._contexts.setdefault(context, context)  # what is the same object is found equal at once
