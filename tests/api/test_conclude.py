"""What follows an outcome is done once, whatever is killed between two steps and whoever else writes."""

import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from loopgraph_mcp.api import recovery
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import Decision, Outcome, OutcomeKind, RunState
from loopgraph_mcp.runner.locks import alone_in, try_lock
from loopgraph_mcp.runner.workspace import append_result, load_workspace, results_size, write_program
from loopgraph_mcp.store import conclusions, experiments
from loopgraph_mcp.store.conclusions import Step, StepState
from loopgraph_mcp.store.experiments import ExperimentRow
from tests.api.test_loop import HIGHER_RATE, run, set_config

ROW = {"commit": "abc1234", "val_bpb": "1.000000", "memory_gb": "2.0", "status": "keep", "description": "a try"}


async def won(settings: Settings) -> str:
    async with LoopGraph.open(settings) as graph:
        await run(graph)
        return (await run(graph, patch=HIGHER_RATE, description="more", method_id="gqa")).experiment_id


def set_back(settings: Settings, experiment_id: str, *statements: str) -> None:
    """Make the store what it was when the supervisor was killed."""
    with closing(sqlite3.connect(settings.db_path)) as conn, conn:
        for statement in (
            *statements,
            "UPDATE experiment SET state = 'running', supervisor_pid = 999999, supervisor_started = 1, "
            "child_pid = NULL, finished_at = NULL WHERE id = :id",
        ):
            conn.execute(statement, {"id": experiment_id})


UNDECIDED = ("DELETE FROM decision WHERE experiment_id = :id", "DELETE FROM conclusion WHERE experiment_id = :id")
DUE = ("UPDATE conclusion SET state = 'due', place = NULL WHERE experiment_id = :id",)


async def test_an_outcome_without_decision_is_decided_applied_and_listed_once(
    settings: Settings, workspace: Path
) -> None:
    start = (workspace / "train.py").read_text()
    won_id = await won(settings)
    after, rows = (workspace / "train.py").read_text(), (workspace / "results.tsv").read_text()
    (workspace / "train.py").write_text(start)
    (workspace / "results.tsv").write_text("".join(rows.splitlines(keepends=True)[:-1]))
    set_back(settings, won_id, *UNDECIDED)
    async with LoopGraph.open(settings) as graph:
        found = await graph.get_experiment(won_id, wait_s=20)
        assert (found.state, found.decision) == (RunState.DONE, Decision.KEEP)
        assert "applied" in found.note
        steps = await conclusions.steps_of(graph.db, won_id)
        assert {each.step: each.state for each in steps} == dict.fromkeys(Step, StepState.DONE)
    assert (workspace / "train.py").read_text() == after
    assert (workspace / "results.tsv").read_text() == rows


CUTS: dict[str, Callable[[str], str]] = {
    "nothing of the row": lambda rows: "".join(rows.splitlines(keepends=True)[:-1]),
    "a part of the row": lambda rows: rows[:-9],
    "all but its end of line": lambda rows: rows[:-1],
    "all of the row": lambda rows: rows,
}


@pytest.mark.parametrize("cut", CUTS)
async def test_a_row_that_was_begun_is_there_once(settings: Settings, workspace: Path, cut: str) -> None:
    won_id = await won(settings)
    rows = (workspace / "results.tsv").read_text()
    begun = len("".join(rows.splitlines(keepends=True)[:-1]))
    (workspace / "results.tsv").write_text(CUTS[cut](rows))
    set_back(
        settings,
        won_id,
        f"UPDATE conclusion SET state = 'begun', place = {begun} WHERE experiment_id = :id AND step = 'row'",
    )
    async with LoopGraph.open(settings) as graph:
        assert (await graph.get_experiment(won_id, wait_s=20)).state is RunState.DONE
    assert (workspace / "results.tsv").read_text() == rows


async def test_a_file_that_its_user_changed_meanwhile_stays_as_it_is(settings: Settings, workspace: Path) -> None:
    won_id = await won(settings)
    (workspace / "train.py").write_text("print('mine')\n")
    set_back(settings, won_id, *DUE)
    async with LoopGraph.open(settings) as graph:
        found = await graph.get_experiment(won_id, wait_s=20)
        assert (found.decision, "changed meanwhile" in found.note) == (Decision.KEEP, True)
    assert (workspace / "train.py").read_text() == "print('mine')\n"


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
async def test_results_that_cannot_be_written_are_said_and_made_good_later(
    graph: LoopGraph, workspace: Path, kind: str
) -> None:
    results = workspace / "results.tsv"
    if kind == "a pipe":
        os.mkfifo(results)
    elif kind == "a device":
        results.symlink_to("/dev/full")
    else:
        results.mkdir()
    first = await run(graph, description="first")
    assert (first.outcome, first.decision) == (OutcomeKind.FINISHED, Decision.KEEP)
    assert "results.tsv could not be written" in first.note
    shutil.rmtree(results) if kind == "a folder" else results.unlink()
    second = await run(graph, replicate=True, description="second")
    assert second.outcome is OutcomeKind.FINISHED
    rows = results.read_text().splitlines()
    assert rows[0].startswith("commit\t")
    assert sorted(row.split("\t")[-1] for row in rows[1:]) == ["first", "second"]
    assert "could not be written" not in (await graph.get_experiment(first.experiment_id)).note


def test_a_line_that_others_follow_is_not_written_twice(workspace: Path) -> None:
    where = load_workspace(workspace)
    append_result(where, ROW, begun=results_size(where))
    begun = results_size(where)
    append_result(where, {**ROW, "description": "mine"}, begun=begun)
    append_result(where, {**ROW, "description": "theirs"}, begun=results_size(where))
    append_result(where, {**ROW, "description": "mine"}, begun=begun)
    lines = (workspace / "results.tsv").read_text().splitlines()
    assert [line.split("\t")[-1] for line in lines] == ["description", "a try", "mine", "theirs"]


def test_many_who_append_at_one_moment_write_one_header_and_whole_lines(workspace: Path, tmp_path: Path) -> None:
    where = load_workspace(workspace)

    def add(number: int) -> None:
        with alone_in(tmp_path / "locks", where.path):
            append_result(where, {**ROW, "description": f"try {number}"}, begun=results_size(where))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(60)))
    lines = (workspace / "results.tsv").read_text().splitlines()
    assert lines[0].startswith("commit\t")
    assert sorted(line.split("\t")[-1] for line in lines[1:]) == sorted(f"try {number}" for number in range(60))


def test_of_two_who_keep_at_one_moment_one_writes_the_file(workspace: Path, tmp_path: Path) -> None:
    where = load_workspace(workspace)
    for number in range(60):
        before = where.read_program()
        ready = threading.Barrier(2)

        def keep(name: str, before: str = before, ready: threading.Barrier = ready) -> bool:
            ready.wait()
            with alone_in(tmp_path / "locks", where.path):
                return write_program(where, f"# {name}\n{before}"[:9_000], expected=before)

        with ThreadPoolExecutor(2) as pool:
            kept = list(pool.map(keep, [f"one {number}", f"other {number}"]))
        assert sorted(kept) == [False, True]
        assert where.read_program().startswith(f"# {'one' if kept[0] else 'other'} {number}\n")


def test_files_of_writers_that_were_killed_are_cleaned(workspace: Path) -> None:
    where = load_workspace(workspace)
    (workspace / ".train.py.4242.tmp").write_text("half")
    assert write_program(where, "A = 1\n", expected=where.read_program())
    assert not list(workspace.glob(".train.py.*"))


async def test_an_outcome_that_the_store_could_not_take_is_not_lost(settings: Settings) -> None:
    async with LoopGraph.open(settings) as graph:
        await run(graph)
        started = await graph.run_experiment(patch=HIGHER_RATE, wait_s=0)
        row = await experiments.get_experiment(graph.db, started.experiment_id)
        while row is not None and row.supervisor is None:
            await graph.get_experiment(started.experiment_id, wait_s=0.1)
            row = await experiments.get_experiment(graph.db, started.experiment_id)
        assert row is not None
        assert row.supervisor is not None
        supervisor = psutil.Process(row.supervisor.pid)
        running = row
        while running is not None and running.state is RunState.QUEUED:
            await graph.get_experiment(started.experiment_id, wait_s=0.1)
            running = await experiments.get_experiment(graph.db, started.experiment_id)
        with closing(sqlite3.connect(settings.db_path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # as a writer that hangs, or a full disk
            while recovery.kept_outcome(row) is None:
                await graph.get_experiment(started.experiment_id, wait_s=0.1)
            supervisor.send_signal(signal.SIGKILL)
            psutil.wait_procs([supervisor], timeout=10)
            other.execute("ROLLBACK")
        found = await graph.get_experiment(started.experiment_id, wait_s=30)
    assert (found.outcome, found.metric_value, found.decision) == (OutcomeKind.FINISHED, 1.55, Decision.KEEP)


async def test_a_log_that_ends_with_its_summary_is_an_outcome(settings: Settings, workspace: Path) -> None:
    async with LoopGraph.open(settings) as graph:
        first = await run(graph)
        row = await experiments.get_experiment(graph.db, first.experiment_id)
        assert row is not None
        folder = Path(first.run_dir or "")
        (folder / recovery.OUTCOME_NAME).write_text(" " * 100)
        assert (await recovery._outcome_left(graph.db, row)).metric_value == 1.75
        log = (folder / "run.log").read_text()
        (folder / "run.log").write_text(log.replace("---", "val_bpb: 1.9"))  # printed on the way
        assert (await recovery._outcome_left(graph.db, row)).kind is OutcomeKind.INTERRUPTED
        (folder / "run.log").write_text(log.replace("val_bpb:          1.75", "val_bpb:          -1.75"))
        assert (await recovery._outcome_left(graph.db, row)).kind is OutcomeKind.NO_METRIC
        head, _, rest = log.partition("1.750000")
        (folder / "run.log").write_text(f"{head}1.7")  # cut within the number
        assert (await recovery._outcome_left(graph.db, row)).kind is OutcomeKind.INTERRUPTED
        (folder / "run.log").write_text(f"{head}1.750000{rest}")
        assert (await recovery._outcome_left(graph.db, row)).kind is OutcomeKind.FINISHED
        (folder / "code" / "prepare.py").write_text("# another\n")
        assert (await recovery._outcome_left(graph.db, row)).kind is OutcomeKind.INTERRUPTED


def test_an_outcome_is_kept_in_the_room_that_was_made_for_it(tmp_path: Path) -> None:
    recovery.prepare_outcome(tmp_path)
    size = (tmp_path / recovery.OUTCOME_NAME).stat().st_size
    row = type("Row", (), {"run_dir": str(tmp_path)})()
    assert recovery.kept_outcome(row) is None
    for reason in ("short", "long " * 5_000, "short again"):
        recovery.keep_outcome(row, Outcome(OutcomeKind.FINISHED, 1.5, reason, {f"n{i}": 0.1 for i in range(1_000)}))
        kept = recovery.kept_outcome(row)
        assert kept is not None
        assert (kept.metric_value, kept.reason) == (1.5, reason[:1_000])
        assert (tmp_path / recovery.OUTCOME_NAME).stat().st_size == size


async def until_there(graph: LoopGraph, experiment_id: str, text: str) -> ExperimentRow:
    """Wait until a run's log holds a text; return the run's row."""
    while True:
        row = await experiments.get_experiment(graph.db, experiment_id)
        assert row is not None
        if text in recovery.read_tail(Path(row.run_dir or "") / recovery.LOG_NAME) and row.supervisor is not None:
            return row
        await graph.get_experiment(experiment_id, wait_s=0.05)


async def test_a_run_that_ends_while_its_supervisor_is_stopped_is_not_timed_out(
    graph: LoopGraph, workspace: Path
) -> None:
    set_config(workspace, timeout_s=4, silence_s=4)
    (workspace / "train.py").write_text((workspace / "train.py").read_text().replace("STEPS = 3", "STEPS = 20"))
    started = await graph.run_experiment(wait_s=0)
    row = await until_there(graph, started.experiment_id, "step 00001")
    assert row.supervisor is not None
    supervisor = psutil.Process(row.supervisor.pid)
    supervisor.suspend()
    stopped_at = time.monotonic()
    try:
        await until_there(graph, started.experiment_id, "num_steps:        3\n")
        while time.monotonic() < stopped_at + 4.5:
            await graph.get_experiment(started.experiment_id, wait_s=0.2)
    finally:
        supervisor.resume()
    found = await graph.get_experiment(started.experiment_id, wait_s=50)
    assert (found.outcome, found.metric_value) == (OutcomeKind.FINISHED, 1.75)


async def test_a_supervisor_that_is_asked_to_end_reads_the_log_first(graph: LoopGraph, workspace: Path) -> None:
    with (workspace / "train.py").open("a") as file:
        file.write("\ntime.sleep(600)\n")
    started = await graph.run_experiment(wait_s=0)
    row = await until_there(graph, started.experiment_id, "num_steps:        3\n")
    assert row.supervisor is not None
    psutil.Process(row.supervisor.pid).terminate()
    found = await graph.get_experiment(started.experiment_id, wait_s=50)
    assert (found.outcome, found.metric_value, found.decision) == (OutcomeKind.FINISHED, 1.75, Decision.KEEP)


async def test_what_a_killed_process_left_behind_is_swept_and_what_ran_or_is_held_stays(
    graph: LoopGraph, settings: Settings
) -> None:
    over = (await run(graph)).experiment_id
    for name in ("exp_queued", "exp_held", "exp_ran"):
        (settings.runs_dir / name / "code").mkdir(parents=True)
    (settings.runs_dir / "exp_ran" / recovery.LOG_NAME).write_text("of another store\n")
    locks = {name: settings.locks_dir / f"{name}.lock" for name in (over, "exp_queued", "exp_young", "exp_old")}
    for lock in locks.values():
        lock.touch()
    os.utime(locks["exp_old"], (0, 0))
    with try_lock(settings.locks_dir, "exp_held"):
        await recovery.sweep(graph.db, settings)
    assert {path.name for path in settings.runs_dir.iterdir()} == {over, "exp_held", "exp_ran"}
    assert {path.stem for path in settings.locks_dir.glob("exp_*")} == {"exp_held", "exp_young"}
