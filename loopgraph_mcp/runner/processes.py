"""Starts, recognises and ends processes: detached supervisors, trainings and all that they started.

A process is known by its pid and by when the kernel started it, in ticks since this boot. Times of the clock would move
with the clock: a step of 3 s made a live training look like another process.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loopgraph_mcp.runner import confinement, kernel

MARKER = "LOOPGRAPH_EXPERIMENT"  # in the environment of a training, which what it starts inherits
_TICKS = 2**34  # in five years, at 100 a second; a start is boot * _TICKS + ticks, which a float holds exactly
_BOOTS = 2**18  # values of a hashed boot id; together with _TICKS 52 bits, which a float holds exactly
_HAS_PROC = sys.platform == "linux"
_POLL_S = 0.02  # between looks at processes that were sent a signal
_KILL_S = 5.0  # how long a group that forks while it is killed is followed

logger = logging.getLogger("loopgraph.processes")


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was at one moment.

    Args:
        started: When it started, comparable with those of the same boot.
    """

    pid: int
    parent: int
    group: int
    session: int
    started: float
    is_zombie: bool = False


@dataclass(frozen=True, slots=True)
class Training:
    """What a training is known by after its supervisor is gone.

    Args:
        experiment_id: As the variable LOOPGRAPH_EXPERIMENT has it.
        run_dir: The run's folder.
        log: What its output goes to.
        pid: Of the process that the supervisor started; None where it did not come to that.
        started: When that started.
    """

    experiment_id: str
    run_dir: Path
    log: Path
    pid: int | None = None
    started: float | None = None


# ---------------------------------------------------------------------------------------- identity


def find_process(pid: int) -> Process | None:
    """Return a process, which may be a zombie; None if there is none."""
    return _find_in_proc(pid) if sys.platform == "linux" else _find_by_psutil(pid)


def start_mark(pid: int) -> float | None:
    """Return when a process started: with the pid it names this one process for good; None if there is none."""
    found = find_process(pid)
    return None if found is None else found.started


def is_alive(pid: int, started: float) -> bool:
    """Return whether this very process still runs; a zombie does not."""
    found = find_process(pid)
    return found is not None and not found.is_zombie and found.started == started


def _find_in_proc(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        fields = stat[stat.rindex(b")") + 2 :].split()  # its name may hold spaces and brackets
        parent, group, session, ticks = (int(fields[at]) for at in (1, 2, 3, 19))
    except (OSError, ValueError, IndexError):
        return None
    return Process(pid, parent, group, session, _boot() * _TICKS + float(ticks), fields[0] in b"ZXx")


def _find_by_psutil(pid: int) -> Process | None:
    import psutil  # noqa: PLC0415 - where there is /proc nothing here needs it, and every start would pay for it

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            return Process(
                pid, process.ppid(), os.getpgid(pid), os.getsid(pid), process.create_time(), is_zombie=is_zombie
            )
    except (psutil.Error, OSError):
        return None


@cache
def _boot() -> int:
    """Return a number for this boot of the machine, at least 1: a start time of the clock is never taken for ticks."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return 1 + int(text.replace("-", "").strip(), 16) % _BOOTS
    except (OSError, ValueError):
        return 1


def _same_boot(one: float, other: float) -> bool:
    return one // _TICKS == other // _TICKS


def _all_processes() -> dict[int, Process]:
    return {pid: found for pid in _pids() if (found := find_process(pid)) is not None}


def _pids() -> list[int]:
    if _HAS_PROC:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - names are all it needs
    import psutil  # noqa: PLC0415 - as above

    return psutil.pids()


def descendants(table: Mapping[int, Process], roots: Iterable[int]) -> list[Process]:
    """Return all children of some processes, and theirs; not the processes themselves."""
    children = dict[int, list[Process]]()
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    waiting, seen = list(roots), set(roots)
    found = list[Process]()
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in seen:
                seen.add(child.pid)
                found.append(child)
                waiting.append(child.pid)
    return found


# ------------------------------------------------------------------------------------------ starting


def start_supervisor(experiment_id: str, lock: int, environment: Mapping[str, str], log_path: Path) -> None:
    """Start a detached process that sees an experiment through, whatever becomes of this one.

    A shell starts it in the background and ends, so that it is nobody's child here and leaves no zombie.

    Args:
        experiment_id: The experiment.
        lock: File descriptor of the experiment's lock, which goes on to it: it is held without a gap.
        environment: Its whole environment.
        log_path: Where its own messages go; it starts in that folder.

    Raises:
        OSError: It cannot be started.
    """
    # -P: never a module of the folder it starts in
    command = [sys.executable, "-P", "-m", "loopgraph_mcp.api.supervisor", experiment_id, str(lock)]
    with log_path.open("ab") as log:
        done = subprocess.run(  # noqa: S603 - our own module; the shell sees arguments, not text
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=dict(environment),
            cwd=log_path.parent,
            pass_fds=(lock,),
            check=False,
        )
    if done.returncode != 0:
        raise OSError(f"the shell could not start {command[0]} (exit {done.returncode}); see {log_path}")


def start_training(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    log_path: Path,
    views: Sequence[confinement.View] = (),
) -> subprocess.Popen[bytes]:
    """Start a training process in a session and process group of its own, all output to its log.

    It ends when the thread that called this does: call it on the main thread. Where the system refuses to show it files
    as `views` says, it starts and sees them as they are.

    Raises:
        OSError: The command cannot be started.
    """
    enter = confinement.entering(views, cwd)
    if enter is not None:
        try:
            return _start_training(command, cwd, environment, log_path, enter)
        except subprocess.SubprocessError:  # raised before the command began
            logger.info("this system lets a run write what is only linked into its folder, the store and other runs")
    return _start_training(command, cwd, environment, log_path, None)


def _start_training(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    log_path: Path,
    enter: Callable[[], None] | None,
) -> subprocess.Popen[bytes]:
    die = kernel.dies_with_parent()

    def before_it_begins() -> None:
        if enter is not None:
            enter()
        if die is not None:
            die()  # the kernel forgets it when a process enters a user namespace

    with log_path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - the user's own run command, no shell
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
            cwd=cwd,
            preexec_fn=before_it_begins,  # noqa: PLW1509 - it calls the kernel and takes no lock
        )


# -------------------------------------------------------------------------------------------- ending


class Descendants:
    """All processes that a training starts, so that all can be ended, whatever their parent is by then.

    On Linux its orphans become this process's children. Elsewhere what was seen to descend from it is remembered, and
    searched for by what it inherited.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._adopts = kernel.adopt_orphans()
        self._remembered = dict[int, Process]()

    def look(self) -> None:
        """Take note of what there is by now; call it often while the training runs."""
        if self._adopts:
            self._reap()
        elif self._training.pid is not None:
            table = _all_processes()
            self._remembered |= {each.pid: each for each in descendants(table, [self._training.pid])}

    def end(self, *, grace_s: float) -> None:
        """End the training and all that it started: first asked, then forced after the grace."""
        _end(self._alive, grace_s=grace_s)
        self._reap()

    def _alive(self) -> list[Process]:
        table = _all_processes()
        if self._adopts:
            return [each for each in descendants(table, [os.getpid()]) if not each.is_zombie]
        kept = {pid: each for pid, each in self._remembered.items() if table.get(pid) == each}
        found = {each.pid: each for each in _leftovers(table, self._training)} | kept
        return [each for each in found.values() if not each.is_zombie]

    def _reap(self) -> None:
        """Take leave of orphans that have ended; the training's own status is left to who started it."""
        if sys.platform != "linux":
            return
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid == self._training.pid:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)
            except ChildProcessError:
                return


def end_leftovers(trainings: Sequence[Training], *, grace_s: float) -> None:
    """End what trainings whose supervisors are gone left running; a process that may be a stranger's is left alone."""
    if trainings:
        _end(lambda: _all_leftovers(trainings), grace_s=grace_s)


def _all_leftovers(trainings: Sequence[Training]) -> list[Process]:
    table = _all_processes()
    found = {each.pid: each for training in trainings for each in _leftovers(table, training)}
    return [each for each in found.values() if not each.is_zombie]


def _leftovers(table: Mapping[int, Process], training: Training) -> list[Process]:
    spared = {os.getpid(), *_parents(table, os.getpid())}
    own = [each for each in table.values() if each.pid not in spared and _belongs(each, training, table)]
    below = descendants(table, [each.pid for each in own])
    return [*own, *(each for each in below if each.pid not in spared)]


def _parents(table: Mapping[int, Process], pid: int) -> Iterator[int]:
    while (process := table.get(pid)) is not None and process.parent != pid:
        pid = process.parent
        yield pid


def _belongs(process: Process, training: Training, table: Mapping[int, Process]) -> bool:
    """Return whether a process is a training or was started by it.

    Its session's number alone shows that only while its leader lives: once all of a session have ended, the number may
    become a stranger's.
    """
    leader = None if training.pid is None else table.get(training.pid)
    leader_lives = leader is not None and leader.started == training.started
    if process == leader:
        return leader_lives
    may_be_in_session = (
        training.started is not None
        and training.pid in {process.session, process.group}
        and (leader is None or leader_lives)
        and _same_boot(process.started, training.started)
        and process.started >= training.started
    )
    if may_be_in_session and (leader_lives or _works_in(process.pid, training.run_dir)):
        return True
    return _is_marked(process.pid, training.experiment_id) or _writes_to(process.pid, training.log)


def _is_marked(pid: int, experiment_id: str) -> bool:
    if _HAS_PROC:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"{MARKER}={experiment_id}".encode() in variables
    import psutil  # noqa: PLC0415 - as above

    try:
        return psutil.Process(pid).environ().get(MARKER) == experiment_id
    except (OSError, psutil.Error):
        return False


def _writes_to(pid: int, log: Path) -> bool:
    """Return whether a process's output or errors go to a file; who only reads it has it elsewhere."""
    if sys.platform != "linux":
        return False
    for stream in (1, 2):
        try:
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{stream}"), log.stat()):  # noqa: PTH116 - a link of /proc
                return True
        except OSError:
            continue
    return False


def _works_in(pid: int, folder: Path) -> bool:
    if _HAS_PROC:
        try:
            return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(folder.resolve())  # noqa: PTH115 - a link of /proc
        except OSError:
            return False
    import psutil  # noqa: PLC0415 - as above

    try:
        return Path(psutil.Process(pid).cwd()).is_relative_to(folder.resolve())
    except (OSError, psutil.Error):
        return False


def _end(alive: Callable[[], list[Process]], *, grace_s: float) -> None:
    """Ask processes to end and force those that are left after the grace, and what they started meanwhile."""
    asked = set[tuple[int, float]]()
    began = time.monotonic()
    while time.monotonic() < began + grace_s + _KILL_S:
        found = alive()
        if not found:
            return
        forced = time.monotonic() >= began + grace_s
        for process in found:
            if forced:
                _send(process, signal.SIGKILL)
            elif (process.pid, process.started) not in asked:
                asked.add((process.pid, process.started))
                _send(process, signal.SIGTERM)
        time.sleep(_POLL_S)


def _send(process: Process, signum: signal.Signals) -> None:
    """Send a signal to this very process, never to another one that has its pid by now."""
    try:
        with _held(process.pid) as handle:
            if start_mark(process.pid) != process.started:
                return
            if handle is None:
                os.kill(process.pid, signum)
            elif sys.platform == "linux":
                signal.pidfd_send_signal(handle, signum)
    except OSError:  # it has ended, or it is another user's
        return


@contextmanager
def _held(pid: int) -> Iterator[int | None]:
    """Give a handle that never comes to mean another process; None if there is none."""
    handle = None
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel before 5.3, or a sandbox
            handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)
