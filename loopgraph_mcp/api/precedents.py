"""What was tried before that bears on a change: earlier runs of its kind, and what is foreseen of it."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loopgraph_mcp.api import explain, recovery
from loopgraph_mcp.api.answers import EarlierRun
from loopgraph_mcp.models import Context, Decision, Direction, Move, Origin, WhatRan
from loopgraph_mcp.ranking.change import Change, Kin, Kinship, Precedent, change_between, kin, moves_of, named, told
from loopgraph_mcp.ranking.descriptions import read_moves
from loopgraph_mcp.ranking.features import Past, Try
from loopgraph_mcp.ranking.prior import Foreseen, Foresight, Lesson, lessons
from loopgraph_mcp.store import changes as change_store
from loopgraph_mcp.store import edits, experiments, outcomes
from loopgraph_mcp.store.changes import TriedChange
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.outcomes import Search
from loopgraph_mcp.store.version import Newest, read_newest

_MAX_TOLD = 5
_MAX_BESIDE = 2  # runs of the same program among other files
_MANY = 500  # runs that may take a tenth of a second to take in


@dataclass(frozen=True, slots=True)
class Precedents:
    """What bears on one change.

    Args:
        earlier: Earlier runs, those of the very program first, then the closest kin.
        foreseen: What is foreseen; None where the change is a baseline.
    """

    earlier: tuple[EarlierRun, ...] = ()
    foreseen: Foreseen | None = None


@dataclass(slots=True)
class Tries:
    """The runs of a workspace in the order they ended, with what each of them changed and what they taught.

    Args:
        outcome: Place of the last outcome that was taken in.
        decision: Place of the last decision, likewise.
    """

    past: Past
    runs: list[TriedChange] = field(default_factory=list)
    precedents: list[Precedent] = field(default_factory=list)
    outcome: int = 0
    decision: int = 0

    def learn(self, runs: Sequence[TriedChange]) -> None:
        """Take in runs, in the order they ended."""
        self.runs += runs
        self.precedents += _precedents(runs)
        for run in runs:
            if run.origin is not Origin.REPORTED:  # a bare number is shown, and teaches nothing
                self.past.learn(_try_of(run))

    def without(self, group_key: str) -> "Tries":
        """Return the same but for the runs that are replicates of one another."""
        others = [run for run in self.runs if run.group_key != group_key]
        if len(others) == len(self.runs):
            return self
        tries = Tries(Past(self.past.higher_is_better))
        tries.learn(others)
        return tries


class Followed:
    """The tries of the workspace that was asked about last: read once, then followed."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = asyncio.Lock()
        self._where: tuple[str, str] | None = None
        self._tries = Tries(Past())

    async def follow(self, context: Context, newest: Newest | None = None) -> Tries:
        """Return the tries of a context's workspace and metric, up to the newest outcome and decision."""
        async with self._lock:
            newest = newest or await read_newest(self._db)
            where, known = (context.workspace_id, context.metric), self._tries
            if self._where != where or await self._decided(known, newest):
                known = Tries(Past(context.direction is Direction.HIGHER))
            new = await self._read(context, known.outcome, newest.outcome)
            if len(new) > _MANY:  # on a thread, and so into tries that nobody holds yet
                if known.outcome:
                    known = Tries(Past(context.direction is Direction.HIGHER))
                    new = await self._read(context, 0, newest.outcome)
                await asyncio.to_thread(known.learn, new)
            else:
                known.learn(new)
            known.outcome, known.decision = max(known.outcome, newest.outcome), max(known.decision, newest.decision)
            self._where, self._tries = where, known
            return known

    async def _read(self, context: Context, after: int, newest: int) -> Sequence[TriedChange]:
        if newest <= after:
            return ()
        context_id = await edits.context_id(self._db, context)
        return await change_store.tried_changes(self._db, context_id, after=after, newest=newest)

    async def _decided(self, known: Tries, newest: Newest) -> bool:
        """Return whether something was decided of what was taken in already."""
        if known.decision >= newest.decision:
            return False
        return await outcomes.decided_since(self._db, known.decision, outcome=known.outcome)


async def find_precedents(
    db: Database,
    tries: Tries,
    context_id: str,
    ran: WhatRan,
    *,
    files: Mapping[str, str],
    base_hash: str | None,
    new_hash: str,
    description: str,
    foresight: Foresight,
) -> Precedents:
    """Return what bears on the change from one stored program to another, which would run as `ran` among files."""
    same = await experiments.runs_of(db, context_id, ran.run_key)
    earlier = [explain.earlier_run(run) for run in same]
    for run in await experiments.runs_among_other_files(db, context_id, ran.run_key, limit=_MAX_BESIDE):
        differing = await recovery.differing_files(db, run, files)
        note = explain.among_other_files(differing)
        earlier.append(dataclasses.replace(explain.earlier_run(run), kinship="other_files", note=note))
    if base_hash is None or base_hash == new_hash:
        return Precedents(tuple(earlier))
    change = named(await change_store.keep_change(db, base_hash, new_hash))
    others = tries.without(ran.group_key)
    by_id = {run.experiment_id: run for run in others.runs}
    for found in kin(change, others.precedents):
        earlier += await _told(db, found, by_id, base_hash)
    return Precedents(tuple(earlier), foresight.foresee(moves_of(change, description), others.past))


async def kin_among(db: Database, before: Sequence[TriedChange], run: TriedChange) -> list[EarlierRun]:
    """Return the runs among those before one that bear on its change: what its agent was told when it asked."""
    change = _change_of(run)
    if change is None:
        return []
    others = [each for each in before if each.group_key != run.group_key]
    by_id = {each.experiment_id: each for each in others}
    return [
        earlier
        for found in kin(change, _precedents(others))
        for earlier in await _told(db, found, by_id, run.base_hash or "")
        if earlier.experiment_id
    ]


class OtherSearches:
    """What one's searches in other workspaces teach of kinds of moves; worked out anew only where one went on."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = asyncio.Lock()
        self._known: dict[tuple[str, str, Direction], tuple[Search, list[Lesson]]] = {}

    async def lessons(self, *, besides: str | None) -> list[Lesson]:
        """Return what all searches teach but those of one workspace, in a fixed order."""
        taught = list[Lesson]()
        async with self._lock:
            for each in await outcomes.own_searches(self._db, besides=besides):
                key = each.workspace_id, each.metric, each.direction
                if key not in self._known or self._known[key][0] != each:
                    runs = await change_store.tried_changes(self._db, each.context_id, after=0, newest=each.outcome)
                    self._known[key] = each, await asyncio.to_thread(_lessons, each, runs)
                taught += self._known[key][1]
        return taught


def _lessons(search: Search, runs: Sequence[TriedChange]) -> list[Lesson]:
    higher = search.direction is Direction.HIGHER
    tries = [_try_of(run) for run in runs if run.origin is not Origin.REPORTED]
    return lessons(tries, owner=search.workspace_id, higher_is_better=higher)


def _try_of(run: TriedChange) -> Try:
    change = _change_of(run)
    is_change = change is not None and change != Change() and not change.is_seed_alone
    moves: tuple[Move, ...] = ()
    if change is not None:
        moves = moves_of(change, run.description) if run.change else read_moves(run.description)
    return Try(moves, run.decision is Decision.KEEP, run.metric_value, is_change=is_change)


def _change_of(run: TriedChange) -> Change | None:
    """Return what a run changed: by its programs, or, of a run only told of, by its description."""
    if run.change is not None:
        return named(run.change)
    return None if run.has_program else told(run.description)


def _precedents(runs: Sequence[TriedChange]) -> list[Precedent]:
    return [
        Precedent(
            run.experiment_id, change, failed=run.decision is not Decision.KEEP, kept=run.decision is Decision.KEEP
        )
        for run in runs
        if (change := _change_of(run)) is not None
    ]


async def _told(db: Database, found: Kin, by_id: dict[str, TriedChange], base_hash: str) -> list[EarlierRun]:
    """Return kin as earlier runs, the newest few; of the same change from another parent, with what differs there."""
    if found.kinship is Kinship.SEED_ALONE:
        return [EarlierRun("", "", "", None, found.kinship.value, explain.kinship(found.kinship, ""))]
    told_of = []
    for key in reversed(found.keys[-_MAX_TOLD:]):
        run = by_id[key]
        since = await _since(db, run, base_hash) if found.kinship is Kinship.SAME else ""
        outcome = f"{run.kind.value}: {run.reason}"
        note = explain.kinship(found.kinship, since)
        told_of.append(EarlierRun(key, run.description, outcome, run.decision, found.kinship.value, note))
    return told_of


async def _since(db: Database, run: TriedChange, base_hash: str) -> str:
    """Return how the parent of an earlier run differs from the present one."""
    if run.base_hash is None or run.base_hash == base_hash or not base_hash:
        return ""
    texts = [await edits.program_text(db, each) for each in (run.base_hash, base_hash)]
    differs = await asyncio.to_thread(change_between, *texts)
    return "" if differs is None else str(differs)
