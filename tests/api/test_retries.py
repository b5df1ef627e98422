"""Clients that give up waiting call again: the same call is answered by the same run, whatever happened meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.code.apply import unified_diff
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.models import Decision, OutcomeKind, VerdictKind
from tests.api.test_what_ran import loop, run_in

HIGHER = "@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.9\n"
LOWER = "@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.1\n"
STACKS = "@@ @@\n LEARNING_RATE = 0.5\n+LEARNING_RATE += 0.4\n"
DELETES = "@@ -6,1 +5,0 @@\n-LEARNING_RATE = 0.1\n"
FEWER_STEPS = "@@ @@\n-STEPS = 3\n+STEPS = 2\n"


async def run(graph: LoopGraph, **asked: Any) -> ExperimentAnswer:
    return await graph.run_experiment(wait_s=50, **asked)


@pytest.mark.parametrize("patch", [HIGHER, STACKS], ids=["a line replaced", "a line added"])
async def test_a_patch_sent_again_after_its_win_returns_that_run(graph: LoopGraph, workspace: Path, patch: str) -> None:
    await run(graph)
    won = await run(graph, patch=patch)
    assert (won.verdict, won.decision) == (VerdictKind.WIN, Decision.KEEP)
    held = (workspace / "train.py").read_text()
    again = await run(graph, patch=patch)
    assert (again.experiment_id, again.repeated) == (won.experiment_id, True)
    assert (workspace / "train.py").read_text() == held


async def test_a_deletion_sent_again_after_its_win_deletes_nothing_more(graph: LoopGraph, workspace: Path) -> None:
    program = workspace / "train.py"
    twice = "LEARNING_RATE = 0.9\nLEARNING_RATE = 0.1\nLEARNING_RATE = 0.1\n"
    program.write_text(program.read_text().replace("LEARNING_RATE = 0.5\n", twice))
    both = "@@ -4,3 +4,1 @@\n LEARNING_RATE = 0.9\n-LEARNING_RATE = 0.1\n-LEARNING_RATE = 0.1\n"
    await run(graph)
    won = await run(graph, patch=both)
    assert won.decision is Decision.KEEP
    assert (await run(graph, patch=both)).experiment_id == won.experiment_id


async def test_a_patch_sent_again_after_it_lost_returns_that_run(graph: LoopGraph) -> None:
    await run(graph)
    lost = await run(graph, patch=LOWER)
    assert lost.decision is Decision.DISCARD
    again = await run(graph, patch=LOWER)
    assert (again.experiment_id, again.repeated) == (lost.experiment_id, True)


async def test_a_patch_sent_again_after_a_later_one_was_kept_returns_its_own_run(
    graph: LoopGraph, workspace: Path
) -> None:
    await run(graph)
    first = await run(graph, patch=HIGHER)
    later = await run(graph, patch="@@ @@\n LEARNING_RATE = 0.9\n+LEARNING_RATE += 0.4\n")
    assert later.decision is Decision.KEEP
    held = (workspace / "train.py").read_text()
    again = await run(graph, patch=HIGHER)
    assert (again.experiment_id, again.repeated) == (first.experiment_id, True)
    assert (workspace / "train.py").read_text() == held


async def test_an_edit_run_again_after_a_later_one_was_kept_returns_its_own_run(
    graph: LoopGraph, workspace: Path
) -> None:
    program = workspace / "train.py"
    program.write_text("MATRIX_LR = 0.04\n" + program.read_text())
    edit = await graph.get_code_edit("muon-lr")
    ran = await run(graph, edit_id=edit.edit_id)
    await run(graph, patch=HIGHER)
    again = await run(graph, edit_id=edit.edit_id)
    assert (again.experiment_id, again.repeated) == (ran.experiment_id, True)


async def test_a_patch_that_was_applied_by_hand_is_answered_by_the_run_of_the_file(
    graph: LoopGraph, workspace: Path
) -> None:
    program = workspace / "train.py"
    program.write_text(program.read_text().replace("LEARNING_RATE = 0.5", "LEARNING_RATE = 0.9"))
    with pytest.raises(RunError, match="already holds this patch"):
        await run(graph, patch=HIGHER)
    measured = await run(graph)
    again = await run(graph, patch=HIGHER)
    assert (again.experiment_id, again.repeated) == (measured.experiment_id, True)


async def test_a_patch_that_the_file_holds_in_other_surroundings_names_its_run(
    graph: LoopGraph, workspace: Path
) -> None:
    await run(graph)
    won = await run(graph, patch=HIGHER)
    harness = workspace / "prepare.py"
    harness.write_text(harness.read_text() + "# another harness\n")
    with pytest.raises(RunError, match=rf"already holds this patch, and {won.experiment_id} ran it"):
        await run(graph, patch=HIGHER)


async def test_a_patch_that_fits_no_more_names_the_run_it_had(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    lost = await run(graph, patch=LOWER)
    await run(graph, patch=HIGHER)
    with pytest.raises(RunError, match=rf"does not fit.*{lost.experiment_id} ran it on an earlier file"):
        await run(graph, patch=LOWER)


async def test_a_patch_that_the_file_holds_runs_again_with_a_new_seed_when_asked(graph: LoopGraph) -> None:
    await run(graph)
    won = await run(graph, patch=HIGHER)
    replicate = await run(graph, patch=HIGHER, replicate=True)
    assert replicate.experiment_id != won.experiment_id
    assert (replicate.seed, replicate.repeated) == (won.seed + 1, False)


async def test_a_patch_that_changes_nothing_is_answered_by_the_run_of_the_file(graph: LoopGraph) -> None:
    nothing = "@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.5\n"
    with pytest.raises(RunError, match="changes nothing"):
        await run(graph, patch=nothing)
    baseline = await run(graph)
    assert (await run(graph, patch=nothing)).experiment_id == baseline.experiment_id


async def test_a_diff_of_whole_files_with_numbers_is_recognised_too(graph: LoopGraph, workspace: Path) -> None:
    old = (workspace / "train.py").read_text()
    new = old.replace("0.5", "0.9").replace("STEPS = 3", "STEPS = 2").replace("import prepare\n", "import prepare\n\n")
    patch = unified_diff(old, new, "train.py")
    await run(graph)
    won = await run(graph, patch=patch)
    assert (workspace / "train.py").read_text() == new
    assert (await run(graph, patch=patch)).experiment_id == won.experiment_id


async def test_an_edit_that_is_applied_again_is_the_same_edit(graph: LoopGraph, workspace: Path) -> None:
    program = workspace / "train.py"
    program.write_text("MATRIX_LR = 0.04\n" + program.read_text())
    first = await graph.get_code_edit("muon-lr", apply=True)
    held = program.read_text()
    again = await graph.get_code_edit("Muon learning rate", apply=True)
    assert (again.status, again.edit_id, again.diff) == ("applied", first.edit_id, first.diff)
    assert program.read_text() == held


FULL = "import errno\nraise OSError(errno.ENOSPC, 'No space left on device')\n"


async def test_a_key_whose_run_failed_by_its_surroundings_runs_again(graph: LoopGraph, tmp_path: Path) -> None:
    folder = loop(tmp_path / "full", {"train.py": "import disk\nA = 1\nprint('loss:', A)\n", "disk.py": FULL})
    asked = {"patch": "@@ @@\n-A = 1\n+A = 2\n", "idempotency_key": "k"}
    failed = await run_in(graph, folder, **asked)
    assert failed.outcome is OutcomeKind.INTERRUPTED
    (folder / "disk.py").write_text("")
    again = await run_in(graph, folder, **asked)
    assert (again.outcome, again.metric_value) == (OutcomeKind.FINISHED, 2)
    assert again.experiment_id != failed.experiment_id
    assert (await run_in(graph, folder, **asked)).experiment_id == again.experiment_id


async def test_a_key_never_answers_with_the_run_of_another_change_or_workspace(
    graph: LoopGraph, tmp_path: Path
) -> None:
    program = "A = 1\nprint('loss:', A)\n"
    one, other = (loop(tmp_path / name, {"train.py": program}) for name in ("one", "other"))
    await run_in(graph, one)
    first = await run_in(graph, one, patch="@@ @@\n-A = 1\n+A = 0.5\n", idempotency_key="k")
    assert first.decision is Decision.KEEP  # and is in the file now
    same = await run_in(graph, one, patch="@@ @@\n-A = 1\n+A = 0.5\n", idempotency_key="k")
    assert same.experiment_id == first.experiment_id
    for folder, patch in ((one, "@@ @@\n-A = 0.5\n+A = 0.4\n"), (other, "@@ @@\n-A = 1\n+A = 0.5\n"), (other, None)):
        with pytest.raises(RunError, match="idempotency_key was used for"):
            await run_in(graph, folder, patch=patch, idempotency_key="k")
