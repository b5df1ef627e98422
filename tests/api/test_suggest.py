"""Values that searches suggest and edits set, in a workspace whose runs a surrogate answers."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loopgraph_mcp.agents import surrogate_bench
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.code.constants import read
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import Advice, RunState
from loopgraph_mcp.server import render


@pytest.fixture
async def graph(settings: Settings, tmp_path: Path) -> AsyncIterator[LoopGraph]:
    surrogate_bench.lay_out("nanochat-h200-dev", tmp_path / "h200")
    async with LoopGraph.open(dataclasses.replace(settings, workspace=tmp_path / "h200")) as opened:
        yield opened


async def ran(graph: LoopGraph, **what: str) -> str:
    answer = await graph.run_experiment(wait_s=60, **what)
    assert answer.state is RunState.DONE
    return answer.experiment_id


def program(graph: LoopGraph) -> str:
    assert graph.settings.workspace is not None
    return (graph.settings.workspace / "train.py").read_text(encoding="utf-8")


async def test_a_search_suggests_methods_and_values_and_the_edit_sets_them(graph: LoopGraph) -> None:
    fresh = await graph.search_methods()
    assert "cuda: NVIDIA H200" in fresh.context
    assert fresh.values == []  # the first run is a baseline
    assert fresh.next_step.reason is Advice.MAKE_EDIT
    await ran(graph)
    found = await graph.search_methods()
    first = found.values[0]
    assert first.runs == 1
    assert set(first.knobs) <= set(read(program(graph), "cuda").numbers)
    assert first.low < first.gain < first.high
    assert first.changes in render.search(found, "concise")
    assert found.next_step.reason is Advice.SET_VALUES
    assert found.next_step.arguments["method_id"] == "set-values"
    edit = await graph.get_code_edit("set-values")
    assert edit.edit_id is not None
    assert "suggested first" in edit.reason
    experiment = await graph.run_experiment(edit_id=edit.edit_id, wait_s=60)
    assert experiment.state is RunState.DONE
    later = await graph.search_methods()
    assert later.values[0].runs == 2
    assert later.values[0].knobs != first.knobs


async def test_values_that_are_given_are_set_as_they_are(graph: LoopGraph) -> None:
    edit = await graph.get_code_edit("set-values", knobs={"DEPTH": 7, "MATRIX_LR": 0.03}, apply=True)
    assert edit.status == "applied"
    numbers = read(program(graph), "cuda").numbers
    assert (numbers["DEPTH"], numbers["MATRIX_LR"]) == (7, 0.03)
    unknown = await graph.get_code_edit("set-values", knobs={"DEPHT": 7})
    assert unknown.status == "refused"


async def test_a_methods_knob_takes_the_suggested_value_and_says_so(graph: LoopGraph) -> None:
    await ran(graph)
    for rate in (0.03, 0.025):
        edit = await graph.get_code_edit("set-values", knobs={"MATRIX_LR": rate})
        assert edit.edit_id is not None
        await ran(graph, edit_id=edit.edit_id)
    found = await graph.search_methods()
    suggested = {str(value) for each in found.knob_values for value in each.knobs.values()}
    taken = 0
    for method in ("warmdown-length", "muon-lr", "embedding-lr", "smaller-batch", "lr-warmup", "final-lr-floor"):
        edit = await graph.get_code_edit(method)
        if "suggested by" in edit.reason:
            taken += 1
            assert any(value in edit.diff for value in suggested), edit.diff
    assert taken
    own = await graph.get_code_edit("embedding-lr", knobs={"rate": 0.9})
    assert "suggested by" not in own.reason


async def test_what_the_file_holds_or_cannot_take_is_not_suggested(graph: LoopGraph) -> None:
    shown = {hit.method_id for hit in (await graph.search_methods(limit=20)).hits if hit.has_edit}
    assert "warmdown-length" in shown
    assert "swiglu" not in shown  # there is no MLP in this file
    edit = await graph.get_code_edit("warmdown-length", apply=True)
    assert edit.status == "applied"
    assert "warmdown-length" not in {hit.method_id for hit in (await graph.search_methods(limit=20)).hits}
    asked = await graph.search_methods("warmdown")
    assert any("already in the file" in hit.why for hit in asked.hits)


async def test_each_reason_is_two_lines_at_most(graph: LoopGraph) -> None:
    for query in ("", "batch size"):
        for hit in (await graph.search_methods(query, limit=20)).hits:
            assert len(hit.why) <= 240 or hit.why.count("; ") == 1
