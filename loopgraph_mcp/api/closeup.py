"""The verb closeup: one experiment with its change, its loss, its log, runs like it, and the chain that led to it."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from loopgraph_mcp.api import experiment, lookups, precedents, recovery, trace
from loopgraph_mcp.api.answers import EarlierRun, ExperimentAnswer, TraceLink
from loopgraph_mcp.api.state import State
from loopgraph_mcp.code import apply
from loopgraph_mcp.models import Context, RunState
from loopgraph_mcp.runner import trainlog
from loopgraph_mcp.store import agents, experiments, nights
from loopgraph_mcp.store import edits as edit_store
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow

_TAIL_LINES = 60
_MAX_LOG = 4 * 2**20  # a log of five minutes has some hundred KB
_POINTS = 160  # of a loss curve: more than its pixels show
_MAX_DIFF_LINES = 400


@dataclass(frozen=True, slots=True)
class LossPoint:
    """The loss at one moment of a training.

    Args:
        x: Percent of the budget, or the step where the log says no percent.
    """

    x: float
    loss: float


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a run over that of its parent; `by` says what x is: `percent` or `step`."""

    by: str
    own: tuple[LossPoint, ...]
    parent: tuple[LossPoint, ...]


@dataclass(frozen=True, slots=True)
class Closeup:
    """One experiment, up close.

    Args:
        answer: What get_experiment says of it.
        replicates: All runs of its program in its context, oldest first, itself among them.
        parent: The newest run of the program that it is compared with; None where there is none.
        diff: Its change against that program, as a unified diff; untrusted text.
        diff_from_baseline: Its change against the first program that was run in its context.
        cut: Whether a diff was too long to be whole.
        log_tail: The log's last lines; untrusted text.
        earlier: Runs before it that bear on its change.
        before: What led to it, the nearest first.
        after: What came of it.
        asked_by: Who asked for it.
        predicted: The probability of a gain that the search before it gave its method.
    """

    answer: ExperimentAnswer
    context: Context
    created_at: float
    started_at: float | None
    finished_at: float | None
    replicates: tuple[ExperimentRow, ...]
    parent: ExperimentRow | None
    diff: str
    diff_from_baseline: str
    cut: bool
    log_tail: str
    loss: Loss
    earlier: tuple[EarlierRun, ...]
    before: tuple[TraceLink, ...]
    after: tuple[TraceLink, ...]
    asked_by: tuple[str, ...]
    predicted: float | None


async def closeup(state: State, experiment_id: str) -> Closeup:
    """Return one experiment with all that is known of it.

    Raises:
        NotFoundError: No such experiment.
    """
    db = state.db
    row = await lookups.the_experiment(db, experiment_id)
    context = await edit_store.get_context(db, row.context_id)
    same = await experiments.runs_of_group(db, row.context_id, row.group_key)
    parent = await _parent(db, row)
    diff, cut = await _diff(db, row.base_hash, row.program_hash, context.editable)
    first = await experiments.first_program(db, row.context_id)
    whole, also_cut = await _diff(db, first, row.program_hash, context.editable)
    folder = Path(row.run_dir or "")
    log = await asyncio.to_thread(recovery.read_tail, folder / recovery.LOG_NAME)
    said = row.outcome.log_tail if row.outcome is not None and not log else log
    traced = await trace.trace(state, row.id)
    predicted = await nights.predicted(db, row.workspace_id)
    return Closeup(
        answer=await experiment.view(state, row),
        context=context,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        replicates=tuple(same),
        parent=parent,
        diff=diff,
        diff_from_baseline=whole,
        cut=cut or also_cut,
        log_tail=trainlog.tail_lines(said, count=_TAIL_LINES),
        loss=await _loss(row, parent),
        earlier=tuple(await _earlier(state, context, row)),
        before=tuple(traced.before),
        after=tuple(traced.after),
        asked_by=tuple(dict.fromkeys(each.name for each in (await agents.askers(db, [row.id])).get(row.id, []))),
        predicted=predicted.get(row.id),
    )


async def loss(state: State, experiment_id: str) -> Loss:
    """Return how the loss of an experiment goes, over its parent's.

    Raises:
        NotFoundError: No such experiment.
    """
    row = await lookups.the_experiment(state.db, experiment_id)
    return await _loss(row, await _parent(state.db, row))


async def _parent(db: Database, row: ExperimentRow) -> ExperimentRow | None:
    """Return the newest finished run of the program that an experiment is compared with, or None."""
    if row.base_group_key is None or row.base_group_key == row.group_key:
        return None
    found = await experiments.runs_of_group(db, row.context_id, row.base_group_key)
    return next((each for each in reversed(found) if each.outcome and each.outcome.metric_value is not None), None)


async def _loss(row: ExperimentRow, parent: ExperimentRow | None) -> Loss:
    """Return how the loss of an experiment went, over its parent's, as far as their logs say."""

    def read() -> Loss:
        logs = [
            ""
            if each is None or not each.run_dir
            else recovery.read_tail(Path(each.run_dir) / recovery.LOG_NAME, _MAX_LOG)
            for each in (row, parent)
        ]
        own, before = (trainlog.all_progress(log) for log in logs)
        by_percent = all(each.percent is not None for each in (*own, *before))
        return Loss("percent" if by_percent else "step", *(_thinned(each, by_percent) for each in (own, before)))

    return await asyncio.to_thread(read)


def _thinned(progress: Sequence[trainlog.Progress], by_percent: bool) -> tuple[LossPoint, ...]:  # noqa: FBT001 - the unit of x
    found = [
        LossPoint(each.percent if by_percent and each.percent is not None else each.step, each.loss)
        for each in progress
        if each.loss is not None and math.isfinite(each.loss)
    ]
    every = max(1, math.ceil(len(found) / _POINTS))
    return (*found[:-1:every], *found[-1:])


async def _diff(db: Database, base: str | None, new: str | None, name: str) -> tuple[str, bool]:
    """Return one stored program as a diff of another, and whether it is cut."""
    if base is None or new is None or base == new:
        return "", False
    before, after = await edit_store.program_text(db, base), await edit_store.program_text(db, new)
    lines = (await asyncio.to_thread(apply.unified_diff, before, after, name or "train.py")).splitlines()
    return "\n".join(lines[:_MAX_DIFF_LINES]), len(lines) > _MAX_DIFF_LINES


async def _earlier(state: State, context: Context, row: ExperimentRow) -> list[EarlierRun]:
    """Return the runs before an experiment that bear on its change, as the agent was told of them."""
    if row.state is not RunState.DONE or row.base_hash is None:
        return []
    tries = (await state.evidence(context)).tries
    before = list(takewhile(lambda each: each.experiment_id != row.id, tries.runs))
    if len(before) == len(tries.runs):
        return []
    return await precedents.kin_among(state.db, before, tries.runs[len(before)])
