"""The one exact program that a call to run asks for: an edit's, a patch's, or the file's as it stands."""

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from loopgraph_mcp.api import lookups
from loopgraph_mcp.api.context import Inputs
from loopgraph_mcp.code import apply, hashes, programs
from loopgraph_mcp.code.patch import adds_lines, apply_patch, take_out
from loopgraph_mcp.errors import NotFoundError, RunError
from loopgraph_mcp.models import Advice, Applied, Context, NextStep, Present
from loopgraph_mcp.runner.workspace import Workspace
from loopgraph_mcp.store import edits as edit_store
from loopgraph_mcp.store import experiments
from loopgraph_mcp.store.database import Database, text_hash
from loopgraph_mcp.store.experiments import ExperimentRow

DEFAULT_SEED = 42
_RETRIED_AMONG = 50  # newest experiments among which a patch that the file holds is looked for


@dataclass(frozen=True, slots=True)
class Plan:
    """One exact program to run, what it is compared with, and the edit that made it.

    Args:
        base_group_key: What it is compared with, where that could see other files than the run will.
        held: Why only an earlier run answers for it: the file holds the change already, or is another one by now.
        instead: What to do where there is none.
    """

    text: str
    base_text: str | None
    edit_id: str | None
    method_ids: tuple[str, ...] = ()
    base_group_key: str | None = None
    held: str = ""
    instead: NextStep | None = None

    @property
    def base_hash(self) -> str | None:
        """The hash of what it is compared with."""
        return None if self.base_text is None else text_hash(self.base_text)

    def base_group(self, inputs: Inputs, name: str) -> str | None:
        """Return what its run is compared with, up to the values of seeds; None where there is nothing."""
        if self.base_group_key is not None or self.base_text is None:
            return self.base_group_key
        return inputs.identify(self.base_text, name).group_key


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
        plan = await _plan_edit(db, workspace, context.workspace_id, edit_id)
    elif patch is not None:
        plan = await _plan_patch(db, workspace, context_id, inputs, patch)
    else:
        plan = await _plan_present(db, workspace, context_id, inputs)
    await asyncio.to_thread(_check_parses, workspace.editable, plan.text)
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


async def _plan_edit(db: Database, workspace: Workspace, workspace_id: str, edit_id: str) -> Plan:
    """Return the program that an edit makes; of a file that is another one by now, only an earlier run answers.

    Raises:
        NotFoundError: No such edit.
        RunError: The edit was made in another workspace.
    """
    edit = await edit_store.get_edit(db, edit_id)
    if edit is None:
        step = NextStep(Advice.MAKE_EDIT_FIRST, "get_code_edit", {"method_id": "…"})
        raise NotFoundError(f"no edit {edit_id[:80]!r}", next_step=step)
    if edit.workspace_id != workspace_id:
        again = NextStep(Advice.MAKE_EDIT_AGAIN, "get_code_edit", {"method_id": edit.method_id or "…"})
        raise RunError(f"{edit_id} was made in another workspace than {workspace.path}", next_step=again)
    held, instead = "", None
    if await asyncio.to_thread(workspace.read_program) not in {edit.base_text, edit.new_text}:
        held, instead = f"{workspace.editable} changed since {edit_id} was made", NextStep(Advice.MAKE_PATCH_AGAIN)
        if edit.method_id:
            instead = NextStep(Advice.MAKE_EDIT_AGAIN, "get_code_edit", {"method_id": edit.method_id})
    return Plan(edit.new_text, edit.base_text, edit.id, edit.method_ids, held=held, instead=instead)


async def _plan_patch(db: Database, workspace: Workspace, context_id: str, inputs: Inputs, patch: str) -> Plan:
    """Return the program that a unified diff makes of the present file, or made of it where the file holds it already.

    A client that gave up waiting sends the same patch again, and its win may have been written to the file meanwhile.

    Raises:
        RunError: The patch does not fit.
    """
    present = await asyncio.to_thread(workspace.read_program)
    made = await asyncio.to_thread(apply_patch, present, patch)
    taken_out = await asyncio.to_thread(take_out, present, patch)
    if isinstance(made, Present):
        plan = await _plan_present(db, workspace, context_id, inputs)
        return dataclasses.replace(plan, held=made.reason, instead=NextStep(Advice.RUN_FILE, "run_experiment"))
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
    held = f"{workspace.editable} already holds this patch, and {ran}"
    here = [run for run in runs if run.context_id == context_id]
    if here:
        return await _as_it_ran(db, here[0], held)
    instead = NextStep(Advice.RUN_FILE, "run_experiment")
    return Plan(present, taken_out.text if isinstance(taken_out, Applied) else None, None, held=held, instead=instead)


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
    instead = NextStep(Advice.RUN_FILE, "run_experiment")
    return Plan(text, base, run.edit_id, run.method_ids, run.base_group_key, held, instead)


async def _plan_present(db: Database, workspace: Workspace, context_id: str, inputs: Inputs) -> Plan:
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


def check_held(plan: Plan, earlier: Sequence[ExperimentRow]) -> None:
    """Refuse a change that the file holds already, or no longer fits, where no earlier run of it answers.

    Raises:
        RunError: There is none.
    """
    if plan.held and not earlier:
        raise RunError(plan.held, next_step=plan.instead)


def _check_parses(name: str, text: str) -> None:
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
            f"{name}, line {error.lineno}: {error.msg}: {(error.text or '').strip()!r}; fix it first"
        ) from error
    except programs.TooLargeError as error:
        raise RunError(f"{name}: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RunError(f"{name}: Python cannot parse it ({error})") from error


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
