"""The trials of a workspace, as the ranking needs them: its runs in the order they ended, with what each changed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from loopgraph_mcp.models import Context, Decision, Move, Origin
from loopgraph_mcp.ranking.change import Change, Precedent, moves_of, named, told
from loopgraph_mcp.ranking.descriptions import read_moves
from loopgraph_mcp.ranking.features import Trial, TrialHistory
from loopgraph_mcp.ranking.prior import KindCount, count_kinds
from loopgraph_mcp.store import changes as change_store
from loopgraph_mcp.store import edits
from loopgraph_mcp.store.changes import TriedChange
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.outcomes import Search
from loopgraph_mcp.store.version import Newest


@dataclass(frozen=True, slots=True)
class Tries:
    """The runs of a workspace in the order they ended, with what each of them changed and what they show."""

    history: TrialHistory
    runs: Sequence[TriedChange] = ()
    precedents: Sequence[Precedent] = ()

    @classmethod
    def of(cls, runs: Sequence[TriedChange]) -> "Tries":
        """Read runs, in the order they ended."""
        history = TrialHistory()
        for run in runs:
            if run.origin is not Origin.REPORTED:  # a bare number is shown, and counts for nothing
                history.learn(_trial_of(run))
        return cls(history, runs, precedents_of(runs))

    def without(self, group_key: str) -> "Tries":
        """Return the same but for the runs that are replicates of one another."""
        others = [run for run in self.runs if run.group_key != group_key]
        if len(others) == len(self.runs):
            return self
        return Tries.of(others)


NO_TRIES = Tries(TrialHistory())


async def read_tries(db: Database, context: Context, newest: Newest) -> Tries:
    """Return what was tried in a context's workspace by its metric, up to the newest outcome and decision."""
    runs = await change_store.tried_changes(db, await edits.context_id(db, context), newest=newest.outcome)
    return await asyncio.to_thread(Tries.of, runs)


async def counts_of(db: Database, searches: Sequence[Search]) -> list[KindCount]:
    """Return the counts of searches in other workspaces, in their order."""
    found = list[KindCount]()
    for each in searches:
        runs = await change_store.tried_changes(db, each.context_id, newest=each.outcome)
        found += await asyncio.to_thread(_counts, each, runs)
    return found


def _counts(search: Search, runs: Sequence[TriedChange]) -> list[KindCount]:
    trials = [_trial_of(run) for run in runs if run.origin is not Origin.REPORTED]
    return count_kinds(trials, owner=search.workspace_id)


def _trial_of(run: TriedChange) -> Trial:
    change = change_of(run)
    is_change = change is not None and change != Change() and not change.is_seed_alone
    moves: tuple[Move, ...] = ()
    if change is not None:
        moves = moves_of(change, run.description) if run.change else read_moves(run.description)
    return Trial(moves, run.decision is Decision.KEEP, run.metric_value, is_change=is_change)


def change_of(run: TriedChange) -> Change | None:
    """Return what a run changed: by its programs, or, of a run only told of, by its description."""
    if run.change is not None:
        return named(run.change)
    return None if run.has_program else told(run.description)


def precedents_of(runs: Sequence[TriedChange]) -> list[Precedent]:
    """Return runs whose change is known as precedents of later changes."""
    return [
        Precedent(
            run.experiment_id, change, failed=run.decision is not Decision.KEEP, kept=run.decision is Decision.KEEP
        )
        for run in runs
        if (change := change_of(run)) is not None
    ]
