"""The best program that was run here: named where the file holds another one, and made an edit of the file."""

import difflib
import math
from statistics import fmean

from loopgraph_mcp.api.answers import BestProgram, BestResult
from loopgraph_mcp.api.evidence import Best, Records
from loopgraph_mcp.api.lookups import the_experiment
from loopgraph_mcp.api.state import State
from loopgraph_mcp.code.hashes import is_of_program
from loopgraph_mcp.models import Applied, Context, Decision, EditResult, Present, Refused, VerdictKind
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow

PREFIX = "exp_"
_ALIKE = 0.2  # share of equal lines below which a folder's file is another project's by now


def best_beside(records: Records, program: str | None) -> Best | None:
    """Return what ran best here, unless the file is that program; parses the file where it was not parsed before."""
    best = records.best()
    if program is None or records.here is None or best is None:
        return None
    return None if is_of_program(best.group_key, program, records.here.editable) else best


async def other_program(
    state: State, best: Best, here: Context, program: str, *, decided: object
) -> BestProgram | None:
    """Return the best program that was run here, which the file is not; None where somebody discarded it.

    The store is read for it once, until something is decided.

    Args:
        state: What the verbs share.
        best: What ran best.
        here: The context.
        program: The file.
        decided: What changes with each outcome and decision.
    """
    key = best.context_id, best.group_key, decided, program
    if state.best_known[0] != key:
        state.best_known = key, await _read(state.db, best, here, program)
    return state.best_known[1]


async def _read(db: Database, best: Best, here: Context, program: str) -> BestProgram | None:
    rows = await experiments.runs_of_group(db, best.context_id, best.group_key)
    last = _last_finished(rows)
    if last is None or last.program_hash is None or rows[-1].decision is Decision.DISCARD:
        return None
    if not _is_akin(await edits.program_text(db, last.program_hash), program):
        return None
    return BestProgram(last.id, here.metric, fmean(best.values), len(best.values), last.description)


async def best_result(state: State, *, workspace: str | None) -> BestResult | None:
    """Return what ran best in a workspace, with how sure that is; None where nothing was measured."""
    _, _, context = await state.here.found(workspace)
    best = Records(await state.outcomes(), context).best()
    return None if best is None else await as_result(state.db, best, context)


async def as_result(db: Database, best: Best, context: Context) -> BestResult | None:
    """Return what ran best in a context as an answer: the mean of its runs and how sure that is."""
    last = _last_finished(await experiments.runs_of_group(db, best.context_id, best.group_key))
    if last is None:
        return None
    return BestResult(
        experiment_id=last.id,
        description=last.description,
        metric=context.metric,
        metric_value=fmean(best.values),
        runs=len(best.values),
        standard_error=best.noise.sd / math.sqrt(len(best.values)),
        noise_floor=best.noise.sd,
        replicates=best.noise.replicates,
        noise_factor=best.noise.factor,
        baseline=fmean(best.baseline),
        baseline_runs=len(best.baseline),
        gain=context.direction.gain(fmean(best.baseline), fmean(best.values)),
        beats_noise=best.verdict.kind is VerdictKind.WIN,
        is_baseline=best.verdict.kind is VerdictKind.BASELINE,
    )


def _last_finished(rows: list[ExperimentRow]) -> ExperimentRow | None:
    return next((row for row in reversed(rows) if row.outcome and row.outcome.metric_value is not None), None)


def _is_akin(one: str, other: str) -> bool:
    """Return whether two programs share lines: a folder may hold another project by now."""
    lines = difflib.SequenceMatcher(None, one.splitlines(), other.splitlines(), autojunk=False)
    return lines.quick_ratio() >= _ALIKE


async def as_it_ran(db: Database, experiment_id: str, program: str, workspace_id: str) -> EditResult:
    """Return a file as the program that an experiment ran.

    Raises:
        NotFoundError: There is no such experiment.
    """
    row = await the_experiment(db, experiment_id)
    if row.program_hash is None:
        return Refused(f"the program of {experiment_id}", "this run was recorded without its source code")
    if row.workspace_id != workspace_id:
        return Refused(
            f"the program of {experiment_id}",
            f"it ran in another workspace ({row.workspace_path}) and is no version of this file",
        )
    text = await edits.program_text(db, row.program_hash)
    if text == program:
        return Present(f"the file is the program of {experiment_id}")
    return Applied(text, (f"the file as {experiment_id} ran it ({row.description})",))
