"""Where a question is asked: the workspace, its device, and the context that its outcomes can be compared in."""

import asyncio
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Context
from loopgraph_mcp.runner.device import Device, choose_device
from loopgraph_mcp.store import edits
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.workspace import DECLARING, Workspace, dataset_hash, harness_hash, load_workspace, resolved

_MAX_VALUE = 200  # of an environment variable, as it is stored


@dataclass(frozen=True, slots=True)
class _Seen:
    """A workspace, its device and hashes, with the files that they were read from and what these looked like before."""

    files: tuple[Path, ...]
    stamps: tuple[tuple[int, int, int] | None, ...]
    found: tuple[Workspace, Device, str, str]

    def is_stale(self) -> bool:
        """Return whether one of the files looks different by now."""
        return self.stamps != _stamps(self.files)


@dataclass(frozen=True, slots=True)
class Sight:
    """A workspace as it is at a moment: its program, its device, and the hashes of its data and harness."""

    where: Workspace
    program: str
    device: Device
    data: str
    harness: str


def _reading(where: Workspace) -> str:
    """Return how the metric is found in the log; empty for the default."""
    own = {"pattern": where.pattern, "take": where.take}
    return "" if own == {"pattern": None, "take": "last"} else json.dumps(own)


def _environment(where: Workspace) -> str:
    """Return the values of the variables that the workspace declares to matter; empty where it declares none."""
    values = {name: os.environ.get(name, "")[:_MAX_VALUE] for name in sorted(set(where.context_env))}
    return json.dumps(values) if values else ""


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
        where, device, data, harness = await asyncio.to_thread(self._look_again, self._folder(path))
        return where, device, await self._context(where, where.budget_s, device, data, harness)

    def _look_again(self, folder: Path) -> tuple[Workspace, Device, str, str]:
        """Return a folder's workspace, device and hashes; its files are read again only where one of them changed."""
        known = self._seen.get(folder)
        if known is None or known.is_stale():
            declaring = [folder / name for name in DECLARING]
            before = _stamps(declaring)
            where = load_workspace(folder)
            told = [where.path / name for name in (*where.protected, *where.dataset)]
            stamps = before + _stamps(told)
            known = _Seen((*declaring, *told), stamps, (where, *self._look(where)))
            self._seen[folder] = known
        return known.found

    async def look(self, path: str | None) -> None:
        """Read a workspace on a thread where `sight` would have to: all search on that one, and hashes take long.

        What is wrong with it is left for `sight` to say.
        """
        known = self._seen.get(self._settings.workspace if path is None else Path(path))
        if known is None or known.is_stale():
            with suppress(WorkspaceError):
                await asyncio.to_thread(lambda: self._look_again(self._folder(path)))

    def sight(self, path: str | None) -> Sight | None:
        """Return the workspace asked for as it is now, read on the calling thread; None where none is asked for or is.

        Raises:
            WorkspaceError: The one asked for cannot be used, or its program cannot be read.
        """
        try:
            where, device, data, harness = self._look_again(self._folder(path))
        except WorkspaceError:
            if path is not None:
                raise
            return None
        return Sight(where, where.read_program(), device, data, harness)

    async def context_of(self, seen: Sight) -> Context:
        """Return what makes outcomes of a workspace comparable, at its own budget."""
        return await self._context(seen.where, seen.where.budget_s, seen.device, seen.data, seen.harness)

    def _folder(self, path: str | None) -> Path:
        return self._settings.workspace if path is None else resolved(Path(path))

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
            device=device.label,
            budget_s=budget_s,
            dataset_hash=data,
            harness_hash=harness,
            metric=where.metric,
            direction=where.direction,
            editable=where.editable,
            command=json.dumps(where.command),
            reading=_reading(where),
            environment=_environment(where),
        )
        return self._contexts.setdefault(context, context)  # what is the same object is found equal at once
