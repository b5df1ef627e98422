import json
import subprocess
from pathlib import Path

import pytest

from loopgraph_mcp.answers import ImportAnswer
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.loopgraph import LoopGraph
from loopgraph_mcp.models import Direction, Standing

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
        hits = {hit.method_id: hit for hit in (await graph.search_methods(limit=20)).hits}
        assert (await graph.count())["experiments"] == 4
    assert (hits["smaller-batch"].standing, hits["muon-lr"].standing) == (Standing.PROVEN, Standing.FLOPPED)
    assert hits["smaller-batch"].mean_gain == pytest.approx(0.1)
    assert hits["muon-lr"].mean_gain == pytest.approx(-0.2)


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
        hits = {hit.method_id: hit for hit in (await graph.search_methods(limit=20)).hits}
    assert hits["smaller-batch"].mean_gain == pytest.approx(0.2)


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
    answer = await imported(settings, path)
    assert answer.lessons > 0
    async with LoopGraph.open(settings) as graph:
        hits = {hit.method_id: hit for hit in (await graph.search_methods(limit=20)).hits}
    assert hits["sliding-window-pattern"].parts["foresight"] > hits["gqa"].parts["foresight"]


async def test_a_file_that_cannot_be_read_is_refused_and_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"type": "config", "metricName": "x"}), encoding="utf-8")
    for broken in (path, tmp_path / "absent.tsv"):
        with pytest.raises(HistoryError):
            await imported(settings, broken)
