"""What follows an outcome: decision, edit in the user's file, row of results.tsv, recipe; each step once.

A supervisor may be killed between any two of these. Each is recorded before and after it is made, and can be made again
without harm, so that whoever comes next finishes what was begun.
"""

import logging
from dataclasses import dataclass

from loopgraph_mcp.api import learned_recipes
from loopgraph_mcp.api.state import State
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Decision, Outcome, OutcomeKind, Verdict, VerdictKind
from loopgraph_mcp.runner.locks import alone_in
from loopgraph_mcp.runner.workspace import (
    Workspace,
    append_result,
    commit_of,
    commit_program,
    program_at,
    results_size,
    write_program,
)
from loopgraph_mcp.store import conclusions, edits, experiments
from loopgraph_mcp.store.conclusions import Step, StepRow, StepState
from loopgraph_mcp.store.experiments import ExperimentRow

logger = logging.getLogger("loopgraph.supervisor")

_NOT_APPLIED = (
    "gained within the noise: not applied, since apply_tentative is off in loopgraph.toml; a replicate that confirms "
    "the gain applies it"
)


@dataclass(frozen=True, slots=True)
class _Case:
    """An experiment with its outcome, where it belongs, and what it was judged."""

    state: State
    workspace: Workspace
    row: ExperimentRow
    outcome: Outcome
    verdict: Verdict


async def conclude(state: State, experiment_id: str, workspace: Workspace) -> None:
    """Make the steps after an outcome that are not made yet; one that fails is left for later and says so."""
    row = await experiments.get_experiment(state.db, experiment_id)
    if row is None or row.outcome is None or not row.outcome.kind.says_something:
        return
    case = _Case(state, workspace, row, row.outcome, await state.judge(row))
    if row.decision is None:
        await _decide(case)
    makers = {Step.APPLY: _apply, Step.ROW: _write_row, Step.LEARN: _learn}
    for step in await conclusions.steps_of(state.db, experiment_id):
        if step.state is StepState.DONE:
            continue
        try:
            made = await makers[step.step](case, step)
        except (OSError, WorkspaceError) as error:
            logger.warning("%s of %s is left for later: %s", step.step.value, experiment_id, error)
            made = StepRow(step.step, StepState.FAILED, _FAILED[step.step].format(error=error), step.place)
        await conclusions.set_step(state.db, experiment_id, made, now=state.clock())


_FAILED = {
    Step.APPLY: "the edit could not be written ({error}); it is tried again when the workspace can be written",
    Step.ROW: "results.tsv could not be written ({error}); the row is tried again later, and the outcome is stored",
    Step.LEARN: "its recipe was not learned yet ({error})",
}


async def _decide(case: _Case) -> None:
    """Record the decision with the steps that follow from it."""
    verdict, workspace = case.verdict, case.workspace
    decision, note, steps = verdict.decision, "", [Step.ROW, Step.LEARN]
    undone = await _undone(case) if decision is Decision.DISCARD else None
    if verdict.is_tentative and workspace.on_win != "leave" and not workspace.apply_tentative:
        decision, note = Decision.DISCARD, _NOT_APPLIED
    elif decision is Decision.KEEP and verdict.kind is not VerdictKind.BASELINE:
        if case.row.edit_id is None or workspace.on_win == "leave":
            note = "the editable file is left to its user"
        else:
            steps = [Step.APPLY, *steps]
    elif undone is not None:
        note = f"undoes {undone}: together its runs do not gain"
    await conclusions.decide(case.state.db, case.row.id, decision, note=note, steps=steps, now=case.state.clock())


async def _undone(case: _Case) -> str | None:
    """Return the earlier run of the same program, from the same parent, that was kept, where there is one."""
    row = case.row
    runs = await experiments.runs_of_group(case.state.db, row.context_id, row.group_key)
    kept = [
        each.id
        for each in runs
        if each.id != row.id and each.decision is Decision.KEEP and each.base_group_key == row.base_group_key
    ]
    return kept[-1] if kept else None


async def _apply(case: _Case, step: StepRow) -> StepRow:
    """Write the edit to the user's file, if that is still what the edit started from; commit a win where asked to."""
    workspace, outcome = case.workspace, case.outcome
    edit = await edits.get_edit(case.state.db, case.row.edit_id or "")
    assert edit is not None  # noqa: S101 - a foreign key
    commits = case.verdict.kind is VerdictKind.WIN and workspace.on_win == "commit"
    with alone_in(case.state.settings.locks_dir, workspace.path):
        there = workspace.read_program() == edit.new_text
        if not there and not write_program(workspace, edit.new_text, expected=edit.base_text):
            return _done(step, f"{workspace.editable} changed meanwhile: the edit was not applied")
        if not commits:
            name = workspace.editable
            return _done(step, f"{name} already holds the edit" if there else f"the edit was applied to {name}")
        if program_at(workspace, "HEAD") == edit.new_text:
            commit = commit_of(workspace, edit.new_text)
            return _done(step, f"{workspace.editable} already holds the edit", commit)
        message = f"{case.row.description} ({workspace.metric} {outcome.metric_value:.6f})"
        commit = commit_program(workspace, message)
    note = f"applied and committed as {commit}" if commit else "applied; git refused the commit"
    return _done(step, note, commit)


async def _write_row(case: _Case, step: StepRow) -> StepRow:
    """Append the row of results.tsv, once: one that was begun is looked for behind the place where it was begun."""
    row = await _result(case)
    with alone_in(case.state.settings.locks_dir, case.workspace.path):
        begun = step.place
        if begun is None:
            begun = results_size(case.workspace)
            await conclusions.set_step(
                case.state.db, case.row.id, StepRow(Step.ROW, StepState.BEGUN, "", begun), now=case.state.clock()
            )
        append_result(case.workspace, row, begun=begun)
    return _done(step, "")


async def _result(case: _Case) -> dict[str, str]:
    db, row, outcome, workspace = case.state.db, case.row, case.outcome, case.workspace
    now = await experiments.get_experiment(db, row.id)
    decision = row.decision if now is None or now.decision is None else now.decision
    undone = await _undone(case) if decision is Decision.DISCARD and case.verdict.decision is decision else None
    remarks = [
        "" if outcome.kind is OutcomeKind.FINISHED else f"{outcome.kind.value}: {outcome.reason}",
        "not distinguishable from noise" if case.verdict.is_tentative else "",
        "" if undone is None else f"undoes the keep of {await _reference(case, undone)}",
    ]
    remark = "; ".join(each for each in remarks if each)
    applied = next((each.commit for each in await conclusions.steps_of(db, row.id) if each.commit), None)
    return {
        "commit": applied or await _reference(case, row.id),
        workspace.metric: f"{outcome.metric_value or 0.0:.6f}",
        "memory_gb": f"{outcome.summary.get('peak_vram_mb', 0.0) / 1024:.1f}",
        "status": "crash" if outcome.metric_value is None else (decision or case.verdict.decision).value,
        "description": row.description + (f" ({remark})" if remark else ""),
    }


async def _reference(case: _Case, experiment_id: str) -> str:
    """Return what names what an experiment ran: the commit that holds it, else the start of its program's hash."""
    row = await experiments.get_experiment(case.state.db, experiment_id)
    if row is None or row.program_hash is None:
        return ""
    text = await edits.program_text(case.state.db, row.program_hash)
    return commit_of(case.workspace, text) or row.program_hash[:7]


async def _learn(case: _Case, step: StepRow) -> StepRow:
    await learned_recipes.learn(case.state, case.row.method_ids)
    return _done(step, "")


def _done(step: StepRow, note: str, commit: str | None = None) -> StepRow:
    return StepRow(step.step, StepState.DONE, note, step.place, commit)
