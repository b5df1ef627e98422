"""Where a question is asked: the workspace, its device, and the context that its outcomes can be compared in."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Context
from loopgraph_mcp.runner.device import Device, choose_device
from loopgraph_mcp.store import edits
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.workspace import Workspace, dataset_hash, harness_hash, load_workspace


class Surroundings:
    """Finds workspace, device and context, and their rows in the store."""

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], float]) -> None:
        self._db = db
        self._settings = settings
        self._now = clock

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

        def look() -> tuple[Workspace, Device, str, str]:
            where = load_workspace(self._settings.workspace if path is None else Path(path))
            return where, *self._look(where)

        where, device, data, harness = await asyncio.to_thread(look)
        return where, device, await self._context(where, where.budget_s, device, data, harness)

    async def place(self, path: str | None) -> tuple[Workspace, Context] | tuple[None, None]:
        """Return the workspace asked for and its context, or neither: a search needs no workspace.

        Raises:
            WorkspaceError: The one asked for cannot be used.
        """
        try:
            where, _, context = await self.found(path)
        except WorkspaceError:
            if path is not None:
                raise
            return None, None
        return where, context

    async def workspace_id(self, where: Workspace) -> str:
        """Return the id of a workspace's row."""
        return await edits.workspace_id(self._db, str(where.path), now=self._now())

    async def device(self) -> Device:
        """Return the device that runs are made on."""
        return await asyncio.to_thread(choose_device, self._settings.device, self._settings.visible_gpus)

    async def context(self, where: Workspace, budget_s: float) -> Context:
        """Return what makes outcomes of a workspace comparable, at a budget."""
        return await self._context(where, budget_s, *await asyncio.to_thread(self._look, where))

    def _look(self, where: Workspace) -> tuple[Device, str, str]:
        device = choose_device(self._settings.device, self._settings.visible_gpus)
        return device, dataset_hash(where), harness_hash(where)

    async def _context(self, where: Workspace, budget_s: float, device: Device, data: str, harness: str) -> Context:
        return Context(
            workspace_id=await self.workspace_id(where),
            device=device.label,
            budget_s=budget_s,
            dataset_hash=data,
            harness_hash=harness,
            metric=where.metric,
            direction=where.direction,
        )

    async def context_id(self, where: Workspace, budget_s: float) -> str:
        """Return the id of that context's row."""
        return await edits.context_id(self._db, await self.context(where, budget_s))
