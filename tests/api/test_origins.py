"""Who says what an outcome was: measured, read from a log, trusted, only reported, or imported."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from loopgraph_mcp import wrap
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.models import Advice, Decision, Origin, OutcomeKind, Standing, VerdictKind
from loopgraph_mcp.store import experiments, outcomes
from loopgraph_mcp.store.database import Database, migration_files, split_statements
from tests.api.test_loop import HIGHER_RATE, run
from tests.api.test_what_ran import loop, run_in

LOG = "step 00002 (99.0%) | loss: 1.0\n---\nval_bpb:          1.500000\npeak_vram_mb:     2048.0\n"


async def reward(graph: LoopGraph) -> float:
    hits = {hit.method_id: hit for hit in (await graph.search_methods(limit=100)).hits}
    return hits["gqa"].parts["reward"]


async def test_a_bare_number_moves_a_rank_by_little_and_makes_nothing(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    before = await reward(graph)
    for _ in range(30):
        told = await graph.record_outcome(method_id="gqa", metric_value=0.0001, decision=Decision.KEEP)
    assert (told.origin, told.verdict, told.standings) == (Origin.REPORTED, None, {"gqa": Standing.UNTRIED})
    assert told.next_step.reason is Advice.SEND_LOG
    answer = await graph.search_methods("grouped query attention", limit=1)
    assert answer.hits[0].reports == 30
    assert "reported without a log" in answer.hits[0].why
    assert answer.best is None
    best = await graph.best_result()
    assert best is not None
    assert (best.is_baseline, best.metric_value) == (True, 1.75)
    assert before < await reward(graph) < 1.5 * before
    kept = await run(graph, patch=HIGHER_RATE)  # held against what was measured, not against the report
    assert (kept.verdict, kept.gain) == (VerdictKind.WIN, pytest.approx(0.2))


async def test_a_report_with_its_log_counts_as_evidence(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    told = await graph.record_outcome(method_id="gqa", log=LOG, description="my own runner")
    assert (told.origin, told.metric_value, told.verdict) == (Origin.LOGGED, 1.5, VerdictKind.WIN)
    assert told.gain == pytest.approx(0.25)
    assert told.standings == {"gqa": Standing.PROVEN}
    row = await experiments.get_experiment(graph.db, told.experiment_id)
    assert row is not None
    assert row.outcome is not None
    assert row.outcome.summary["peak_vram_mb"] == 2048
    listed = {each.experiment_id: each.origin for each in await graph.list_experiments()}
    assert listed[told.experiment_id] is Origin.LOGGED


async def test_a_log_is_read_from_a_path_inside_the_workspace_alone(
    graph: LoopGraph, workspace: Path, tmp_path: Path
) -> None:
    await run(graph)
    (workspace / "logs").mkdir()
    (workspace / "logs" / "own.log").write_text(LOG)
    (tmp_path / "outside.log").write_text(LOG)
    told = await graph.record_outcome(log="logs/own.log")
    assert (told.metric_value, told.origin) == (1.5, Origin.LOGGED)
    for path in ("../outside.log", str(tmp_path / "outside.log")):
        with pytest.raises(RunError, match="outside"):
            await graph.record_outcome(log=path)


async def test_a_log_that_says_otherwise_is_refused(graph: LoopGraph) -> None:
    with pytest.raises(RunError, match="the log says"):
        await graph.record_outcome(metric_value=1.2, log=LOG)
    with pytest.raises(RunError, match="val_bpb"):
        await graph.record_outcome(log="nothing of it\n")
    failed = await graph.record_outcome(log="Traceback\nValueError: no\n", status=OutcomeKind.CRASHED)
    assert (failed.origin, failed.metric_value) == (Origin.LOGGED, None)


async def test_a_commit_says_what_a_logged_run_ran(graph: LoopGraph, workspace: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        return subprocess.run(
            ["git", *identity, *words], cwd=workspace, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "start")
    await run(graph)
    start = (workspace / "train.py").read_text()
    (workspace / "train.py").write_text(start.replace("RATE = 0.5", "RATE = 0.9"))
    git("commit", "-qam", "more")
    told = await graph.record_outcome(log=LOG, commit=git("rev-parse", "HEAD"), description="more")
    again = await run(graph)  # the file as it is: that program has its outcome
    assert (again.repeated, again.experiment_id, again.origin) == (True, told.experiment_id, Origin.LOGGED)


def checkout(folder: Path) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("changed", ["an edit", "a removal", "a new file"])
async def test_a_report_of_a_commit_says_nothing_of_other_files_than_the_commit_holds(
    graph: LoopGraph, tmp_path: Path, changed: str
) -> None:
    files = {"train.py": "import settings\nprint('loss:', 1 + settings.LR)\n", "settings.py": "LR = 0.5\n", "x.txt": ""}
    folder = loop(tmp_path / "many", files)
    checkout(folder)
    if changed == "an edit":
        (folder / "settings.py").write_text("LR = 0.1\n")
    elif changed == "a removal":
        (folder / "x.txt").unlink()
    else:
        (folder / "new.py").write_text("")
    told = await graph.record_outcome(log="loss: 7.5\n", commit="HEAD", workspace=str(folder))
    own = await run_in(graph, folder)
    assert not own.repeated
    assert own.experiment_id != told.experiment_id
    assert own.metric_value == (1.1 if changed == "an edit" else 1.5)


@pytest.mark.parametrize("commit", ["deadbeef", "--help", "nosuchbranch", ""])
@pytest.mark.parametrize("report", [{"log": LOG}, {"metric_value": 1.0}])
async def test_a_commit_that_git_does_not_hold_is_refused(
    graph: LoopGraph, workspace: Path, commit: str, report: dict
) -> None:
    checkout(workspace)
    with pytest.raises(RunError, match=r"git holds no train\.py"):
        await graph.record_outcome(commit=commit, **report)
    assert await graph.list_experiments() == []


async def test_a_report_without_its_program_is_no_parent_of_a_hand_edit(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    told = await graph.record_outcome(log=LOG)
    assert (told.decision, told.verdict) == (Decision.KEEP, VerdictKind.WIN)
    (workspace / "train.py").write_text((workspace / "train.py").read_text().replace("RATE = 0.5", "RATE = 0.9"))
    edited = await run(graph)
    assert (edited.verdict, edited.gain) == (VerdictKind.WIN, pytest.approx(0.2))


async def test_a_failed_report_with_a_metric_is_refused_with_and_without_a_log(graph: LoopGraph) -> None:
    for log in (None, LOG):
        with pytest.raises(RunError, match="crashed"):
            await graph.record_outcome(log=log, metric_value=1.5, status=OutcomeKind.CRASHED)


async def test_a_log_may_have_any_name_and_must_be_a_file(graph: LoopGraph, workspace: Path) -> None:
    for name in ("my own run.log", "out", "run 3"):
        (workspace / name).write_text(LOG)
        assert (await graph.record_outcome(log=name)).metric_value == 1.5
    (workspace / "folder.log").mkdir()
    os.mkfifo(workspace / "pipe.log")
    for name in ("folder.log", "pipe.log"):
        with pytest.raises(RunError, match="no file of text"):
            await graph.record_outcome(log=name)


async def test_a_report_without_words_is_not_called_a_baseline(graph: LoopGraph) -> None:
    await run(graph)
    await graph.record_outcome(log=LOG)
    assert {each.description for each in await graph.list_experiments()} == {"baseline", "reported run"}


async def test_a_workspace_may_trust_bare_numbers(graph: LoopGraph, workspace: Path) -> None:
    config = workspace / "loopgraph.toml"
    config.write_text(config.read_text() + "trust_reports = true\n")
    await run(graph)
    told = await graph.record_outcome(method_id="gqa", metric_value=1.5)
    assert (told.origin, told.verdict, told.standings["gqa"]) == (Origin.TRUSTED, VerdictKind.WIN, Standing.PROVEN)


@pytest.mark.parametrize("nothing", [{}, {"description": "x"}, {"method_id": "gqa"}, {"decision": Decision.KEEP}])
async def test_a_report_of_nothing_is_refused(graph: LoopGraph, nothing: dict) -> None:
    with pytest.raises(RunError, match="nothing to record"):
        await graph.record_outcome(**nothing)
    assert await graph.list_experiments() == []


async def test_a_decision_on_a_bare_number_makes_no_incumbent(graph: LoopGraph, workspace: Path) -> None:
    first = await run(graph)
    await graph.record_outcome(metric_value=0.1, decision=Decision.KEEP)
    row = await experiments.get_experiment(graph.db, first.experiment_id)
    assert row is not None
    incumbent = await experiments.last_kept(graph.db, row.context_id)
    assert incumbent is not None
    assert incumbent.id == first.experiment_id


def test_what_the_wrapper_records_is_measured(settings: Settings, workspace: Path) -> None:
    train = wrap(lambda rate: 2 - rate / 2, workspace=workspace, settings=settings)
    train(0.5)
    assert train.last is not None
    assert (train.last.origin, train.last.verdict) == (Origin.MEASURED, VerdictKind.BASELINE)
    train(0.9)
    assert (train.last.origin, train.last.verdict) == (Origin.MEASURED, VerdictKind.WIN)


async def test_a_failed_report_counts_little(graph: LoopGraph) -> None:
    await run(graph)
    for _ in range(20):
        await graph.record_outcome(method_id="gqa", status=OutcomeKind.CRASHED)
    hit = (await graph.search_methods("grouped query attention", limit=1)).hits[0]
    assert (hit.standing, hit.crashes, hit.parts["p_ok"]) == (Standing.UNTRIED, 0, round(9 / 11, 4))


# ------------------------------------------------------------------------------------- an older store


async def test_an_old_store_keeps_its_rows_and_knows_whose_word_each_is(
    settings: Settings, workspace: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old, isolation_level=None)) as conn:
        for number, file in migration_files():
            if number <= 9:
                for statement in split_statements(file.read_text(encoding="utf-8")):
                    conn.execute(statement)
                conn.execute(f"PRAGMA user_version = {number}")
        conn.executescript(OLD_ROWS)
    home = settings.home
    home.mkdir(parents=True)
    shutil.copy(old, settings.db_path)
    async with Database.open(settings.db_path) as db:
        found = {each.row: each for each in await outcomes.runs_between(db, 0, 99)}
        assert [found[row].origin for row in sorted(found)] == [
            Origin.MEASURED,
            Origin.MEASURED,
            Origin.REPORTED,
            Origin.IMPORTED,
            Origin.IMPORTED,
        ]
        assert [(each.group, each.base_group) for each in found.values()] == [
            ("tree a", None),
            ("tree b", "tree a"),
            ("exp_told", "tree b"),
            ("exp_i1", None),
            ("tree b", "exp_i1"),
        ]
        assert await db.check() == []
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            await db.change("UPDATE outcome SET metric_value = 1")
    async with LoopGraph.open(replace(settings, packs=settings.packs)) as graph:
        assert (await graph.count())["experiments"] == 5
        first = await run(graph, description="after the upgrade")
        assert (first.repeated, first.verdict) == (False, VerdictKind.BASELINE)


OLD_ROWS = """
INSERT INTO pack VALUES ('old', '1', 'x', 1);
INSERT INTO method (id, pack_name, family, name, aliases, summary, description, identifiers, card)
VALUES ('gqa', 'old', 'attention', 'GQA', '', '', '', '', '{}');
INSERT INTO workspace VALUES ('ws_1', '/somewhere', 1), ('ws_2', 'imported:x', 1);
INSERT INTO context VALUES ('ctx_1', 'ws_1', 'cpu: x', 30.0, 'd', 'h', 'val_bpb', 'lower');
INSERT INTO context VALUES ('ctx_2', 'ws_2', 'cuda: y', 300.0, 'segment 0', 'imported:x', 'val_bpb', 'lower');
INSERT INTO program VALUES ('a', 'tree a', 'A = 1'), ('b', 'tree b', 'A = 2');
INSERT INTO experiment (id, context_id, base_hash, program_hash, parent_id, description, seed, timeout_s, silence_s,
    device_slot, state, created_at) VALUES
    ('exp_base', 'ctx_1', NULL, 'a', NULL, 'baseline', 42, 1, 1, 'cpu-0', 'done', 1),
    ('exp_ran', 'ctx_1', 'a', 'b', 'exp_base', 'ran', 42, 1, 1, 'cpu-0', 'done', 2),
    ('exp_told', 'ctx_1', NULL, NULL, 'exp_ran', 'told', 42, 1, 1, 'cpu-0', 'done', 3),
    ('exp_i1', 'ctx_2', NULL, NULL, NULL, 'imported', 42, 1, 1, 'imported', 'done', 4),
    ('exp_i2', 'ctx_2', 'a', 'b', 'exp_i1', 'imported', 42, 1, 1, 'imported', 'done', 5);
INSERT INTO experiment_method VALUES ('exp_ran', 'gqa'), ('exp_told', 'gqa'), ('exp_i2', 'gqa');
INSERT INTO outcome VALUES
    ('exp_base', 'finished', 1.5, 'val_bpb 1.5', '{}', '', 1),
    ('exp_ran', 'finished', 1.4, 'val_bpb 1.4', '{}', '', 2),
    ('exp_told', 'finished', 0.1, 'recorded by the agent', '{}', '', 3),
    ('exp_i1', 'finished', 1.3, '', '{}', '', 4),
    ('exp_i2', 'finished', 1.2, '', '{}', '', 5);
INSERT INTO decision (experiment_id, decision, made_by, commit_hash, note, created_at) VALUES
    ('exp_base', 'keep', 'loopgraph', NULL, '', 1), ('exp_ran', 'keep', 'loopgraph', NULL, '', 2);
"""
