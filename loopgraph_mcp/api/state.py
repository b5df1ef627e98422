"""What the verbs share: store, settings and clock, and what was read of the store and is kept until that moves."""

import dataclasses
from collections.abc import Callable, Collection

from loopgraph_mcp.api.answers import BestProgram
from loopgraph_mcp.api.context import Surroundings
from loopgraph_mcp.api.evidence import Ledger
from loopgraph_mcp.api.tries import Followed, OtherSearches
from loopgraph_mcp.config import Settings
from loopgraph_mcp.ingest.published import read_day_one
from loopgraph_mcp.models import Context
from loopgraph_mcp.ranking.prior import Foresight, Lesson
from loopgraph_mcp.store import imports
from loopgraph_mcp.store import learned as learned_store
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.retrievals import Fatigue
from loopgraph_mcp.store.version import Newest, read_newest


@dataclasses.dataclass(slots=True)
class State:
    """One open store with its settings; every verb takes it as its first argument."""

    db: Database
    settings: Settings
    clock: Callable[[], float]
    here: Surroundings = dataclasses.field(init=False)
    ledger: Ledger = dataclasses.field(init=False)
    fatigue: Fatigue = dataclasses.field(default_factory=Fatigue)
    followed: Followed = dataclasses.field(init=False)
    best_known: tuple[object, BestProgram | None] = (None, None)
    _others: OtherSearches = dataclasses.field(init=False)
    _sights: dict[str | None, tuple[tuple[int, int], list[Lesson], Foresight]] = dataclasses.field(default_factory=dict)
    _with_recipe: tuple[tuple[int, int], Collection[str]] = ((0, 0), ())

    def __post_init__(self) -> None:
        """Make what follows the store."""
        self.here = Surroundings(self.db, self.settings, self.clock)
        self.followed = Followed(self.db)
        self._others = OtherSearches(self.db)
        self.read_again()

    def read_again(self) -> None:
        """Forget what was read of runs: rows that were known may belong to another context now."""
        self.ledger = Ledger(self.db)

    async def foresight(self, context: Context | None, newest: Newest | None = None) -> Foresight:
        """Return what histories teach: those shipped (or switched off), those imported, and one's other searches.

        Lessons come with outcomes or decisions, whichever process brings them.
        """
        newest = newest or await read_newest(self.db)
        where, at = None if context is None else context.workspace_id, (newest.outcome, newest.decision)
        known = self._sights.get(where)
        if known is None or known[0] != at:
            taught = [*await imports.all_lessons(self.db), *await self._others.lessons(besides=where)]
            if known is None or taught != known[1]:
                shipped = read_day_one().lessons if self.settings.day_one else ()
                known = at, taught, Foresight([*shipped, *taught])
            self._sights[where] = known = at, taught, known[2]
        return known[2]

    async def with_recipe(self, newest: Newest) -> Collection[str]:
        """Return the methods that have a learned recipe."""
        if self._with_recipe[0] != (newest.recipe, newest.decision):
            learned = await learned_store.methods_with_recipe(self.db)
            self._with_recipe = (newest.recipe, newest.decision), learned
        return self._with_recipe[1]
