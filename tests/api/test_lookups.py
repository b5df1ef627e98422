"""A method is found by any of its names, however they are written; what names several or none is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api import lookups
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.errors import NotFoundError, PackError
from loopgraph_mcp.models import Method
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "method_id"),
    [
        ("gqa", "gqa"),
        ("GQA", "gqa"),
        ("grouped query attention", "gqa"),
        ("Grouped-Query  Attention", "gqa"),
        ("qk_norm", "qk-norm"),
        ("QK-Norm", "qk-norm"),
        ("QKNorm", "qk-norm"),
        ("`qk-norm`", "qk-norm"),
        ("qk‑norm", "qk-norm"),
        ("ReLU²", "relu-squared"),
        ("matrix_lr", "muon-lr"),
        ("Muon+", "muon-eq"),
        ("exclusive self-attention", "exclusive-attention"),
        ("XSA", "exclusive-attention"),
        ("z_loss", "z-loss"),
    ],
)
async def test_a_method_is_found_by_any_of_its_names(graph: LoopGraph, name: str, method_id: str) -> None:
    assert (await lookups.the_method(graph.db, name)).id == method_id
    assert (await graph.show_method(name)).status == "known"


@pytest.mark.parametrize(
    ("name", "near"),
    [("gqaa", "gqa"), ("swigluu", "swiglu"), ("groupd query atention", "gqa"), ("warm-down", "warmdown")],
)
async def test_an_unknown_name_is_refused_with_the_nearest_ids(graph: LoopGraph, name: str, near: str) -> None:
    with pytest.raises(NotFoundError, match=f"did you mean .*{near}"):
        await lookups.the_method(graph.db, name)


@pytest.mark.parametrize("name", ["muon", "---", "☃", "q", "attention"])
async def test_what_names_no_method_for_sure_is_refused(graph: LoopGraph, name: str) -> None:
    with pytest.raises(NotFoundError, match="no method"):
        await lookups.the_method(graph.db, name)


def method(identity: str, name: str, *aliases: str) -> Method:
    return Method(identity, name, "other", "", "", aliases=aliases)


def test_an_id_comes_before_names_and_several_names_are_all_found() -> None:
    known = [method("ema", "Averaging", "SWA"), method("swa", "Windows"), method("x", "Windows", "averaging")]
    assert [each.id for each in lookups.named("SWA", known)] == ["swa"]
    assert [each.id for each in lookups.named("windows", known)] == ["swa", "x"]
    assert [each.id for each in lookups.named("AVERAGING", known)] == ["ema", "x"]


async def test_a_name_of_several_methods_is_refused_with_their_ids(graph: LoopGraph) -> None:
    read = await graph.ingest(str(ROOT / "docs" / "methods.md"))
    chunk = read.passages[0].chunk_id
    for identity in ("gate-one", "gate-two"):
        definition = {
            "name": f"{identity} (sharp gate)",
            "family": "attention",
            "summary": "A gate.",
            "description": "A gate on the attention that is sharp.",
        }
        await graph.add_method(identity, [chunk], definition)
    with pytest.raises(NotFoundError, match="names gate-one, gate-two; give one of these ids"):
        await graph.get_code_edit("sharp gate")
    linked = await graph.add_method("Gate One", [chunk])
    assert (linked.method_id, linked.status) == ("gate-one", "linked")
    assert (await graph.retire_method("GATE_ONE")).method_id == "gate-one"


@given(st.text(max_size=40))
def test_any_name_is_answered(name: str) -> None:
    assert lookups.named(name, [method("gqa", "Grouped-query attention", "GQA")]) in (
        [],
        [method("gqa", "Grouped-query attention", "GQA")],
    )


async def test_every_verb_takes_any_name(graph: LoopGraph, workspace: Path) -> None:
    program = workspace / "train.py"
    program.write_text("MATRIX_LR = 0.04\nWARMUP_RATIO = 0.0\n" + program.read_text())
    edit = await graph.get_code_edit("Matrix LR", also=["muon_lr", "LR Warmup"], knobs={"matrix_lr.rate": "0.05"})
    assert edit.method_id == "muon-lr + lr-warmup"
    assert "+MATRIX_LR = 0.05" in edit.diff
    applied = await graph.get_code_edit("MATRIX_LR", apply=True)
    reverted = await graph.get_code_edit("matrix learning rate", revert=True)
    assert (applied.method_id, reverted.method_id, reverted.status) == ("muon-lr", "muon-lr", "ready")
    ran = await graph.run_experiment(method_id="MATRIX_LR", wait_s=30)
    assert (await graph.trace("MATRIX LR")).id == "muon-lr"
    recorded = await graph.record_outcome(method_id="Grouped query attention", metric_value=1.7)
    assert list(recorded.standings) == ["gqa"]
    assert ran.outcome is not None
    with pytest.raises(PackError):
        await graph.retire_method("Grouped query attention")
