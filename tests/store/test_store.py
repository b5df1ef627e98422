import asyncio
import dataclasses
import functools
import json
import shutil
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopgraph_mcp.errors import StoreError
from loopgraph_mcp.models import (
    Context,
    Decision,
    Direction,
    Knob,
    Method,
    Outcome,
    OutcomeKind,
    Pack,
    PublishedResult,
    Recipe,
    SetConst,
    SetLocal,
    Source,
    WhatRan,
)
from loopgraph_mcp.ranking.prior import KindCount
from loopgraph_mcp.store import edits, experiments, imports, methods, outcomes, retrievals, search
from loopgraph_mcp.store.database import Database, migration_files, split_statements
from loopgraph_mcp.store.experiments import NewExperiment, ProcessId
from loopgraph_mcp.store.version import read_newest

EMBEDDING = Method(
    id="embedding-lr",
    name="Embedding learning rate",
    family="learning-rate",
    summary="Raise the learning rate of the token embeddings.",
    description="Each row of the table sees few gradients. It can take larger steps.",
    aliases=("wte lr", "EMBEDDING_LR"),
    sources=(Source("arxiv", "2401.00001", "A paper"),),
    published=(PublishedResult("0.6 to 0.8", "H100, 300 s", "somebody", 0.0033),),
    knobs=(Knob("value", 0.8, "the rate", low=0.01, high=10.0),),
    recipe=Recipe((SetConst("EMBEDDING_LR", "{value}"),)),
)
ATTENTION = Method(
    id="gqa",
    name="Grouped-query attention",
    family="attention",
    summary="Share key and value heads between query heads.",
    description="Fewer KV heads cost less memory. Quality falls a little.",
    aliases=("GQA", "fewer KV heads"),
    recipe=Recipe((SetLocal("build_model_config", "n_kv_head", "1"),), conflicts=("mqa",)),
)
PACK = Pack("base", "1", "hash-1", (EMBEDDING, ATTENTION))


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(tmp_path / "memory.db") as database:
        yield database


async def a_context(db: Database) -> str:
    workspace = await edits.workspace_id(db, "/somewhere", now=1.0)
    return await edits.context_id(db, Context(workspace, "cpu: x", 30.0, "d", "h", "val_bpb", Direction.LOWER))


async def an_experiment(
    db: Database, context: str, *, program: str = "a = 1", base: str | None = None, methods_: tuple[str, ...] = ()
) -> str:
    hashes = [await edits.add_program(db, text, f"tree of {text}") for text in (program, base) if text is not None]
    new = NewExperiment(
        context,
        "cpu-0",
        "a try",
        42,
        60.0,
        30.0,
        program_hash=hashes[0],
        base_hash=hashes[1] if base is not None else None,
        ran=WhatRan(f"tree of {program}", f"tree of {program}"),
        base_group_key=None if base is None else f"tree of {base}",
        method_ids=methods_,
    )
    return (await experiments.add_experiment(db, new, now=2.0))[0]


async def test_methods_survive_the_store_unchanged(db: Database) -> None:
    assert await methods.import_pack(db, PACK, now=1.0)
    assert not await methods.import_pack(db, PACK, now=2.0)
    assert await methods.get_method(db, "embedding-lr") == EMBEDDING
    assert await methods.all_methods(db) == (EMBEDDING, ATTENTION)


async def test_a_method_that_left_its_pack_is_not_found_but_still_known(db: Database) -> None:
    await methods.import_pack(db, PACK, now=1.0)
    await methods.import_pack(db, Pack("base", "2", "hash-2", (EMBEDDING,)), now=2.0)
    assert await search.find_methods(db, "attention", limit=5) == []
    assert await methods.get_method(db, "gqa") == ATTENTION
    await methods.import_pack(db, Pack("base", "3", "hash-3", (EMBEDDING, ATTENTION)), now=3.0)
    assert [found.id for found, _ in await search.find_methods(db, "attention", limit=5)] == ["gqa"]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("embedding learning rate", "embedding-lr"),
        ("EMBEDDING_LR", "embedding-lr"),
        ("fewer kv heads", "gqa"),
        ("GQA", "gqa"),
        ("what about the embeddings?", "embedding-lr"),
        ("sharing heads", "gqa"),
        ("unheard words and attention", "gqa"),
    ],
)
async def test_methods_are_found_by_name_alias_identifier_and_stem(db: Database, query: str, first: str) -> None:
    await methods.import_pack(db, PACK, now=1.0)
    found = await search.find_methods(db, query, limit=5)
    assert found[0][0].id == first
    assert all(0 < relevance <= 1 for _, relevance in found)


HOSTILE = [
    "",
    '"',
    "'; DROP TABLE method; --",
    "a\x00b",
    "\ud800 lone",
    "NEAR(a b) OR * ^ : {x} -y",
    "AND OR NOT",
    "embedding" * 120_000,
    "lr " * 400_000,
    "٣ ﬁ 😀 ẞ",
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_queries_find_something_or_nothing(db: Database, query: str) -> None:
    await methods.import_pack(db, PACK, now=1.0)
    assert len(await search.find_methods(db, query, limit=5)) <= 2
    assert (await retrievals.add_retrieval(db, query, [], context_id=None, now=1.0)).startswith("ret_")
    assert len(await methods.all_methods(db)) == 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(alphabet=st.characters(codec=None), max_size=200))
def test_any_string_is_a_safe_query(tmp_path_factory: pytest.TempPathFactory, query: str) -> None:
    async def ask() -> None:
        async with Database.open(tmp_path_factory.getbasetemp() / "fuzz.db") as database:
            await methods.import_pack(database, PACK, now=1.0)
            found = await search.find_methods(database, query, limit=5)
            assert {method.id for method, _ in found} <= {"embedding-lr", "gqa"}

    asyncio.run(ask())


async def test_an_idempotency_key_makes_one_experiment(db: Database) -> None:
    context = await a_context(db)
    new = NewExperiment(context, "cpu-0", "try", 42, 60.0, 30.0, idempotency_key="once")
    first, second = (
        await experiments.add_experiment(db, new, now=1.0),
        await experiments.add_experiment(db, new, now=2.0),
    )
    assert first == (second[0], True)
    assert second[1] is False
    assert await experiments.find_by_key(db, "once") == first[0]


async def test_one_supervisor_claims_and_the_first_outcome_stays(db: Database) -> None:
    experiment = await an_experiment(db, await a_context(db))
    assert await experiments.claim(db, experiment, ProcessId(1, 1.0))
    assert not await experiments.claim(db, experiment, ProcessId(2, 2.0))
    good = Outcome(OutcomeKind.FINISHED, 1.5, "done", {"val_bpb": 1.5})
    late = Outcome(OutcomeKind.INTERRUPTED, None, "late", {})
    assert await experiments.finish(db, experiment, good, now=3.0)
    assert not await experiments.finish(db, experiment, late, now=4.0)
    row = await experiments.get_experiment(db, experiment)
    assert row is not None
    assert row.outcome == good
    assert row.state == "done"


async def test_the_last_decision_counts_and_makes_the_incumbent(db: Database) -> None:
    context = await a_context(db)
    experiment = await an_experiment(db, context)
    await experiments.finish(db, experiment, Outcome(OutcomeKind.FINISHED, 1.5, "done", {}), now=3.0)
    await experiments.add_decision(db, experiment, Decision.KEEP, made_by="loopgraph", commit=None, note="", now=4.0)
    kept = await experiments.last_kept(db, context)
    assert kept is not None
    assert kept.id == experiment
    await experiments.add_decision(db, experiment, Decision.DISCARD, made_by="agent", commit=None, note="no", now=5.0)
    assert await experiments.last_kept(db, context) is None
    assert await experiments.last_note(db, experiment) == "no"


async def test_the_incumbent_is_what_was_kept_last_and_not_what_began_last(db: Database) -> None:
    context, ended = await a_context(db), Outcome(OutcomeKind.FINISHED, 1.5, "done", {})
    elsewhere = await edits.context_id(db, dataclasses.replace(await edits.get_context(db, context), device="other"))
    first, second = [await an_experiment(db, context, program=f"a = {number}") for number in (1, 2)]
    other = await an_experiment(db, elsewhere)
    for run in (first, second, other):
        await experiments.finish(db, run, ended, now=3.0)

    async def decide(run: str, decision: Decision) -> str | None:
        await experiments.add_decision(db, run, decision, made_by="agent", commit=None, note="", now=4.0)
        kept = await experiments.last_kept(db, context)
        return None if kept is None else kept.id

    assert await decide(second, Decision.KEEP) == second
    assert await decide(first, Decision.KEEP) == first
    assert await decide(other, Decision.KEEP) == first
    assert await decide(first, Decision.DISCARD) == second
    assert await decide(second, Decision.DISCARD) is None


async def test_what_happened_is_not_rewritten(db: Database) -> None:
    experiment = await an_experiment(db, await a_context(db))
    await experiments.finish(db, experiment, Outcome(OutcomeKind.FINISHED, 1.5, "done", {}), now=3.0)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        await db.change("UPDATE outcome SET metric_value = 0.1")


async def test_a_finished_outcome_needs_a_metric_and_a_failed_one_has_none(db: Database) -> None:
    experiment = await an_experiment(db, await a_context(db))
    for kind, value in ((OutcomeKind.FINISHED, None), (OutcomeKind.CRASHED, 1.0)):
        with pytest.raises(sqlite3.IntegrityError):
            await experiments.finish(db, experiment, Outcome(kind, value, "?", {}), now=1.0)


async def test_replicates_pool_under_their_group(db: Database) -> None:
    await methods.import_pack(db, PACK, now=1.0)
    context = await a_context(db)
    for value in (1.0, 1.2):
        experiment = await an_experiment(db, context, program="x = 2", base="x = 1", methods_=("gqa",))
        await experiments.finish(db, experiment, Outcome(OutcomeKind.FINISHED, value, "done", {}), now=value)
    runs = await outcomes.runs_between(db, 0, 9)
    assert [(run.group, run.base_group, run.metric_value, run.method_ids) for run in runs] == [
        ("tree of x = 2", "tree of x = 1", 1.0, ("gqa",)),
        ("tree of x = 2", "tree of x = 1", 1.2, ("gqa",)),
    ]
    assert await outcomes.runs_between(db, runs[0].row, 9) == runs[1:]
    assert (await read_newest(db)).outcome == runs[1].row


async def test_fatigue_counts_what_was_shown_since_it_was_tried(db: Database) -> None:
    await methods.import_pack(db, PACK, now=1.0)
    shown = [retrievals.ShownMethod("gqa", 1.0, {"relevance": 1.0})]
    for now in (1.0, 1.5):
        await retrievals.add_retrieval(db, "q", shown, context_id=None, now=now)
    assert (await db.search(retrievals.read_shown, limit_s=9)).ages("gqa") == [1, 0]
    await an_experiment(db, await a_context(db), methods_=("gqa",))  # created at 2.0
    await retrievals.add_retrieval(db, "q", shown, context_id=None, now=3.0)
    assert (await db.search(retrievals.read_shown, limit_s=9)).ages("gqa") == [0]


async def test_what_was_written_reaches_the_file_while_the_store_is_open(db: Database, tmp_path: Path) -> None:
    for number in range(130):
        await retrievals.add_cost(db, "agent", subject_id=None, tokens=number, cost_usd=None, now=1.0)
    alone = tmp_path / "alone.db"
    for _ in range(200):  # moved by a thread for which nobody waits
        shutil.copy(db.path, alone)
        with closing(sqlite3.connect(alone)) as conn, suppress(sqlite3.DatabaseError):  # a copy in its midst
            if conn.execute("SELECT count(*) FROM cost").fetchone()[0] >= 128:
                return
        await asyncio.sleep(0.05)
    pytest.fail("nothing was moved from the log into the file")


async def test_a_write_whose_caller_is_cancelled_is_undone(db: Database) -> None:
    began, go_on = threading.Event(), threading.Event()

    def two_rows(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO cost (source, created_at) VALUES ('first', 1.0)")
        began.set()
        assert go_on.wait(30)
        conn.execute("INSERT INTO cost (source, created_at) VALUES ('second', 1.0)")

    running, waiting = (asyncio.create_task(db.write(two_rows)) for _ in range(2))
    await asyncio.to_thread(began.wait, 30)
    for task in (running, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    go_on.set()
    await retrievals.add_cost(db, "later", subject_id=None, tokens=1, cost_usd=None, now=2.0)
    rows = await db.reader.execute_fetchall("SELECT source FROM cost ORDER BY rowid")
    assert [row["source"] for row in rows] == ["later"]


async def test_one_who_is_cancelled_closes_the_store_all_the_same(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with anyio.move_on_after(0.2):  # as a server is whose client is gone: every await from here on is cancelled
        async with Database.open(tmp_path / "loopgraph.db") as db:
            await db.search(lambda conn: conn.execute("SELECT 1").fetchone(), limit_s=1)
            await anyio.sleep_forever()
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if "asyncio" not in name}  # the loop's own pool ends with the loop


async def test_a_write_that_fails_undoes_its_own_and_no_others(db: Database) -> None:
    def write(conn: sqlite3.Connection, number: int) -> None:
        conn.execute("INSERT INTO cost (source, tokens, created_at) VALUES ('t', ?, 1.0)", (number,))
        if number % 2:
            raise LookupError

    writes = (db.write(functools.partial(write, number=number)) for number in range(40))
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(result, LookupError) for result in results) == 20
    rows = await db.reader.execute_fetchall("SELECT tokens FROM cost ORDER BY tokens")
    assert [row["tokens"] for row in rows] == list(range(0, 40, 2))


WRITER = """
import asyncio, sys, time
from pathlib import Path
from loopgraph_mcp.store import retrievals
from loopgraph_mcp.store.database import Database

async def main(path, name):
    async with Database.open(Path(path)) as db:
        for number in range(100):
            await retrievals.add_cost(db, name, subject_id=None, tokens=number, cost_usd=None, now=time.time())

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_writing_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    writers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(path), name) for name in ("a", "b")
    ]
    assert [await writer.wait() for writer in writers] == [0, 0]
    with sqlite3.connect(path) as conn:
        assert conn.execute("SELECT source, count(*) FROM cost GROUP BY source").fetchall() == [("a", 100), ("b", 100)]
    conn.close()


async def test_a_file_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as maker:
        maker.execute("BEGIN IMMEDIATE")
        maker.execute("CREATE TABLE made (x)")

        async def finish() -> None:
            await asyncio.sleep(0.3)
            maker.execute("ROLLBACK")

        finishing = asyncio.create_task(finish())
        async with Database.open(path) as db:
            assert await db.check() == []
        await finishing


async def test_a_newer_store_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as conn:
        conn.execute("PRAGMA user_version = 9999")
    conn.close()
    with pytest.raises(StoreError, match="upgrade"):
        async with Database.open(newer):
            pass
    noise = tmp_path / "noise.db"
    noise.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"noise\.db"):
        async with Database.open(noise):
            pass
    with pytest.raises(StoreError, match="LOOPGRAPH_DB"):
        async with Database.open(tmp_path):
            pass


async def test_a_full_disk_writes_nothing_and_says_so(db: Database) -> None:
    await db.change("PRAGMA max_page_count = 1")  # the page cap answers as a full disk does
    long = dataclasses.replace(EMBEDDING, description="word " * 200_000)
    with pytest.raises(StoreError, match="disk"):
        await methods.import_pack(db, Pack("base", "1", "hash-1", (ATTENTION, long)), now=1.0)
    assert await methods.all_methods(db) == ()


def test_statements_are_split_outside_of_strings_and_triggers() -> None:
    trigger = "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n  SELECT 1;\n  SELECT 2;\nEND;\n"
    script = "CREATE TABLE a (b TEXT DEFAULT ';');\n" + trigger
    assert len(split_statements(script)) == 2


async def test_every_earlier_schema_migrates_with_its_rows(tmp_path: Path) -> None:
    for number, _ in migration_files():
        path = tmp_path / f"schema{number}.db"
        conn = sqlite3.connect(path)
        for earlier, file in migration_files():
            if earlier <= number:
                conn.executescript(file.read_text(encoding="utf-8"))
        conn.execute(f"PRAGMA user_version = {number}")
        conn.execute("INSERT INTO pack VALUES ('old', '1', 'h', 1.0)")
        conn.commit()
        conn.close()
        async with Database.open(path) as database:
            rows = await database.reader.execute_fetchall("PRAGMA user_version")
            assert next(iter(rows))[0] == migration_files()[-1][0]
            assert await retrievals.count_rows(database)
            packs = await database.reader.execute_fetchall("SELECT name FROM pack")
            assert [row["name"] for row in packs] == ["old"]


async def test_counts_of_imported_histories_are_kept_from_the_lessons_of_an_earlier_schema(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    conn = sqlite3.connect(path)
    for number, file in migration_files()[:11]:
        conn.executescript(file.read_text(encoding="utf-8"))
        conn.execute(f"PRAGMA user_version = {number}")
    conn.executemany(
        "INSERT INTO lesson (source, about, expected, kept, tries) VALUES ('theirs', ?, 1.0, ?, ?)",
        [
            ("step:depth +1, up much", 2.6, 4),
            ("step:depth -1, nowhere", 1.5, 1),
            ("step:gqa -1, to no value", 0.5, 0),
            ("place:open side", 9.0, 9),
        ],
    )
    conn.commit()
    conn.close()
    async with Database.open(path) as database:
        assert await imports.all_counts(database) == [
            KindCount("theirs", "depth +1, up much", 3, 4),
            KindCount("theirs", "depth -1, nowhere", 1, 1),
        ]


async def test_every_chain_row_is_json_where_it_says_so(db: Database) -> None:
    shown = [retrievals.ShownMethod("embedding-lr", 0.5, {"relevance": 0.5})]
    await methods.import_pack(db, PACK, now=1.0)
    await retrievals.add_retrieval(db, "q", shown, context_id=None, now=1.0)
    rows = await db.reader.execute_fetchall("SELECT parts FROM retrieval_item")
    assert [json.loads(row["parts"]) for row in rows] == [{"relevance": 0.5}]


async def test_rows_appended_at_one_moment_share_a_transaction_and_not_a_fault(db: Database) -> None:
    began: list[str] = []
    await db._writes.run(lambda conn: conn.set_trace_callback(began.append))
    good = [retrievals.add_retrieval(db, f"q {n}", [], context_id=None, now=1.0) for n in range(20)]
    bad = retrievals.add_retrieval(db, "bad", [], context_id="no such context", now=1.0)
    told = await asyncio.gather(*good[:10], bad, *good[10:], return_exceptions=True)
    assert sum(isinstance(each, str) for each in told) == 20
    assert isinstance(told[10], sqlite3.IntegrityError)
    rows = await db.reader.execute_fetchall("SELECT count(*) AS n FROM retrieval")
    assert next(iter(rows))["n"] == 20
    began.clear()
    await asyncio.gather(*(retrievals.add_retrieval(db, f"r {n}", [], context_id=None, now=1.0) for n in range(20)))
    assert sum(each.startswith("BEGIN") for each in began) == 2  # the first alone, then all who waited for it
