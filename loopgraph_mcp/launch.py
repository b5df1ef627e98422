"""Turns an edit, a patch or the present file into one exact program, queues it, and starts its supervisor."""

import ast
import asyncio
import dataclasses
import shutil
from dataclasses import dataclass

from loopgraph_mcp import duplicates, edits, lookups, patches
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import NotFoundError, RunError, WorkspaceError
from loopgraph_mcp.models import Applied, Outcome, OutcomeKind, Refused
from loopgraph_mcp.runner import processes
from loopgraph_mcp.runner.run_copy import make_copy, plan_copy
from loopgraph_mcp.runs import SUPERVISOR_LOG_NAME
from loopgraph_mcp.store import edits as edit_store
from loopgraph_mcp.store import experiments
from loopgraph_mcp.store.database import Database, text_hash
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.workspace import MAX_BUDGET_S, Workspace, reads_variable

DEFAULT_SEED = 42


@dataclass(frozen=True, slots=True)
class Plan:
    """One exact program to run, what it is compared with, and the edit that made it."""

    text: str
    base_text: str | None
    edit_id: str | None
    method_ids: tuple[str, ...] = ()


async def make_plan(
    db: Database,
    workspace: Workspace,
    context_id: str,
    *,
    edit_id: str | None,
    patch: str | None,
    method_id: str | None,
    replicate: bool,
) -> Plan:
    """Return the one program that a call asks for: an edit's, a patch's, or the file's as it stands.

    Raises:
        NotFoundError: No such edit or method.
        RunError: The program cannot be run.
    """
    if edit_id is not None and patch is not None:
        raise RunError("give edit_id or patch, not both: an experiment runs one program")
    if edit_id is not None:
        plan = await plan_edit(db, workspace, edit_id, replicate=replicate)
    elif patch is not None:
        plan = plan_patch(workspace, patch)
    else:
        plan = await plan_present(db, workspace, context_id)
    check_parses(workspace.editable, plan.text)
    if method_id is None:
        return plan
    return dataclasses.replace(plan, method_ids=((await lookups.the_method(db, method_id)).id,))


async def as_edit(db: Database, where: Workspace, plan: Plan, *, workspace: str, now: float) -> Plan:
    """Store what a patch or a hand edit did as an edit, so that it can be kept and traced."""
    if plan.edit_id is not None or plan.base_text is None or plan.base_text == plan.text:
        return plan
    edit_id = await edit_store.add_edit(
        db,
        workspace=workspace,
        method_id=plan.method_ids[0] if plan.method_ids else None,
        retrieval_id=None,
        base_hash=await keep_program(db, plan.base_text),
        new_hash=await keep_program(db, plan.text),
        knobs={},
        diff=edits.unified_diff(plan.base_text, plan.text, where.editable),
        now=now,
    )
    return dataclasses.replace(plan, edit_id=edit_id)


async def plan_edit(db: Database, workspace: Workspace, edit_id: str, *, replicate: bool) -> Plan:
    """Return the program that an edit makes, if the workspace still holds what the edit started from.

    Raises:
        NotFoundError: No such edit.
        RunError: The file is another one by now.
    """
    edit = await edit_store.get_edit(db, edit_id)
    if edit is None:
        raise NotFoundError(f"no edit {edit_id!r}; get_code_edit makes one and returns its id")
    present = workspace.read_program()
    if present not in {edit.base_text, edit.new_text} and not replicate:
        raise RunError(
            f"{workspace.editable} changed since {edit_id} was made; "
            + (f"call get_code_edit for {edit.method_id} again" if edit.method_id else "make the patch again")
        )
    return Plan(edit.new_text, edit.base_text, edit.id, edit.method_ids)


def plan_patch(workspace: Workspace, patch: str) -> Plan:
    """Return the program that a unified diff makes of the present file.

    Raises:
        RunError: The patch does not fit.
    """
    present = workspace.read_program()
    made = patches.apply_patch(present, patch)
    if isinstance(made, Applied):
        return Plan(made.text, present, None)
    if isinstance(made, Refused):
        near = "; the nearest lines are\n" + "\n".join(made.nearest) if made.nearest else ""
        raise RunError(f"the patch does not fit {workspace.editable}: {made.looked_for}: {made.reason}{near}")
    raise RunError(f"{made.reason}; run without a patch to run {workspace.editable} as it stands")


async def plan_present(db: Database, workspace: Workspace, context_id: str) -> Plan:
    """Return the file as it stands; it is compared with the incumbent, or as the incumbent was if it is that."""
    present = workspace.read_program()
    incumbent = await experiments.last_kept(db, context_id)
    if incumbent is None or incumbent.program_hash is None:
        return Plan(present, None, None)
    kept = await edit_store.program_text(db, incumbent.program_hash)
    if duplicates.program_hash(kept) != duplicates.program_hash(present):
        return Plan(present, kept, None)
    base = None if incumbent.base_hash is None else await edit_store.program_text(db, incumbent.base_hash)
    return Plan(present, base, incumbent.edit_id, incumbent.method_ids)


def check_parses(name: str, text: str) -> None:
    """Refuse a Python program that does not parse before five minutes are spent on it.

    Raises:
        RunError: It does not parse.
    """
    if not name.endswith(".py"):
        return
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise RunError(
            f"{name}, line {error.lineno}: {error.msg}: {(error.text or '').strip()!r}; mend it first"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RunError(f"{name}: Python cannot parse it ({error})") from error


def check_budget(workspace: Workspace, budget_s: float | None) -> None:
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


def choose_seed(workspace: Workspace, wanted: int | None, used: set[int]) -> int:
    """Return the wanted seed, or the first from 42 on that is not used; 42 where the trainer has a seed of its own.

    Raises:
        RunError: A seed is wanted and the trainer would not hear of it.
    """
    told = reads_variable(workspace, "LOOPGRAPH_SEED")
    if wanted is not None and not told:
        raise RunError(
            f"the trainer in {workspace.path} does not read LOOPGRAPH_SEED and has a seed of its own; leave seed out"
        )
    seed = DEFAULT_SEED if wanted is None else wanted
    while wanted is None and told and seed in used:
        seed += 1
    return seed


def worth_returning(plan: Plan, earlier: list[ExperimentRow], *, seed: int | None) -> ExperimentRow | None:
    """Return the earlier run that answers for a repeat: one on its way, or one whose outcome says something.

    One with another seed than the one asked for does not, nor does a baseline that failed: what failed there are its
    surroundings, which may be mended by now.
    """
    for run in reversed(earlier):
        if seed is not None and run.seed != seed:
            continue
        if run.outcome is None:
            return run
        failed_baseline = plan.base_text is None and run.outcome.metric_value is None
        if run.outcome.kind.says_something and not failed_baseline:
            return run
    return None


async def keep_program(db: Database, text: str) -> str:
    """Store an exact program text; return its hash.

    Raises:
        RunError: It is no text that can be stored.
    """
    try:
        return await edit_store.add_program(db, text, duplicates.program_hash(text))
    except UnicodeEncodeError as error:
        raise RunError(f"the program holds a lone surrogate at character {error.start}; it cannot be stored") from error


async def start(
    db: Database, settings: Settings, workspace: Workspace, experiment_id: str, text: str, now: float
) -> None:
    """Make the run's copy of the workspace and start the supervisor.

    Raises:
        RunError: The disk is full or the process cannot be started; the experiment is marked interrupted.
    """
    run_dir = settings.runs_dir / experiment_id
    try:
        copy = await asyncio.to_thread(plan_copy, workspace, without=settings.own_paths)
        await asyncio.to_thread(make_copy, copy, run_dir, text)
        await experiments.set_run_dir(db, experiment_id, str(run_dir))
        processes.start_supervisor(experiment_id, settings.db_path, settings.home, run_dir / SUPERVISOR_LOG_NAME)
    except (OSError, shutil.Error, WorkspaceError) as error:
        outcome = Outcome(OutcomeKind.INTERRUPTED, None, f"could not be started: {error}", {})
        await experiments.finish(db, experiment_id, outcome, now=now)
        raise RunError(f"the experiment could not be started: {error}") from error


def base_hash(plan: Plan) -> str | None:
    """Return the hash of what a plan is compared with."""
    return None if plan.base_text is None else text_hash(plan.base_text)
