"""From passages to methods: what is recognised, what agents register, and the chain both ways."""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api.linking import MOST_PASSAGES
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings, bundled
from loopgraph_mcp.errors import NotFoundError, PackError
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.ranking.mentions import methods_described, with_names
from loopgraph_mcp.ranking.reported import numbers, read_figures
from tests.api.test_loop import run
from tests.conftest import ROOT

SENTENCES: list[tuple[str, list[str], bool]] = tomllib.loads((ROOT / "tests" / "data" / "sentences.toml").read_text())[
    "sentences"
]
METHODS = read_pack(bundled("methodpacks")).methods
PAPER = """# Turning heads

## Gated rotation

We propose gated rotation, which turns each head by a learned angle. On C4 it improves the loss by 2.5% at 124M
parameters, and it costs nothing at inference time. We use it in every layer of the network that we train.

## Activation

The feed-forward layers use ReLU squared, which lowers the loss from 3.12 to 3.08 on OpenWebText. We keep the width of
the layers and all else as it was before, so that the two can be compared with one another at the same cost.

## Related work

SwiGLU has been used by many, with success, in models that are larger than the ones that we could afford to train here.
"""
ROTATION: dict[str, Any] = {
    "name": "Gated rotation",
    "family": "attention",
    "aliases": ["rotate the heads"],
    "summary": "Turns each head by a learned angle.",
    "description": "Each head's queries are turned by an angle that it learns. It costs nothing at inference time.",
    "published": [{"claim": "loss 2.5 % lower than without", "setting": "124M parameters, C4"}],
}


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    path = tmp_path / "papers" / "turning.md"
    path.parent.mkdir()
    path.write_text(PAPER)
    return path


async def passage_on(graph: LoopGraph, source: Path, query: str) -> str:
    answer = await graph.ingest(str(source), query=query)
    return next(each.chunk_id for each in answer.passages if query in each.text)


# -------------------------------------------------------------------------------- what a sentence tells of


def test_sentences_are_read_as_people_read_them() -> None:
    found = [(set(methods_described(text, with_names(METHODS))), set(told)) for text, told, _ in SENTENCES]
    right = sum(len(got & told) for got, told in found)
    assert len(SENTENCES) >= 60
    assert right >= 0.95 * sum(len(got) for got, _ in found)
    assert right >= 0.9 * sum(len(told) for _, told in found)
    figures = [(bool(read_figures(text)), reports) for text, _, reports in SENTENCES]
    both = sum(got and reports for got, reports in figures)
    assert both >= 0.95 * sum(got for got, _ in figures)
    assert both >= 0.95 * sum(reports for _, reports in figures)


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    assert all(words in text for words in methods_described(text, with_names(METHODS)).values())
    assert all(figure.claim for figure in read_figures(text))
    assert all(number >= 0 for number in numbers(text))


# ------------------------------------------------------------------------------- what ingesting links


async def test_a_paper_is_evidence_of_the_methods_it_tells_of(graph: LoopGraph, paper: Path) -> None:
    answer = await graph.ingest(str(paper))
    assert "relu-squared" in answer.methods
    assert "swiglu" not in answer.methods  # related work
    known = await graph.show_method("relu-squared")
    assert known.status == "known"
    assert any("from 3.12 to 3.08" in each and "OpenWebText" in each for each in known.reported)
    traced = await graph.trace(known.chunk_ids[0])
    assert traced.stage == "passage"
    assert {"document", "paper"} <= {each.stage for each in traced.before}
    assert "relu-squared" in {each.id for each in traced.after}


async def test_a_paper_that_says_a_name_on_every_page_is_linked_a_few_times(graph: LoopGraph, tmp_path: Path) -> None:
    path = tmp_path / "long.md"
    path.write_text("".join(f"# Part {n}\n\n{f'SwiGLU is what part {n} tells of. ' * 30}\n\n" for n in range(12)))
    await graph.ingest(str(path))
    assert len((await graph.show_method("swiglu")).chunk_ids) == MOST_PASSAGES


# --------------------------------------------------------------------------------- what agents register


async def test_a_method_that_was_read_is_found_tried_and_traced_to_its_paper(
    graph: LoopGraph, workspace: Path, paper: Path
) -> None:
    chunk = await passage_on(graph, paper, "gated rotation")
    added = await graph.add_method("gated-rotation", [chunk], ROTATION)
    assert (added.status, added.pack, added.recipe) == ("added", "local", "no recipe")
    assert "local:" in added.sources[0]
    found = await graph.search_methods("rotate the heads")
    assert found.hits[0].method_id == "gated-rotation"
    guidance = await graph.get_code_edit("gated-rotation", retrieval_id=found.retrieval_id)
    assert guidance.guidance is not None
    assert any("learned angle" in each.text for each in guidance.guidance.passages)
    assert any("improves the loss by 2.5%" in each for each in guidance.guidance.reported)
    patch = "@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.6\n"
    tried = await run(graph, patch=patch, method_id="gated-rotation")
    before = {each.stage: each.id for each in (await graph.trace(tried.experiment_id)).before}
    assert before["method"] == "gated-rotation"
    assert before["passage"] == chunk
    assert {"document", "paper", "pack"} <= set(before)
    after = [each.id for each in (await graph.trace(chunk)).after]
    assert tried.experiment_id in after


async def test_registering_again_makes_a_version_and_retiring_hides_it(graph: LoopGraph, paper: Path) -> None:
    chunk = await passage_on(graph, paper, "gated rotation")
    await graph.add_method("gated-rotation", [chunk], ROTATION)
    amended = await graph.add_method("gated-rotation", [chunk], {**ROTATION, "aliases": ["spun heads"]})
    assert amended.status == "amended"
    assert len((await graph.show_method("gated-rotation")).versions) == 2
    assert (await graph.search_methods("spun heads")).hits[0].method_id == "gated-rotation"
    assert (await graph.retire_method("gated-rotation")).status == "retired"
    assert "gated-rotation" not in {hit.method_id for hit in (await graph.search_methods("spun heads")).hits}
    again = await graph.add_method("gated-rotation", [chunk], ROTATION)
    assert again.status == "added"
    with pytest.raises(PackError, match="only what was registered here"):
        await graph.retire_method("swiglu")


async def test_what_was_read_before_a_method_was_known_is_linked(graph: LoopGraph, paper: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# Results\n\n" + "Gated rotation reduces the loss by 1.5% in our hands, on FineWeb. " * 3)
    await graph.ingest(str(other))
    chunk = await passage_on(graph, paper, "gated rotation")
    await graph.add_method("gated-rotation", [chunk], ROTATION)
    known = await graph.show_method("gated-rotation")
    assert known.chunk_ids[0] == chunk  # what was cited comes first
    assert any("FineWeb" in each for each in known.reported)


async def test_passages_are_linked_to_a_known_method(graph: LoopGraph, paper: Path) -> None:
    chunk = await passage_on(graph, paper, "gated rotation")
    assert (await graph.add_method("qk-norm", [chunk])).status == "linked"
    assert chunk in (await graph.show_method("qk-norm")).chunk_ids
    with pytest.raises(NotFoundError):
        await graph.add_method("no-such-method", [chunk])


@pytest.mark.parametrize(
    ("method_id", "changed", "told"),
    [
        ("gated-rotation", {"published": [{"claim": "loss 7.5 % lower", "setting": "C4"}]}, "7.5 stands in no cited"),
        ("gated-rotation", {"sources": [{"kind": "arxiv", "ref": "2502.16982", "title": "x"}]}, "leave it out"),
        ("gated-rotation", {"aliases": ["SwiGLU"]}, "is a name of swiglu"),
        ("gated-rotation", {"summary": 3}, "summary"),
        ("gated-rotation", {"id": "other"}, "is not 'gated-rotation'"),
        ("Gated Rotation!", {}, "id"),
        ("swiglu", {}, "a method of the pack 'loopgraph-base'"),
        ("gated-rotation", {"recipe": {"ops": [{"op": "run_shell"}]}}, "recipe"),
    ],
)
async def test_a_definition_that_says_too_much_is_refused(
    graph: LoopGraph, paper: Path, method_id: str, changed: dict[str, Any], told: str
) -> None:
    chunk = await passage_on(graph, paper, "gated rotation")
    before = await graph.count()
    with pytest.raises(PackError, match=told):
        await graph.add_method(method_id, [chunk], {**ROTATION, **changed})
    assert await graph.count() == before


async def test_a_method_needs_a_passage(graph: LoopGraph) -> None:
    with pytest.raises(PackError, match="cite at least one passage"):
        await graph.add_method("gated-rotation", [], ROTATION)
    with pytest.raises(NotFoundError, match="no passage"):
        await graph.add_method("gated-rotation", ["chk_0"], ROTATION)


async def test_a_recipe_is_tried_on_the_file_at_hand(graph: LoopGraph, workspace: Path, paper: Path) -> None:
    chunk = await passage_on(graph, paper, "gated rotation")
    recipe = {"ops": [{"op": "set_const", "name": "LEARNING_RATE", "value": "0.6"}]}
    fits = await graph.add_method("gated-rotation", [chunk], {**ROTATION, "recipe": recipe})
    assert fits.recipe == "applied"
    recipe = {"ops": [{"op": "set_const", "name": "NO_SUCH_NAME", "value": "0.5"}]}
    amended = await graph.add_method("gated-rotation", [chunk], {**ROTATION, "recipe": recipe})
    assert amended.recipe == "refused"
    assert "NO_SUCH_NAME" in amended.warnings[0]


async def test_what_is_exported_names_no_file_of_this_machine(graph: LoopGraph, paper: Path, tmp_path: Path) -> None:
    chunk = await passage_on(graph, paper, "gated rotation")
    await graph.add_method("gated-rotation", [chunk], ROTATION)
    exported = await graph.export_pack("lab", tmp_path / "lab", method_ids=["gated-rotation"])
    assert [each.method_id for each in exported.methods] == ["gated-rotation"]
    written = "".join(path.read_text() for path in (tmp_path / "lab").iterdir())
    assert "local:" not in written
    assert str(tmp_path) not in written


async def test_registered_methods_come_along_in_a_merge(
    settings: Settings, graph: LoopGraph, paper: Path, tmp_path: Path
) -> None:
    other = dataclasses.replace(settings, db_path=tmp_path / "other.db")
    async with LoopGraph.open(other) as theirs:
        chunk = await passage_on(theirs, paper, "gated rotation")
        await theirs.add_method("gated-rotation", [chunk], ROTATION)
    await graph.merge_store(other.db_path)
    known = await graph.show_method("gated-rotation")
    assert known.chunk_ids == [chunk]
    assert (await graph.search_methods("rotate the heads")).hits[0].method_id == "gated-rotation"


# ---------------------------------------------------------------------------------------------- the chain


async def test_a_trace_is_bounded(graph: LoopGraph) -> None:
    for n in range(9):
        await graph.search_methods(f"swiglu {n}")
    traced = await graph.trace("swiglu")
    assert sum(each.stage == "retrieval" and bool(each.id) for each in traced.after) == 5
    assert any(each.words == "and 4 more" for each in traced.after)
    with pytest.raises(NotFoundError, match="nothing has the id"):
        await graph.trace("'; DROP TABLE method; --")
    json.dumps([link.words for link in traced.after])
