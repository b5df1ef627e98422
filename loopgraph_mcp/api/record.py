"""The verb record_outcome: a decision, or a run made elsewhere: measured by `wrap`, read from its log, or reported."""

import asyncio
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loopgraph_mcp.api import explain, learned_recipes, lookups, run_plan
from loopgraph_mcp.api.answers import RecordAnswer
from loopgraph_mcp.api.evidence import Records
from loopgraph_mcp.api.recovery import TAIL_LINES, read_tail
from loopgraph_mcp.api.state import State
from loopgraph_mcp.errors import RunError, WorkspaceError
from loopgraph_mcp.models import Advice, Decision, NextStep, Origin, Outcome, OutcomeKind, WhatRan
from loopgraph_mcp.runner import schemas, trainlog
from loopgraph_mcp.runner.metric_log import read_metric
from loopgraph_mcp.runner.printed import NotFound, Wanted
from loopgraph_mcp.runner.workspace import Workspace, files_unlike, program_at, resolved
from loopgraph_mcp.store import edits, experiments, retrievals
from loopgraph_mcp.store.experiments import ExperimentRow, NewExperiment
from loopgraph_mcp.store.version import read_newest
from loopgraph_mcp.text import plain_line

_MAX_PATH = 1_000
MAX_TOKENS = 10**15  # far beyond what anybody spends, and what the store can hold
MAX_USD = 10**9
_MAX_METRIC = 1e30  # its square is a number still


@dataclass(frozen=True, slots=True)
class Report:
    """What is said of a run that LoopGraph did not start.

    Args:
        method_id: The method that it put into practice.
        metric_value: Its metric, as reported; None where it failed, or where its log says it.
        status: How it ended, where that is not clear from the metric.
        log: Its log: the text, or a path inside the workspace.
        commit: The commit that holds what ran.
        measured: Whether LoopGraph's own wrapper measured it.
    """

    method_id: str | None = None
    metric_value: float | None = None
    status: OutcomeKind | None = None
    description: str = ""
    log: str | None = None
    commit: str | None = None
    measured: bool = False


async def record_outcome(
    state: State,
    report: Report,
    *,
    experiment_id: str | None,
    decision: Decision | None,
    tokens: int | None,
    cost_usd: float | None,
    workspace: str | None,
) -> RecordAnswer:
    """Record what was decided on an experiment, or the outcome of a run made outside of LoopGraph."""
    _check_cost(tokens, cost_usd)
    if experiment_id is None:
        row = await _record_report(state, report, workspace=workspace)
    else:
        row = await _finished(state, experiment_id, report)
    newest = await read_newest(state.db)
    judged = row.origin is not Origin.REPORTED and (row.outcome is None or row.outcome.kind.says_something)
    verdict = await state.judge(row, newest) if judged else None
    decided = decision or row.decision or (None if verdict is None else verdict.decision)
    if decided is not None:
        await experiments.add_decision(
            state.db,
            row.id,
            decided,
            made_by="loopgraph" if decision is None else "agent",
            commit=report.commit,
            note=plain_line(report.description, limit=500),
            now=state.clock(),
        )
    if row.edit_id is not None:  # what one was only told of holds no patch
        await learned_recipes.learn(state, row.method_ids)
    if tokens is not None or cost_usd is not None:
        await retrievals.add_cost(
            state.db, "agent", subject_id=row.id, tokens=tokens, cost_usd=cost_usd, now=state.clock()
        )
    context = await edits.get_context(state.db, row.context_id)
    records = Records(await state.outcomes(newest), context)
    return RecordAnswer(
        experiment_id=row.id,
        metric=context.metric,
        metric_value=None if row.outcome is None else row.outcome.metric_value,
        verdict=None if verdict is None else verdict.kind,
        gain=None if verdict is None else verdict.gain,
        noise_floor=None if verdict is None else verdict.noise_floor,
        p_win=None if verdict is None else verdict.p_win,
        decision=decided,
        standings={each: records.of(each).standing for each in row.method_ids},
        next_step=explain.after_report() if verdict is None else verdict.next_step,
        origin=row.origin or Origin.MEASURED,
        noise="" if verdict is None else explain.noise(verdict.noise),
        tentative=verdict is not None and verdict.is_tentative and decided is Decision.KEEP,
    )


async def _finished(state: State, experiment_id: str, report: Report) -> ExperimentRow:
    """Return an experiment that is done, whose outcome the caller leaves as it was measured.

    Raises:
        NotFoundError: There is none.
        RunError: It is not done, or the caller gives another outcome.
    """
    if any(each is not None for each in (report.metric_value, report.status, report.method_id, report.log)):
        raise RunError(
            f"the outcome of {experiment_id} was measured; leave out metric_value, status, method_id and log"
        )
    row = await lookups.the_experiment(state.db, experiment_id)
    if row.outcome is None:
        wait = NextStep(Advice.WAIT, "get_experiment", {"experiment_id": experiment_id})
        raise RunError(f"{experiment_id} is still {row.state.value}", next_step=wait)
    return row


def _check_cost(tokens: int | None, cost_usd: float | None) -> None:
    """Refuse a cost that cannot be stored, before anything is.

    Raises:
        RunError: It cannot.
    """
    if tokens is not None and not 0 <= tokens <= MAX_TOKENS:
        raise RunError(f"tokens is {schemas.shown(tokens)}; give a whole number from 0 to {MAX_TOKENS:,}")
    if cost_usd is not None and not 0 <= cost_usd <= MAX_USD:
        raise RunError(f"cost_usd is {schemas.shown(cost_usd)}; give a number from 0 to {MAX_USD:,}")


def _check_metric(value: float) -> None:
    """Refuse a number that no statistics can be made of.

    Raises:
        RunError: It is too large.
    """
    if abs(value) > _MAX_METRIC:
        raise RunError(f"metric_value is {value:g}; give a number below {_MAX_METRIC:g}, or status='diverged'")


async def _record_report(state: State, report: Report, *, workspace: str | None) -> ExperimentRow:
    """Store a run made elsewhere as a finished experiment, to be compared with the incumbent of this moment.

    Raises:
        NotFoundError: No such method.
        RunError: There is nothing to record, or metric, status and log contradict one another.
    """
    if report.metric_value is None and report.status is None and report.log is None:
        raise RunError(
            "nothing to record: give experiment_id to decide on a run of LoopGraph's, or metric_value, log or status "
            "of a run made elsewhere"
        )
    method_ids = () if report.method_id is None else ((await lookups.the_method(state.db, report.method_id)).id,)
    where, device, context = await state.here.found(workspace)
    outcome, origin = await asyncio.to_thread(_read, where, report)
    db = state.db
    context_id = await edits.context_id(db, context)
    text = None if report.commit is None else await asyncio.to_thread(_program_of, where, report.commit)
    if origin is not Origin.LOGGED:
        text = None  # a bare number proves no program
    ran = None if text is None else await _what_ran(state, where, report.commit or "", text)
    incumbent = await experiments.last_kept(db, context_id)
    return await experiments.add_finished(
        db,
        NewExperiment(
            context_id=context_id,
            device_slot=device.slot,
            description=plain_line(report.description, limit=200) or " + ".join(method_ids) or "reported run",
            seed=run_plan.DEFAULT_SEED,
            timeout_s=where.timeout_s,
            silence_s=where.silence_s,
            method_ids=method_ids,
            program_hash=None if text is None else await run_plan.keep_program(db, text, where.editable),
            base_hash=None if text is None or incumbent is None else incumbent.program_hash,
            ran=ran,
            base_group_key=None if incumbent is None else incumbent.group_key,
        ),
        outcome,
        origin=origin,
        now=state.clock(),
    )


def _program_of(where: Workspace, commit: str) -> str:
    """Return the editable file's text at a commit that a report names.

    Raises:
        RunError: Git does not hold it.
    """
    text = program_at(where, commit)
    if text is None:
        raise RunError(
            f"commit {commit[:80]!r}: git holds no {where.editable} of it in {where.path}; give HEAD or the hash of a "
            "commit there, or leave it out"
        )
    return text


async def _what_ran(state: State, where: Workspace, commit: str, program: str) -> WhatRan | None:
    """Return what identifies the run of a commit; None where the other files are not as the commit holds them."""
    inputs = await state.here.inputs(where)
    if await asyncio.to_thread(files_unlike, where, commit, inputs.files):
        return None
    return inputs.identify(program, where.editable)


def _read(where: Workspace, report: Report) -> tuple[Outcome, Origin]:
    """Return what came of a reported run, and whose word that is.

    Raises:
        RunError: Metric, status and log contradict one another.
    """
    if report.metric_value is not None and report.status not in {None, OutcomeKind.FINISHED}:
        raise RunError(f"status is {report.status.value}, and a failed run has no metric_value; leave one of them out")
    if report.log is not None:
        return _from_log(where, report), Origin.LOGGED
    value = report.metric_value
    kind = report.status or (OutcomeKind.CRASHED if value is None else OutcomeKind.FINISHED)
    if (kind is OutcomeKind.FINISHED) != (value is not None):
        raise RunError("a finished run has a metric_value and a failed one has none; give one or change the status")
    if value is not None and not math.isfinite(value):
        raise RunError(f"metric_value is {value}; record a diverged run with status='diverged' and no metric")
    if value is not None:
        _check_metric(value)
    if report.measured:
        return Outcome(kind, value, "measured by loopgraph_mcp.wrap", {}), Origin.MEASURED
    origin = Origin.TRUSTED if where.trust_reports else Origin.REPORTED
    return Outcome(kind, value, "reported by the agent, without a log", {}), origin


def _from_log(where: Workspace, report: Report) -> Outcome:
    """Read the outcome of a run from the log that came with its report, as that of a run of our own is read.

    Raises:
        RunError: The log holds no metric, or another one than was reported.
    """
    wanted = Wanted(where.metric, where.direction, where.pattern, where.take)
    with _log_file(where, report.log or "") as path:
        tail = trainlog.tail_lines(read_tail(path), count=TAIL_LINES)
        if report.status is not None and report.status is not OutcomeKind.FINISHED:
            return Outcome(report.status, None, "reported by the agent, with its log", {}, tail)
        found = read_metric(path, wanted)
    if isinstance(found, NotFound):
        raise RunError(f"{found.reason}; if the run failed, say how with status")
    if not math.isfinite(found.value):
        return Outcome(OutcomeKind.DIVERGED, None, f"{where.metric} is {found.value}", {}, tail)
    _check_metric(found.value)
    if report.metric_value is not None and not math.isclose(report.metric_value, found.value, rel_tol=1e-4):
        raise RunError(
            f"metric_value is {report.metric_value:g}, the log says {where.metric} {found.value:g}; leave it out"
        )
    numbers = {name: number for name, number in found.summary.items() if math.isfinite(number)}
    return Outcome(
        OutcomeKind.FINISHED, found.value, f"{where.metric} {found.value:.6f}, read from the log", numbers, tail
    )


@contextmanager
def _log_file(where: Workspace, log: str) -> Iterator[Path]:
    """Give the file that holds a log: one inside the workspace where a line names it, else one made of the text.

    Raises:
        RunError: The path leads outside, or names no file.
    """
    name = log.strip()
    if "\n" not in name and len(name) <= _MAX_PATH and (_is_path(name) or _is_file(where.path / name)):
        try:
            path = resolved(where.path / name)
        except WorkspaceError as error:
            raise RunError(f"log: {error}") from error
        if not path.is_relative_to(where.path):
            raise RunError(
                f"log {name!r}: lies outside of {where.path}; copy the log into the workspace or give its text"
            )
        if not path.is_file():
            what = "no file of text" if path.exists() else "no such file"
            raise RunError(f"log {name!r}: {what} in {where.path}; give the log's path in the workspace, or its text")
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.log"
        path.write_bytes(log.encode("utf-8", "replace"))
        yield path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        return False


def _is_path(line: str) -> bool:
    """Return whether a line is a path and no log of one line."""
    return " " not in line and ("/" in line or line.endswith((".log", ".txt", ".out", ".jsonl")))
