"""Notifies subscribed clients of changes: an experiment, its log, the list of resources."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
)

from loopgraph_mcp.api import recovery
from loopgraph_mcp.server import pages
from loopgraph_mcp.server.background import running
from loopgraph_mcp.store import experiments, resources
from loopgraph_mcp.store.database import Database

_EVERY_S = 1.0  # a person watching sees no difference below

logger = logging.getLogger("loopgraph.notices")


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of a store at a moment: how far it had grown, and the live experiments' states and log sizes."""

    mark: resources.Mark
    live: dict[str, tuple[str, int]]


@dataclass(slots=True)
class Notices:
    """Carries events to those who listen, and looks at the store for them once a second, only while somebody does.

    Experiments change in other processes, their supervisors and other servers: the store is where all of it is seen.
    """

    bus: InMemorySubscriptionBus = field(default_factory=InMemorySubscriptionBus)
    _listeners: int = 0
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def publish(self, event: ServerEvent) -> None:
        """Deliver an event to everyone who listens."""
        await self.bus.publish(event)

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Add a listener; return what takes it away again."""
        unsubscribe = self.bus.subscribe(listener)
        self._listeners += 1
        self._heard.set()
        gone = False

        def leave() -> None:
            nonlocal gone
            if not gone:
                gone = True
                self._listeners -= 1
                unsubscribe()

        return leave

    @asynccontextmanager
    async def watching(self, db: Database) -> AsyncIterator[None]:
        """Look at a store for the listeners, one look for all."""
        async with running(self._watch(db)):
            yield

    async def _watch(self, db: Database) -> None:
        before: Sight | None = None
        while True:
            if not self._listeners:
                before = None
                self._heard.clear()
                await self._heard.wait()
            try:
                now = await look(db)
                for event in await changes(db, before, now):
                    await self.publish(event)
                before = now
            except Exception:
                logger.exception("the store could not be read for subscribers")
            await asyncio.sleep(_EVERY_S)


async def look(db: Database) -> Sight:
    """Return what is to be seen of a store now."""
    live = await experiments.live_experiments(db)
    sizes = await asyncio.to_thread(lambda: [_log_size(each.run_dir) for each in live])
    return Sight(
        await resources.mark(db), {each.id: (each.state.value, size) for each, size in zip(live, sizes, strict=True)}
    )


def _log_size(run_dir: str | None) -> int:
    try:
        return (Path(run_dir or "") / recovery.LOG_NAME).stat().st_size
    except OSError:
        return 0


async def changes(db: Database, before: Sight | None, now: Sight) -> list[ServerEvent]:
    """Return the notifications for the changes between two snapshots."""
    if before is None:
        return []
    events: list[ServerEvent] = []
    old, new = before.mark, now.mark
    if (old.experiments, old.documents, old.packs) != (new.experiments, new.documents, new.packs):
        events.append(ResourcesListChanged())
    decided = await resources.decided_after(db, old.decisions) if new.decisions != old.decisions else []
    moved = {each for each in before.live.keys() | now.live.keys() if before.live.get(each) != now.live.get(each)}
    return events + [event for each in sorted(moved | set(decided)) for event in _updated(each)]


def _updated(experiment_id: str) -> Iterator[ServerEvent]:
    yield ResourceUpdated(pages.address("experiments", experiment_id))
    yield ResourceUpdated(pages.address("experiments", experiment_id, "log"))
