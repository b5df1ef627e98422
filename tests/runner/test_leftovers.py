"""Nothing that a run started is left behind, no stranger is ended, and no clock makes one process look like another."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api import run
from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.models import OutcomeKind, RunState
from loopgraph_mcp.runner import processes
from loopgraph_mcp.runner.locks import is_held
from loopgraph_mcp.runner.memory_kills import count_memory_kills
from loopgraph_mcp.runner.processes import Process, Training
from tests.conftest import ROOT

LINUX = sys.platform == "linux"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

# Each way to get away from the run: its own session, orphaned, without its environment, deaf to SIGTERM.
WORKERS = {
    "same group": "subprocess.Popen(WORK)",
    "own session": "subprocess.Popen(WORK, start_new_session=True)",
    "orphan in its own session": "subprocess.run(['sh', '-c', 'setsid \"$@\" &', 'sh', *WORK])",
    "without its environment": "subprocess.Popen(WORK, env={}, start_new_session=True)",
    "elsewhere": "subprocess.Popen(WORK, cwd='/', start_new_session=True, stdout=-3, stderr=-3)",
    "deaf": "subprocess.Popen([*WORK, 'deaf'], start_new_session=True)",
}
WORK = """
import signal, sys, time
if sys.argv[2:] == ['deaf']:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], 'a').write('x')
time.sleep(600)
"""
PROGRAM = """
import os, signal, subprocess, sys, time
from pathlib import Path

MARK = {mark!r}
WORK = [sys.executable, '-c', {work!r}, MARK]
HOW = ""

def main():
    for how in {workers!r}:
        exec(how)
    while len(Path(MARK).read_text() if Path(MARK).exists() else '') < {count}:
        time.sleep(0.01)
    print('ready', flush=True)
    exec(HOW)
    print('val_bpb: 1.0')

main()
"""


@pytest.fixture
def mark(workspace: Path) -> Iterator[Path]:
    """A file named by every worker that the workspace's training starts, one of each kind."""
    mark = workspace.parent / "started-by-a-run"
    workers = list(WORKERS.values())
    (workspace / "train.py").write_text(PROGRAM.format(mark=str(mark), work=WORK, workers=workers, count=len(workers)))
    yield mark
    for pid in working(mark):
        os.kill(pid, signal.SIGKILL)


def working(mark: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if str(mark) in words and process.info["status"] != psutil.STATUS_ZOMBIE and "-c" in words:
            found.append(process.pid)
    return found


def patched(how: str) -> str:
    return f'@@ @@\n-HOW = ""\n+HOW = {how!r}\n'


@contextmanager
def closing_by_kill(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


async def until(done: Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110 - of what other processes do there is no event
            await asyncio.sleep(0.02)


def log_of(answer: ExperimentAnswer) -> str:
    log = Path(answer.run_dir or "") / "run.log"
    return log.read_text() if log.exists() else ""


def pids(settings: Settings, experiment_id: str) -> tuple[int, int]:
    with sqlite3.connect(settings.db_path) as conn:
        (found,) = conn.execute("SELECT supervisor_pid, child_pid FROM experiment WHERE id = ?", (experiment_id,))
    conn.close()
    return found


ENDS = {
    "well": ("", OutcomeKind.FINISHED),
    "crash": ("raise ValueError", OutcomeKind.CRASHED),
    "killed": ("os.kill(os.getpid(), 9)", OutcomeKind.INTERRUPTED),
    "timeout": ("time.sleep(600)", OutcomeKind.TIMED_OUT),
    "cancel": ("time.sleep(600)", OutcomeKind.CANCELLED),
}


@pytest.mark.parametrize("how", ENDS)
async def test_however_a_run_ends_nothing_that_it_started_is_left(
    graph: LoopGraph, workspace: Path, mark: Path, how: str
) -> None:
    config = workspace / "loopgraph.toml"
    config.write_text(re.sub("timeout_s = .*", f"timeout_s = {5 if how == 'timeout' else 60}", config.read_text()))
    code, kind = ENDS[how]
    started = await graph.run_experiment(patch=patched(code) if code else None, wait_s=0)
    if how == "cancel":
        await until(lambda: "ready" in log_of(started))
        assert len(working(mark)) >= len(WORKERS)
        await graph.cancel_experiment(started.experiment_id)
    answer = await graph.get_experiment(started.experiment_id, wait_s=50)
    assert answer.outcome is kind, answer
    assert "ready" in log_of(answer)
    assert working(mark) == []


@pytest.mark.parametrize("who", ["supervisor", "supervisor and training"])
async def test_recovery_ends_what_killed_processes_left_within_five_seconds(
    settings: Settings, mark: Path, who: str
) -> None:
    async with LoopGraph.open(settings) as graph:
        started = await graph.run_experiment(patch=patched("time.sleep(600)"), wait_s=0)
        await until(lambda: "ready" in log_of(started))
    supervisor, child = pids(settings, started.experiment_id)
    assert len(working(mark)) >= len(WORKERS)
    folder = Path(started.run_dir or "")
    # a user who looks at the run: in its folder, reading its log
    command = ["tail", "-f", str(folder / "run.log")]
    with (
        subprocess.Popen(  # noqa: ASYNC220
            command, cwd=folder / "code", stdout=subprocess.DEVNULL, start_new_session=True
        ) as reader,
        closing_by_kill(reader),
    ):
        for pid in (supervisor, child)[: 1 if who == "supervisor" else 2]:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not is_held(settings.locks_dir, started.experiment_id))
        began = time.monotonic()
        async with LoopGraph.open(settings) as graph:
            answer = await graph.get_experiment(started.experiment_id, wait_s=0)
            assert time.monotonic() - began < 5
            assert answer.outcome is OutcomeKind.INTERRUPTED
            assert not processes.is_alive(child, processes.start_mark(child) or 0.0)
            assert working(mark) == []
        assert reader.poll() is None


@pytest.mark.skipif(not LINUX, reason="elsewhere nothing ends a training with its supervisor")
async def test_a_training_ends_with_its_supervisor(graph: LoopGraph, settings: Settings, mark: Path) -> None:
    started = await graph.run_experiment(patch=patched("time.sleep(600)"), wait_s=0)
    await until(lambda: "ready" in log_of(started))
    supervisor, child = pids(settings, started.experiment_id)
    os.kill(supervisor, signal.SIGKILL)
    await until(lambda: not processes.is_alive(child, processes.start_mark(child) or 0.0), seconds=5)


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A session of somebody else's: a leader, and one that it started."""
    command = ["sh", "-c", "sleep 600 & echo up; wait"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


async def test_a_stranger_with_a_trainings_pid_is_left_alone(
    settings: Settings, workspace: Path, stranger: subprocess.Popen[bytes]
) -> None:
    async with LoopGraph.open(settings) as graph:
        started = await graph.run_experiment(wait_s=50)
    with sqlite3.connect(settings.db_path) as conn:
        conn.execute("DELETE FROM outcome")
        conn.execute("DELETE FROM decision")
        conn.execute("UPDATE experiment SET state = 'running', child_pid = ?", (stranger.pid,))
    conn.close()
    async with LoopGraph.open(settings) as graph:
        assert (await graph.get_experiment(started.experiment_id)).state is RunState.DONE
    assert stranger.poll() is None
    assert len(psutil.Process(stranger.pid).children()) == 1


def test_a_stranger_whose_session_has_a_trainings_number_is_left_alone(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    (orphan,) = psutil.Process(stranger.pid).children()
    started = processes.start_mark(stranger.pid)
    assert started is not None
    os.kill(stranger.pid, signal.SIGKILL)
    stranger.wait()
    training = Training("exp_x", tmp_path / "run", tmp_path / "run" / "run.log", stranger.pid, started - 1)
    processes.end_leftovers([training], grace_s=0.1)
    assert orphan.is_running()
    assert orphan.status() != psutil.STATUS_ZOMBIE
    processes.end_leftovers([Training("exp_x", tmp_path, tmp_path / "run.log", stranger.pid, started)], grace_s=0.1)
    assert not psutil.pid_exists(orphan.pid) or orphan.status() == psutil.STATUS_ZOMBIE  # it works in the run's folder


@given(st.dictionaries(st.integers(1, 8), st.integers(0, 8)), st.sets(st.integers(0, 8)))
def test_descendants_are_all_that_lead_to_a_root(parents: dict[int, int], roots: set[int]) -> None:
    table = {pid: Process(pid, parent, 0, 0, 0.0) for pid, parent in parents.items()}

    def leads_to_a_root(pid: int) -> bool:
        for _ in parents:
            if pid not in parents:
                return False
            pid = parents[pid]
            if pid in roots:
                return True
        return False

    found = [each.pid for each in processes.descendants(table, roots)]
    assert sorted(found) == [pid for pid in sorted(parents) if pid not in roots and leads_to_a_root(pid)]


# ------------------------------------------------------------------------------------------ identity


def test_a_process_is_known_by_its_start_and_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        mark = processes.start_mark(process.pid)
        assert mark is not None
        assert processes.is_alive(process.pid, mark)
        assert not processes.is_alive(process.pid, mark + 1)
        assert not processes.is_alive(process.pid, time.time())  # as earlier versions stored it
        assert not processes.is_alive(process.pid, mark - 2**34 if mark > 2**35 else mark + 2**34)  # of another boot
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.is_alive(process.pid, mark)
    assert processes.start_mark(process.pid) is None


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
@pytest.mark.parametrize("step", ["+1h", "-1h", "+90s", "-1d"])
async def test_a_step_of_the_clock_neither_ends_a_run_nor_gives_it_up(
    graph: LoopGraph, settings: Settings, environment: dict[str, str], workspace: Path, step: str
) -> None:
    program = workspace / "train.py"
    program.write_text(
        "import time\nfrom pathlib import Path\nprint('ready', flush=True)\n"
        f"while not Path({str(workspace / 'go')!r}).exists(): time.sleep(0.02)\nprint('val_bpb: 1.0')\n"
    )
    first = await graph.run_experiment(wait_s=0)
    await until(lambda: "ready" in log_of(first))
    queued = await graph.run_experiment(replicate=True, wait_s=0)
    _, child = pids(settings, first.experiment_id)
    with sqlite3.connect(settings.db_path) as conn:
        (mark,) = conn.execute("SELECT child_started FROM experiment WHERE child_pid = ?", (child,)).fetchone()
    conn.close()
    stepped = {**environment, "LD_PRELOAD": str(FAKETIME), "FAKETIME": step, "PYTHONPATH": str(ROOT)}
    alive = f"__import__('loopgraph_mcp.runner.processes').runner.processes.is_alive({child}, {mark!r})"
    code = f"import time; print(time.time(), {alive})"
    before = time.time()
    seen = subprocess.run([sys.executable, "-c", code], env=stepped, check=True, capture_output=True, text=True).stdout
    assert not before <= float(seen.split()[0]) <= time.time()  # its clock is another one
    assert seen.split()[1] == "True"
    command = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "status", "--once", "--json"]
    shown = subprocess.run(command, env=stepped, check=True, capture_output=True, text=True).stdout
    assert {each["state"] for each in json.loads(shown)} == {"running", "queued"}
    (workspace / "go").touch()
    for each in (first, queued):
        assert (await graph.get_experiment(each.experiment_id, wait_s=50)).outcome is OutcomeKind.FINISHED


# ---------------------------------------------------------------------------------- half started


async def test_an_experiment_is_looked_after_from_before_it_is_queued_until_it_is_done(
    graph: LoopGraph, settings: Settings
) -> None:
    with run.looked_after(settings) as (experiment_id, _):
        assert is_held(settings.locks_dir, experiment_id)
    assert not is_held(settings.locks_dir, experiment_id)
    started = await graph.run_experiment(wait_s=0)
    seen = started
    while seen.state is not RunState.DONE:
        held = is_held(settings.locks_dir, started.experiment_id)
        seen = await graph.get_experiment(started.experiment_id, wait_s=0)
        assert held or seen.state is RunState.DONE
    assert seen.outcome is OutcomeKind.FINISHED


async def test_a_supervisor_that_dies_before_its_claim_is_noticed_at_once_with_its_words(
    graph: LoopGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("PYTHONUTF8", "nonsense")  # Python itself does not start
    began = time.monotonic()
    answer = await graph.run_experiment(wait_s=50)
    assert time.monotonic() - began < 5
    assert answer.outcome is OutcomeKind.INTERRUPTED
    assert "ended before the run began" in answer.reason
    assert "PYTHONUTF8" in answer.log_tail
    monkeypatch.undo()
    assert (await graph.run_experiment(wait_s=50)).outcome is OutcomeKind.FINISHED


async def test_a_folder_of_locks_that_cannot_be_written_is_named_before_anything_is_queued(
    graph: LoopGraph, settings: Settings
) -> None:
    settings.locks_dir.write_text("a file in its place")
    with pytest.raises(RunError, match="locks: the folder of locks cannot be written"):
        await graph.run_experiment(wait_s=0)
    assert await graph.list_experiments() == []


# ------------------------------------------------------------------------------ killed, and for what


async def test_a_run_that_somebody_killed_is_interrupted_and_charges_no_method(
    graph: LoopGraph, workspace: Path
) -> None:
    await graph.run_experiment(wait_s=50)
    for code in ("os.kill(os.getpid(), 9)", "os._exit(137)"):  # 137: as a shell says it
        patch = f'@@ @@\n-MISHAP = ""\n+MISHAP = {code!r}\n'
        answer = await graph.run_experiment(patch=patch, method_id="swiglu", wait_s=50)
        assert (answer.outcome, answer.verdict) == (OutcomeKind.INTERRUPTED, None)
        assert "SIGKILL" in answer.reason
    assert (await graph.search_methods("swiglu", limit=1)).hits[0].crashes == 0


async def test_a_launcher_whose_worker_somebody_killed_is_interrupted_too(graph: LoopGraph, workspace: Path) -> None:
    code = "sys.exit('  exitcode  : -9 (pid: 4711)')"
    answer = await graph.run_experiment(patch=f'@@ @@\n-MISHAP = ""\n+MISHAP = {code!r}\n', wait_s=50)
    assert answer.outcome is OutcomeKind.INTERRUPTED, answer


V2, V1 = "0::/user.slice/me\n", "9:cpu:/x\n4:cpuset,memory:/jobs/7\n0::/\n"


@pytest.mark.skipif(not LINUX, reason="Linux's control groups")
@pytest.mark.parametrize(
    ("groups", "file", "text", "count"),
    [
        (V2, "user.slice/me/memory.events", "low 0\noom 9\noom_kill 3\noom_group_kill 8\n", 3),
        (V1, "memory/jobs/7/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("0::/\n", "memory.events", "oom_kill 2\n", 2),  # inside a container
        (V2, "elsewhere/memory.events", "oom_kill 3\n", 7),  # as the whole machine counts
        (V2, "user.slice/me/memory.events", "nothing that is known\n", 7),
    ],
)
def test_what_the_kernel_killed_for_memory_is_counted(
    tmp_path: Path, groups: str, file: str, text: str, count: int
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    (tmp_path / "proc" / "vmstat").write_text("oom_kill_x 1\nnr_free 1\noom_kill 7\n")
    place = tmp_path / "cgroup" / file
    place.parent.mkdir(parents=True)
    place.write_text(text)
    assert count_memory_kills(tmp_path / "proc", tmp_path / "cgroup") == count


def test_where_the_kernel_does_not_count_nothing_is_known(tmp_path: Path) -> None:
    assert count_memory_kills(tmp_path, tmp_path) is None


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with little memory; only the superuser can make one."""
    lines = Path("/proc/self/cgroup").read_text().splitlines() if LINUX else []
    paths = [line.split(":", 2)[2] for line in lines if "memory" in line.split(":", 2)[1].split(",")]
    own = Path("/sys/fs/cgroup/memory", (paths or ["/none"])[0].strip("/"))
    group = own / f"loopgraph-test-{os.getpid()}"
    if not paths or not own.is_dir() or not os.access(own, os.W_OK):
        pytest.skip("no control group of memory can be made here")
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(400 * 2**20))
    yield group
    group.rmdir()


def test_a_run_that_the_kernel_kills_for_memory_is_out_of_memory(
    environment: dict[str, str], workspace: Path, small_group: Path
) -> None:
    (workspace / "train.py").write_text("held = [bytearray(2**24) for _ in range(100)]\nprint('val_bpb: 1.0')\n")
    enter = f"open({str(small_group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    done = subprocess.run(
        [sys.executable, "-c", f"import os\n{enter}\nfrom loopgraph_mcp.cli.main import main; main()", "run", "--json"],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert answer["outcome"] == "out_of_memory", answer
    assert "kernel killed it" in answer["reason"]
