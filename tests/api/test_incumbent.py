"""The best program that was run here: told where the file holds another, and given back as an edit."""

from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.errors import NotFoundError, RunError
from loopgraph_mcp.models import Decision, Direction
from loopgraph_mcp.ranking.verdicts import cautious
from loopgraph_mcp.server import render
from tests.api.test_loop import HIGHER_RATE, LOWER_RATE, run


async def test_a_file_that_was_put_back_can_be_the_best_program_again(graph: LoopGraph, workspace: Path) -> None:
    file = workspace / "train.py"
    start = file.read_text()
    await run(graph)
    won = await run(graph, patch=HIGHER_RATE, description="more rate")
    assert (await graph.search_methods()).best is None  # the file is it
    best = file.read_text()
    file.write_text("# another comment\n" + best)
    assert (await graph.search_methods()).best is None  # a comment makes no other program
    file.write_text(start)
    found = await graph.search_methods("learning rate")
    assert found.best is not None
    assert (found.best.experiment_id, found.best.metric_value, found.best.runs) == (won.experiment_id, 1.55, 1)
    assert f'get_code_edit(method_id="{won.experiment_id}")' in render.search(found, "concise")
    edit = await graph.get_code_edit(won.experiment_id)
    assert (edit.status, "+LEARNING_RATE = 0.9" in edit.diff) == ("ready", True)
    assert edit.next_step.arguments == {"method_id": won.experiment_id, "apply": True}
    assert file.read_text() == start
    again = await run(graph, edit_id=edit.edit_id)
    assert (again.repeated, again.experiment_id) == (True, won.experiment_id)
    applied = await graph.get_code_edit(won.experiment_id, apply=True)
    assert (applied.status, file.read_text()) == ("applied", best)
    assert (await graph.get_code_edit(won.experiment_id)).status == "present"
    with pytest.raises(NotFoundError):
        await graph.get_code_edit(won.experiment_id, revert=True)


async def test_a_program_that_somebody_discarded_is_not_told(graph: LoopGraph, workspace: Path) -> None:
    start = (workspace / "train.py").read_text()
    await run(graph)
    won = await run(graph, patch=HIGHER_RATE)
    (workspace / "train.py").write_text(start)
    await graph.record_outcome(
        experiment_id=won.experiment_id, decision=Decision.DISCARD, description="it needs too much memory"
    )
    assert (await graph.search_methods()).best is None


async def test_what_lost_is_no_best_program(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    await run(graph, patch=LOWER_RATE)
    assert (await graph.search_methods()).best is None
    file = workspace / "train.py"
    file.write_text(file.read_text().replace("LEARNING_RATE = 0.5", "LEARNING_RATE = 0.7"))
    assert (await graph.search_methods()).best is not None
    file.write_text("print('another project by now')\n")
    assert (await graph.search_methods()).best is None


async def test_an_experiment_is_taken_whole_or_refused(graph: LoopGraph) -> None:
    first = await run(graph)
    with pytest.raises(RunError, match="as it ran"):
        await graph.get_code_edit(first.experiment_id, also=["gqa"])
    with pytest.raises(NotFoundError, match="exp_unheard"):
        await graph.get_code_edit("exp_unheard")


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9), st.floats(0.001, 2), st.sampled_from(Direction))
def test_a_lucky_run_is_doubted_and_many_runs_are_believed(runs: list[float], sigma: float, way: Direction) -> None:
    told = cautious(runs, direction=way, sigma=sigma)
    assert way.gain(told, fmean(runs)) == pytest.approx(sigma / len(runs) ** 0.5)
    assert way.gain(told, cautious(runs * 4, direction=way, sigma=sigma)) > 0
