import asyncio
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from loopgraph_mcp.api.answers import ImportAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.models import Decision, Direction, OutcomeKind, Standing, VerdictKind
from loopgraph_mcp.store import experiments
from loopgraph_mcp.store.experiments import ExperimentRow

# In words: a search without words leaves out what does not fit the file.
METHODS = "GQA; SwiGLU; smaller batch; sliding window pattern; muon-lr; warmdown"
HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
ROWS = (
    "aaaaaa1\t1.000000\t1.0\tkeep\tbaseline\n"
    "aaaaaa2\t0.900000\t1.0\tkeep\thalve the batch\n"
    "aaaaaa3\t1.100000\t1.0\tdiscard\tmatrix LR 0.04 to 0.03\n"
    "aaaaaa4\t0.000000\t0.0\tcrash\tSwiGLU and depth 12\n"
)


async def imported(settings: Settings, path: Path, **kwargs: object) -> ImportAnswer:
    async with LoopGraph.open(settings) as graph:
        return await graph.import_history(path, **kwargs)  # type: ignore[arg-type]


async def test_rows_become_experiments_and_evidence(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(HEADER + ROWS + "what is this\n", encoding="utf-8")
    answer = await imported(settings, path, device="H100")
    assert (answer.added, answer.known, answer.left_out) == (4, 0, 1)
    assert [(row.status, row.moves, row.method_ids) for row in answer.rows[:4]] == [
        ("keep", [], []),
        ("keep", ["batch_size down"], ["smaller-batch"]),
        ("discard", ["matrix_lr down to 0.03"], ["muon-lr"]),
        ("crash", ["activation to swiglu", "depth to 12"], []),
    ]
    assert answer.rows[3].notes == ["also changes depth to 12: not counted for swiglu"]
    assert [row.understood for row in answer.rows] == ["whole", "whole", "whole", "part", "left_out"]
    assert answer.understood == (3, 1)
    assert (answer.rows[4].understood, answer.rows[4].notes) == ("left_out", ["is no row of a table"])
    async with LoopGraph.open(settings) as graph:
        hits = {hit.method_id: hit for hit in (await graph.search_methods(METHODS, limit=100)).hits}
        assert (await graph.count())["experiments"] == 4
    kept, lost = hits["smaller-batch"], hits["muon-lr"]
    assert (kept.standing, lost.standing, kept.tries) == (Standing.UNTRIED, Standing.UNTRIED, 0)  # nothing ran here
    assert (kept.imported.tries, kept.imported.wins, kept.imported.mean_gain) == (1, 1, pytest.approx(0.1))
    assert (lost.imported.tries, lost.imported.wins, lost.imported.mean_gain) == (1, 0, pytest.approx(-0.2))


async def test_importing_again_adds_only_what_is_new(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(HEADER + ROWS, encoding="utf-8")
    assert (await imported(settings, path)).added == 4
    assert (await imported(settings, path)).added == 0
    moved = path.rename(tmp_path / "moved.tsv")
    with moved.open("a", encoding="utf-8") as file:
        file.write("aaaaaa3\t1.100000\t1.0\tdiscard\tmatrix LR 0.04 to 0.03\n")  # the same words, tried once more
        file.write("aaaaaa5\t0.800000\t1.0\tkeep\twarmdown 0.5 to 0.7\n")
    again = await imported(settings, moved)
    assert (again.added, again.known) == (2, 4)
    assert (await imported(settings, moved)).added == 0


async def test_a_dry_run_says_all_and_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(HEADER + ROWS, encoding="utf-8")
    answer = await imported(settings, path, dry_run=True)
    assert (answer.added, len(answer.rows)) == (4, 4)
    async with LoopGraph.open(settings) as graph:
        assert (await graph.count())["experiments"] == 0


async def test_a_higher_metric_is_judged_the_right_way_round(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text("commit\tval_acc\tstatus\tdescription\n\t0.5\tkeep\tbaseline\n\t0.7\tkeep\thalve the batch\n")
    answer = await imported(settings, path, metric="val_acc")
    assert answer.direction is Direction.HIGHER
    async with LoopGraph.open(settings) as graph:
        hits = {hit.method_id: hit for hit in (await graph.search_methods(METHODS, limit=100)).hits}
    assert hits["smaller-batch"].imported.mean_gain == pytest.approx(0.2)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


async def test_rows_get_their_diffs_from_the_repository_around_them(settings: Settings, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    lines = [HEADER]
    for value, text, status in (
        (1.0, "LR = 0.5\n", "keep"),
        (0.9, "LR = 0.6\n", "keep"),
        (1.2, "LR = 0.9\n", "discard"),
    ):
        (tmp_path / "train.py").write_text(text, encoding="utf-8")
        git(tmp_path, "add", "train.py")
        git(tmp_path, "commit", "--quiet", "-m", text.strip())
        commit = git(tmp_path, "rev-parse", "--short=7", "HEAD")
        lines.append(f"{commit}\t{value:.6f}\t1.0\t{status}\ttry {text}")
    lines.append("fffffff\t0.8\t1.0\tkeep\tLR 0.6 to 0.7\n")
    path = tmp_path / "results.tsv"
    path.write_text("".join(lines), encoding="utf-8")
    answer = await imported(settings, path)
    assert [row.has_diff for row in answer.rows] == [False, True, True, False]
    assert answer.rows[3].notes == ["its commit is not in the repository"]
    async with LoopGraph.open(settings) as graph:
        rows = list(
            await graph.db.reader.execute_fetchall("SELECT base_hash, program_hash FROM experiment ORDER BY row")
        )
    assert [(row["base_hash"] is None, row["program_hash"] is None) for row in rows] == [
        (True, False),
        (False, False),
        (False, False),
        (False, True),  # its commit is not there: what it started from is known, what ran is not
    ]
    assert rows[1]["base_hash"] == rows[0]["program_hash"]
    assert rows[2]["base_hash"] == rows[1]["program_hash"]


async def test_hostile_commits_never_reach_git(settings: Settings, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    path = tmp_path / "results.tsv"
    path.write_text(HEADER + "--output=owned\t1.0\t1\tkeep\tLR up\n", encoding="utf-8")
    answer = await imported(settings, path)
    assert answer.added == 1
    assert not (tmp_path / "owned").exists()


async def test_what_a_history_teaches_counts_until_it_is_switched_off(settings: Settings, tmp_path: Path) -> None:
    lines = [HEADER, "a\t1.0\t1\tkeep\tbaseline\n"]
    lines += [
        f"{n:07x}\t{0.99 if n % 3 == 0 else 1.01}\t1\t{'keep' if n % 3 == 0 else 'discard'}\t"
        f"{'window SSSL to SSSSL' if n % 3 == 0 else 'GQA: fewer KV heads'} {n}\n"
        for n in range(30)
    ]
    path = tmp_path / "results.tsv"
    path.write_text("".join(lines), encoding="utf-8")
    async with LoopGraph.open(settings) as graph:  # what another process imports meanwhile counts here too
        before = {hit.method_id: hit.parts["prior"] for hit in (await graph.search_methods(METHODS, limit=100)).hits}
        answer = await imported(settings, path)
        assert answer.kinds > 0
        hits = {hit.method_id: hit.parts["prior"] for hit in (await graph.search_methods(METHODS, limit=100)).hits}
    assert hits["sliding-window-pattern"] > hits["gqa"]
    assert hits["sliding-window-pattern"] > before["sliding-window-pattern"]


async def test_a_file_that_cannot_be_read_is_refused_and_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"type": "config", "metricName": "x"}), encoding="utf-8")
    for broken in (path, tmp_path / "absent.tsv"):
        with pytest.raises(HistoryError):
            await imported(settings, broken)


# ------------------------------------------------------------------------------------------- what counts


async def stored(settings: Settings) -> list[ExperimentRow]:
    async with LoopGraph.open(settings) as graph:
        ids = [row["id"] for row in await graph.db.reader.execute_fetchall("SELECT id FROM experiment ORDER BY row")]
        rows = [await experiments.get_experiment(graph.db, each) for each in ids]
    return [row for row in rows if row is not None]


def table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


async def test_no_decision_is_made_up_where_the_history_tells_none(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(
        "run_id,status,metrics.val_loss,params.lr,tags.mlflow.runName\n"
        "x1,FINISHED,1.5,0.1,baseline\nx2,FINISHED,1.4,0.2,halve the batch\nx3,FAILED,,0.2,SwiGLU\n"
    )
    answer = await imported(settings, path)
    rows = await stored(settings)
    assert [row.decision for row in rows] == [None, None, Decision.DISCARD]
    assert rows[1].parent_id == rows[0].id  # the baseline, as nothing was kept
    assert rows[2].outcome is not None
    assert rows[2].outcome.kind is OutcomeKind.CRASHED
    assert (answer.added, answer.understood) == (3, (1, 2))


async def test_runs_without_a_baseline_are_compared_with_nothing(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    runs = [{"name": f"LR {n}", "state": "finished", "summary": {"val_loss": 1.0 + n}, "config": {}} for n in range(3)]
    path.write_text(json.dumps(runs))
    answer = await imported(settings, path)
    assert [row.parent_id for row in await stored(settings)] == [None, None, None]
    assert any("nothing to compare with" in note for note in answer.notes)


async def test_a_row_without_metric_counts_only_where_it_failed(settings: Settings, tmp_path: Path) -> None:
    path = table(
        tmp_path / "results.tsv",
        "aaaaaa1\t1.0\t1\tkeep\tbaseline",
        "aaaaaa2\tnan\t1\tkeep\thalve the batch",
        "aaaaaa3\t-inf\t1\tdiscard\tSwiGLU",
        "aaaaaa4\t0.000000\t0\tcrash\tmatrix LR 0.04 to 0.03",
    )
    answer = await imported(settings, path)
    assert [row.understood for row in answer.rows] == ["whole", "left_out", "part", "whole"]
    assert answer.rows[1].notes[-1] == "neither a metric nor a failure"
    kinds = [row.outcome.kind for row in await stored(settings) if row.outcome is not None]
    assert kinds == [OutcomeKind.FINISHED, OutcomeKind.CRASHED, OutcomeKind.CRASHED]


async def test_each_machine_is_compared_within_itself(settings: Settings, tmp_path: Path) -> None:
    path = table(
        tmp_path / "results.tsv",
        "aaaaaa1\t1.0\t1\tkeep\tbaseline",
        "aaaaaa2\t0.9\t1\tkeep\thalve the batch",
        "aaaaaa3\t1.5\t1\tkeep\tbaseline on the laptop",
        "aaaaaa4\t1.4\t1\tkeep\tSwiGLU",
    )
    answer = await imported(settings, path)
    first, second, third, fourth = await stored(settings)
    assert (second.parent_id, third.parent_id, fourth.parent_id) == (first.id, None, third.id)
    assert first.context_id == second.context_id != third.context_id == fourth.context_id
    assert any("compared within itself" in note for note in answer.notes)
    async with LoopGraph.open(settings) as graph:
        hits = {hit.method_id: hit for hit in (await graph.search_methods(METHODS, limit=100)).hits}
    assert hits["swiglu"].imported.mean_gain == pytest.approx(0.1)


def kept(path: Path, metric: str, *values: float, above: str = "") -> Path:
    """Write a history whose rows were all kept."""
    lines = [f"\t{value}\tkeep\ttry {place}\n" for place, value in enumerate(values)]
    path.write_text(f"{above}commit\t{metric}\tstatus\tdescription\n{''.join(lines)}")
    return path


@pytest.mark.parametrize(
    ("metric", "above", "other"),
    [
        ("val_loss", "", "higher"),
        ("accuracy", "", "lower"),
        ("quality", "# metric_direction: lower\n", "higher"),
        ("tok_s", "# direction: minimize\n", "higher"),
    ],
)
@pytest.mark.parametrize("keeps", [1, 2, 5])
async def test_where_most_kept_rows_got_worse_nothing_is_imported_before_the_direction_is_said(
    settings: Settings, tmp_path: Path, metric: str, above: str, other: str, keeps: int
) -> None:
    values = [10.0 + n if other == "higher" else 10.0 - n for n in range(keeps + 1)]
    path = kept(tmp_path / "its results.tsv", metric, *values, above=above)
    for dry_run in (True, False):
        with pytest.raises(HistoryError) as raised:
            await imported(settings, path, dry_run=dry_run)
        words = str(raised.value)
        assert f"{keeps} of {keeps} kept rows would be worse" in words
        assert f"loopgraph import '{path}' --direction {other}" in words
    async with LoopGraph.open(settings) as graph:
        assert (await graph.count())["experiments"] == 0
    answer = await imported(settings, path, direction=Direction(other))
    assert (answer.added, answer.direction.value, answer.direction_from) == (keeps + 1, other, "given")
    answer = await imported(settings, path, direction=Direction.LOWER if other == "higher" else Direction.HIGHER)
    assert (answer.added, answer.known) == (0, keeps + 1)
    assert any(f"{keeps} of {keeps} kept rows made {metric} worse" in note for note in answer.notes)


async def test_one_keep_within_the_noise_says_nothing_of_the_direction(settings: Settings, tmp_path: Path) -> None:
    answer = await imported(settings, kept(tmp_path / "results.tsv", "val_bpb", 1.6746, 1.6776))
    assert (answer.added, answer.direction, answer.direction_from) == (2, Direction.LOWER, "from its name")


@pytest.mark.parametrize("metric", ["tok_s", "tg_tok_s", "it_s", "img_s", "throughput_s", "qps", "r2", "ndcg", "zork"])
async def test_a_kept_gain_in_a_metric_of_any_name_is_a_win(settings: Settings, tmp_path: Path, metric: str) -> None:
    path = tmp_path / "results.tsv"
    path.write_text(f"commit\t{metric}\tstatus\tdescription\n\t30\tkeep\tbaseline\n\t36\tkeep\tuse GQA\n")
    answer = await imported(settings, path, metric=metric)
    assert (answer.direction, answer.direction_from) == (Direction.HIGHER, "shown by 1 of 1 kept rows")
    async with LoopGraph.open(settings) as graph:
        hits = {hit.method_id: hit for hit in (await graph.search_methods(METHODS, limit=100)).hits}
    assert hits["gqa"].imported.mean_gain == pytest.approx(6.0)


async def test_a_direction_said_once_is_remembered_where_the_file_shows_none(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "trials.csv"
    path.write_text("number,value,params_lr,state\n0,0.8,0.1,COMPLETE\n1,0.9,0.2,COMPLETE\n")
    answer = await imported(settings, path)
    assert any("--direction higher" in note for note in answer.notes)
    turned = await imported(settings, path, direction=Direction.HIGHER)
    assert (turned.added, turned.known, turned.direction) == (0, 2, Direction.HIGHER)
    assert not any("--direction" in note for note in turned.notes)
    again = await imported(settings, path)
    assert (again.known, again.direction, again.direction_from) == (2, Direction.HIGHER, "as before")
    async with LoopGraph.open(settings) as graph:
        last = (await stored(settings))[-1]
        assert (await graph.get_experiment(last.id)).gain == pytest.approx(0.1)


async def test_an_import_of_before_that_its_kept_rows_contradict_is_asked_about(
    settings: Settings, tmp_path: Path
) -> None:
    path = kept(tmp_path / "results.tsv", "quality", 0.1, 0.2, 0.3)
    await imported(settings, path, direction=Direction.LOWER)  # as versions stored that went by the name alone
    with pytest.raises(HistoryError, match=r"imported before as lower is better.*--direction higher"):
        await imported(settings, path)
    assert (await imported(settings, path, direction=Direction.HIGHER)).known == 3


async def test_kept_rows_show_the_direction_of_a_metric_that_no_one_knows(settings: Settings, tmp_path: Path) -> None:
    path = kept(tmp_path / "results.tsv", "quality", 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    answer = await imported(settings, path)
    assert (answer.direction, answer.direction_from) == (Direction.HIGHER, "shown by 5 of 5 kept rows")
    turned = await imported(settings, path, direction=Direction.HIGHER)
    assert (turned.added, turned.known, turned.direction) == (0, 6, Direction.HIGHER)
    again = await imported(settings, path)
    assert again.direction is Direction.HIGHER
    async with LoopGraph.open(settings) as graph:
        last = (await stored(settings))[-1]
        assert (await graph.get_experiment(last.id)).verdict is VerdictKind.WIN


async def test_a_changed_parameter_is_a_try_of_the_method_and_compared_with_the_run_it_differs_from(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "trials.csv"
    path.write_text(
        "number,value,direction,params_total_batch_size,params_matrix_lr,params_zork,state\n"
        "0,1.0,MINIMIZE,64,0.04,a,COMPLETE\n"
        "1,0.9,MINIMIZE,32,0.04,a,COMPLETE\n"
        "2,0.8,MINIMIZE,16,0.02,b,COMPLETE\n"
        "3,0.7,MINIMIZE,16,0.02,c,PRUNED\n"
    )
    answer = await imported(settings, path)
    assert [(row.description, row.moves, row.method_ids) for row in answer.rows[1:3]] == [
        ("total_batch_size 64 -> 32", ["batch_size down to 32"], ["smaller-batch"]),
        (
            "total_batch_size 32 -> 16, matrix_lr 0.04 -> 0.02, zork a -> b",
            ["batch_size down to 16", "matrix_lr down to 0.02", "zork to b"],
            [],
        ),
    ]
    assert "also changes zork to b" in answer.rows[2].notes[-1]
    first, second, third = await stored(settings)
    assert (second.parent_id, third.parent_id) == (first.id, second.id)
    assert [row.decision for row in (first, second, third)] == [None] * 3
    assert answer.kinds == 0  # nothing was decided, so nothing is taught of what is kept
    assert (await imported(settings, path, direction=Direction.HIGHER)).added == 0  # the same rows, whichever is better


async def test_imports_age_nothing_of_ones_own(settings: Settings, tmp_path: Path) -> None:
    path = table(tmp_path / "elsewhere" / "results.tsv", "aaaaaa1\t1.0\t1\tkeep\tbaseline", *ROWS.splitlines()[1:])
    async with LoopGraph.open(settings) as graph:
        await graph.record_outcome(metric_value=2.0, description="baseline", decision=Decision.KEEP, measured=True)
        await graph.record_outcome(method_id="gqa", metric_value=1.9, description="GQA", measured=True)
        await graph.import_history(path)
        hits = {hit.method_id: hit for hit in (await graph.search_methods(METHODS, limit=100)).hits}
    assert hits["gqa"].last_tried == 0
    assert hits["smaller-batch"].last_tried is None
    assert "untried here; in imported histories: tried once" in hits["smaller-batch"].why
    assert hits["smaller-batch"].standing is Standing.UNTRIED  # imports make no standing


async def test_what_loopgraph_wrote_itself_is_not_counted_twice(settings: Settings, workspace: Path) -> None:
    async with LoopGraph.open(settings) as graph:
        await graph.run_experiment(description="baseline", wait_s=50)
        results = workspace / "results.tsv"
        with results.open("a", encoding="utf-8") as file:
            file.write("aaaaaa2\t1.5\t1\tkeep\tby hand\n")
        answer = await graph.import_history(results)
    assert [row.understood for row in answer.rows] == ["left_out", "part"]
    assert answer.rows[0].notes == ["LoopGraph made this run itself"]
    assert answer.added == 1


# ------------------------------------------------------------------------------------------- again


async def test_a_changed_decision_is_taken_over_and_nothing_else(settings: Settings, tmp_path: Path) -> None:
    path = table(tmp_path / "results.tsv", "a\t1.0\t1\tkeep\tbaseline", "b\t0.9\t1\tkeep\thalve the batch")
    await imported(settings, path)
    table(path, "a\t1.0\t1\tkeep\tbaseline", "b\t0.9\t1\tdiscard\thalve the batch")
    assert (await imported(settings, path)).added == 0
    assert [row.decision for row in await stored(settings)] == [Decision.KEEP, Decision.DISCARD]


async def test_a_log_that_grows_at_its_head_adds_only_what_is_new(settings: Settings, tmp_path: Path) -> None:
    old = ["b\t0.9\t1\tkeep\thalve the batch", "a\t1.0\t1\tkeep\tbaseline"]
    path = table(tmp_path / "results.tsv", *old)
    await imported(settings, path)
    answer = await imported(settings, table(path, "c\t0.8\t1\tkeep\tSwiGLU", *old))
    assert (answer.added, answer.known) == (1, 2)


async def test_a_device_named_later_holds_for_all_rows(settings: Settings, tmp_path: Path) -> None:
    path = table(tmp_path / "results.tsv", "a\t1.0\t1\tkeep\tbaseline", "b\t0.9\t1\tkeep\thalve the batch")
    answer = await imported(settings, path)
    assert answer.device == "unknown (imported)"
    assert any("--device" in note for note in answer.notes)
    await imported(settings, path, device="RTX 4090", budget_s=60.0)
    answer = await imported(settings, path)
    assert (answer.device, answer.budget_s) == ("cuda:RTX 4090 (imported)", 60.0)
    assert {(row.device, row.budget_s) for row in await stored(settings)} == {(answer.device, 60.0)}


async def test_what_fails_halfway_leaves_nothing_behind(settings: Settings, tmp_path: Path) -> None:
    path = table(tmp_path / "results.tsv", *ROWS.splitlines())
    async with LoopGraph.open(settings):
        pass
    trap = sqlite3.connect(settings.db_path)
    trap.execute(
        "CREATE TRIGGER trap BEFORE INSERT ON outcome WHEN new.kind = 'crashed' BEGIN SELECT RAISE(ABORT, 'trap'); END"
    )
    with pytest.raises(sqlite3.IntegrityError, match="trap"):
        await imported(settings, path)
    for name in ("workspace", "context", "experiment", "outcome", "decision", "kind_count", "program"):
        assert trap.execute(f"SELECT count(*) FROM {name}").fetchone() == (0,), name
    trap.execute("DROP TRIGGER trap")
    trap.close()
    assert (await imported(settings, path)).added == 4


async def test_a_cancelled_import_leaves_nothing_behind(settings: Settings, tmp_path: Path) -> None:
    path = table(tmp_path / "results.tsv", *(f"\t{1 - n / 1e4:.6f}\t1\tkeep\tbatch {n}" for n in range(500)))

    async def work(graph: LoopGraph) -> None:
        task = asyncio.current_task()
        assert task is not None
        await graph.import_history(path, on_progress=lambda words: task.cancel() if "storing" in words else None)

    async with LoopGraph.open(settings) as graph:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work(graph))
        assert (await graph.count())["experiments"] == 0
        assert (await graph.import_history(path)).added == 500  # the store is free again


async def test_two_imports_at_once_store_each_row_once(settings: Settings, tmp_path: Path) -> None:
    path = table(tmp_path / "results.tsv", *ROWS.splitlines())
    async with LoopGraph.open(settings) as one, LoopGraph.open(settings) as other:
        answers = await asyncio.gather(one.import_history(path), other.import_history(path))
    assert sorted(answer.added for answer in answers) == [0, 4]
    assert len(await stored(settings)) == 4


# ------------------------------------------------------------------------------------------- repositories


def commit(folder: Path, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    (folder / "train.py").write_text(text, encoding="utf-8")
    git(folder, "add", "train.py")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "x")
    return git(folder, "rev-parse", "--short=7", "HEAD")


async def test_a_commit_that_was_reset_to_is_no_program_of_the_row(settings: Settings, tmp_path: Path) -> None:
    base, better = commit(tmp_path, "LR = 0.5\n"), commit(tmp_path, "LR = 0.6\n")
    path = table(
        tmp_path / "results.tsv",
        f"{base}\t1.0\t1\tkeep\tbaseline",
        f"{better}\t0.9\t1\tkeep\tmatrix LR 0.5 to 0.6",
        f"{better}\t1.5\t1\tdiscard\tSwiGLU",  # logged after the reset to the incumbent
        f"{better}\t0.91\t1\tdiscard\trerun with another seed",
    )
    answer = await imported(settings, path)
    assert [row.has_diff for row in answer.rows] == [False, True, False, False]
    assert answer.rows[2].notes == ["no diff: its commit holds the program of line 3, which it is compared with"]
    rows = await stored(settings)
    assert rows[2].program_hash is None
    assert rows[3].program_hash == rows[1].program_hash  # a rerun: the same program, measured again
    async with LoopGraph.open(settings) as graph:
        gains = [(await graph.get_experiment(row.id)).gain for row in rows]
        traced = await graph.trace(rows[1].id)
    assert [link.stage for link in traced.before] == ["edit", "history"]
    assert [link.stage for link in traced.after] == ["outcome", "decision"]
    assert gains[1:3] == pytest.approx([1.0 - 0.905, 0.905 - 1.5])


async def test_a_row_whose_commit_is_lost_breaks_no_chain(settings: Settings, tmp_path: Path) -> None:
    second, third = commit(tmp_path, "LR = 0.6\n"), commit(tmp_path, "LR = 0.7\n")
    path = table(
        tmp_path / "results.tsv",
        "baseline\t1.0\t1\tkeep\tbaseline",
        f"{second}\t0.9\t1\tkeep\tmatrix LR 0.5 to 0.6",
        f"{third}\t0.8\t1\tkeep\tmatrix LR 0.6 to 0.7",
    )
    answer = await imported(settings, path)
    assert [row.has_diff for row in answer.rows] == [False, False, True]
    async with LoopGraph.open(settings) as graph:
        gains = [(await graph.get_experiment(row.id)).gain for row in await stored(settings)]
    assert gains == [None, pytest.approx(0.1), pytest.approx(0.1)]


async def test_a_repository_named_later_fills_in_the_diffs(settings: Settings, tmp_path: Path) -> None:
    there = tmp_path / "clone"
    base, better = commit(there, "LR = 0.5\n"), commit(there, "LR = 0.6\n")
    rows = (f"{base}\t1.0\t1\tkeep\tbaseline", f"{better}\t0.9\t1\tkeep\tmatrix LR 0.5 to 0.6")
    path = table(tmp_path / "results.tsv", *rows)
    answer = await imported(settings, path)
    assert [row.has_diff for row in answer.rows] == [False, False]
    assert any("--repo" in note for note in answer.notes)
    answer = await imported(settings, path, repository=there)
    assert (answer.added, [row.has_diff for row in answer.rows]) == (0, [False, True])
    second = (await stored(settings))[1]
    assert second.edit_id is not None
    assert second.base_hash == (await stored(settings))[0].program_hash
    with pytest.raises(HistoryError, match="no git repository"):
        await imported(settings, path, repository=tmp_path / "absent")


async def test_a_log_below_the_root_finds_the_program_at_the_root(settings: Settings, tmp_path: Path) -> None:
    base, better = commit(tmp_path, "LR = 0.5\n"), commit(tmp_path, "LR = 0.6\n")
    lines = [
        {"type": "config", "name": "x", "metricName": "val_bpb", "metricUnit": "", "bestDirection": "lower"},
        {"run": 1, "commit": base, "metric": 1.0, "metrics": {}, "status": "keep", "description": "baseline"},
        {"type": "hook", "stage": "after"},
        {"run": 2, "commit": better, "metric": 0.9, "metrics": {}, "status": "keep", "description": "LR up"},
    ]
    path = tmp_path / ".auto" / "log.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    answer = await imported(settings, path)
    assert [row.has_diff for row in answer.rows if row.understood != "left_out"] == [False, True]


async def test_nothing_that_a_repository_configures_is_run(settings: Settings, tmp_path: Path) -> None:
    base, better = commit(tmp_path, "LR = 0.5\n"), commit(tmp_path, "LR = 0.6\n")
    owned = tmp_path / "owned"
    trap = f"touch {owned}; false"
    (tmp_path / ".gitattributes").write_text("*.py diff=trap filter=trap\n")
    for name in (
        *("core.fsmonitor", "core.pager", "core.sshCommand", "diff.trap.textconv", "diff.trap.command"),
        *("diff.external", "filter.trap.smudge", "remote.origin.uploadpack", "alias.cat-file"),
    ):
        git(tmp_path, "config", name, f"!{trap}" if name.startswith("alias") else trap)
    git(tmp_path, "config", "remote.origin.url", str(tmp_path))
    git(tmp_path, "config", "remote.origin.promisor", "true")
    git(tmp_path, "config", "extensions.partialClone", "origin")
    git(tmp_path, "config", "core.repositoryFormatVersion", "1")
    rows = (f"{base}\t1.0\t1\tkeep\tbaseline", f"{better}\t0.9\t1\tkeep\tLR up", f"{'ab' * 20}\t0.8\t1\tkeep\tlost")
    answer = await imported(settings, table(tmp_path / "results.tsv", *rows))
    assert [row.has_diff for row in answer.rows] == [False, True, False]
    assert not owned.exists()


# ------------------------------------------------------------------------------------------- files


async def test_files_that_are_no_histories_are_refused_with_the_next_step(settings: Settings, tmp_path: Path) -> None:
    binary, huge, pipe, prose = (tmp_path / name for name in ("binary", "huge", "pipe", "prose"))
    binary.write_bytes(b"\x7fELF\x00\x01")
    with huge.open("wb") as file:
        file.truncate(51 * 2**20)
    os.mkfifo(pipe)
    prose.write_text("# Notes\n\nWe tried things.\n")
    for path, words in (
        (tmp_path / "absent", "name a results.tsv"),
        (tmp_path, "it is a folder; replace it by a plain file"),
        (binary, "binary file"),
        (huge, "over the limit of 50 MiB; make it smaller"),
        (pipe, "it is a pipe; replace it by a plain file"),
        (prose, "no experiments found"),
    ):
        with pytest.raises(HistoryError, match=words):
            await imported(settings, path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
async def test_a_file_is_read_in_the_encoding_that_its_program_saved(
    settings: Settings, tmp_path: Path, encoding: str
) -> None:
    text = f"{HEADER}aaaaaa1\t1.0\t1\tkeep\tbaseline\naaaaaa2\t0.9\t1\tkeep\tbatch \u2013 halv\u00e9e\n"
    path = tmp_path / "results.tsv"
    path.write_bytes(text.encode(encoding))
    answer = await imported(settings, path)
    assert [row.description for row in answer.rows] == ["baseline", "batch \u2013 halv\u00e9e"]


async def test_hostile_words_are_stored_and_shown_as_words(settings: Settings, tmp_path: Path) -> None:
    words = "[red]x[/] '; DROP TABLE experiment; -- \x1b[2J \ud800".encode("utf-8", "replace").decode()
    path = table(tmp_path / "results.tsv", "a\t1.0\t1\tkeep\tbaseline", f"b\t0.9\t1\tkeep\t{words}{'x' * 5000}")
    await imported(settings, path)
    told = (await stored(settings))[1].description
    assert told.startswith("[red]x[/] '; DROP TABLE experiment; --")
    assert len(told) <= 200
    assert "\x1b" not in told


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "import", *arguments],
        capture_output=True,
        text=True,
        env={**environment, "COLUMNS": "200"},
        check=False,
    )


def test_the_command_reports_rows_and_counts_and_goes_on_after_a_bad_file(
    environment: dict[str, str], tmp_path: Path
) -> None:
    path = table(tmp_path / "results.tsv", *ROWS.splitlines())
    done = command(environment, str(tmp_path / "absent.tsv"), str(path), "--device", "H100")
    assert done.returncode == 1
    assert "absent.tsv: No such file" in done.stderr
    assert "4 new, 0 known already, 0 left out; 3 understood, 1 in part" in done.stdout
    assert "cuda:H100 (imported)" in done.stdout
    done = command(environment, str(path), "--json")
    assert done.returncode == 0
    (answer,) = json.loads(done.stdout)
    assert (answer["added"], answer["known"], answer["rows"][1]["method_ids"]) == (0, 4, ["smaller-batch"])
    done = command(environment, str(path), "--dry-run", "--metric", "nope")
    assert done.returncode == 1
    assert "--metric" in done.stderr


def test_a_summary_of_any_import_has_at_most_forty_lines(environment: dict[str, str], tmp_path: Path) -> None:
    kinds = ["halve the batch", "SwiGLU", "matrix LR 0.04 to 0.03", "GQA", "depth 8 to 10", "something else", ""]
    for n in range(40):
        rows = [
            f"{n:06x}{row:x}\t{1 - row / 1e3}\t1\t{'keep' if row % 3 else 'perhaps'}\t{kinds[row % 7]}"
            for row in range(15)
        ]
        table(tmp_path / f"good{n}.tsv", f"{n:06x}f\t1.0\t1\tkeep\tbaseline", *rows, *["what is this"] * 15)
    for n in range(12):
        (tmp_path / f"prose{n}.tsv").write_text(f"# Notes {n}\n\nWe tried things.\n")
        kept(tmp_path / f"wrong{n}.tsv", "val_loss", 1.0, 1.5 + n, 2.5 + n)
        (tmp_path / f"other{n}.csv").write_text("x,y\n")
    done = command({**environment, "COLUMNS": "80"}, str(tmp_path))
    assert done.returncode == 1
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert len(lines) <= 40
    assert any("40 files: 640 new, 0 known already, 600 left out" in line for line in lines)
    assert any("--details" in line for line in lines)
    assert any("val_bpb (lower is better: shown by" in line for line in lines)
    assert "kept rows would be worse" in done.stderr
    done = command(environment, str(tmp_path / "good1.tsv"), "--details")
    assert "what was done" in done.stdout
    assert "halve the batch" in done.stdout
    done = command(environment, str(tmp_path / "good1.tsv"), str(tmp_path / "good2.tsv"), "--json")
    assert [len(answer["rows"]) for answer in json.loads(done.stdout)] == [31, 31]
    assert [answer["direction_from"] for answer in json.loads(done.stdout)] == ["shown by 10 of 10 kept rows"] * 2


def test_the_command_of_a_refusal_imports_the_file(environment: dict[str, str], tmp_path: Path) -> None:
    path = kept(tmp_path / "its results.tsv", "val_loss", 1.0, 1.5, 2.5)
    done = command(environment, str(path), "--device", "H100")
    assert done.returncode == 1
    said = re.search(r"loopgraph import (.*), or --direction lower", done.stderr)
    assert said is not None
    done = command(environment, *shlex.split(said[1]))
    assert done.returncode == 0
    assert "3 new" in done.stdout
    assert "val_loss (higher is better: given), cuda:H100 (imported)" in done.stdout
