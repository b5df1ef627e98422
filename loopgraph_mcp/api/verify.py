"""Doubts a run's number before it counts: what cannot be, what took longer than allowed, what a second look denies.

A program prints its own metric, so it can print any. Where the workspace declares `verify`, a run that would be kept is
measured again from the state that it left, with all code but its program as the workspace holds it.
"""

import asyncio
import dataclasses
import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from loopgraph_mcp.models import Direction, Outcome, OutcomeKind
from loopgraph_mcp.ranking.verdicts import LOAD_LIMIT
from loopgraph_mcp.runner import failures, inputs, processes, restoring, trainlog
from loopgraph_mcp.runner.confinement import View
from loopgraph_mcp.runner.metric_log import read_metric
from loopgraph_mcp.runner.plain_files import open_plain
from loopgraph_mcp.runner.printed import NotFound, Wanted
from loopgraph_mcp.runner.workspace import CONFIG_NAME, Workspace, verify_command
from loopgraph_mcp.store import edits, experiments, outcomes
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.store.outcomes import Measured
from loopgraph_mcp.text import compile_later

STATE_DIR = "state"  # in the run's folder; programs get it as LOOPGRAPH_STATE_DIR
LOG_NAME = "verify.log"
_TOLERANCE = 5e-4  # of the value: other kernels and batches move a loss by less, and lies within it are worth little
_OVER_BUDGET, _OVER_BUDGET_S = 1.1, 5.0  # a last step may be long, and a clock may begin early
_POLL_S = 0.1
_GRACE_S = 2.0
_TAIL_BYTES = 64 * 2**10

# The largest step from one best to the next in 52 published histories of val_bpb is 1.4; other losses may fall further.
_FACTOR_OF_BITS, _FACTOR = 3.0, 10.0
_BITS = compile_later(r"bpb|bpc|bits?_per", re.IGNORECASE)
_NEVER_NEGATIVE = compile_later(
    r"bpb|bpc|bits?_per|ppl|perplexity|(?:^|_)(?:error|err|wer|cer|mse|rmse|mae|seconds|latency)(?:_|$)", re.IGNORECASE
)
_LOSS = compile_later(r"loss|nll|entropy", re.IGNORECASE)
_SHARE = compile_later(
    r"(?:^|_)(?:acc|accuracy|f1|auc|auroc|precision|recall|iou|miou|dice|top[15])(?:_|$)", re.IGNORECASE
)


# ------------------------------------------------------------------------------------------- pure judges


def over_budget(summary: Mapping[str, float], budget_s: float) -> str:
    """Return why a run trained for too long by its own summary; empty where it did not or does not say."""
    took = summary.get("training_seconds")
    if took is None or took <= _OVER_BUDGET * budget_s + _OVER_BUDGET_S:
        return ""
    return (
        f"it trained for {took:g} s (training_seconds) with a budget of {budget_s:g} s: its number is void. Stop the "
        f"training at LOOPGRAPH_BUDGET_S, or raise budget_s in {CONFIG_NAME}"
    )


def implausible(
    value: float, earlier: Sequence[float], metric: str, direction: Direction, *, factor: float | None = None
) -> str:
    """Return why a value cannot be believed as it is; empty where it can.

    Args:
        value: What a run measured.
        earlier: What counts already in its context.
        metric: The metric's name.
        direction: Which way it improves.
        factor: How many times better than the best so far it may be; None for the metric's default.
    """
    positive = bool(earlier) and min(earlier) > 0
    if value < 0 and (_NEVER_NEGATIVE.search(metric) or (positive and _LOSS.search(metric))):
        return f"{metric} cannot be negative" if not positive else f"{metric} is negative, and was positive before"
    if _SHARE.search(metric) and (value > 100 or (earlier and value > 1 >= max(earlier))):
        return f"{metric} is a share, and this is above {100 if value > 100 else 1}"
    if factor is None and direction is Direction.LOWER:
        factor = _FACTOR_OF_BITS if _BITS.search(metric) else _FACTOR if _LOSS.search(metric) else None
    if factor is None or not positive:
        return ""
    best = min(earlier) if direction is Direction.LOWER else max(earlier)
    far = value < best / factor if direction is Direction.LOWER else value > best * factor
    return f"it is more than {factor:g} times better than the best so far, {best:g}" if far else ""


def gains(value: float, earlier: Sequence[Measured], experiment: ExperimentRow, direction: Direction) -> bool:
    """Return whether a value is better than its parent's mean; where the parent was never measured, any is."""
    if experiment.base_group_key in {None, experiment.group_key}:
        return False  # a baseline: the user's own program
    parent = [each for each in earlier if each.group == experiment.base_group_key]
    quiet = [each.value for each in parent if (each.other_load or 0.0) <= LOAD_LIMIT]
    values = quiet or [each.value for each in parent]
    return not values or direction.gain(fmean(values), value) > 0


def agrees(printed: float, verified: float) -> bool:
    """Return whether two measurements of one state are the same up to rounding."""
    return math.isclose(printed, verified, rel_tol=_TOLERANCE, abs_tol=1e-9)


# ------------------------------------------------------------------------------------------- what runs


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a run was: its copy of the workspace, its environment, what is only linked, and how it sees files."""

    code: Path
    environment: Mapping[str, str]
    linked: tuple[str, ...] = ()
    views: tuple[View, ...] = ()


def place_of(
    code: Path, environment: Mapping[str, str], made: inputs.Made | None, views: tuple[View, ...] = ()
) -> Place:
    """Return where a run was, from its record."""
    return Place(code, environment, () if made is None else tuple(made.linked), views)


def state_dir(workspace: Workspace, run_dir: Path) -> dict[str, str]:
    """Make the folder in which a program leaves what `verify` needs; return the variable that names it."""
    if not workspace.verify:
        return {}
    (run_dir / STATE_DIR).mkdir(exist_ok=True)
    return {"LOOPGRAPH_STATE_DIR": str(run_dir / STATE_DIR)}


async def doubted(
    db: Database, experiment: ExperimentRow, workspace: Workspace, outcome: Outcome, place: Place | None
) -> Outcome:
    """Return an outcome as it may be stored: verified, set aside, void, or as it is where there is no reason to doubt.

    Args:
        db: The store.
        experiment: The run.
        workspace: The user's folder.
        outcome: How it ended by its log.
        place: Where it was; None where it cannot be measured again, as its supervisor was killed.
    """
    value = outcome.metric_value
    if outcome.kind is not OutcomeKind.FINISHED or value is None:
        return outcome
    try:
        if reason := over_budget(outcome.summary, experiment.budget_s):
            return _without_value(outcome, OutcomeKind.VOID, reason)
        earlier = await outcomes.measured_in(db, experiment.context_id)
        odd = implausible(
            value,
            [each.value for each in earlier],
            workspace.metric,
            workspace.direction,
            factor=workspace.suspicious_factor,
        )
        if not odd and not (workspace.verify and gains(value, earlier, experiment, workspace.direction)):
            return outcome
        if not workspace.verify:
            return _without_value(outcome, OutcomeKind.NO_METRIC, _set_aside(workspace.metric, value, odd))
        if place is None:
            reason = f"{workspace.metric} {value:g} was not verified before its supervisor was killed; run it again"
            return _without_value(outcome, OutcomeKind.INTERRUPTED, reason)
        return await _verified(db, experiment, workspace, outcome, place)
    finally:
        shutil.rmtree(Path(experiment.run_dir or "") / STATE_DIR, ignore_errors=True)


def _set_aside(metric: str, value: float, odd: str) -> str:
    return (
        f"{metric} {value:g} is set aside: {odd}. It is not kept and counts for nothing. Read the log and the change; "
        f"if the number is right, declare `verify`, or raise suspicious_factor, in {CONFIG_NAME} and run it again"
    )


def _without_value(outcome: Outcome, kind: OutcomeKind, reason: str) -> Outcome:
    summary = outcome.summary if kind is OutcomeKind.NO_METRIC else {}
    return dataclasses.replace(outcome, kind=kind, metric_value=None, reason=reason, summary=summary)


async def _verified(
    db: Database, experiment: ExperimentRow, workspace: Workspace, outcome: Outcome, place: Place
) -> Outcome:
    """Measure a run again; return its outcome with what came of that."""
    began, command = time.monotonic(), verify_command(workspace)
    log = Path(experiment.run_dir or "") / LOG_NAME
    try:
        program = await edits.program_text(db, experiment.program_hash or "")
        await asyncio.to_thread(restoring.restore, workspace, place.code, program, place.linked)
        log.unlink(missing_ok=True)
        child = processes.start_training(command, place.code, place.environment, log, place.views)
    except OSError as error:
        reason = f"it could not be verified ({error}); correct that, then run it again"
        return _without_value(outcome, OutcomeKind.INTERRUPTED, reason)
    started = processes.start_mark(child.pid)
    descendants = processes.Descendants(
        processes.Training(experiment.id, Path(experiment.run_dir or ""), log, child.pid, started)
    )
    deadline = began + experiment.timeout_s
    cancelled = False
    try:
        while child.poll() is None and time.monotonic() < deadline and not cancelled:
            await asyncio.sleep(_POLL_S)
            descendants.look()
            row = await experiments.get_experiment(db, experiment.id)
            cancelled = row is None or row.cancel_requested
    finally:
        late = child.poll() is None
        await asyncio.to_thread(descendants.end, grace_s=_GRACE_S)
        child.wait()
    if cancelled:
        return _without_value(outcome, OutcomeKind.CANCELLED, "cancelled while it was verified")
    if late:
        reason = f"`verify` did not end within {experiment.timeout_s:g} s (timeout_s): its number is void"
        return _without_value(outcome, OutcomeKind.VOID, reason)
    found = await asyncio.to_thread(_read, workspace, log, child.returncode)
    if isinstance(found, Outcome):
        return found
    printed = outcome.metric_value or 0.0
    how = f"by `{' '.join(workspace.verify)}` from what it saved, in {time.monotonic() - began:.0f} s"
    if not agrees(printed, found):
        reason = f"it printed {workspace.metric} {printed:.6g}, and measured again {how} it is {found:.6g}: void"
        return _without_value(outcome, OutcomeKind.VOID, reason)
    return dataclasses.replace(outcome, reason=f"{outcome.reason}; verified: {workspace.metric} {found:.6f} {how}")


def _read(workspace: Workspace, log: Path, exit_code: int) -> float | Outcome:
    """Return what `verify` measured, or what its failure means for the run."""
    try:
        with os.fdopen(open_plain(log), "rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            tail = file.read().decode("utf-8", "replace")
    except OSError as error:  # it was removed or replaced by what it measured
        return Outcome(
            OutcomeKind.VOID, None, f"its number is void: the output of `verify` cannot be read ({error})", {}
        )
    last = trainlog.tail_lines(tail, count=1)[:300]
    nothing = Outcome(OutcomeKind.VOID, None, "", {}, trainlog.tail_lines(tail, count=40))
    if exit_code != 0:
        fault = failures.fault_of_surroundings(exit_code, tail, absent=lambda _: None, is_own_module=lambda _: True)
        if fault:
            return dataclasses.replace(nothing, kind=OutcomeKind.INTERRUPTED, reason=f"`verify`: {fault}; run it again")
        reason = f"its number is void: `verify` ended with status {exit_code} and measured nothing ({last!r})"
        return dataclasses.replace(nothing, reason=reason)
    found = read_metric(log, Wanted(workspace.metric, workspace.direction, workspace.pattern, workspace.take))
    if isinstance(found, NotFound):
        return dataclasses.replace(nothing, reason=f"its number is void: `verify`: {found.reason}")
    return found.value
