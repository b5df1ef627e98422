"""One request at a time to a server, so far apart as it asks for, over all processes of this user."""

import asyncio
import fcntl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from loopgraph_mcp.errors import SourceError

_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Pace:
    """A lock file that holds when the last request began.

    Args:
        file: The same for all who ask that server.
        interval_s: Seconds from the start of a request to the start of the next.
        patience_s: How long to wait for other processes' turns.
        clock: The time of day: other processes, and this machine after a restart, must read the same.
    """

    file: Path
    interval_s: float
    patience_s: float = 300.0
    clock: Callable[[], float] = time.time

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold this user's one turn for the body; the kernel ends the turn of a process that is gone.

        Raises:
            SourceError: Others had their turns for all the time that we can wait.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a+") as file:
            try:
                async with asyncio.timeout(self.patience_s):
                    while not _locked(file.fileno()):  # noqa: ASYNC110 - other processes' turns have no event
                        await asyncio.sleep(_LOOK_EVERY_S)
                    await asyncio.sleep(self._wait_s(self.file.read_text(encoding="utf-8")))
            except TimeoutError as error:
                raise SourceError(
                    f"{self.file.stem}: other LoopGraph processes have fetched from it for {self.patience_s:g} s; "
                    "try again once they are done"
                ) from error
            file.truncate(0)
            file.write(repr(self.clock()))
            file.flush()
            yield

    def _wait_s(self, last: str) -> float:
        """Return how long to wait: a whole interval where the last turn lies ahead, for the clock was set back."""
        try:
            left = float(last) + self.interval_s - self.clock()
        except ValueError:  # nothing yet, or a process that ended while it wrote
            return 0.0
        return min(max(left, 0.0), self.interval_s)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
