"""Sees one experiment through in a process of its own: waits for the device, runs, watches, judges, records.

Started detached as `python -m loopgraph_mcp.api.supervisor EXPERIMENT`; it needs no server to finish.
"""

import gc

gc.disable()  # while modules are imported: they stay, and looking through them takes a tenth of a start

import asyncio
import dataclasses
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from loopgraph_mcp.api import conclude, recovery, verify
from loopgraph_mcp.api.recovery import (
    GRACE_S,
    LOG_NAME,
    OUTCOME_NAME,
    TAIL_LINES,
    forget_lock,
    is_abandoned,
    missing_in_copy,
    read_tail,
    recover,
    slots_beside,
)
from loopgraph_mcp.api.state import State
from loopgraph_mcp.config import Settings, read_settings
from loopgraph_mcp.errors import StoreError, WorkspaceError
from loopgraph_mcp.models import Outcome, OutcomeKind
from loopgraph_mcp.runner import confinement, failures, inputs, kernel, processes, queue, trainlog
from loopgraph_mcp.runner.device import Device, device_at
from loopgraph_mcp.runner.environment import for_training
from loopgraph_mcp.runner.load import LoadMeter
from loopgraph_mcp.runner.locks import inherited_lock, try_lock
from loopgraph_mcp.runner.memory_kills import count_memory_kills
from loopgraph_mcp.runner.metric_log import read_metric
from loopgraph_mcp.runner.printed import NotFound, Wanted
from loopgraph_mcp.runner.room import RoomMeter
from loopgraph_mcp.runner.workspace import Workspace, changed_protected, load_workspace, protected_hashes, run_command
from loopgraph_mcp.store import agents, conclusions, experiments
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow, ProcessId

gc.freeze()
gc.enable()

POLL_S = 0.25
_MOST_STEP_S = 5.0  # between two looks at a run on a busy machine
MAX_LOG_BYTES = 64 * 2**20
_STORE_RETRY_S = 5.0
_STORE_PATIENCE_S = 3_600.0
_LOCK_PATIENCE_S = 5.0
_NOT_IN_COPY = "not in the run's copy"
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # the second as a shell says it of what it ran
# As torchrun and PyTorch's data loader say it of a worker.
_SAYS_KILLED = re.compile(r"exitcode {0,9}: -9\b|Signal 9 \(SIGKILL\) received|killed by signal: Killed")
_LAST_CHARACTERS = 4_000

logger = logging.getLogger("loopgraph.supervisor")


async def supervise(settings: Settings, experiment_id: str, lock: int | None = None) -> None:
    """Take a queued experiment to its outcome; do nothing if another process already has it.

    Args:
        settings: Where the store and the locks are.
        experiment_id: The experiment.
        lock: File descriptor of its lock, where whoever started this process passed it on.
    """
    async with Database.open(settings.db_path) as db:
        await db.sync_every_commit()  # minutes of training stand behind an outcome
        with ExitStack() as held:
            passed_on = None if lock is None else inherited_lock(settings.locks_dir, experiment_id, lock)
            if passed_on is not None:
                held.enter_context(passed_on)
            elif not await _hold(settings, experiment_id, held):
                return
            if await _finished_another_s(db, settings, experiment_id):
                forget_lock(settings, experiment_id)
                return
            me = ProcessId(os.getpid(), processes.start_mark(os.getpid()) or 0.0)
            if not await experiments.claim(db, experiment_id, me):
                return
            experiment = await experiments.get_experiment(db, experiment_id)
            assert experiment is not None  # noqa: S101 - it was just claimed
            try:
                await _run(db, settings, experiment)
            except asyncio.CancelledError:
                outcome = await recovery.outcome_found(db, experiment) or _interrupted(
                    "the supervisor was asked to end"
                )
                await _conclude(db, settings, experiment, _workspace_of(experiment), outcome)
            except Exception as error:
                logger.exception("the supervisor failed")
                outcome = await recovery.outcome_found(db, experiment) or _interrupted(
                    f"the supervisor failed: {error}"
                )
                await _conclude(db, settings, experiment, _workspace_of(experiment), outcome)
    forget_lock(settings, experiment_id)


async def _finished_another_s(db: Database, settings: Settings, experiment_id: str) -> bool:
    """Finish an experiment whose outcome is known and whose supervisor was killed; return whether it was one."""
    experiment = await experiments.get_experiment(db, experiment_id)
    if experiment is None or experiment.outcome is None:
        return False
    await _settle(db, settings, experiment, _workspace_of(experiment))
    return True


def _workspace_of(experiment: ExperimentRow) -> Workspace | None:
    """Return an experiment's workspace, or None where it is no longer one."""
    try:
        return load_workspace(Path(experiment.workspace_path))
    except WorkspaceError as error:
        logger.warning("the workspace cannot be read: %s", error)
        return None


def _interrupted(reason: str) -> Outcome:
    return Outcome(OutcomeKind.INTERRUPTED, None, f"{reason}; run it again", {})


async def _hold(settings: Settings, experiment_id: str, held: ExitStack) -> bool:
    """Take the experiment's own lock; somebody who asks whether it is held may be in the way for a moment."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while time.monotonic() < deadline:
        if _take(settings, [experiment_id], held):
            return True
        await asyncio.sleep(0.05)
    return False


def _take(settings: Settings, locks: Sequence[str], held: ExitStack) -> bool:
    """Take locks until `held` is closed, if all of them are free; hold none of them otherwise."""
    with ExitStack() as attempt:
        if not all(attempt.enter_context(try_lock(settings.locks_dir, lock)) for lock in locks):
            return False
        held.push(attempt.pop_all())
    return True


async def _write(db: Database, experiment: ExperimentRow, outcome: Outcome) -> bool:
    """Write the outcome; where the disk is full, keep trying for an hour rather than lose it."""
    deadline = time.monotonic() + _STORE_PATIENCE_S
    while True:
        try:
            return await experiments.add_outcome(db, experiment.id, outcome, now=time.time())
        except StoreError as error:
            logger.warning("the outcome %s is not written yet: %s", outcome.reason, error)
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_STORE_RETRY_S)


async def _run(db: Database, settings: Settings, experiment: ExperimentRow) -> None:
    workspace = load_workspace(Path(experiment.workspace_path))
    device = device_at(experiment.device_slot)
    with ExitStack() as held:
        if await _wait_for_turn(db, settings, experiment, held):
            await recover(db, settings)  # what a killed supervisor left running would share the device with us
            outcome = await _train(db, settings, experiment, workspace, device)
        else:
            outcome = Outcome(OutcomeKind.CANCELLED, None, "cancelled while it waited for the device", {})
        await _conclude(db, settings, experiment, workspace, outcome)


async def _wait_for_turn(db: Database, settings: Settings, experiment: ExperimentRow, held: ExitStack) -> bool:
    """Wait until it is this experiment's turn among those of its device that live, and the locks of its cards are ours.

    Returns False where it was cancelled meanwhile. The lock is held until `held` is closed.
    """
    locks = device_at(experiment.device_slot).locks
    while True:
        if await _cancelled(db, experiment.id):
            return False
        waiting, served = await agents.queue(db, *await slots_beside(db, experiment.device_slot))
        for each in queue.in_turn(waiting, served):
            if each == experiment.id and _take(settings, locks, held):
                return True
            if each == experiment.id or not await _is_abandoned(db, settings, each):
                break
        await asyncio.sleep(POLL_S)


async def _is_abandoned(db: Database, settings: Settings, experiment_id: str) -> bool:
    row = await experiments.get_experiment(db, experiment_id)
    return row is None or is_abandoned(settings, row)


async def _cancelled(db: Database, experiment_id: str) -> bool:
    row = await experiments.get_experiment(db, experiment_id)
    return row is None or row.cancel_requested


async def _train(
    db: Database, settings: Settings, experiment: ExperimentRow, workspace: Workspace, device: Device
) -> Outcome:
    """Run the training command in the run's copy of the workspace, and say how it ended."""
    run_dir = Path(experiment.run_dir or "")
    made = inputs.read_made(run_dir)
    code, log = run_dir / (made.code if made else inputs.CODE_DIR), run_dir / LOG_NAME
    uv_environment = workspace.path / ".venv" if workspace.command[0] == "uv" else None
    environment = {
        **for_training(os.environ, declared=workspace.context_env, named=workspace.pass_env),
        # a run's copy must not build an environment of its own
        **({} if uv_environment is None else {"UV_PROJECT_ENVIRONMENT": str(uv_environment)}),
        "PYTHONUNBUFFERED": "1",
        "LOOPGRAPH_BUDGET_S": f"{experiment.budget_s:g}",
        "LOOPGRAPH_SEED": str(experiment.seed),
        processes.MARKER: experiment.id,
        **device.environment(),
        **verify.state_dir(workspace, run_dir),
    }
    own = confinement.Own(settings.home, settings.db_path, run_dir, records=(OUTCOME_NAME,))
    views = confinement.views_of(own, made, workspace.path, environment) if workspace.confine else ()
    protected = protected_hashes(workspace, code)
    command = run_command(workspace)
    load, room = LoadMeter.start(device), RoomMeter(run_dir)
    kills = count_memory_kills()
    try:
        child = processes.start_training(command, code, environment, log, views)
    except OSError as error:
        reason = f"the run command {command[0]!r} could not be started ({error}); correct `command` in loopgraph.toml"
        return _interrupted(reason)
    started = processes.start_mark(child.pid) or 0.0
    descendants = processes.Descendants(processes.Training(experiment.id, run_dir, log, child.pid, started))
    try:
        await experiments.mark_running(db, experiment.id, ProcessId(child.pid, started), now=time.time())
        stopped = await _watch(db, experiment, child, log, descendants, room)
    finally:
        room.look()  # before what it started ends and frees what it had written
        descendants.end(grace_s=GRACE_S)
        child.wait()
    tail = read_tail(log)
    outcome = stopped
    if outcome is None:
        killed_for_memory = kills is not None and (count_memory_kills() or 0) > kills
        outcome = await asyncio.to_thread(
            _outcome_of_exit, child.returncode, log, tail, workspace, code, killed_for_memory=killed_for_memory
        )
    if room.was_full and _may_be_cut(outcome, tail):
        outcome = _interrupted("the disk with the run's folder was full, so its log does not say how it ended")
    if reason := await asyncio.to_thread(_why_void, workspace, code, protected, made):
        outcome = Outcome(OutcomeKind.VOID, None, reason, {})
    failed = outcome.kind in {OutcomeKind.CRASHED, OutcomeKind.NO_METRIC, OutcomeKind.INTERRUPTED}
    if failed and _NOT_IN_COPY not in outcome.reason:
        refused = inputs.read_only_for_it(tail, made) if views else ""
        kind = OutcomeKind.INTERRUPTED if refused and outcome.kind is OutcomeKind.CRASHED else outcome.kind
        said = [outcome.reason, inputs.missing_for_it(tail, workspace.path, code), refused]
        outcome = dataclasses.replace(outcome, kind=kind, reason="; ".join(filter(None, said)))
    others = load.read() if outcome.kind is OutcomeKind.FINISHED else None
    outcome = await verify.doubted(db, experiment, workspace, outcome, verify.place_of(code, environment, made, views))
    if made is not None:
        await asyncio.to_thread(inputs.drop_copies, run_dir, made)
    return Outcome(
        outcome.kind,
        outcome.metric_value,
        outcome.reason,
        {**outcome.summary, **({} if others is None else {"other_load": round(others, 3)})},
        outcome.log_tail or trainlog.tail_lines(tail, count=TAIL_LINES),
    )


def _may_be_cut(outcome: Outcome, tail: str) -> bool:
    """Return whether an outcome rests on what a log that could not be written does not say."""
    if outcome.kind is OutcomeKind.FINISHED:  # a number may have lost its last digits
        return not tail.endswith("\n")
    return outcome.kind in {OutcomeKind.CRASHED, OutcomeKind.SILENT, OutcomeKind.NO_METRIC}


def _why_void(workspace: Workspace, code: Path, protected: Mapping[str, str], made: inputs.Made | None) -> str:
    """Return why the number of a run that ended does not count; empty where it does."""
    reasons = list[str]()
    if changed := changed_protected(workspace, protected, protected_hashes(workspace, code)):
        reasons.append(f"it changed a protected file ({inputs.shown(changed)}): its number is void")
    if made is not None and (harm := inputs.harm_done(made, workspace.path)):
        reasons.append(f"{harm}. Its number is void")
    return "; ".join(reasons)


async def _watch(
    db: Database,
    experiment: ExperimentRow,
    child: "subprocess.Popen[bytes]",
    log: Path,
    descendants: processes.Descendants,
    room: RoomMeter,
) -> Outcome | None:
    """Wait for the process to end; return why it must be stopped, or None where it ended by itself."""
    looked = time.monotonic()
    spent = quiet = 0.0
    size = 0
    while child.poll() is None:
        await asyncio.sleep(POLL_S)
        descendants.look()
        room.look()
        now, new_size = time.monotonic(), os.path.getsize(log)  # noqa: ASYNC240, PTH202 - a stat is no wait
        step = min(now - looked, _MOST_STEP_S)  # this process may have been stopped, or the machine suspended
        looked, spent, quiet = now, spent + step, quiet + step
        if new_size != size:
            size, quiet = new_size, 0.0
        if child.poll() is not None:  # while this process was stopped, say: then no limit was passed
            return None
        if await _cancelled(db, experiment.id):
            return Outcome(OutcomeKind.CANCELLED, None, "cancelled", {})
        if spent > experiment.timeout_s:
            reason = f"still running after {experiment.timeout_s:g} s (timeout_s)"
            return Outcome(OutcomeKind.TIMED_OUT, None, reason, {})
        if quiet > experiment.silence_s:
            reason = f"printed nothing for {experiment.silence_s:g} s (silence_s): it hangs"
            return Outcome(OutcomeKind.SILENT, None, reason, {})
        if size > MAX_LOG_BYTES:
            return Outcome(OutcomeKind.CRASHED, None, f"printed over {MAX_LOG_BYTES >> 20} MiB", {})
    return None


def _outcome_of_exit(
    exit_code: int, log: Path, tail: str, workspace: Workspace, code: Path, *, killed_for_memory: bool
) -> Outcome:
    """Read how a process that ended by itself ended.

    Args:
        exit_code: Its exit status, negative for a signal.
        log: What it printed.
        tail: The end of that.
        workspace: What it trains.
        code: The run's copy of it.
        killed_for_memory: Whether the kernel killed something for memory meanwhile.
    """
    killed = exit_code in _KILLED or (exit_code != 0 and _SAYS_KILLED.search(tail[-_LAST_CHARACTERS:]) is not None)
    for_memory = killed and killed_for_memory
    if for_memory or (exit_code != 0 and trainlog.looks_out_of_memory(tail)):
        reason = "the kernel killed it for memory" if for_memory else "ran out of memory"
        return Outcome(OutcomeKind.OUT_OF_MEMORY, None, f"{reason}; lower the device batch or the model's size", {})
    if killed:
        return _interrupted("killed by something else on this machine (SIGKILL), not by the kernel for memory")
    if exit_code != 0 and trainlog.looks_diverged(tail):
        return Outcome(OutcomeKind.DIVERGED, None, "the loss exploded or became NaN", {})
    if exit_code != 0:
        if fault := _fault_of_surroundings(exit_code, tail, workspace.path, code):
            return Outcome(OutcomeKind.INTERRUPTED, None, fault, {})
        how = f"exited with status {exit_code}" if exit_code > 0 else f"was ended by signal {-exit_code}"
        return Outcome(OutcomeKind.CRASHED, None, f"the training process {how}", {})
    metric = workspace.metric
    found = read_metric(log, Wanted(metric, workspace.direction, workspace.pattern, workspace.take))
    if isinstance(found, NotFound):
        if fault := _fault_of_surroundings(exit_code, tail, workspace.path, code):
            return Outcome(OutcomeKind.INTERRUPTED, None, fault, {})  # a shell script ends well whatever failed in it
        return Outcome(OutcomeKind.NO_METRIC, None, found.reason, {})
    if not trainlog.is_finite(found.value):
        return Outcome(OutcomeKind.DIVERGED, None, f"{metric} is {found.value}", {})
    numbers = {name: number for name, number in found.summary.items() if trainlog.is_finite(number)}
    how = f" ({found.how})" if found.how else ""
    return Outcome(OutcomeKind.FINISHED, found.value, f"{metric} {found.value:.6f}{how}", numbers)


def _fault_of_surroundings(exit_code: int, tail: str, workspace: Path, code: Path) -> str:
    return failures.fault_of_surroundings(
        exit_code,
        tail,
        absent=lambda name: missing_in_copy(workspace, code, name),
        is_own_module=lambda name: (code / f"{name}.py").exists() or (code / name).is_dir(),
    )


async def _conclude(
    db: Database, settings: Settings, experiment: ExperimentRow, workspace: Workspace | None, outcome: Outcome
) -> None:
    """Write the outcome; judge it, keep the edit if it gained, append results.tsv; only then call it done."""
    recovery.keep_outcome(experiment, outcome)
    await _write(db, experiment, outcome)
    await _settle(db, settings, experiment, workspace)


async def _settle(db: Database, settings: Settings, experiment: ExperimentRow, workspace: Workspace | None) -> None:
    """Make the steps that follow from an outcome, whoever asks to stop meanwhile: they take a moment."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, lambda: None)
    try:
        if workspace is not None:
            state = State(db, settings, time.time)
            await conclude.conclude(state, experiment.id, workspace)
            for each in await conclusions.open_conclusions(db, str(workspace.path)):
                await conclude.conclude(state, each, workspace)
    finally:
        await experiments.mark_done(db, experiment.id, now=time.time())


def main() -> None:
    """Supervise the experiment named on the command line."""
    kernel.hide_memory()  # what `pass_env` names is for the training, not for a run beside it
    kernel.adopt_orphans()
    os.umask(0o077)  # what a run writes is its user's alone
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = read_settings(os.environ, Path.cwd())
    lock = int(sys.argv[2]) if len(sys.argv) > 2 else None
    asyncio.run(_until_told(supervise(settings, sys.argv[1], lock)))


async def _until_told(work: Coroutine[None, None, None]) -> None:
    """Run to the end, or until SIGTERM or SIGINT asks to stop; what was started is ended first."""
    task = asyncio.ensure_future(work)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    await task


if __name__ == "__main__":
    main()
