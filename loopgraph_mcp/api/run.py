"""The verb run_experiment: queues one exact program in a folder of its own, and starts its supervisor."""

import asyncio
import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loopgraph_mcp.api import explain, precedents, run_plan, trust
from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.context import Inputs, inputs_of
from loopgraph_mcp.api.experiment import OnProgress, get_experiment
from loopgraph_mcp.api.recovery import SUPERVISOR_LOG_NAME, forget_lock, prepare_outcome
from loopgraph_mcp.api.run_plan import Plan
from loopgraph_mcp.api.state import State
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.code.patch import apply_patch
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import RunError, WorkspaceError
from loopgraph_mcp.models import Applied, Context, Outcome, OutcomeKind, Present, RunState, WhatRan
from loopgraph_mcp.runner import processes
from loopgraph_mcp.runner.environment import for_supervisor
from loopgraph_mcp.runner.locks import hold_lock
from loopgraph_mcp.runner.queue import Priority
from loopgraph_mcp.runner.run_copy import make_copy
from loopgraph_mcp.runner.workspace import MAX_BUDGET_S, Workspace, default_timeout_s, reads_variable
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.database import Database, new_id, text_hash
from loopgraph_mcp.store.experiments import ExperimentRow, NewExperiment

MAX_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks to run: an edit, a patch of the present file, or with neither that file as it stands.

    Args:
        method_id: The method that a patch or the present file puts into practice.
        description: What is tried, in a few words.
        seed: The run's seed; None for the default, or the next unused one for a replicate.
        budget_s: Training seconds, where they should differ from the workspace's.
        replicate: Whether to run it again though it was run before.
        idempotency_key: What names this call, so that the same one runs nothing twice.
        caller: The agent that asks; None for a person at a terminal.
    """

    edit_id: str | None = None
    patch: str | None = None
    method_id: str | None = None
    description: str = ""
    seed: int | None = None
    budget_s: float | None = None
    replicate: bool = False
    idempotency_key: str | None = None
    priority: Priority = Priority.NORMAL
    caller: Caller | None = None


async def run_experiment(
    state: State, asked: Asked, *, workspace: str | None, wait_s: float, on_progress: OnProgress | None
) -> ExperimentAnswer:
    """Queue one exact program and start its supervisor, or return the earlier run that answers for it."""
    where = await state.here.workspace(workspace)
    if asked.caller is not None:
        asked = dataclasses.replace(asked, idempotency_key=asked.caller.own_key(asked.idempotency_key))
    if asked.idempotency_key is not None and (known := await _run_of_key(state.db, where, asked)) is not None:
        return await get_experiment(state, known, wait_s=wait_s, on_progress=on_progress)
    if asked.caller is not None:
        await asyncio.to_thread(trust.check, state.settings, where, by_agent=workspace is not None)
    await asyncio.to_thread(_check_budget, where, asked.budget_s)
    context = await state.here.context(where, asked.budget_s or where.budget_s)
    inputs = await state.here.inputs(where)
    plan = await run_plan.make_plan(
        state.db,
        where,
        context,
        inputs,
        edit_id=asked.edit_id,
        patch=asked.patch,
        method_id=asked.method_id,
        replicate=asked.replicate,
    )
    ran = await asyncio.to_thread(inputs.identify, plan.text, where.editable)
    earlier = await experiments.runs_of(state.db, await edits.context_id(state.db, context), ran.run_key)
    repeat = None if asked.replicate else run_plan.worth_returning(plan, earlier, seed=asked.seed)
    if repeat is not None:
        if repeat.state is not RunState.DONE:
            await experiments.join_experiment(state.db, repeat.id, asked.caller, now=state.clock())
        answer = await get_experiment(state, repeat.id, wait_s=wait_s, on_progress=on_progress)
        return dataclasses.replace(answer, repeated=True)
    run_plan.check_held(plan, earlier)
    used = {run.seed for run in earlier} if asked.replicate else set[int]()
    seed = await asyncio.to_thread(_choose_seed, where, asked.seed, used)
    plan = await run_plan.as_edit(state.db, where, plan, workspace=context.workspace_id, now=state.clock())
    bearing = await precedents.find_precedents(
        state,
        context,
        ran,
        files=inputs.files,
        base_hash=plan.base_hash,
        new_hash=await run_plan.keep_program(state.db, plan.text, where.editable),
        description=asked.description,
    )
    experiment_id, new = await _submit(state, asked, where, context, plan, inputs, seed)
    answer = await get_experiment(state, experiment_id, wait_s=wait_s, on_progress=on_progress)
    return dataclasses.replace(answer, earlier=[] if asked.replicate else list(bearing.earlier), repeated=not new)


async def _submit(
    state: State, asked: Asked, where: Workspace, context: Context, plan: Plan, inputs: Inputs, seed: int
) -> tuple[str, bool]:
    """Copy the workspace, queue the run and start its supervisor; return its id, or that of the run it repeats."""
    slot = (await state.here.device(where)).slot
    with looked_after(state.settings) as (own_id, lock):
        run_dir, made, ran, base_group = await _prepare(state.settings, own_id, plan, inputs, where.editable)
        new = NewExperiment(
            id=own_id,
            run_dir=str(run_dir),
            context_id=await edits.context_id(state.db, context),
            device_slot=slot,
            description=explain.description(asked.description, plan.method_ids, plan.base_text),
            seed=seed,
            timeout_s=max(where.timeout_s, default_timeout_s(asked.budget_s)) if asked.budget_s else where.timeout_s,
            silence_s=where.silence_s,
            edit_id=plan.edit_id,
            base_hash=plan.base_hash,
            program_hash=text_hash(plan.text),
            method_ids=plan.method_ids,
            idempotency_key=asked.idempotency_key,
            priority=asked.priority,
            caller=asked.caller,
            ran=ran,
            base_group_key=base_group,
            inputs_hash=made.hash,
            shared="any_seed" if asked.seed is None and not asked.replicate else "same_seed",
        )
        experiment_id, is_new = await _queue(state, made, new)
        if is_new:
            await _start(state, where, experiment_id, lock)
    if not is_new:
        forget_lock(state.settings, own_id)
    return experiment_id, is_new


async def _queue(state: State, made: Inputs, new: NewExperiment) -> tuple[str, bool]:
    """Queue an experiment whose folder is made; where another one answers for it, or it is refused, that goes."""
    is_new = False
    try:
        await experiments.add_inputs(state.db, made.hash, made.files)
        experiment_id, is_new = await experiments.add_experiment(state.db, new, now=state.clock())
    finally:
        if not is_new:
            await asyncio.to_thread(shutil.rmtree, new.run_dir or "", ignore_errors=True)
    return experiment_id, is_new


async def _run_of_key(db: Database, where: Workspace, asked: Asked) -> str | None:
    """Return the run that a call with this idempotency key made; none where its surroundings failed: it runs again.

    Raises:
        RunError: The key belongs to another call: of another workspace, or of another change.
    """
    known = await experiments.find_by_key(db, asked.idempotency_key or "")
    run = None if known is None else await experiments.get_experiment(db, known)
    if run is None:
        return None
    if run.workspace_path != str(where.path) or not await _is_asked(db, run, asked.edit_id, asked.patch):
        raise RunError(
            f"this idempotency_key was used for {run.id} ({run.description[:80]}), which ran something else than this "
            "call asks for; give each run a key of its own"
        )
    failed_around_it = run.outcome is not None and run.outcome.kind is OutcomeKind.INTERRUPTED
    if run.state is RunState.DONE and failed_around_it:
        await experiments.free_key(db, run.id)
        return None
    return run.id


async def _is_asked(db: Database, run: ExperimentRow, edit_id: str | None, patch: str | None) -> bool:
    """Return whether a run is of an edit or a patch; of neither, the file may have changed since it was asked for."""
    if edit_id is not None:
        return run.edit_id == edit_id
    if patch is None or run.program_hash is None:
        return True
    for text_of in (run.base_hash, run.program_hash):
        made = None if text_of is None else apply_patch(await edits.program_text(db, text_of), patch)
        if isinstance(made, Present) or (isinstance(made, Applied) and text_hash(made.text) == run.program_hash):
            return True
    return False


def _check_budget(workspace: Workspace, budget_s: float | None) -> None:
    """Refuse another budget where the trainer would not hear of it.

    Raises:
        RunError: The trainer has a budget of its own.
    """
    if budget_s is None or budget_s == workspace.budget_s:
        return
    if not 0 < budget_s <= MAX_BUDGET_S:
        raise RunError(f"budget_s is {budget_s:g}; use seconds above 0 and at most a week")
    if not reads_variable(workspace, "LOOPGRAPH_BUDGET_S"):
        raise RunError(
            f"the trainer in {workspace.path} does not read LOOPGRAPH_BUDGET_S, so its budget is always "
            f"{workspace.budget_s:g} s; leave budget_s out"
        )


def _choose_seed(workspace: Workspace, wanted: int | None, used: set[int]) -> int:
    """Return the wanted seed, or the first from 42 on that is not used; 42 where the trainer has a seed of its own.

    Raises:
        RunError: A seed is wanted and the trainer would not hear of it.
    """
    told = reads_variable(workspace, "LOOPGRAPH_SEED")
    if wanted is not None and not told:
        raise RunError(
            f"the trainer in {workspace.path} does not read LOOPGRAPH_SEED and has a seed of its own; leave seed out"
        )
    if wanted is not None and not 0 <= wanted <= MAX_SEED:
        raise RunError(f"seed is {str(wanted)[:40]}; give a whole number from 0 to {MAX_SEED:,}")
    seed = run_plan.DEFAULT_SEED if wanted is None else wanted
    while wanted is None and told and seed in used:
        seed += 1
    return seed


@contextmanager
def looked_after(settings: Settings) -> Iterator[tuple[str, int]]:
    """Make the id of an experiment and hold its lock for the body; give both, the lock as a file descriptor.

    It is held before the experiment is queued, and its supervisor goes on to hold it: from its first moment on, an
    experiment whose lock is free has nobody who looks after it.

    Raises:
        RunError: The lock cannot be taken.
    """
    experiment_id = new_id("exp")
    try:
        with ExitStack() as held:
            file = held.enter_context(hold_lock(settings.locks_dir, experiment_id))
            assert file is not None  # noqa: S101 - nobody else knows the id
            opened = held.pop_all()
    except OSError as error:
        raise RunError(
            f"{settings.locks_dir}: the folder of locks cannot be written ({error.strerror}); "
            "give this user the folder, or free the disk"
        ) from error
    with opened:
        try:
            yield experiment_id, file.fileno()
        except Exception:
            forget_lock(settings, experiment_id)
            raise


async def _prepare(
    settings: Settings, experiment_id: str, plan: Plan, inputs: Inputs, name: str
) -> tuple[Path, Inputs, WhatRan, str | None]:
    """Make the run's folder with its copy of the workspace; return it, what it holds, what runs, its parent's group.

    It comes before the experiment is queued: a copy that does not fit leaves nothing that others could join.

    Raises:
        RunError: The disk is full, or the workspace cannot be copied; nothing is left of it.
    """
    run_dir = settings.runs_dir / experiment_id

    def make() -> tuple[Path, Inputs, WhatRan, str | None]:
        made = inputs_of(make_copy(inputs.plan, run_dir, plan.text))
        prepare_outcome(run_dir)
        return run_dir, made, made.identify(plan.text, name), plan.base_group(made, name)

    try:
        settings.runs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return await asyncio.to_thread(make)
    except (OSError, shutil.Error, WorkspaceError) as error:
        await asyncio.to_thread(shutil.rmtree, run_dir, ignore_errors=True)
        raise RunError(f"the experiment could not be started: {error}; nothing was queued") from error


async def _start(state: State, workspace: Workspace, experiment_id: str, lock: int) -> None:
    """Start the supervisor of a queued experiment, which goes on to hold its lock.

    Raises:
        RunError: The process cannot be started; the experiment is marked interrupted.
    """
    environment = for_supervisor(os.environ, declared=workspace.context_env, named=workspace.pass_env)
    environment |= {"LOOPGRAPH_DB": str(state.settings.db_path), "LOOPGRAPH_HOME": str(state.settings.home)}
    log = state.settings.runs_dir / experiment_id / SUPERVISOR_LOG_NAME
    try:
        processes.start_supervisor(experiment_id, lock, environment, log)  # not on a thread: a cancel would part them
    except OSError as error:
        outcome = Outcome(OutcomeKind.INTERRUPTED, None, f"could not be started: {error}", {})
        await experiments.finish(state.db, experiment_id, outcome, now=state.clock())
        raise RunError(f"the experiment could not be started: {error}") from error
