"""What can be told of a run from outside: its folder, its log, whether somebody looks after it; recovery."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Outcome, OutcomeKind, RunState
from loopgraph_mcp.runner import device, inputs, processes, trainlog
from loopgraph_mcp.runner.environment import for_supervisor
from loopgraph_mcp.runner.locks import hold_lock, is_held
from loopgraph_mcp.runner.lookalikes import quoted
from loopgraph_mcp.runner.plain_files import open_plain
from loopgraph_mcp.runner.printed import parse_summary
from loopgraph_mcp.runner.workspace import Workspace, load_workspace, protected_hashes
from loopgraph_mcp.store import agents, experiments
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow

LOG_NAME = "run.log"
SUPERVISOR_LOG_NAME = "supervisor.log"
TAIL_LINES = 40
GRACE_S = 5.0
OUTCOME_NAME = "outcome.json"
_OUTCOME_BYTES = 8 * 2**10
_MAX_REASON = 1_000
_TAIL_BYTES = 64 * 2**10
_RECOVERY_GRACE_S = 1.0  # nothing that a training still writes is read once its supervisor is gone
_SETTLE_S = 30.0
_SETTLE_POLL_S = 0.05
_SUMMARY_LINES = 30
_OLD_LOCK_S = 3_600.0


def read_tail(path: Path, limit: int = _TAIL_BYTES) -> str:
    """Return the end of a file as text, whatever bytes it holds; empty where there is none."""
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def read_part(path: Path, at: int, *, limit: int) -> tuple[str, int, int, int]:
    """Return some bytes of a file as text, to the end of a line where there is one; where they begin and end; its size.

    Args:
        path: The file; one that is not there is empty.
        at: Where to begin; a negative number counts from the end.
        limit: How many bytes at most.
    """
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = min(at if at >= 0 else max(0, size + at), size)
            file.seek(begin)
            part = file.read(limit)
    except OSError:
        return "", 0, 0, 0
    if begin + len(part) < size and b"\n" in part:
        part = part[: part.rindex(b"\n") + 1]
    return part.decode("utf-8", "replace"), begin, begin + len(part), size


def missing_in_copy(workspace: Path, code_dir: Path, name: str) -> str | None:
    """Return the path, relative to the user's folder, that exists there and not in the run's copy; None for others.

    Of a file in a folder that the copy lacks as a whole it is the folder.

    Args:
        workspace: The user's folder.
        code_dir: The run's copy of it, in which the program ran.
        name: A path as the program named it: relative to its folder, or absolute inside of the copy.
    """
    try:
        inside = Path(os.path.relpath(code_dir / name, code_dir))
        if Path(name).is_absolute() and ".." in inside.parts:
            inside = Path(os.path.relpath(name, code_dir.resolve()))
            if ".." in inside.parts:
                return None
        if not (workspace / inside).exists():
            return None
        parts = [Path(*inside.parts[:count]) for count in range(1, len(inside.parts) + 1)]
        missing = next((part for part in parts if part.name != ".." and not (code_dir / part).exists()), None)
    except (OSError, ValueError):  # too long, or with a NUL: a log holds anything
        return None
    return None if missing is None else str(missing)


def prepare_outcome(run_dir: Path) -> None:
    """Make room on the disk for a run's outcome: it can be written there even when the disk is full by then.

    Raises:
        OSError: There is no room now.
    """
    with (run_dir / OUTCOME_NAME).open("wb") as file:
        file.write(b" " * _OUTCOME_BYTES)
        file.flush()
        os.fsync(file.fileno())


def keep_outcome(experiment: ExperimentRow, outcome: Outcome) -> None:
    """Write an outcome into a run's folder, in the room made for it: the store may be full, busy or away."""
    told = {"kind": outcome.kind.value, "value": outcome.metric_value, "reason": outcome.reason[:_MAX_REASON]}
    text = json.dumps({**told, "summary": dict(outcome.summary)}).encode()
    text = text if len(text) <= _OUTCOME_BYTES else json.dumps({**told, "summary": {}}).encode()
    with suppress(OSError), (Path(experiment.run_dir or "") / OUTCOME_NAME).open("r+b") as file:
        file.write(text.ljust(_OUTCOME_BYTES))
        file.flush()
        os.fsync(file.fileno())


def kept_outcome(experiment: ExperimentRow) -> Outcome | None:
    """Return the outcome that a supervisor wrote into a run's folder before it could store it, or None."""
    try:
        with os.fdopen(open_plain(Path(experiment.run_dir or "") / OUTCOME_NAME), "rb") as file:
            found = json.loads(file.read(_OUTCOME_BYTES))
        return Outcome(
            OutcomeKind(found["kind"]), found["value"], found["reason"], found["summary"], _last_words(experiment)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_abandoned(settings: Settings, experiment: ExperimentRow) -> bool:
    """Return whether nobody looks after an experiment: its lock is free, which was taken before it was queued."""
    try:
        return not is_held(settings.locks_dir, experiment.id)
    except OSError:  # the folder of locks cannot be read: the pid answers
        supervisor = experiment.supervisor
        return supervisor is None or not processes.is_alive(supervisor.pid, supervisor.started)


async def slots_beside(db: Database, slot: str) -> list[str]:
    """Return the slots whose live runs wait for one another and for those of a slot, itself among them."""
    return await asyncio.to_thread(device.slots_beside, slot, await agents.live_slots(db))


async def recover(db: Database, settings: Settings) -> None:
    """Finish experiments whose supervisor is gone, and end what they left running.

    An outcome that the supervisor wrote beside the log, or that the log's own summary states, is no less an outcome.
    """
    abandoned = [each for each in await experiments.live_experiments(db) if is_abandoned(settings, each)]
    left = [training_of(each) for each in abandoned]
    await asyncio.to_thread(processes.end_leftovers, left, grace_s=_RECOVERY_GRACE_S)
    for experiment in abandoned:
        outcome = experiment.outcome
        if outcome is None:
            outcome = await _outcome_left(db, experiment)
        if outcome.kind.says_something:
            await experiments.add_outcome(db, experiment.id, outcome, now=time.time())
            await _settle(db, settings, experiment)
        else:
            await experiments.finish(db, experiment.id, outcome, now=time.time())  # keeps an outcome that it has
            forget_lock(settings, experiment.id)


def training_of(experiment: ExperimentRow) -> processes.Training:
    """Return what an experiment's training is known by."""
    folder, child = Path(experiment.run_dir or "/nonexistent"), experiment.child
    return processes.Training(
        experiment.id,
        folder,
        folder / LOG_NAME,
        None if child is None else child.pid,
        None if child is None else child.started,
    )


def forget_lock(settings: Settings, experiment_id: str) -> None:
    """Remove the lock file of an experiment that is over."""
    try:
        (settings.locks_dir / f"{experiment_id}.lock").unlink(missing_ok=True)
    except OSError:  # an empty file more in a folder that cannot be written
        return


def _why_abandoned(experiment: ExperimentRow) -> str:
    if experiment.supervisor is not None:
        return "its supervisor was killed or the machine went down; run it again"
    said = read_tail(Path(experiment.run_dir or "") / SUPERVISOR_LOG_NAME).strip().rpartition("\n")[2]
    why = f" ({quoted(said)})" if said else ""
    return f"its supervisor ended before the run began{why}; run it again"


async def _outcome_left(db: Database, experiment: ExperimentRow) -> Outcome:
    """Return the outcome that a run left, as far as it can be believed, or that it was interrupted."""
    found = await outcome_found(db, experiment)
    return await asyncio.to_thread(_interrupted, experiment) if found is None else found


def _interrupted(experiment: ExperimentRow) -> Outcome:
    reason = _why_abandoned(experiment)
    made = inputs.read_made(Path(experiment.run_dir or ""))
    if experiment.child is not None and made is not None:
        harm = inputs.harm_done(made, Path(experiment.workspace_path))
        reason = "; ".join(filter(None, [reason, harm]))
    return Outcome(OutcomeKind.INTERRUPTED, None, reason, {}, _last_words(experiment))


async def outcome_found(db: Database, experiment: ExperimentRow) -> Outcome | None:
    """Return the outcome that is in a run's folder: the one its supervisor kept there, or its log's; None for none."""
    if (kept := await asyncio.to_thread(kept_outcome, experiment)) is not None:
        return kept
    from loopgraph_mcp.api import verify  # noqa: PLC0415 - only a recovery needs it, and every start would pay

    found = await asyncio.to_thread(_outcome_of_summary, experiment)
    return None if found is None else await verify.doubted(db, experiment, *found, None)


def _outcome_of_summary(experiment: ExperimentRow) -> tuple[Workspace, Outcome] | None:
    """Return workspace and outcome of a run whose log ends with a summary: such a program had come to its end.

    A metric that is printed on the way is none: nobody saw how that run ended. Nor is one whose protected or linked
    files differ by now.
    """
    folder = Path(experiment.run_dir or "")
    log = read_tail(folder / LOG_NAME)
    lines = trainlog.lines_of(log[: log.rfind("\n") + 1])  # a last line without its end may be cut within a number
    made = inputs.read_made(folder)
    if "---" not in lines[-_SUMMARY_LINES:] or made is None:
        return None
    try:
        where = load_workspace(Path(experiment.workspace_path))
    except WorkspaceError:
        return None
    after = lines[len(lines) - 1 - lines[::-1].index("---") :]
    summary = parse_summary("\n".join(after), where.metric)
    value = summary.get(where.metric)
    if value is None or not trainlog.is_finite(value) or where.pattern is not None or where.take != "last":
        return None
    if protected_hashes(where, folder / made.code) != protected_hashes(where, where.path):
        return None
    if inputs.harm_done(made, where.path):
        return None
    numbers = {name: number for name, number in summary.items() if trainlog.is_finite(number)}
    reason = f"{where.metric} {value:.6f} (from its log: its supervisor ended before it was stored)"
    return where, Outcome(OutcomeKind.FINISHED, value, reason, numbers, _last_words(experiment))


async def sweep(db: Database, settings: Settings) -> None:
    """Remove what a process that was killed left behind: lock files of runs that are over, folders never queued.

    A folder is made while its lock is held, until its row is stored: a free lock and then no row mean that nobody will
    come for it. A folder in which something ran is kept, whoever's it is.
    """
    locks, folders = await asyncio.to_thread(_strays, settings)
    states = await experiments.states_of(db, sorted(locks | folders))
    over = {name for name in locks if states.get(name) is RunState.DONE}
    for name in over | {name for name in locks - states.keys() if _is_old(settings.locks_dir / f"{name}.lock")}:
        forget_lock(settings, name)
    for name in folders - states.keys():
        await asyncio.to_thread(shutil.rmtree, settings.runs_dir / name, ignore_errors=True)
        forget_lock(settings, name)


def _strays(settings: Settings) -> tuple[set[str], set[str]]:
    """Return the experiments whose lock file is there and free, and those whose folder is and in which nothing ran."""
    locks = {path.stem for path in settings.locks_dir.glob("exp_*.lock")}
    folders = {
        path.name
        for path in settings.runs_dir.glob("exp_*")
        if not any((path / name).exists() for name in (SUPERVISOR_LOG_NAME, LOG_NAME))
    }
    free = {name for name in locks | folders if not _is_held(settings, name)}
    return locks & free, folders & free


def _is_held(settings: Settings, experiment_id: str) -> bool:
    try:
        return is_held(settings.locks_dir, experiment_id)
    except OSError:
        return True


def _is_old(lock: Path) -> bool:
    """Return whether a lock file without a row, of this store or another one, is not just about to be held."""
    try:
        return abs(time.time() - lock.stat().st_mtime) > _OLD_LOCK_S
    except OSError:
        return False


async def _settle(db: Database, settings: Settings, experiment: ExperimentRow) -> None:
    """Let a process of its own make the steps that follow from an outcome, and wait for it a while."""
    log = Path(experiment.run_dir or settings.home) / SUPERVISOR_LOG_NAME
    environment = for_supervisor(os.environ)
    environment |= {"LOOPGRAPH_DB": str(settings.db_path), "LOOPGRAPH_HOME": str(settings.home)}
    try:
        with hold_lock(settings.locks_dir, experiment.id) as file:
            if file is not None:  # else another process does this
                processes.start_supervisor(experiment.id, file.fileno(), environment, log)
    except OSError:  # the next recovery tries again
        return
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        row = await experiments.get_experiment(db, experiment.id)
        if row is None or row.state is RunState.DONE:
            return
        await asyncio.sleep(_SETTLE_POLL_S)


async def differing_files(db: Database, run: ExperimentRow, files: Mapping[str, str]) -> list[str]:
    """Return the files in which what a run could see differs from what is there now; empty where that is not known."""
    seen = {} if run.inputs_hash is None else await experiments.inputs_of(db, run.inputs_hash)
    return sorted(name for name in seen.keys() | files.keys() if seen and seen.get(name) != files.get(name))


def _last_words(experiment: ExperimentRow) -> str:
    """Return the end of the training log, or of the supervisor's where it did not come to that."""
    folder = Path(experiment.run_dir or "")
    log = read_tail(folder / LOG_NAME) or read_tail(folder / SUPERVISOR_LOG_NAME)
    return trainlog.tail_lines(log, count=TAIL_LINES)
