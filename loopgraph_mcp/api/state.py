"""What the verbs share: store, settings and clock, and what was read of the store and is kept until that moves."""

import asyncio
import dataclasses
from collections.abc import Callable

from loopgraph_mcp.api.answers import BestProgram
from loopgraph_mcp.api.context import Surroundings
from loopgraph_mcp.api.evidence import Evidence, Outcomes, Records
from loopgraph_mcp.api.tries import NO_TRIES, counts_of, read_tries
from loopgraph_mcp.code.constants import Written
from loopgraph_mcp.config import Settings
from loopgraph_mcp.ingest.published import read_day_one
from loopgraph_mcp.models import Context, Verdict
from loopgraph_mcp.ranking.prior import KindCount, Prior
from loopgraph_mcp.store import edits, imports, learned, methods, outcomes
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.store.outcomes import Search
from loopgraph_mcp.store.version import Newest, read_newest

_NOTHING = Outcomes((), {}, {}, 0)
_FEW = 500  # runs of which all is worked out in a few hundredths of a second: on a thread it would take no less


@dataclasses.dataclass(slots=True)
class State:
    """One open store with its settings; every verb takes it as its first argument."""

    db: Database
    settings: Settings
    clock: Callable[[], float]
    here: Surroundings = dataclasses.field(init=False)
    best_known: tuple[object, BestProgram | None] = (None, None)
    values_known: tuple[object, object] = (None, None)  # what api/suggest.py worked out last, and for what
    numbers_read: dict[tuple[str, str], Written] = dataclasses.field(default_factory=dict)
    _lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    _outcomes: Outcomes = _NOTHING
    _evidence: dict[Context | None, Evidence] = dataclasses.field(default_factory=dict)
    _elsewhere: tuple[list[Search], list[KindCount]] = dataclasses.field(default_factory=lambda: ([], []))
    _evidence_of: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        """Make what finds workspaces."""
        self.here = Surroundings(self.db, self.settings, self.clock)

    def read_again(self) -> None:
        """Forget what was read of runs: rows that were known may belong to another context now."""
        self._outcomes, self._evidence = _NOTHING, {}

    async def outcomes(self, newest: Newest | None = None) -> Outcomes:
        """Return all outcomes of the store, as of now."""
        newest = newest or await read_newest(self.db)
        known = self._outcomes
        if newest.outcome > known.newest:  # rows of outcomes never change: only the new ones are read
            runs = (*known.runs, *await outcomes.runs_between(self.db, known.newest, newest.outcome))
            contexts, families = await edits.all_contexts(self.db), await methods.families(self.db)
            self._outcomes = Outcomes(runs, contexts, families, newest.outcome)
        return self._outcomes

    async def judge(self, experiment: ExperimentRow, newest: Newest | None = None) -> Verdict:
        """Judge a finished experiment."""
        return (await self.outcomes(newest)).judge(experiment)

    async def evidence(self, context: Context | None, newest: Newest | None = None) -> Evidence:
        """Return what a question in a context rests on: made whole where an outcome, decision or recipe is new."""
        newest = newest or await read_newest(self.db)
        version = newest.outcome, newest.decision, newest.recipe
        async with self._lock:
            if self._evidence_of != version:
                self._evidence, self._evidence_of = {}, version
            if context not in self._evidence:
                self._evidence[context] = await self._read_evidence(context, newest)
            return self._evidence[context]

    async def _read_evidence(self, context: Context | None, newest: Newest) -> Evidence:
        bundled = read_day_one().counts if self.settings.day_one else ()
        searches = await outcomes.own_searches(self.db, besides=None if context is None else context.workspace_id)
        if searches != self._elsewhere[0]:  # most outcomes are of one workspace
            self._elsewhere = searches, await counts_of(self.db, searches)
        evidence = Evidence(
            Records(await self.outcomes(newest), context),
            NO_TRIES if context is None else await read_tries(self.db, context, newest),
            Prior([*bundled, *await imports.all_counts(self.db)], self._elsewhere[1]),
            await learned.methods_with_recipe(self.db),
        )
        if len(evidence.records.outcomes.runs) > _FEW:
            await asyncio.to_thread(evidence.work_out, (await methods.library(self.db, newest)).values())
        return evidence
