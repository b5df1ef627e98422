"""Stores that are copied while others write, put back, damaged in many places, and salvaged."""

import asyncio
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli import doctor
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import LoopGraphError, StoreError
from loopgraph_mcp.models import Context, Decision, Direction, Outcome, OutcomeKind, WhatRan
from loopgraph_mcp.store import edits, experiments, retrievals
from loopgraph_mcp.store.backups import back_up, restore
from loopgraph_mcp.store.damage import find_damage, find_strays
from loopgraph_mcp.store.database import Database, migration_files
from loopgraph_mcp.store.experiments import NewExperiment
from loopgraph_mcp.store.pages import PageFile
from loopgraph_mcp.store.salvage import salvage

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
PAGE = 4096
Rows = dict[str, set[str]]


async def fill(settings: Settings, count: int) -> None:
    """Store experiments with programs short and long, outcomes, decisions, searches and costs."""
    draw = random.Random(1)
    async with LoopGraph.open(settings) as graph:
        db = graph.db
        workspace = await edits.workspace_id(db, str(settings.workspace), now=1.0)
        context = Context(workspace, "cpu: x", 30.0, "d", "h", "val_bpb", Direction.LOWER)
        context_id = await edits.context_id(db, context)
        for number in range(count):
            text = f"LR = {number}\n" + "".join(f"x{n} = {draw.random()}\n" for n in range(draw.choice([20, 400])))
            program = await edits.add_program(db, text, f"tree {number}")
            shown = [retrievals.ShownMethod("gqa", 1.0, {"relevance": 1.0})]
            await retrievals.add_retrieval(db, f"query {number}", shown, context_id=context_id, now=2.0 + number)
            await retrievals.add_cost(db, "agent", subject_id=None, tokens=number, cost_usd=None, now=1.0)
            new = NewExperiment(
                context_id,
                "cpu-0",
                f"try {number}",
                number,
                60.0,
                30.0,
                program_hash=program,
                ran=WhatRan(f"t{number}", f"t{number}"),
                method_ids=("gqa",),
            )
            identity, _ = await experiments.add_experiment(db, new, now=2.0 + number)
            outcome = Outcome(OutcomeKind.FINISHED, 1 + draw.random(), "done", {}, "log " * draw.choice([3, 300]))
            await experiments.finish(db, identity, outcome, now=3.0 + number)
            await experiments.add_decision(
                db, identity, Decision.DISCARD, made_by="agent", commit=None, note="", now=4.0 + number
            )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two hundred experiments, closed."""
    home = tmp_path_factory.mktemp("whole")
    settings = Settings(home=home, db_path=home / "loopgraph.db", workspace=home, device="cpu")
    asyncio.run(fill(settings, 200))
    return settings.db_path


def tables(conn: sqlite3.Connection) -> list[str]:
    rows = conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%'").fetchall()
    return [name for (name,) in rows if name != "alias"]


def rows_of(path: Path) -> Rows:
    with closing(sqlite3.connect(path)) as conn:
        return {name: {repr(row) for row in conn.execute(f"SELECT * FROM {name}")} for name in tables(conn)}


def changed(path: Path, target: Path, places: dict[int, bytes]) -> Path:
    data = bytearray(path.read_bytes())
    for at, new in places.items():
        data[at : at + len(new)] = new
    target.write_bytes(data)
    return target


def test_a_sound_store_is_salvaged_row_by_row_as_it_was(whole: Path, tmp_path: Path) -> None:
    saved = salvage(whole, tmp_path / "new.db")
    assert rows_of(tmp_path / "new.db") == rows_of(whole)
    assert not any(each.lost or each.altered for each in saved)
    assert find_damage(tmp_path / "new.db") == []


def test_what_is_only_in_the_log_is_salvaged_too(whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "loopgraph.db"
    store.write_bytes(whole.read_bytes())
    with closing(sqlite3.connect(store, isolation_level=None)) as conn:
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        conn.execute("INSERT INTO cost (source, created_at) VALUES ('only in the log', 1.0)")
        for name in ("loopgraph.db", "loopgraph.db-wal"):
            (tmp_path / f"killed-{name}").write_bytes((tmp_path / name).read_bytes())
    killed = tmp_path / "killed-loopgraph.db"
    assert len(rows_of_pages(killed)) == 200 + 1
    salvage(killed, tmp_path / "new.db")
    assert any("only in the log" in row for row in rows_of(tmp_path / "new.db")["cost"])


def rows_of_pages(path: Path) -> list[object]:
    pages = PageFile(path)
    roots = {record.values[1]: record.values[3] for leaf in pages.tree(1, table=True) for record in leaf.records}
    root = roots["cost"]
    assert isinstance(root, int)
    return [record for leaf in pages.tree(root, table=True) for record in leaf.records]


@pytest.mark.parametrize("fill_byte", [b"\xff", b"\0"])
@pytest.mark.parametrize("table", ["experiment", "outcome", "program", "decision"])
def test_a_table_whose_root_page_is_gone_loses_no_row(
    whole: Path, tmp_path: Path, table: str, fill_byte: bytes
) -> None:
    with closing(sqlite3.connect(whole)) as conn:
        (root,) = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    bad = changed(whole, tmp_path / "bad.db", {(root - 1) * PAGE: fill_byte * PAGE})
    assert find_damage(bad)
    salvage(bad, tmp_path / "new.db")
    assert rows_of(tmp_path / "new.db")[table] == rows_of(whole)[table]


@pytest.mark.parametrize("end", [100, PAGE])
def test_a_store_whose_head_or_schema_is_gone_loses_no_experiment(whole: Path, tmp_path: Path, end: int) -> None:
    bad = changed(whole, tmp_path / "bad.db", {0: bytes(end)})
    salvage(bad, tmp_path / "new.db")
    saved, before = rows_of(tmp_path / "new.db"), rows_of(whole)
    assert {name: rows for name, rows in before.items() if saved[name] != rows} == {}


def test_half_a_file_gives_the_rows_of_that_half_and_says_what_is_lost(whole: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.db"
    bad.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    saved = {each.table: each for each in salvage(bad, tmp_path / "new.db")}
    assert 0 < saved["outcome"].kept < 200
    assert saved["outcome"].kept + saved["outcome"].lost >= 150
    assert rows_of(tmp_path / "new.db")["outcome"] < rows_of(whole)["outcome"]
    assert find_damage(tmp_path / "new.db") == []


@bounds(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_changed_anywhere_take_no_other_row_with_them(data: st.DataObject, whole: Path, tmp_path: Path) -> None:
    size = whole.stat().st_size
    places = data.draw(
        st.dictionaries(st.integers(0, size - 1), st.binary(min_size=1, max_size=1), min_size=1, max_size=20)
    )
    bad = changed(whole, tmp_path / "bad.db", places)
    new = tmp_path / "new.db"
    new.unlink(missing_ok=True)
    salvage(bad, new)
    before, saved = rows_of(whole), rows_of(new)
    for table in ("experiment", "outcome", "program", "decision", "retrieval", "cost"):
        # a byte changes one row; or one page's kind, count or cell, whose rows are few; never a table
        assert len(before[table] - saved[table]) <= 60 * len(places), table
        assert len(saved[table]) <= len(before[table]) + len(places), table
    assert find_damage(new) == []


def test_a_store_of_an_earlier_schema_is_salvaged_and_migrated(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as conn:
        for number, file in migration_files():
            if number <= 3:
                conn.executescript(file.read_text(encoding="utf-8"))
        conn.execute("PRAGMA user_version = 3")
        conn.executemany("INSERT INTO cost (source, created_at) VALUES (?, 1.0)", [(f"s{n}",) for n in range(50)])
        conn.execute("INSERT INTO paper (id, kind, ref, title) VALUES ('arxiv:1', 'arxiv', '1', 'A paper')")
        conn.commit()
    changed(old, old, {60: b"\xff\xff\xff\xff"})  # its version
    salvage(old, tmp_path / "new.db")
    saved = rows_of(tmp_path / "new.db")
    assert len(saved["cost"]) == 50
    assert len(saved["paper"]) == 1
    with closing(sqlite3.connect(tmp_path / "new.db")) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (migration_files()[-1][0],)


async def test_a_salvaged_store_is_found_in_as_before(whole: Path, settings: Settings) -> None:
    settings.db_path.parent.mkdir()
    bad = changed(whole, settings.home / "bad.db", {PAGE * 8: b"\xff" * PAGE * 4})  # a full-text index
    salvage(bad, settings.db_path)
    async with LoopGraph.open(settings) as graph:
        assert any(hit.method_id == "gqa" for hit in (await graph.search_methods("fewer kv heads")).hits)
        assert (await graph.count())["outcomes"] == 200
    assert (await doctor.store(settings)).level is doctor.Level.OK


async def test_rows_that_point_at_lost_rows_are_kept_shown_and_merged_into_a_backup(
    whole: Path, settings: Settings, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(whole)) as conn:
        (root,) = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'context'").fetchone()
    bad = changed(whole, tmp_path / "bad.db", {(root - 1) * PAGE: b"\xff" * PAGE})
    stray = replace(settings, home=tmp_path, db_path=tmp_path / "new.db")
    salvage(bad, stray.db_path)
    assert find_strays(stray.db_path)
    check = await doctor.store(stray)
    assert check.level is doctor.Level.NOTE
    assert "experiment -> context" in check.found
    restore(settings.db_path, whole, now=NOW)
    with closing(sqlite3.connect(settings.db_path, isolation_level=None)) as conn:
        conn.execute("DELETE FROM decision")
    async with LoopGraph.open(settings) as graph:
        assert (await graph.merge_store(stray.db_path))["decision"] == 200
    empty = replace(settings, home=tmp_path / "other", db_path=tmp_path / "other" / "loopgraph.db")
    async with LoopGraph.open(empty) as graph:
        assert "experiment" not in await graph.merge_store(stray.db_path)


def test_salvage_refuses_what_it_cannot_do(whole: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.db"
    there.write_text("mine")
    with pytest.raises(StoreError, match="already"):
        salvage(whole, there)
    assert there.read_text() == "mine"
    with pytest.raises(StoreError, match="no file"):
        salvage(tmp_path / "none.db", tmp_path / "new.db")
    for content in (b"", b"no database at all" * 1000, random.Random(0).randbytes(50_000)):
        there.write_bytes(content)
        with pytest.raises(StoreError, match="no readable row"):
            salvage(there, tmp_path / "new.db")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["there.db"]


def text_that_is_none(path: Path) -> dict[int, bytes]:
    return {path.read_bytes().index(b"log log"): b"\xff"}


def a_word_of_the_full_text_index(path: Path) -> dict[int, bytes]:
    pages = PageFile(path)
    roots = {record.values[1]: record.values[3] for leaf in pages.tree(1, table=True) for record in leaf.records}
    root = roots["method_fts_data"]
    assert isinstance(root, int)
    blocks = [record.values[1] for leaf in pages.tree(root, table=True) for record in leaf.records]
    largest = max((block for block in blocks if isinstance(block, bytes)), key=len)
    return {path.read_bytes().index(largest[200:260]) + 30: b"\xff\x00\xfe"}


@pytest.mark.parametrize("damage", [text_that_is_none, a_word_of_the_full_text_index])
async def test_damage_that_integrity_check_passes_is_found(
    damage: Callable[[Path], dict[int, bytes]], whole: Path, settings: Settings
) -> None:
    settings.db_path.parent.mkdir()
    bad = changed(whole, settings.db_path, damage(whole))
    with closing(sqlite3.connect(bad)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check = await doctor.store(settings)
    assert check.level is doctor.Level.FAIL
    assert "loopgraph salvage" in check.next_step


async def every_verb(settings: Settings, ids: list[str]) -> AsyncIterator[str]:
    """Call verbs one by one on a store that may be damaged; yield what each says where it fails."""
    calls: dict[str, Callable[[LoopGraph], Awaitable[object]]] = {
        "search": lambda graph: graph.search_methods("attention learning rate"),
        "rank": lambda graph: graph.search_methods("", limit=20),
        "list": lambda graph: graph.list_experiments(limit=300),
        "trace": lambda graph: graph.trace(ids[0]),
        "get": lambda graph: graph.get_experiment(ids[1], wait_s=0),
        "best": lambda graph: graph.best_result(),
        "record": lambda graph: graph.record_outcome(method_id="gqa", metric_value=1.5, description="x"),
        "show": lambda graph: graph.show_method("gqa"),
        "count": lambda graph: graph.count(),
    }
    for name, call in calls.items():
        try:
            async with LoopGraph.open(settings) as graph:
                await call(graph)
        except LoopGraphError as error:
            yield f"{name}: {error}"


async def test_no_damage_gives_anything_but_our_own_error(whole: Path, settings: Settings) -> None:
    draw = random.Random(3)
    settings.db_path.parent.mkdir()
    said = list[str]()
    with whole.open("rb") as file:
        size = file.seek(0, 2)
    with closing(sqlite3.connect(whole)) as conn:
        ids = [row[0] for row in conn.execute("SELECT id FROM experiment LIMIT 2")]
    for number in range(12):
        places = {draw.randrange(size): draw.randbytes(1) for _ in range(draw.choice([1, 30]))}
        places |= {draw.randrange(100, PAGE): draw.randbytes(1)} if number % 3 == 0 else {}  # the schema
        places |= {draw.randrange(size // PAGE) * PAGE: draw.randbytes(PAGE)} if number % 3 == 1 else {}
        own = replace(settings, db_path=settings.home / f"{number}.db")
        changed(whole, own.db_path, places)
        said += [each async for each in every_verb(own, ids)]
    assert said
    assert all("loopgraph salvage" in each or "loopgraph doctor" in each for each in said)


async def test_a_backup_made_while_others_write_holds_every_row_committed_before(
    settings: Settings, tmp_path: Path
) -> None:
    writer = """
import asyncio, sys
from pathlib import Path
from loopgraph_mcp.store import retrievals
from loopgraph_mcp.store.database import Database

async def main():
    async with Database.open(Path(sys.argv[1])) as db:
        for number in range(100_000):
            await retrievals.add_cost(db, "w", subject_id=None, tokens=number, cost_usd=None, now=1.0)
            print(number, flush=True)

asyncio.run(main())
"""
    async with Database.open(settings.db_path):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", writer, str(settings.db_path), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            for number in range(4):
                for _ in range(20):
                    done = int(await process.stdout.readline())
                made = await asyncio.to_thread(
                    back_up, settings.db_path, tmp_path / "backups", now=NOW + timedelta(seconds=number)
                )
                with closing(sqlite3.connect(made.path)) as conn:
                    found = [row[0] for row in conn.execute("SELECT tokens FROM cost ORDER BY row")]
                assert found == list(range(len(found)))
                assert len(found) > done
        finally:
            process.kill()
            await process.wait()


def test_older_backups_are_removed_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "loopgraph-old.db").write_text("somebody's")
    made = [back_up(whole, tmp_path, now=NOW + timedelta(days=day), keep=2) for day in range(4)]
    made.append(back_up(whole, tmp_path, now=NOW + timedelta(days=3), keep=2))  # at the same second
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == sorted(["loopgraph-old.db", made[3].path.name, made[4].path.name])
    assert made[4].path.stat().st_mode & 0o077 == 0
    assert rows_of(made[4].path) == rows_of(whole)


def test_a_damaged_store_gives_no_backup(whole: Path, tmp_path: Path) -> None:
    for places in ({PAGE * 30: b"\xff" * PAGE}, {0: bytes(100)}, {whole.read_bytes().index(b"log log"): b"\xff"}):
        bad = changed(whole, tmp_path / "bad.db", places)
        with pytest.raises(StoreError, match="loopgraph salvage"):
            back_up(bad, tmp_path / "backups", now=NOW)
        assert list((tmp_path / "backups").iterdir()) == []
    with pytest.raises(StoreError, match="no store"):
        back_up(tmp_path / "none.db", tmp_path / "backups", now=NOW)


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(environment: dict[str, str]) -> Command:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", *arguments]
        return subprocess.run(call, env=environment, capture_output=True, text=True, check=False, timeout=120)

    return run


async def test_a_store_in_use_is_not_replaced_and_one_that_is_not_is_kept_aside(
    whole: Path, settings: Settings, command: Command
) -> None:
    async with LoopGraph.open(settings) as graph:
        await graph.record_outcome(method_id="gqa", metric_value=1.5, description="mine")
        done = await asyncio.to_thread(command, "restore", str(whole))
        assert done.returncode == 1
        assert "has it open" in done.stderr
        assert "Traceback" not in done.stderr
        done = await asyncio.to_thread(command, "salvage", str(settings.db_path), str(settings.home / "n.db"))
        assert "has it open" in done.stderr
    done = await asyncio.to_thread(command, "restore", str(whole))
    assert done.returncode == 0, done.stderr
    assert rows_of(settings.db_path) == rows_of(whole)
    aside = next(name for name in done.stdout.split() if ".before-" in name)
    assert len(rows_of(Path(aside))["outcome"]) == 1
    done = await asyncio.to_thread(command, "merge", aside)
    assert "outcome" in done.stdout


def test_a_store_that_was_killed_is_kept_aside_with_its_log(whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "loopgraph.db"
    with closing(sqlite3.connect(tmp_path / "live.db", isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        conn.execute(
            "CREATE TABLE kept (x) STRICT" if sqlite3.sqlite_version_info < (3, 37) else "CREATE TABLE kept (x INT)"
        )
        conn.execute("INSERT INTO kept VALUES (7)")
        for ending in ("", "-wal"):
            (tmp_path / f"loopgraph.db{ending}").write_bytes((tmp_path / f"live.db{ending}").read_bytes())
    done = restore(store, whole, now=NOW)
    assert rows_of(store) == rows_of(whole)
    assert done.aside is not None
    with closing(sqlite3.connect(done.aside)) as conn:
        assert conn.execute("SELECT x FROM kept").fetchall() == [(7,)]


def test_what_is_no_sound_store_is_not_restored(whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "loopgraph.db"
    store.write_bytes(whole.read_bytes())
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as conn:
        conn.execute("CREATE TABLE somebodys (x)")
    newer = changed(whole, tmp_path / "newer.db", {60: (9999).to_bytes(4, "big")})
    bad = changed(whole, tmp_path / "bad.db", {PAGE * 30: b"\xff" * PAGE})
    text = tmp_path / "notes.txt"
    text.write_text("no database" * 100)
    for wrong in (other, newer, bad, text, store, tmp_path / "none.db"):
        with pytest.raises(StoreError):
            restore(store, wrong, now=NOW)
    assert store.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*part*"))
