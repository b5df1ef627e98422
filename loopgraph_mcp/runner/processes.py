"""Starts, recognises and ends processes: detached supervisors, process groups, a pid with its start time."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import psutil

_SAME_PROCESS_S = 2.0  # start times are told in ticks since boot, and the clock's idea of boot may move a little
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|COOKIE|AUTH|PRIVATE|SESSION", re.IGNORECASE)
_NOT_SECRET = frozenset({"TOKENIZERS_PARALLELISM"})
_FOR_THE_TRAINER = frozenset({"LOOPGRAPH_CACHE", "LOOPGRAPH_PROFILE", "LOOPGRAPH_MAX_STEPS"})


def start_time(pid: int) -> float | None:
    """Return when a process started (epoch seconds), or None where there is none; a zombie is none."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time()
    except psutil.Error:
        return None


def is_alive(pid: int, started: float) -> bool:
    """Return whether this very process still runs."""
    now = start_time(pid)
    return now is not None and abs(now - started) < _SAME_PROCESS_S


def start_supervisor(experiment_id: str, db_path: Path, home: Path, log_path: Path) -> None:
    """Start a detached process that sees an experiment through, whatever becomes of this one.

    A shell starts it in the background and ends, so that it is nobody's child here and leaves no zombie.

    Raises:
        OSError: It cannot be started.
    """
    command = [sys.executable, "-m", "loopgraph_mcp.supervisor", experiment_id]
    with log_path.open("ab") as log:
        done = subprocess.run(  # noqa: S603 - our own module; the shell sees arguments, not text
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "LOOPGRAPH_DB": str(db_path), "LOOPGRAPH_HOME": str(home)},
            cwd=log_path.parent,
            check=False,
        )
    if done.returncode != 0:
        raise OSError(f"the shell could not start {command[0]} (exit {done.returncode}); see {log_path}")


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables whose names tell of keys, tokens and passwords."""
    return {name: value for name, value in environment.items() if name in _NOT_SECRET or not _SECRET.search(name)}


def child_environment(
    environment: Mapping[str, str],
    extra: Mapping[str, str],
    *,
    uv_environment: Path | None,
    declared: Collection[str] = (),
) -> dict[str, str]:
    """Return the environment of a training process: ours without secrets and LoopGraph's own settings.

    Args:
        environment: Ours.
        extra: Variables to set.
        uv_environment: Folder of the environment that uv is to use.
        declared: Variables that the workspace declares to matter: passed on whatever their names.
    """
    kept = {
        name: value
        for name, value in without_secrets(environment).items()
        if not name.startswith("LOOPGRAPH_") or name in _FOR_THE_TRAINER
    }
    kept |= {name: environment[name] for name in declared if name in environment}
    if uv_environment is not None:
        kept["UV_PROJECT_ENVIRONMENT"] = str(uv_environment)  # a run's copy must not build an environment of its own
    return {**kept, "PYTHONUNBUFFERED": "1", **extra}


def start_training(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], log_path: Path
) -> subprocess.Popen[bytes]:
    """Start a training process in a session and process group of its own, all output to its log.

    Raises:
        OSError: The command cannot be started.
    """
    with log_path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - the user's own run command, no shell
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
            cwd=cwd,
        )


def end_group(pid: int, *, grace_s: float) -> None:
    """End a process, its group and its descendants: first asked, then forced after the grace."""
    doomed = _descendants(pid)
    _signal_group(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and (_group_alive(pid) or any(_runs(process) for process in doomed)):
        time.sleep(0.05)
    doomed += _descendants(pid)
    _signal_group(pid, signal.SIGKILL)
    for process in doomed:
        try:
            process.kill()
        except psutil.Error:
            continue


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _group_alive(pgid: int) -> bool:
    """Return whether any process of a group still runs; zombies do not count."""
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.info["pid"]) == pgid:
                return True
        except OSError:
            continue
    return False


def _signal_group(pgid: int, signum: int) -> None:
    try:
        os.killpg(pgid, signum)
    except (ProcessLookupError, PermissionError):
        return
