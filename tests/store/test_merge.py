"""Two machines that began with one store, brought together again; files that are damaged."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli import doctor
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import StoreError
from loopgraph_mcp.store import experiments


@pytest.fixture
async def graph(settings: Settings) -> AsyncIterator[LoopGraph]:
    async with LoopGraph.open(settings) as opened:
        await opened.run_experiment(description="baseline", wait_s=50)
        await opened.record_outcome(
            method_id="swiglu", metric_value=1.7, description="before they parted", measured=True
        )
        yield opened


@pytest.fixture
def elsewhere(settings: Settings, tmp_path: Path) -> Settings:
    """The same settings on another machine, with a store of its own."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    return replace(settings, home=home, db_path=home / "loopgraph.db")


def copy(one: Path, other: Path) -> None:
    with closing(sqlite3.connect(one)) as conn:
        conn.execute("VACUUM INTO ?", (str(other),))


async def test_two_machines_with_one_stores_copy_bring_together_what_they_learned(
    graph: LoopGraph, settings: Settings, elsewhere: Settings
) -> None:
    copy(settings.db_path, elsewhere.db_path)
    await graph.record_outcome(method_id="gqa", metric_value=1.9, description="here", measured=True)
    async with LoopGraph.open(elsewhere) as theirs:
        found = await theirs.search_methods("rotary base")
        told = await theirs.record_outcome(
            method_id="rope-base", metric_value=1.5, description="there", tokens=7, measured=True
        )
        edit = await theirs.get_code_edit("gqa", retrieval_id=found.retrieval_id)
        assert edit.status == "refused"  # the tiny trainer has no heads

    added = await graph.merge_store(elsewhere.db_path)
    assert (added["experiment"], added["outcome"], added["retrieval"]) == (1, 1, 1)
    assert "method" not in added
    assert await graph.merge_store(elsewhere.db_path) == {}
    known = {each.experiment_id for each in await graph.list_experiments()}
    assert told.experiment_id in known
    assert len(known) == 4
    hit = next(hit for hit in (await graph.search_methods("rotary base")).hits if hit.method_id == "rope-base")
    assert "tried once" in hit.why

    async with LoopGraph.open(elsewhere) as theirs:
        await theirs.merge_store(settings.db_path)
        assert {each.experiment_id for each in await theirs.list_experiments()} == known


async def test_a_machine_of_its_own_keeps_its_workspace_beside_ours(
    graph: LoopGraph, settings: Settings, elsewhere: Settings
) -> None:
    async with LoopGraph.open(elsewhere) as theirs:
        await theirs.run_experiment(description="their baseline", wait_s=50)
        row = (await theirs.list_experiments())[0]
        queued = await experiments.get_experiment(theirs.db, row.experiment_id)
        assert queued is not None
    with closing(sqlite3.connect(elsewhere.db_path)) as conn, conn:
        conn.execute(
            "INSERT INTO experiment (id, context_id, description, seed, timeout_s, silence_s, device_slot, state, "
            "created_at) VALUES ('exp_live', ?, '', 1, 1, 1, 'cpu-0', 'running', 1)",
            (queued.context_id,),
        )
    added = await graph.merge_store(elsewhere.db_path)
    assert (added["workspace"], added["context"], added["experiment"]) == (1, 1, 1)
    assert await graph.merge_store(elsewhere.db_path) == {}
    assert len(await graph.list_experiments()) == 2


async def test_what_is_no_store_is_not_merged(graph: LoopGraph, settings: Settings, tmp_path: Path) -> None:
    text = tmp_path / "notes.db"
    text.write_text("no database")
    for wrong in (text, tmp_path / "missing.db", settings.db_path):
        with pytest.raises(StoreError, match="another machine's"):
            await graph.merge_store(wrong)


async def test_a_damaged_row_takes_no_other_with_it(graph: LoopGraph, settings: Settings) -> None:
    with closing(sqlite3.connect(settings.db_path)) as conn, conn:
        conn.execute("PRAGMA ignore_check_constraints = ON")
        conn.execute("DROP TRIGGER outcome_append_only")
        conn.execute("UPDATE outcome SET summary = '{'")
        conn.execute("DROP TRIGGER method_renamed")
        conn.execute("UPDATE method SET card = '{' WHERE id = 'muon-lr'")
    found = {hit.method_id for hit in (await graph.search_methods("SwiGLU, muon-lr", limit=60)).hits}
    assert "swiglu" in found
    assert "muon-lr" not in found
    assert all(each.summary == {} for each in await graph.list_experiments())
    answer = await graph.record_outcome(method_id="gqa", metric_value=1.4, description="goes on", measured=True)
    assert answer.gain is not None
    check = await doctor.store(settings)
    assert check.level is doctor.Level.FAIL
    assert "outcome" in check.found


async def test_a_damaged_file_is_said_to_be_one(graph: LoopGraph, settings: Settings) -> None:
    with closing(sqlite3.connect(settings.db_path)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'outcome'").fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    with settings.db_path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    async with LoopGraph.open(replace(settings, packs=settings.packs)) as again:
        with pytest.raises(StoreError, match=r"loopgraph doctor"):
            await again.search_methods("attention")
    check = await doctor.store(settings)
    assert check.level is doctor.Level.FAIL
    assert "loopgraph salvage" in check.next_step
