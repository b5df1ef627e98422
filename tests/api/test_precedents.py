"""What run_experiment and get_code_edit say of earlier runs, with real runs."""

import shutil
from pathlib import Path

from loopgraph_mcp.api.answers import EarlierRun, ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import Decision, OutcomeKind


async def turn(graph: LoopGraph, name: str, old: str, new: str) -> ExperimentAnswer:
    patch = f"@@ @@\n-{name} = {old}\n+{name} = {new}\n"
    answer = await graph.run_experiment(patch=patch, description=f"{name} {old} to {new}", wait_s=50)
    assert answer.outcome is OutcomeKind.FINISHED
    return answer


def told(runs: list[EarlierRun]) -> list[tuple[str, str]]:
    return [(run.experiment_id, run.kinship) for run in runs]


async def test_kin_of_a_change_are_told_with_what_came_of_them(graph: LoopGraph, workspace: Path) -> None:
    await graph.run_experiment(description="baseline", wait_s=50)
    less = await turn(graph, "LEARNING_RATE", "0.5", "0.4")
    assert (less.decision, less.earlier) == (Decision.DISCARD, [])
    lesser = await turn(graph, "LEARNING_RATE", "0.5", "0.2")
    assert told(lesser.earlier) == [(less.experiment_id, "beyond_failed")]
    assert "finished" in lesser.earlier[0].outcome
    between = await turn(graph, "LEARNING_RATE", "0.5", "0.3")
    assert told(between.earlier) == [(less.experiment_id, "between_failed"), (lesser.experiment_id, "between_failed")]
    steps = await turn(graph, "STEPS", "3", "4")
    assert (steps.decision, steps.earlier) == (Decision.DISCARD, [])

    more = await turn(graph, "LEARNING_RATE", "0.5", "0.9")
    assert more.decision is Decision.KEEP
    assert "LEARNING_RATE = 0.9" in (workspace / "train.py").read_text()
    again = await turn(graph, "STEPS", "3", "4")
    assert told(again.earlier) == [(steps.experiment_id, "same")]
    assert "re-test (since then: LEARNING_RATE 0.5 to 0.9)" in again.earlier[0].note
    assert not again.repeated
    back = await turn(graph, "LEARNING_RATE", "0.9", "0.5")
    assert back.repeated or told(back.earlier)[0] == (more.experiment_id, "reverses_kept")


async def test_runs_only_told_of_are_kin_by_their_description(graph: LoopGraph) -> None:
    await graph.run_experiment(description="baseline", wait_s=50)
    recorded = await graph.record_outcome(
        metric_value=3.0, description="learning rate 0.5 to 0.7 was worse", decision=Decision.DISCARD
    )
    more = await turn(graph, "LEARNING_RATE", "0.5", "0.8")
    assert told(more.earlier) == [(recorded.experiment_id, "beyond_failed")]


async def test_an_upgraded_store_learns_its_old_changes(graph: LoopGraph, settings: Settings) -> None:
    await graph.run_experiment(description="baseline", wait_s=50)
    less = await turn(graph, "LEARNING_RATE", "0.5", "0.4")
    await graph.db.change("DELETE FROM change")
    lesser = await turn(graph, "LEARNING_RATE", "0.5", "0.2")
    assert told(lesser.earlier) == [(less.experiment_id, "beyond_failed")]


async def test_searches_in_other_workspaces_teach_kinds_of_moves(
    graph: LoopGraph, settings: Settings, workspace: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(workspace, other)

    async def foretold(where: Path, memory: LoopGraph) -> dict[str, float]:
        answer = await memory.search_methods(
            "sliding window pattern; fewer KV heads, GQA", limit=100, workspace=str(where)
        )
        return {hit.method_id: hit.parts["prior"] for hit in answer.hits}

    before, here = await foretold(other, graph), await foretold(workspace, graph)
    for number in range(15):
        kept, words = number % 3 == 0, "window SSSL to SSSSL" if number % 3 == 0 else "GQA: fewer KV heads"
        recorded = await graph.record_outcome(
            metric_value=0.99 if kept else 1.01,
            description=f"{words} {number}",
            decision=Decision.KEEP if kept else Decision.DISCARD,
            measured=True,
        )
    after = await foretold(other, graph)
    assert after["sliding-window-pattern"] > before["sliding-window-pattern"]
    assert after["gqa"] < before["gqa"]
    assert await foretold(workspace, graph) == here  # its own trials are evidence of methods, and no prior
    async with LoopGraph.open(settings) as fresh:
        assert await foretold(other, fresh) == after
    await graph.record_outcome(experiment_id=recorded.experiment_id, decision=Decision.KEEP)
    revised = await foretold(other, graph)
    assert revised["gqa"] > after["gqa"]
    async with LoopGraph.open(settings) as fresh:
        assert await foretold(other, fresh) == revised
