"""The overview of a workspace: the figures of `results --json`, followed as they change, and what they add up to."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from loopgraph_mcp.api import overview as overviews
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.overview import Mark
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import NotFoundError
from loopgraph_mcp.models import Decision, OutcomeKind, RunState
from loopgraph_mcp.store import nights
from loopgraph_mcp.web import lineage
from tests.api.test_loop import HIGHER_RATE, LOWER_RATE, mishap, run
from tests.web.conftest import environment_of

SAME = ("description", "seed", "metric_value", "verdict", "gain", "p_win", "decision", "tentative", "undone_by")


def results(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what `loopgraph results --json` prints, by experiment."""
    command = [
        sys.executable,
        "-c",
        "from loopgraph_mcp.cli.main import main; main()",
        "results",
        "-n",
        "1000",
        "--json",
    ]
    done = subprocess.run(command, env=environment_of(settings), check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    return {each["experiment_id"]: each for each in (told if isinstance(told, list) else told["experiments"])}


async def test_the_figures_are_those_of_results(night: Settings) -> None:
    told = results(night)
    async with LoopGraph.open(night) as graph:
        seen = await graph.overview()
    assert [line.experiment_id for line in seen.lines] == list(told)
    for line in seen.lines:
        shown = told[line.experiment_id]
        assert [getattr(line, name) for name in SAME] == [shown[name] for name in SAME]
        assert (None if line.noise is None else line.noise.sd) == shown["noise_floor"]


async def test_what_changes_is_followed_and_what_stays_is_not_read_again(graph: LoopGraph) -> None:
    with pytest.raises(NotFoundError):
        await graph.overview()
    await run(graph)
    first = await graph.overview()
    assert await graph.overview() is first
    assert [(line.mark, line.number) for line in first.lines] == [(Mark.BASELINE, 1)]
    won = await run(graph, patch=HIGHER_RATE, description="more rate")
    failed = await run(graph, patch=mishap("raise SystemExit(3)"))
    second = await graph.overview()
    assert second.version > first.version
    assert {each for each, at in second.changed.items() if at > first.version} >= {
        won.experiment_id,
        failed.experiment_id,
    }
    assert [line.mark for line in second.lines] == [Mark.BASELINE, Mark.KEPT, Mark.FAILED]
    assert second.best is not None
    assert second.best.experiment_id == won.experiment_id
    await graph.record_outcome(
        experiment_id=won.experiment_id, decision=Decision.DISCARD, description="too much memory"
    )
    third = await graph.overview()
    assert [line.mark for line in third.lines] == [Mark.BASELINE, Mark.DISCARDED, Mark.FAILED]
    assert third.changed[won.experiment_id] == third.version


async def test_a_run_that_is_on_its_way_is_shown_and_then_its_outcome(graph: LoopGraph) -> None:
    await run(graph)
    slow = await run(graph, patch="@@ @@\n-STEPS = 3\n+STEPS = 12\n", wait_s=0)
    seen = await graph.overview()
    assert seen.lines[-1].mark in {Mark.QUEUED, Mark.RUNNING}
    assert (await graph.get_experiment(slow.experiment_id, wait_s=50)).state is RunState.DONE
    assert (await graph.overview()).lines[-1].metric_value == 1.75


async def test_the_best_program_is_told_apart_into_its_changes(night: Settings) -> None:
    async with LoopGraph.open(night) as graph:
        seen = await graph.overview()
    steps = overviews.steps_to_best(seen)
    assert seen.best is not None
    assert len(steps) >= 3
    assert steps[-1].experiment_id in {
        line.experiment_id for line in seen.lines if line.description == seen.best.description
    }
    assert sum(step.gain or 0.0 for step in steps) == pytest.approx(seen.best.gain)
    for step in steps:
        assert step.low is not None
        assert step.high is not None
        assert step.gain is not None
        assert step.low < step.gain < step.high
    assert any(step.tentative for step in steps)
    assert any(not step.tentative for step in steps)


async def test_records_count_each_change_once(night: Settings) -> None:
    async with LoopGraph.open(night) as graph:
        seen = await graph.overview()
    changes = overviews.changes(seen.here)
    families = overviews.records_by_family(seen)
    assert sum(each.tries for each in families) == len(changes) < len(seen.here)
    for each in families:
        assert each.tries == each.better + each.same + each.worse + each.failed
        if each.mean is not None:
            assert each.low is not None
            assert each.high is not None
            assert each.low < each.mean < each.high
            assert each.mean == pytest.approx(fmean(each.gains))
            assert each.high - each.low > 2 * 0.0005  # no family is surer than the noise of its few runs
    by_method = dict(overviews.records_by_method(seen))
    assert by_method["short-window"].better == 1


async def test_doubtful_changes_are_those_that_another_run_would_decide(night: Settings) -> None:
    async with LoopGraph.open(night) as graph:
        seen = await graph.overview()
    found = overviews.doubtful(seen)
    assert found
    assert all(line.mark in {Mark.TENTATIVE, Mark.NOISE, Mark.DISCARDED} for line in found)
    assert all((line.p_win or 0.0) < 0.9 for line in found)


async def test_runs_that_memory_answered_are_counted_with_the_time_they_spared(graph: LoopGraph) -> None:
    first = await run(graph)
    again = await run(graph)
    assert again.repeated
    await graph.add_cost("run_experiment", subject_id=first.experiment_id, tokens=200)  # as the tool does
    await graph.add_cost("run_experiment", subject_id=first.experiment_id, tokens=200)
    seen = await graph.overview()
    (spared,) = overviews.spared(seen, await nights.asked_again(graph.db, seen.workspace.id))
    assert spared.times == 2  # no agent asked for the first run: a person did
    assert spared.seconds == pytest.approx(2 * (spared.line.seconds or 0.0))


async def test_predictions_are_what_the_search_before_a_run_said(night: Settings) -> None:
    async with LoopGraph.open(night) as graph:
        seen = await graph.overview()
        predicted = await nights.predicted(graph.db, seen.workspace.id)
    found = overviews.predictions(seen, predicted)
    assert found
    assert all(0 <= each.p <= 1 for each in found)
    by_id = {line.experiment_id: line for line in seen.lines}
    assert all(each.gained == ((by_id[each.experiment_id].gain or 0) > 0) for each in found)


async def test_every_program_is_in_the_lineage_once(night: Settings) -> None:
    async with LoopGraph.open(night) as graph:
        seen = await graph.overview()
    found = list[str]()

    def walk(trunk: list[lineage.Program]) -> None:
        for program in trunk:
            found.append(program.last.group)
            found.extend(line.group for line in program.tried)
            for branch in program.branches:
                walk(branch)

    (root,) = lineage.tree(seen)
    walk(root)
    assert sorted(found) == sorted({line.group for line in seen.here})
    assert root[0].last.mark is Mark.BASELINE
    assert root[0].on_the_way


async def test_an_experiment_up_close_has_its_change_loss_log_and_chain(night: Settings) -> None:
    async with LoopGraph.open(night) as graph:
        seen = await graph.overview()
        line = next(each for each in seen.lines if each.mark is Mark.KEPT)
        found = await graph.closeup(line.experiment_id)
        with pytest.raises(NotFoundError):
            await graph.closeup("exp_unheard")
    assert found.parent is not None
    assert any(each.startswith("+") and not each.startswith("+++") for each in found.diff.splitlines())
    assert found.loss.by == "percent"
    assert 50 < len(found.loss.own) <= 161
    assert found.loss.parent
    assert "val_bpb" in found.log_tail
    assert found.asked_by == ("claude-code",)
    stages = [link.stage for link in lineage.chain(found)]
    assert stages.index("paper") < stages.index("method") < stages.index("retrieval") < stages.index("edit")
    assert stages[-2:] == ["outcome", "decision"]
    assert found.predicted is not None


async def test_kin_of_a_run_are_those_before_it(graph: LoopGraph) -> None:
    await run(graph)
    lost = await run(graph, patch=LOWER_RATE, description="less rate")
    further = await run(graph, patch="@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.05\n", description="far less")
    assert lost.outcome is OutcomeKind.FINISHED
    found = await graph.closeup(further.experiment_id)
    assert [each.experiment_id for each in found.earlier] == [lost.experiment_id]
    assert (await graph.closeup(lost.experiment_id)).earlier == ()


async def test_an_imported_history_can_be_looked_at(graph: LoopGraph, tmp_path: Path) -> None:
    history = tmp_path / "results.tsv"
    rows = ["0000001\t0.9979\t44.0\tkeep\tbaseline", "0000002\t0.9860\t26.9\tkeep\thalve batch 524K to 262K"]
    rows += ["0000003\t0.9826\t60.1\tdiscard\tadd 5% warmup", "0000004\t0.000000\t0.0\tcrash\tdouble the width"]
    history.write_text("\n".join(["commit\tval_bpb\tmemory_gb\tstatus\tdescription", *rows]) + "\n")
    await graph.import_history(history, device="H100")
    seen = await graph.overview()
    assert seen.workspace.is_imported
    assert [line.mark for line in seen.lines] == [Mark.BASELINE, Mark.KEPT, Mark.DISCARDED, Mark.FAILED]
