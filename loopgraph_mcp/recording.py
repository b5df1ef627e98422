"""Records runs that were made outside of LoopGraph: measured by its wrapper, read from their log, or only reported."""

import asyncio
import math
from dataclasses import dataclass

from loopgraph_mcp import launch, lookups, trainlog, wording
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.models import Origin, Outcome, OutcomeKind
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow, NewExperiment
from loopgraph_mcp.surroundings import Surroundings
from loopgraph_mcp.workspace import Workspace, program_at

_MAX_LOG_BYTES = 64 * 2**20
_TAIL_LINES = 40


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


async def record_report(
    db: Database, here: Surroundings, report: Report, *, workspace: str | None, now: float
) -> ExperimentRow:
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
    method_ids = () if report.method_id is None else ((await lookups.the_method(db, report.method_id)).id,)
    where, device, context = await here.found(workspace)
    outcome, origin = await asyncio.to_thread(_read, where, report)
    context_id = await edits.context_id(db, context)
    text = None
    if origin is Origin.LOGGED and report.commit is not None:
        text = await asyncio.to_thread(program_at, where, report.commit)
    inputs = None if text is None else await asyncio.to_thread(launch.read_inputs, where)
    incumbent = await experiments.last_kept(db, context_id)
    return await experiments.add_finished(
        db,
        NewExperiment(
            context_id=context_id,
            device_slot=device.slot,
            description=wording.description(report.description, method_ids, None),
            seed=launch.DEFAULT_SEED,
            timeout_s=where.timeout_s,
            silence_s=where.silence_s,
            method_ids=method_ids,
            program_hash=None if text is None else await launch.keep_program(db, text, where.editable),
            base_hash=None if text is None or incumbent is None else incumbent.program_hash,
            ran=None if text is None or inputs is None else inputs.identify(text, where.editable),
            base_group_key=None if incumbent is None else incumbent.group_key,
        ),
        outcome,
        origin=origin,
        now=now,
    )


def _read(where: Workspace, report: Report) -> tuple[Outcome, Origin]:
    """Return what came of a reported run, and whose word that is.

    Raises:
        RunError: Metric, status and log contradict one another.
    """
    if report.log is not None:
        return _from_log(where, report), Origin.LOGGED
    value = report.metric_value
    kind = report.status or (OutcomeKind.CRASHED if value is None else OutcomeKind.FINISHED)
    if (kind is OutcomeKind.FINISHED) != (value is not None):
        raise RunError("a finished run has a metric_value and a failed one has none; give one or change the status")
    if value is not None and not math.isfinite(value):
        raise RunError(f"metric_value is {value}; record a diverged run with status='diverged' and no metric")
    if report.measured:
        return Outcome(kind, value, "measured by loopgraph_mcp.wrap", {}), Origin.MEASURED
    origin = Origin.TRUSTED if where.trust_reports else Origin.REPORTED
    return Outcome(kind, value, "reported by the agent, without a log", {}), origin


def _from_log(where: Workspace, report: Report) -> Outcome:
    """Read the outcome of a run from the log that came with its report, as that of a run of our own is read."""
    text = _log_text(where, report.log or "")
    summary = trainlog.parse_summary(text, where.metric)
    value = summary.get(where.metric)
    tail = trainlog.tail_lines(text, count=_TAIL_LINES)
    if report.status not in {None, OutcomeKind.FINISHED}:
        assert report.status is not None  # noqa: S101 - just seen
        return Outcome(report.status, None, "reported by the agent, with its log", {}, tail)
    if value is None or not math.isfinite(value):
        raise RunError(f"the log has no line `{where.metric}: NUMBER`; say how the run ended with status")
    if report.metric_value is not None and not math.isclose(report.metric_value, value, rel_tol=1e-4):
        raise RunError(
            f"metric_value is {report.metric_value:g}, the log says {where.metric} {value:g}; leave metric_value out"
        )
    numbers = {name: number for name, number in summary.items() if math.isfinite(number)}
    return Outcome(OutcomeKind.FINISHED, value, f"{where.metric} {value:.6f}, read from the log", numbers, tail)


def _log_text(where: Workspace, log: str) -> str:
    """Return the text of a log: a path inside the workspace where it is one line that names a file, else the text.

    Raises:
        RunError: The path leads outside, or cannot be read.
    """
    if "\n" in log.strip() or len(log) > 4_096:
        return log
    path = (where.path / log.strip()).resolve()
    if not path.is_relative_to(where.path):
        raise RunError(f"{log.strip()}: lies outside of {where.path}; copy the log into the workspace or give its text")
    if not path.is_file():
        return log
    try:
        with path.open("rb") as file:
            return file.read(_MAX_LOG_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise RunError(f"{path}: the log cannot be read ({error})") from error
