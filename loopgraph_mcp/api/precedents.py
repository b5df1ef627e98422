"""What was tried before that bears on a change: similar earlier runs, and the probability that it is kept."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.api import explain, recovery
from loopgraph_mcp.api.answers import EarlierRun
from loopgraph_mcp.api.evidence import Evidence
from loopgraph_mcp.api.state import State
from loopgraph_mcp.api.tries import change_of, precedents_of
from loopgraph_mcp.models import Context, WhatRan
from loopgraph_mcp.ranking.change import Change, Kin, Kinship, change_between, kin, moves_of, named
from loopgraph_mcp.ranking.prior import Estimate
from loopgraph_mcp.store import changes as change_store
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.changes import TriedChange
from loopgraph_mcp.store.database import Database

_MAX_TOLD = 5
_MAX_BESIDE = 2  # runs of the same program among other files


@dataclass(frozen=True, slots=True)
class Precedents:
    """What bears on one change.

    Args:
        earlier: Earlier runs, those of the very program first, then the closest kin.
        estimate: Of its being kept; None where the change is a baseline.
    """

    earlier: tuple[EarlierRun, ...] = ()
    estimate: Estimate | None = None


async def find_precedents(
    state: State,
    context: Context,
    ran: WhatRan,
    *,
    files: Mapping[str, str],
    base_hash: str | None,
    new_hash: str,
    description: str,
) -> Precedents:
    """Return what bears on the change from one stored program to another, which would run as `ran` among files."""
    db = state.db
    context_id = await edits.context_id(db, context)
    same = await experiments.runs_of(db, context_id, ran.run_key)
    earlier = [explain.earlier_run(run) for run in same]
    for run in await experiments.runs_among_other_files(db, context_id, ran.run_key, limit=_MAX_BESIDE):
        differing = await recovery.differing_files(db, run, files)
        note = explain.among_other_files(differing)
        earlier.append(dataclasses.replace(explain.earlier_run(run), kinship="other_files", note=note))
    if base_hash is None or base_hash == new_hash:
        return Precedents(tuple(earlier))
    change = await change_store.keep_change(db, base_hash, new_hash)
    evidence = await state.evidence(context)
    alike, by_id, estimate = await asyncio.to_thread(_compare, evidence, change, ran.group_key, description)
    for found in alike:
        earlier += await _told(db, found, by_id, base_hash)
    return Precedents(tuple(earlier), estimate)


def _compare(
    evidence: Evidence, made: Change, group_key: str, description: str
) -> tuple[list[Kin], dict[str, TriedChange], Estimate]:
    """Return the runs like a change among what was tried, those runs by id, and the estimate; replicates left out."""
    change, others = named(made), evidence.tries.without(group_key)
    estimate = evidence.prior.estimate(moves_of(change, description), others.history)
    return list(kin(change, others.precedents)), {run.experiment_id: run for run in others.runs}, estimate


async def kin_among(db: Database, before: Sequence[TriedChange], run: TriedChange) -> list[EarlierRun]:
    """Return the runs among those before one that bear on its change: what its agent was told when it asked."""
    change = change_of(run)
    if change is None:
        return []
    others = [each for each in before if each.group_key != run.group_key]
    by_id = {each.experiment_id: each for each in others}
    return [
        earlier
        for found in kin(change, precedents_of(others))
        for earlier in await _told(db, found, by_id, run.base_hash or "")
        if earlier.experiment_id
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
