"""What can be told of a run from outside: its folder, its log, whether somebody looks after it; recovery."""

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path

from loopgraph_mcp import trainlog
from loopgraph_mcp.config import Settings
from loopgraph_mcp.lookalikes import quoted
from loopgraph_mcp.models import Outcome, OutcomeKind
from loopgraph_mcp.runner import device, processes
from loopgraph_mcp.runner.locks import is_held
from loopgraph_mcp.store import agents, experiments
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow

LOG_NAME = "run.log"
SUPERVISOR_LOG_NAME = "supervisor.log"
CODE_DIR = "code"
TAIL_LINES = 40
GRACE_S = 5.0
_TAIL_BYTES = 64 * 2**10
_RECOVERY_GRACE_S = 1.0  # nothing that a training still writes is read once its supervisor is gone


def read_tail(path: Path, limit: int = _TAIL_BYTES) -> str:
    """Return the end of a file as text, whatever bytes it holds; empty where there is none."""
    try:
        with path.open("rb") as file:
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
        with path.open("rb") as file:
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
    """Mark experiments whose supervisor is gone as interrupted, and end what they left running."""
    abandoned = [each for each in await experiments.live_experiments(db) if is_abandoned(settings, each)]
    left = [training_of(each) for each in abandoned]
    await asyncio.to_thread(processes.end_leftovers, left, grace_s=_RECOVERY_GRACE_S)
    for experiment in abandoned:
        outcome = Outcome(OutcomeKind.INTERRUPTED, None, _why_abandoned(experiment), {}, _last_words(experiment))
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


async def differing_files(db: Database, run: ExperimentRow, files: Mapping[str, str]) -> list[str]:
    """Return the files in which what a run could see differs from what is there now; empty where that is not known."""
    seen = {} if run.inputs_hash is None else await experiments.inputs_of(db, run.inputs_hash)
    return sorted(name for name in seen.keys() | files.keys() if seen and seen.get(name) != files.get(name))


def _last_words(experiment: ExperimentRow) -> str:
    """Return the end of the training log, or of the supervisor's where it did not come to that."""
    folder = Path(experiment.run_dir or "")
    log = read_tail(folder / LOG_NAME) or read_tail(folder / SUPERVISOR_LOG_NAME)
    return trainlog.tail_lines(log, count=TAIL_LINES)
