"""Turns an edit, a patch or the present file into one exact program, queues it, and starts its supervisor."""

import asyncio
import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loopgraph_mcp.api import lookups
from loopgraph_mcp.api.context import Inputs, inputs_of
from loopgraph_mcp.api.recovery import SUPERVISOR_LOG_NAME, forget_lock, prepare_outcome
from loopgraph_mcp.code import apply, hashes, programs
from loopgraph_mcp.code.patch import adds_lines, apply_patch, take_out
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import NotFoundError, RunError, WorkspaceError
from loopgraph_mcp.models import Applied, Context, Outcome, OutcomeKind, Present, State
from loopgraph_mcp.runner import processes
from loopgraph_mcp.runner.environment import for_supervisor
from loopgraph_mcp.runner.locks import hold_lock
from loopgraph_mcp.runner.run_copy import make_copy
from loopgraph_mcp.runner.workspace import MAX_BUDGET_S, Workspace, reads_variable
from loopgraph_mcp.store import edits as edit_store
from loopgraph_mcp.store import experiments
from loopgraph_mcp.store.database import Database, new_id, text_hash
from loopgraph_mcp.store.experiments import ExperimentRow

DEFAULT_SEED = 42
MAX_SEED = 2**31 - 1
_RETRIED_AMONG = 50  # newest experiments among which a patch that the file holds is looked for


@dataclass(frozen=True, slots=True)
class Plan:
    """One exact program to run, what it is compared with, and the edit that made it.

    Args:
        base_group_key: What it is compared with, where that could see other files than the run will.
        held: Why only an earlier run answers for it: the file holds the change already, or is another one by now.
    """

    text: str
    base_text: str | None
    edit_id: str | None
    method_ids: tuple[str, ...] = ()
    base_group_key: str | None = None
    held: str = ""


async def make_plan(
    db: Database,
    workspace: Workspace,
    context: Context,
    inputs: Inputs,
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
    context_id = await edit_store.context_id(db, context)
    if edit_id is not None:
        plan = await plan_edit(db, workspace, context.workspace_id, edit_id)
    elif patch is not None:
        plan = await plan_patch(db, workspace, context_id, inputs, patch)
    else:
        plan = await plan_present(db, workspace, context_id, inputs)
    await asyncio.to_thread(check_parses, workspace.editable, plan.text)
    if replicate:  # of a program that the file holds, or held once
        plan = dataclasses.replace(plan, held="")
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
        base_hash=await keep_program(db, plan.base_text, where.editable),
        new_hash=await keep_program(db, plan.text, where.editable),
        knobs={},
        diff=await asyncio.to_thread(apply.unified_diff, plan.base_text, plan.text, where.editable),
        now=now,
    )
    return dataclasses.replace(plan, edit_id=edit_id)


async def plan_edit(db: Database, workspace: Workspace, workspace_id: str, edit_id: str) -> Plan:
    """Return the program that an edit makes; of a file that is another one by now, only an earlier run answers.

    Raises:
        NotFoundError: No such edit.
        RunError: The edit was made in another workspace.
    """
    edit = await edit_store.get_edit(db, edit_id)
    if edit is None:
        raise NotFoundError(f"no edit {edit_id[:80]!r}; get_code_edit makes one and returns its id")
    if edit.workspace_id != workspace_id:
        raise RunError(f"{edit_id} was made in another workspace than {workspace.path}; make it here: get_code_edit")
    held = ""
    if await asyncio.to_thread(workspace.read_program) not in {edit.base_text, edit.new_text}:
        again = f"call get_code_edit for {edit.method_id} again" if edit.method_id else "make the patch again"
        held = f"{workspace.editable} changed since {edit_id} was made; {again}"
    return Plan(edit.new_text, edit.base_text, edit.id, edit.method_ids, held=held)


async def plan_patch(db: Database, workspace: Workspace, context_id: str, inputs: Inputs, patch: str) -> Plan:
    """Return the program that a unified diff makes of the present file, or made of it where the file holds it already.

    A client that gave up waiting sends the same patch again, and its win may have been written to the file meanwhile.

    Raises:
        RunError: The patch does not fit.
    """
    present = await asyncio.to_thread(workspace.read_program)
    made = await asyncio.to_thread(apply_patch, present, patch)
    taken_out = await asyncio.to_thread(take_out, present, patch)
    if isinstance(made, Present):
        held = f"{made.reason}; call run_experiment without patch to run {workspace.editable} as it is"
        return dataclasses.replace(await plan_present(db, workspace, context_id, inputs), held=held)
    if isinstance(made, Applied) and not isinstance(taken_out, Applied) and adds_lines(patch):
        return Plan(made.text, present, None)
    runs = await _runs_of_patch(db, context_id, patch)
    if isinstance(made, Applied):  # what only adds or only deletes lines may fit twice: a retry would stack it
        runs = [run for run in runs if run.context_id == context_id and run.program_hash == text_hash(present)]
        return await _as_it_ran(db, runs[0], "") if runs else Plan(made.text, present, None)
    holds = isinstance(taken_out, Applied) or any(run.program_hash == text_hash(present) for run in runs)
    if not holds:
        near = "; the nearest lines are\n" + "\n".join(made.nearest) if made.nearest else ""
        ran = f"; {runs[0].id} ran it on an earlier file" if runs else ""
        raise RunError(f"the patch does not fit {workspace.editable}: {made.looked_for}: {made.reason}{ran}{near}")
    ran = f"{runs[0].id} ran it in other surroundings" if runs else "no run of it is known"
    held = (
        f"{workspace.editable} already holds this patch, and {ran}; call run_experiment without patch to run "
        f"{workspace.editable} as it is"
    )
    here = [run for run in runs if run.context_id == context_id]
    if here:
        return await _as_it_ran(db, here[0], held)
    return Plan(present, taken_out.text if isinstance(taken_out, Applied) else None, None, held=held)


async def _runs_of_patch(db: Database, context_id: str, patch: str) -> list[ExperimentRow]:
    """Return the newest runs of the workspace whose program is what a patch makes of their base, newest first."""
    workspace_id = (await edit_store.get_context(db, context_id)).workspace_id
    found = list[ExperimentRow]()
    for run in await experiments.list_experiments(db, workspace_id, limit=_RETRIED_AMONG):
        if run.base_hash is None or run.program_hash is None:
            continue
        base = await edit_store.program_text(db, run.base_hash)
        made = await asyncio.to_thread(apply_patch, base, patch)
        if isinstance(made, Applied) and text_hash(made.text) == run.program_hash:
            found.append(run)
    return found


async def _as_it_ran(db: Database, run: ExperimentRow, held: str) -> Plan:
    text = await edit_store.program_text(db, run.program_hash or "")
    base = None if run.base_hash is None else await edit_store.program_text(db, run.base_hash)
    return Plan(text, base, run.edit_id, run.method_ids, run.base_group_key, held)


async def run_of_key(db: Database, where: Workspace, key: str, *, edit_id: str | None, patch: str | None) -> str | None:
    """Return the run that a call with this idempotency key made; none where its surroundings failed: it runs again.

    Raises:
        RunError: The key belongs to another call: of another workspace, or of another change.
    """
    known = await experiments.find_by_key(db, key)
    run = None if known is None else await experiments.get_experiment(db, known)
    if run is None:
        return None
    if run.workspace_path != str(where.path) or not await _is_asked(db, run, edit_id, patch):
        raise RunError(
            f"this idempotency_key was used for {run.id} ({run.description[:80]}), which ran something else than this "
            "call asks for; give each run a key of its own"
        )
    failed_around_it = run.outcome is not None and run.outcome.kind is OutcomeKind.INTERRUPTED
    if run.state is State.DONE and failed_around_it:
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
        made = None if text_of is None else apply_patch(await edit_store.program_text(db, text_of), patch)
        if isinstance(made, Present) or (isinstance(made, Applied) and text_hash(made.text) == run.program_hash):
            return True
    return False


def check_held(plan: Plan, earlier: Sequence[ExperimentRow]) -> None:
    """Refuse a change that the file holds already, or no longer fits, where no earlier run of it answers.

    Raises:
        RunError: There is none.
    """
    if plan.held and not earlier:
        raise RunError(plan.held)


async def plan_present(db: Database, workspace: Workspace, context_id: str, inputs: Inputs) -> Plan:
    """Return the workspace as it is; it is compared with the incumbent, or as the incumbent was if it is that."""
    present = await asyncio.to_thread(workspace.read_program)
    incumbent = await experiments.last_kept_program(db, context_id)
    if incumbent is None or incumbent.program_hash is None:
        return Plan(present, None, None)
    ran = await asyncio.to_thread(inputs.identify, present, workspace.editable)
    if ran.run_key != incumbent.run_key:
        kept = await edit_store.program_text(db, incumbent.program_hash)
        return Plan(present, kept, None, base_group_key=incumbent.group_key)
    base = None if incumbent.base_hash is None else await edit_store.program_text(db, incumbent.base_hash)
    return Plan(present, base, incumbent.edit_id, incumbent.method_ids, base_group_key=incumbent.base_group_key)


def base_group_key(plan: Plan, inputs: Inputs, name: str) -> str | None:
    """Return what a plan's run is compared with, up to the values of seeds; None where there is nothing."""
    if plan.base_group_key is not None or plan.base_text is None:
        return plan.base_group_key
    return inputs.identify(plan.base_text, name).group_key


def check_parses(name: str, text: str) -> None:
    """Refuse a Python program that does not parse before five minutes are spent on it.

    Raises:
        RunError: It does not parse.
    """
    if not name.endswith(".py"):
        return
    try:
        programs.parse(text)
    except SyntaxError as error:
        raise RunError(
            f"{name}, line {error.lineno}: {error.msg}: {(error.text or '').strip()!r}; mend it first"
        ) from error
    except programs.TooLargeError as error:
        raise RunError(f"{name}: {error}") from error
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
    if wanted is not None and not 0 <= wanted <= MAX_SEED:
        raise RunError(f"seed is {str(wanted)[:40]}; give a whole number from 0 to {MAX_SEED:,}")
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


async def keep_program(db: Database, text: str, name: str) -> str:
    """Store an exact program text; return its hash.

    Raises:
        RunError: It is no text that can be stored.
    """
    try:
        group = await asyncio.to_thread(hashes.group_hash, text, name)
        return await edit_store.add_program(db, text, group)
    except UnicodeEncodeError as error:
        raise RunError(f"the program holds a lone surrogate at character {error.start}; it cannot be stored") from error


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


async def prepare(settings: Settings, experiment_id: str, plan: Plan, inputs: Inputs) -> tuple[Path, Inputs]:
    """Make the run's folder with its copy of the workspace; return it, and what it holds as it was copied.

    It comes before the experiment is queued: a copy that does not fit leaves nothing that others could join.

    Raises:
        RunError: The disk is full, or the workspace cannot be copied; nothing is left of it.
    """
    run_dir = settings.runs_dir / experiment_id

    def make() -> Inputs:
        made = make_copy(inputs.plan, run_dir, plan.text)
        prepare_outcome(run_dir)
        return inputs_of(made)

    try:
        settings.runs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return run_dir, await asyncio.to_thread(make)
    except (OSError, shutil.Error, WorkspaceError) as error:
        await asyncio.to_thread(shutil.rmtree, run_dir, ignore_errors=True)
        raise RunError(f"the experiment could not be started: {error}; nothing was queued") from error


async def start(
    db: Database, settings: Settings, workspace: Workspace, experiment_id: str, lock: int, now: float
) -> None:
    """Start the supervisor of a queued experiment, which goes on to hold its lock.

    Raises:
        RunError: The process cannot be started; the experiment is marked interrupted.
    """
    environment = for_supervisor(os.environ, declared=workspace.context_env, named=workspace.pass_env)
    environment |= {"LOOPGRAPH_DB": str(settings.db_path), "LOOPGRAPH_HOME": str(settings.home)}
    log = settings.runs_dir / experiment_id / SUPERVISOR_LOG_NAME
    try:
        processes.start_supervisor(experiment_id, lock, environment, log)  # not on a thread: a cancel would part them
    except OSError as error:
        outcome = Outcome(OutcomeKind.INTERRUPTED, None, f"could not be started: {error}", {})
        await experiments.finish(db, experiment_id, outcome, now=now)
        raise RunError(f"the experiment could not be started: {error}") from error


def base_hash(plan: Plan) -> str | None:
    """Return the hash of what a plan is compared with."""
    return None if plan.base_text is None else text_hash(plan.base_text)
