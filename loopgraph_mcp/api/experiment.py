"""The verbs get_experiment, cancel_experiment and list_experiments: how far one is, or what came of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from loopgraph_mcp.api import activity, explain, lookups, recovery
from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.state import State
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.errors import UnwritableError
from loopgraph_mcp.models import Advice, Decision, NextStep, Origin, Outcome, OutcomeKind, RunState, VerdictKind
from loopgraph_mcp.runner import queue
from loopgraph_mcp.runner.trainlog import Progress, parse_progress
from loopgraph_mcp.store import agents, edits, experiments, learned
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow

OnProgress = Callable[[ExperimentAnswer], Awaitable[None]]

MAX_WAIT_S = 50.0  # most clients give up on a call after 60 s
_POLL_S = 0.25
_CANCEL_WAIT_S = 15.0
_POLL_MIN_S, _POLL_MAX_S = 5.0, 60.0
_EVALUATION_SHARE = 0.1  # start-up and evaluation take about a tenth of the budget on top of it


async def get_experiment(
    state: State, experiment_id: str, *, wait_s: float, on_progress: OnProgress | None = None
) -> ExperimentAnswer:
    """Return an experiment, done or on its way; wait for its outcome for a while, at most 50 s."""
    deadline = time.monotonic() + min(max(0.0, wait_s), MAX_WAIT_S)
    told, can_recover = None, not state.db.read_only
    while True:
        row = await lookups.the_experiment(state.db, experiment_id)
        if can_recover and row.state is not RunState.DONE and recovery.is_abandoned(state.settings, row):
            try:
                await recovery.recover(state.db, state.settings)
            except UnwritableError:  # it is shown as it was last written
                can_recover = False
            continue
        answer = await view(state, row)
        if answer.state is RunState.DONE:
            return answer
        if on_progress is not None and (answer.state, answer.step) != told:
            told = (answer.state, answer.step)
            await on_progress(answer)
        left = deadline - time.monotonic()
        if left <= 0:
            return answer
        await asyncio.sleep(min(_POLL_S, left))


async def cancel_experiment(state: State, experiment_id: str, *, caller: Caller | None) -> ExperimentAnswer:
    """End an experiment, its whole process group with it; one that is done stays as it is."""
    row = await lookups.the_experiment(state.db, experiment_id)
    await activity.check_cancel(state.db, experiment_id, caller)
    if row.state is not RunState.DONE:
        await experiments.request_cancel(state.db, experiment_id, now=state.clock())
    return await get_experiment(state, experiment_id, wait_s=_CANCEL_WAIT_S)


async def list_experiments(state: State, *, workspace: str | None, limit: int) -> list[ExperimentAnswer]:
    """Return a workspace's newest experiments, newest first."""
    where = await state.here.workspace(workspace)
    rows = await experiments.list_experiments(state.db, await state.here.workspace_id(where), limit=limit)
    return [await view(state, row) for row in rows]


async def view(state: State, row: ExperimentRow) -> ExperimentAnswer:
    """Return the answer for an experiment as it stands at this moment."""
    db = state.db
    context = await edits.get_context(db, row.context_id)
    if row.state is RunState.DONE and row.outcome is not None:
        return await _done(state, row, row.outcome, metric=context.metric)
    position, progress, eta_s = None, None, None
    if row.state is RunState.QUEUED:
        slots = await recovery.slots_beside(db, row.device_slot)
        live = [each.id for each in await experiments.live_experiments(db) if each.device_slot in slots]
        order = queue.in_turn(*await agents.queue(db, *slots))
        position = len(live) - len(order) + order.index(row.id) if row.id in order else 0
    else:
        progress = parse_progress(recovery.read_tail(Path(row.run_dir or "") / recovery.LOG_NAME, limit=4_096))
        eta_s = _eta_s(row, progress, state.clock())
    poll_after_s = _POLL_MIN_S if eta_s is None else min(max(eta_s, _POLL_MIN_S), _POLL_MAX_S)
    return ExperimentAnswer(
        experiment_id=row.id,
        state=row.state,
        description=row.description,
        seed=row.seed,
        metric=context.metric,
        next_step=NextStep(
            Advice.POLL, "get_experiment", {"experiment_id": row.id}, {"seconds": f"{poll_after_s:.0f}"}
        ),
        run_dir=row.run_dir,
        queue_position=position,
        step=progress.step if progress else None,
        percent=progress.percent if progress else None,
        loss=progress.loss if progress else None,
        eta_s=eta_s,
        poll_after_s=poll_after_s,
    )


def _eta_s(row: ExperimentRow, progress: Progress | None, now: float) -> float:
    spent = now - (row.started_at or now)
    told = None if progress is None else progress.remaining_s
    left = row.budget_s - spent if told is None else told
    return round(max(left, 0.0) + _EVALUATION_SHARE * row.budget_s, 1)


async def _other_files(db: Database, row: ExperimentRow) -> list[NextStep]:
    """Return which files changed since the parent was run, where that is why there is nothing to compare with."""
    if row.base_group_key is None or row.inputs_hash is None:
        return []
    parents = await experiments.runs_of_group_elsewhere(db, row.context_id, row.base_group_key)
    if not parents:
        return []
    files = await experiments.inputs_of(db, row.inputs_hash)
    return explain.since_parent(parents[0].id, await recovery.differing_files(db, parents[0], files))


async def _done(state: State, row: ExperimentRow, outcome: Outcome, *, metric: str) -> ExperimentAnswer:
    db = state.db
    judged = outcome.kind.says_something and row.origin is not Origin.REPORTED
    verdict = await state.judge(row) if judged else None
    besides = list[NextStep]()
    if verdict is not None and verdict.kind is VerdictKind.NO_BASELINE:
        besides = await _other_files(db, row)
    if verdict is not None and verdict.kind is VerdictKind.WIN and row.edit_id is not None:
        besides = explain.taught(row, await learned.learned_from(db, row.id))
    return ExperimentAnswer(
        experiment_id=row.id,
        state=row.state,
        description=row.description,
        seed=row.seed,
        metric=metric,
        next_step=verdict.next_step if verdict else explain.after_unjudged(row, outcome),
        run_dir=row.run_dir,
        outcome=outcome.kind,
        reason=outcome.reason,
        metric_value=outcome.metric_value,
        summary=dict(outcome.summary),
        verdict=verdict.kind if verdict else None,
        gain=verdict.gain if verdict else None,
        noise_floor=verdict.noise_floor if verdict else None,
        noise=explain.noise(verdict.noise) if verdict else "",
        noise_factor=verdict.noise.factor if verdict else 1.0,
        tentative=row.decision is Decision.KEEP and verdict is not None and verdict.is_tentative,
        origin=row.origin,
        undone_by=row.undone_by if row.decision is Decision.KEEP else None,
        p_win=verdict.p_win if verdict else None,
        decision=row.decision,
        note=await experiments.last_note(db, row.id),
        log_tail="" if outcome.kind is OutcomeKind.FINISHED else outcome.log_tail,
        besides=besides,
    )
