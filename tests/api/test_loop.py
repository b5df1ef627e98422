"""The loop through the SDK, with real supervisors and training processes."""

import asyncio
import dataclasses
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import NotFoundError, RunError, StoreError, WorkspaceError
from loopgraph_mcp.models import (
    Advice,
    Context,
    Decision,
    NextStep,
    Origin,
    OutcomeKind,
    RunState,
    Standing,
    VerdictKind,
)
from loopgraph_mcp.runner.locks import try_lock
from tests.conftest import ROOT

HIGHER_RATE = "@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.9\n"
LOWER_RATE = "@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.1\n"
SLOW = "@@ @@\n-SLEEP_S = 0.05\n-STEPS = 3\n+SLEEP_S = 0.2\n+STEPS = 300\n"


async def run(graph: LoopGraph, *, wait_s: float = 50.0, **asked: Any) -> ExperimentAnswer:
    """Run an experiment and wait for it as long as a busy machine needs."""
    return await graph.run_experiment(wait_s=wait_s, **asked)


def mishap(code: str) -> str:
    return f'@@ @@\n-MISHAP = ""\n+MISHAP = {code!r}\n'


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "results.tsv"}


def set_config(workspace: Path, **values: object) -> None:
    config = workspace / "loopgraph.toml"
    text = config.read_text()
    for key, value in values.items():
        text = re.sub(rf"(?m)^{key} = .*\n", "", text) + f"{key} = {json.dumps(value)}\n"
    config.write_text(text)


async def until_running(graph: LoopGraph, experiment_id: str) -> ExperimentAnswer:
    for _ in range(200):
        answer = await graph.get_experiment(experiment_id, wait_s=0.1)
        if answer.state is not RunState.QUEUED and answer.step is not None:
            return answer
    raise AssertionError(f"{experiment_id} never ran: {answer}")


def pids_mentioning(marker: str) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and marker in " ".join(process.info["cmdline"] or [])
    ]


async def test_a_win_is_applied_remembered_and_traced(graph: LoopGraph, workspace: Path) -> None:
    first = await run(graph, description="start here")
    assert (first.outcome, first.verdict, first.metric_value) == (OutcomeKind.FINISHED, VerdictKind.BASELINE, 1.75)
    assert first.summary["peak_vram_mb"] == 2048.0

    won = await run(graph, patch=HIGHER_RATE, method_id="embedding-lr", description="more rate")
    assert (won.verdict, won.decision) == (VerdictKind.WIN, Decision.KEEP)
    assert won.gain == pytest.approx(0.2)
    assert "LEARNING_RATE = 0.9" in (workspace / "train.py").read_text()
    assert won.run_dir is not None
    assert "val_bpb" in (Path(won.run_dir) / "run.log").read_text()

    hits = {hit.method_id: hit for hit in (await graph.search_methods("embedding learning rate")).hits}
    assert hits["embedding-lr"].standing is Standing.PROVEN
    assert hits["embedding-lr"].mean_gain == pytest.approx(0.2)
    mixed = await graph.search_methods("embedding learning rate", standing=Standing.MIXED)
    assert (mixed.hits, mixed.next_step.reason) == ([], Advice.NO_FILTER)
    assert "tried once, 1 win" in hits["embedding-lr"].why

    lines = (workspace / "results.tsv").read_text().splitlines()
    assert lines[0] == "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
    assert [line.split("\t")[1:] for line in lines[1:]] == [
        ["1.750000", "2.0", "keep", "start here"],
        ["1.550000", "2.0", "keep", "more rate"],
    ]
    traced = await graph.trace(won.experiment_id)
    assert {"pack", "method", "edit"} <= {link.stage for link in traced.before}
    assert {"outcome", "decision"} <= {link.stage for link in traced.after}


async def test_an_edit_is_traced_from_paper_to_outcome(graph: LoopGraph, workspace: Path) -> None:
    (workspace / "train.py").write_text("MATRIX_LR = 0.04\n" + (workspace / "train.py").read_text())
    found = await graph.search_methods("muon learning rate")
    edit = await graph.get_code_edit("muon-lr", retrieval_id=found.retrieval_id, knobs={"rate": 0.02})
    assert edit.status == "ready"
    assert edit.edit_id is not None
    assert "-MATRIX_LR = 0.04\n+MATRIX_LR = 0.02\n" in edit.diff
    assert "MATRIX_LR = 0.04" in (workspace / "train.py").read_text()
    tried = await run(graph, edit_id=edit.edit_id)
    assert tried.description == "muon-lr"
    links = {link.stage: link for link in (await graph.trace(tried.experiment_id)).before}
    assert links["paper"].id == "arxiv:2502.16982"
    assert links["retrieval"].id == found.retrieval_id
    assert links["edit"].id == edit.edit_id
    again = await graph.get_code_edit("muon-lr", knobs={"rate": 0.02})
    assert [earlier.experiment_id for earlier in again.earlier] == [tried.experiment_id]


async def test_a_loss_leaves_the_file_as_it_was(graph: LoopGraph, workspace: Path) -> None:
    before = files_of(workspace)
    await run(graph)
    lost = await run(graph, patch=LOWER_RATE, method_id="embedding-lr")
    assert (lost.verdict, lost.decision) == (VerdictKind.LOSS, Decision.DISCARD)
    assert files_of(workspace) == before
    assert (workspace / "results.tsv").read_text().splitlines()[-1].split("\t")[3] == "discard"
    hit = (await graph.search_methods("embedding LR")).hits
    assert {each.method_id: each.standing for each in hit}["embedding-lr"] is Standing.FLOPPED


FAILURES = {
    "exit": ("raise RuntimeError('told so')", OutcomeKind.CRASHED, "told so"),
    "signal": ("os.kill(os.getpid(), 11)", OutcomeKind.CRASHED, "signal 11"),
    "memory": ("raise MemoryError", OutcomeKind.OUT_OF_MEMORY, "memory"),
    "diverged": ("print('FAIL'); sys.exit(1)", OutcomeKind.DIVERGED, "loss"),
    "nan": ("print('val_bpb: nan'); sys.exit(0)", OutcomeKind.DIVERGED, "nan"),
    "cheat": ("open('prepare.py', 'a').write('#')", OutcomeKind.VOID, "prepare.py"),
    "hang": ("time.sleep(600)", OutcomeKind.SILENT, "silence_s"),
    "endless": ("while True: print('.', flush=True); time.sleep(0.1)", OutcomeKind.TIMED_OUT, "timeout_s"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_each_failure_is_its_own_outcome_and_touches_nothing(
    graph: LoopGraph, workspace: Path, name: str
) -> None:
    code, kind, told = FAILURES[name]
    set_config(workspace, silence_s=1.0 if name == "hang" else 20, timeout_s=2.0 if name == "endless" else 60)
    before = files_of(workspace)
    answer = await run(graph, patch=mishap(code), description=f"try {name}", method_id="swiglu")
    assert answer.outcome is kind, answer
    assert told in answer.reason + answer.log_tail
    assert files_of(workspace) == before
    if kind is OutcomeKind.NO_METRIC:  # a metric that is not found says nothing of the change
        assert (answer.verdict, answer.decision, answer.metric_value) == (None, None, None)
        assert (await graph.search_methods("swiglu", limit=1)).hits[0].standing is Standing.UNTRIED
        return
    assert (answer.verdict, answer.decision, answer.metric_value) == (VerdictKind.CRASH, Decision.DISCARD, None)
    cells = (workspace / "results.tsv").read_text().splitlines()[-1].split("\t")
    assert cells[1:4] == ["0.000000", "0.0", "crash"]
    assert cells[4].startswith(f"try {name} ({kind.value}")
    found = await graph.search_methods("swiglu", limit=1)
    assert found.hits[0].crashes == 1
    assert found.hits[0].standing is Standing.FLOPPED
    assert found.next_step.reason is Advice.ALL_FLOPPED


async def test_a_protected_file_may_be_made_by_the_first_run_and_then_stays(graph: LoopGraph, workspace: Path) -> None:
    set_config(workspace, protected=["prepare.py", "corpus.json?"])
    made = await run(graph, patch=mishap("open('corpus.json', 'w').write('x')"))
    assert made.outcome is OutcomeKind.FINISHED
    (workspace / "corpus.json").write_text("prepared")
    changed = await run(graph, patch=mishap("open('corpus.json', 'w').write('y')"), replicate=True)
    assert changed.outcome is OutcomeKind.VOID
    assert "corpus.json" in changed.reason


async def test_a_repeat_returns_the_earlier_outcome_and_a_replicate_runs_a_new_seed(graph: LoopGraph) -> None:
    first = await run(graph)
    repeat = await run(graph, description="the same again")
    assert (repeat.experiment_id, repeat.repeated) == (first.experiment_id, True)
    commented = await run(graph, patch="@@ @@\n-STEPS = 3\n+STEPS = 3  # only a comment\n")
    assert commented.repeated
    second = await run(graph, replicate=True)
    assert (second.repeated, first.seed, second.seed) == (False, 42, 43)
    assert second.metric_value == pytest.approx(1.751)
    chosen = await run(graph, seed=50)
    assert (chosen.repeated, chosen.seed) == (False, 50)
    assert second.next_step.about == {"runs": "2"}
    assert (await run(graph, seed=50)).experiment_id == chosen.experiment_id


async def test_a_baseline_that_failed_is_run_again_when_asked_again(graph: LoopGraph, workspace: Path) -> None:
    helper = "import helper\n" + (workspace / "train.py").read_text()
    (workspace / "train.py").write_text(helper)
    assert (await run(graph)).outcome is OutcomeKind.INTERRUPTED
    (workspace / "helper.py").write_text("")
    mended = await run(graph)
    assert (mended.outcome, mended.repeated) == (OutcomeKind.FINISHED, False)


async def test_a_replicate_of_a_kept_change_is_judged_against_its_parent(graph: LoopGraph) -> None:
    await run(graph)
    await run(graph, patch=HIGHER_RATE, method_id="embedding-lr")
    again = await run(graph, replicate=True)
    assert again.verdict is VerdictKind.WIN
    assert again.gain == pytest.approx(0.1995)
    hits = (await graph.search_methods("embedding")).hits
    assert hits[0].tries == 1


async def test_a_hand_edit_is_compared_with_the_incumbent_and_left_alone(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    edited = (workspace / "train.py").read_text().replace("LEARNING_RATE = 0.5", "LEARNING_RATE = 0.3")
    (workspace / "train.py").write_text(edited)
    answer = await run(graph, description="by hand", method_id="muon-lr")
    assert (answer.verdict, answer.gain) == (VerdictKind.LOSS, pytest.approx(-0.1))
    assert (workspace / "train.py").read_text() == edited


async def test_an_idempotency_key_starts_one_run(graph: LoopGraph) -> None:
    one = await run(graph, patch=HIGHER_RATE, idempotency_key="k1", wait_s=0)
    two = await run(graph, patch=HIGHER_RATE, idempotency_key="k1")
    assert one.experiment_id == two.experiment_id
    assert two.outcome is OutcomeKind.FINISHED
    assert len(await graph.list_experiments()) == 1


async def test_two_runs_take_turns_on_one_device(graph: LoopGraph) -> None:
    first = await run(graph, patch=SLOW, wait_s=0)
    await until_running(graph, first.experiment_id)
    second = await run(graph, patch=HIGHER_RATE, wait_s=1.0)
    assert (second.state, second.queue_position) == (RunState.QUEUED, 1)
    assert await graph.cancel_experiment(first.experiment_id)
    done = await graph.get_experiment(second.experiment_id, wait_s=50)
    assert done.outcome is OutcomeKind.FINISHED


async def test_a_queued_run_can_be_cancelled(graph: LoopGraph, settings: Settings) -> None:
    with try_lock(settings.locks_dir, "cpu-0") as held:
        assert held
        queued = await run(graph, wait_s=0.5)
        assert queued.state is RunState.QUEUED
        cancelled = await graph.cancel_experiment(queued.experiment_id)
    assert cancelled.outcome is OutcomeKind.CANCELLED
    rerun = await run(graph)
    assert (rerun.outcome, rerun.repeated) == (OutcomeKind.FINISHED, False)


async def test_cancelling_the_call_leaves_the_run_and_cancelling_the_run_ends_all_it_started(
    graph: LoopGraph, tmp_path: Path
) -> None:
    marker = f"grandchild-{tmp_path.name}"
    nested = f"import time; time.sleep(500) # {marker}"
    code = (
        "import subprocess\n"
        f"for own in (False, True): subprocess.Popen([sys.executable, '-c', {nested!r}], start_new_session=own)\n"
        "for step in range(4000): print(f'step {step:05d}', flush=True); time.sleep(0.1)"
    )
    call = asyncio.create_task(run(graph, patch=mishap(code), idempotency_key="k", wait_s=30))
    for _ in range(200):
        await asyncio.sleep(0.1)
        if len(pids_mentioning(marker)) == 2:
            break
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    (running,) = await graph.list_experiments()
    assert running.state is RunState.RUNNING
    assert len(pids_mentioning(marker)) == 2
    cancelled = await graph.cancel_experiment(running.experiment_id)
    assert cancelled.outcome is OutcomeKind.CANCELLED
    assert pids_mentioning(marker) == []


async def test_a_killed_supervisor_leaves_an_interrupted_run_and_no_orphan(settings: Settings) -> None:
    async with LoopGraph.open(settings) as graph:
        started = await run(graph, patch=SLOW, wait_s=0)
        await until_running(graph, started.experiment_id)
    with sqlite3.connect(settings.db_path) as conn:
        supervisor, child = conn.execute("SELECT supervisor_pid, child_pid FROM experiment").fetchone()
    conn.close()
    os.kill(supervisor, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid) for pid in (supervisor, child) if psutil.pid_exists(pid)], timeout=5)
    async with LoopGraph.open(settings) as graph:
        answer = await graph.get_experiment(started.experiment_id, wait_s=0)
        assert answer.outcome is OutcomeKind.INTERRUPTED
        assert "step" in answer.log_tail
        assert child not in pids_mentioning("train.py")
        rerun = await run(graph, patch=HIGHER_RATE)
        assert rerun.outcome is OutcomeKind.FINISHED


async def test_a_supervisor_killed_after_the_outcome_loses_no_outcome(graph: LoopGraph, settings: Settings) -> None:
    done = await run(graph)
    with sqlite3.connect(settings.db_path) as conn:
        conn.execute("UPDATE experiment SET state = 'running', finished_at = NULL")
    conn.close()
    again = await graph.get_experiment(done.experiment_id, wait_s=0)
    assert (again.outcome, again.metric_value) == (OutcomeKind.FINISHED, 1.75)


async def test_a_supervisor_that_never_came_is_given_up_with_its_last_words(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LoopGraph.open(settings) as graph:
        monkeypatch.setattr(sys, "executable", "/bin/false-python")
        began = time.monotonic()
        answer = await run(graph)
        monkeypatch.undo()
        assert time.monotonic() - began < 5
        assert answer.outcome is OutcomeKind.INTERRUPTED
        assert re.search(r"ended before the run began \(.*false-python.*not found", answer.reason)
        assert "false-python" in answer.log_tail
        assert (await run(graph)).outcome is OutcomeKind.FINISHED


async def test_a_supervisor_that_is_told_to_end_ends_its_run(graph: LoopGraph, settings: Settings) -> None:
    started = await run(graph, patch=SLOW, wait_s=0)
    await until_running(graph, started.experiment_id)
    with sqlite3.connect(settings.db_path) as conn:
        supervisor, child = conn.execute("SELECT supervisor_pid, child_pid FROM experiment").fetchone()
    conn.close()
    os.kill(supervisor, signal.SIGTERM)
    answer = await graph.get_experiment(started.experiment_id, wait_s=50)
    assert answer.outcome is OutcomeKind.INTERRUPTED
    assert child not in pids_mentioning("train.py")


async def test_a_file_that_changed_during_the_run_is_not_overwritten(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    slower = HIGHER_RATE.replace("+LEARN", "+WAIT = 1\n+LEARN") + SLOW.replace("STEPS = 300", "STEPS = 10")
    started = await run(graph, patch=slower, wait_s=0)
    await until_running(graph, started.experiment_id)
    mine = (workspace / "train.py").read_text() + "# mine\n"
    (workspace / "train.py").write_text(mine)
    done = await graph.get_experiment(started.experiment_id, wait_s=50)
    assert done.decision is Decision.KEEP
    assert "changed meanwhile" in done.note
    assert (workspace / "train.py").read_text() == mine


async def test_a_win_is_committed_where_the_workspace_says_so(graph: LoopGraph, workspace: Path) -> None:
    for command in (
        ["init", "-q"],
        ["config", "user.name", "Test"],
        ["config", "user.email", "test@localhost"],
        ["add", "-A"],
        ["commit", "-qm", "start"],
    ):
        subprocess.run(["git", *command], cwd=workspace, check=True)
    set_config(workspace, on_win="commit")
    await run(graph)
    won = await run(graph, patch=HIGHER_RATE, description="more rate")
    log = subprocess.run(["git", "log", "--format=%h %s"], cwd=workspace, check=True, capture_output=True, text=True)
    commit, _, subject = log.stdout.splitlines()[0].partition(" ")
    assert subject == "more rate (val_bpb 1.550000)"
    assert commit in won.note
    assert (workspace / "results.tsv").read_text().splitlines()[-1].startswith(commit[:7])


async def test_programs_that_cannot_run_are_refused_before_they_run(graph: LoopGraph, workspace: Path) -> None:
    with pytest.raises(RunError, match="line 4"):
        await run(graph, patch="@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = = 0.5\n")
    with pytest.raises(RunError, match="does not fit"):
        await run(graph, patch="@@ @@\n-NO_SUCH = 1\n+NO_SUCH = 2\n")
    with pytest.raises(RunError, match="not both"):
        await run(graph, patch=HIGHER_RATE, edit_id="edit_x")
    with pytest.raises(RunError, match="budget_s"):
        await run(graph, budget_s=10**9)
    with pytest.raises(NotFoundError, match="no edit 'edit_nope'") as missing:
        await run(graph, edit_id="edit_nope")
    assert missing.value.next_step is not None
    assert missing.value.next_step.tool == "get_code_edit"
    with pytest.raises(NotFoundError, match="did you mean swiglu"):
        await run(graph, method_id="swigluu")
    found = await graph.search_methods("swiglu")
    with pytest.raises(NotFoundError, match="is a search, no method; it showed swiglu"):
        await run(graph, method_id=found.retrieval_id)
    with pytest.raises(StoreError, match="is not a valid character"):
        await run(graph, method_id="swi\udcffglu")
    with pytest.raises(WorkspaceError, match="not a folder"):
        await run(graph, workspace=str(workspace / "nowhere"))
    (workspace / "train.py").write_text("MATRIX_LR = 0.04\n" + (workspace / "train.py").read_text())
    edit = await graph.get_code_edit("muon-lr")
    (workspace / "train.py").write_text("MATRIX_LR = 0.05\n")
    with pytest.raises(RunError, match="changed since") as stale:
        await run(graph, edit_id=edit.edit_id)
    assert stale.value.next_step == NextStep(Advice.MAKE_EDIT_AGAIN, "get_code_edit", {"method_id": "muon-lr"})
    assert await graph.list_experiments() == []


async def test_a_trainer_with_its_own_budget_is_not_asked_for_another(graph: LoopGraph, workspace: Path) -> None:
    (workspace / "prepare.py").write_text("def evaluate(rate):\n    return 2.0\n")
    with pytest.raises(RunError, match="LOOPGRAPH_BUDGET_S"):
        await run(graph, budget_s=10)
    with pytest.raises(RunError, match="LOOPGRAPH_SEED"):
        await run(graph, seed=10)


async def test_the_budget_and_seed_reach_the_trainer_and_secrets_do_not(
    graph: LoopGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    monkeypatch.setenv("HF_TOKEN", "hf-planted")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    show = mishap("print('env', sorted(os.environ)); print('told', prepare.SEED, prepare.BUDGET_S)")
    answer = await run(graph, patch=show, seed=7, budget_s=2)
    log = (Path(answer.run_dir or "") / "run.log").read_text()
    assert "told 7 2.0" in log
    assert "LOOPGRAPH_SEED" in log
    assert not re.search(r"OPENAI_API_KEY|HF_TOKEN|LOOPGRAPH_DB|PYTHONPATH|planted", log)


async def test_a_run_that_cannot_be_copied_says_why_and_leaves_nothing_to_join(settings: Settings) -> None:
    async with LoopGraph.open(settings) as graph:
        settings.runs_dir.parent.mkdir(exist_ok=True)
        settings.runs_dir.write_text("a file stands where the runs should lie")
        with pytest.raises(RunError, match="could not be started"):
            await run(graph)
        assert await graph.list_experiments() == []
        settings.runs_dir.unlink()
        assert (await run(graph)).outcome is OutcomeKind.FINISHED
        assert len(list(settings.runs_dir.iterdir())) == 1


async def test_decisions_costs_and_outside_runs_are_recorded(graph: LoopGraph, settings: Settings) -> None:
    measured = await run(graph)
    noted = await graph.record_outcome(
        experiment_id=measured.experiment_id, description="fine", tokens=1200, cost_usd=0.02, commit="abc1234"
    )
    assert (noted.verdict, noted.decision) == (VerdictKind.BASELINE, Decision.KEEP)
    outside = await graph.record_outcome(method_id="gqa", metric_value=1.60, description="ran it on another box")
    assert (outside.verdict, outside.decision, outside.origin) == (None, None, Origin.REPORTED)
    assert outside.standings == {"gqa": Standing.UNTRIED}
    failed = await graph.record_outcome(method_id="mqa", status=OutcomeKind.OUT_OF_MEMORY)
    assert (failed.verdict, failed.standings) == (None, {"mqa": Standing.UNTRIED})
    with pytest.raises(RunError, match="nothing to record"):
        await graph.record_outcome(description="fine")
    with pytest.raises(RunError, match="was measured"):
        await graph.record_outcome(experiment_id=measured.experiment_id, metric_value=1.0)
    with pytest.raises(RunError, match="metric_value"):
        await graph.record_outcome(method_id="gqa", metric_value=1.0, status=OutcomeKind.CRASHED)
    with pytest.raises(RunError, match="diverged"):
        await graph.record_outcome(method_id="gqa", metric_value=float("nan"))
    with pytest.raises(NotFoundError):
        await graph.record_outcome(experiment_id="exp_nope")
    with sqlite3.connect(settings.db_path) as conn:
        spent = conn.execute("SELECT tokens, cost_usd FROM cost WHERE source = 'agent'").fetchall()
    conn.close()
    assert spent == [(1200, 0.02)]


async def test_evidence_of_another_budget_counts_but_is_not_compared(graph: LoopGraph) -> None:
    await run(graph)
    await run(graph, patch=HIGHER_RATE, method_id="gqa")
    other = await run(graph, budget_s=5)
    assert other.verdict is VerdictKind.BASELINE
    hits = {hit.method_id: hit for hit in (await graph.search_methods("attention heads", limit=50)).hits}
    assert hits["gqa"].score > hits["mqa"].score


async def test_the_same_question_gets_the_same_answer_in_any_process(settings: Settings) -> None:
    async with LoopGraph.open(settings) as graph:
        await run(graph)
        await run(graph, patch=HIGHER_RATE, method_id="gqa")
    script = (
        "import asyncio, dataclasses, json, os\n"
        "from pathlib import Path\n"
        "from loopgraph_mcp.config import read_settings\n"
        "from loopgraph_mcp.api.loopgraph import LoopGraph\n"
        "async def main():\n"
        "    async with LoopGraph.open(read_settings(os.environ, Path.cwd())) as graph:\n"
        "        records = (await graph.state.evidence(None)).records\n"
        "        print([(m, repr(records.of(m))) for m in ('gqa', 'mqa')], records.family_means)\n"
        "asyncio.run(main())\n"
    )
    environment = {
        **os.environ,
        "LOOPGRAPH_HOME": str(settings.home),
        "LOOPGRAPH_WORKSPACE": str(settings.workspace),
    }
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert "gqa" in runs[0]


async def test_progress_is_told_while_waiting(graph: LoopGraph) -> None:
    seen: list[ExperimentAnswer] = []

    async def note(answer: ExperimentAnswer) -> None:
        seen.append(answer)

    began = time.monotonic()
    answer = await run(graph, patch=SLOW, wait_s=3, on_progress=note)
    assert time.monotonic() - began < 10
    assert answer.state is RunState.RUNNING
    assert answer.eta_s is not None
    assert answer.poll_after_s is not None
    steps = [each.step for each in seen if each.step is not None]
    assert len(steps) > 3
    assert steps == sorted(steps)
    await graph.cancel_experiment(answer.experiment_id)
    assert dataclasses.asdict(answer)["description"] == "edited by hand"


async def test_a_workspace_is_read_again_where_one_of_its_files_changed(graph: LoopGraph, workspace: Path) -> None:
    async def context() -> Context:
        return (await graph.state.here.found(None))[2]

    before = await context()
    assert await context() == before
    config, protected = workspace / "loopgraph.toml", workspace / "prepare.py"
    protected.write_text(protected.read_text() + "# other\n")
    assert (await context()).harness_hash != before.harness_hash
    (workspace / "eval").mkdir()
    (workspace / "eval" / "score.py").write_text("x = 1\n")
    set_config(workspace, protected=["prepare.py", "eval"], dataset=["eval/*.py"])
    whole = await context()
    (workspace / "eval" / "score.py").write_text("x = 2\n")
    other = await context()
    assert whole.harness_hash != other.harness_hash
    assert whole.dataset_hash != other.dataset_hash
    (workspace / "eval" / "more.py").write_text("")
    assert (await context()).harness_hash != other.harness_hash
    config.write_text(config.read_text().replace("budget_s = 1", "budget_s = 2"))
    assert (await context()).budget_s == 2
    config.unlink()
    assert (await context()).budget_s == 300  # as found without a declaration
    (workspace / "train.py").unlink()
    with pytest.raises(WorkspaceError):
        await context()
