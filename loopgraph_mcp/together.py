"""Works a thing out once for all who ask for it at the same moment."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Answer(Generic[T]):
    value: T | None = None
    made: bool = False


class Together(Generic[T]):
    """Shares what is worked out among those who asked before it was begun: each gets what holds after it asked."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._awaited: dict[Hashable, _Answer[T]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """Return what `make` makes; one who waits for another's, and that one fails or is cancelled, makes its own."""
        answer = self._awaited.setdefault(key, _Answer())
        async with self._lock:
            if answer.made:
                return answer.value  # type: ignore[return-value]  # made: it is one
            if self._awaited.get(key) is answer:
                del self._awaited[key]
            answer.value = value = await make()
            answer.made = True
            return value
