"""What was tried before that bears on a change: earlier runs of its kind, and what is foreseen of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from loopgraph_mcp import wording
from loopgraph_mcp.answers import EarlierRun
from loopgraph_mcp.changes import Change, Kin, Kinship, Precedent, change_between, kin, moves_of, named, told
from loopgraph_mcp.foresight import Foreseen, Foresight
from loopgraph_mcp.models import Decision, Direction, Move
from loopgraph_mcp.moves import read_moves
from loopgraph_mcp.store import changes as change_store
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.changes import TriedChange
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.tries import Past, Try

_MAX_TOLD = 5


@dataclass(frozen=True, slots=True)
class Precedents:
    """What bears on one change.

    Args:
        earlier: Earlier runs, those of the very program first, then the closest kin.
        foreseen: What is foreseen; None where the change is a baseline.
    """

    earlier: tuple[EarlierRun, ...] = ()
    foreseen: Foreseen | None = None


async def find_precedents(
    db: Database, context_id: str, *, base_hash: str | None, new_hash: str, description: str, foresight: Foresight
) -> Precedents:
    """Return what bears on the change from one stored program to another."""
    tree = await edits.tree_hash(db, new_hash)
    same = await experiments.runs_of_program(db, context_id, tree)
    earlier = [wording.earlier_run(run) for run in same]
    if base_hash is None or base_hash == new_hash:
        return Precedents(tuple(earlier))
    change = named(await change_store.keep_change(db, base_hash, new_hash))
    runs = [run for run in await change_store.tried_changes(db, context_id) if run.tree != tree]
    by_id = {run.experiment_id: run for run in runs}
    for found in kin(change, _precedents(runs)):
        earlier += await _told(db, found, by_id, base_hash)
    context = await edits.get_context(db, context_id)
    foreseen = foresight.foresee(moves_of(change, description), past_of(runs, context.direction))
    return Precedents(tuple(earlier), foreseen)


def past_of(runs: Sequence[TriedChange], direction: Direction) -> Past:
    """Return what a workspace's runs have taught so far."""
    past = Past(higher_is_better=direction is Direction.HIGHER)
    learn(past, runs)
    return past


def learn(past: Past, runs: Sequence[TriedChange]) -> None:
    """Take in runs, in the order they ended."""
    for run in runs:
        change = _change_of(run)
        is_change = change is not None and change != Change() and not change.is_seed_alone
        moves: tuple[Move, ...] = ()
        if change is not None:
            moves = moves_of(change, run.description) if run.change else read_moves(run.description)
        kept = run.decision is Decision.KEEP
        past.learn(Try(moves, kept, run.metric_value, is_change=is_change))


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
        return [EarlierRun("", "", "", None, found.kinship.value, wording.kinship(found.kinship, ""))]
    told_of = []
    for key in reversed(found.keys[-_MAX_TOLD:]):
        run = by_id[key]
        since = await _since(db, run, base_hash) if found.kinship is Kinship.SAME else ""
        outcome = f"{run.kind.value}: {run.reason}"
        note = wording.kinship(found.kinship, since)
        told_of.append(EarlierRun(key, run.description, outcome, run.decision, found.kinship.value, note))
    return told_of


async def _since(db: Database, run: TriedChange, base_hash: str) -> str:
    """Return how the parent of an earlier run differs from the present one."""
    if run.base_hash is None or run.base_hash == base_hash:
        return ""
    texts = [await edits.program_text(db, each) for each in (run.base_hash, base_hash)]
    differs = change_between(*texts)
    return "" if differs is None else str(differs)
