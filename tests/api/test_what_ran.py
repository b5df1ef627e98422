"""An outcome belongs to all that its run could see and to where it ran: to no other files and no other folder."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.run_plan import keep_program
from loopgraph_mcp.code.hashes import program_hash
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.models import Advice, Decision, NextStep, Outcome, OutcomeKind, Standing, VerdictKind
from loopgraph_mcp.store import edits as edit_store
from loopgraph_mcp.store import experiments
from loopgraph_mcp.store.experiments import NewExperiment
from tests.api.test_loop import HIGHER_RATE, run


def loop(folder: Path, files: dict[str, str], **config: object) -> Path:
    """Make a folder with a training loop of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    told = {
        "editable": "train.py",
        "command": ["{python}", "train.py"],
        "metric": "loss",
        "direction": "lower",
        "budget_s": 1,
        "timeout_s": 60,
        **config,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
    (folder / "loopgraph.toml").write_text("\n".join(["[workspace]", *lines]) + "\n")
    return folder


async def run_in(graph: LoopGraph, folder: Path, **asked: object) -> ExperimentAnswer:
    return await graph.run_experiment(workspace=str(folder), wait_s=50, **asked)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ what ran

BESIDE = {
    "a module": ("settings.py", "X = 1\n", "X = 2\n"),
    "a docstring": ("words.py", 'def f():\n    """One."""\n', 'def f():\n    """Two."""\n'),
    "a header": ("params.h", "#define BLOCK 8\n", "#define BLOCK 64\n"),
    "a prompt": ("prompt.md", "# Be brief\n", "# Think first\n"),
    "indentation": ("config.yaml", "a:\n  b: 1\nc:\n  d: 2\n", "a:\n  b: 1\n  c:\n    d: 2\n"),
    "white space": ("rows.csv", "1 2\n", "1  2\n"),
    "a folder's file": ("lib/inner.py", "X = 1\n", "X = 2\n"),
}


@pytest.mark.parametrize("kind", BESIDE)
async def test_another_file_beside_the_program_makes_another_run(graph: LoopGraph, tmp_path: Path, kind: str) -> None:
    name, before, after = BESIDE[kind]
    program = f"print('loss:', 1 + sum(open({name!r}, 'rb').read()) / 1e6)\n"
    folder = loop(tmp_path / "many", {"train.py": program, name: before})
    first = await run_in(graph, folder, description="first")
    assert (await run_in(graph, folder)).experiment_id == first.experiment_id
    (folder / name).write_text(after)
    second = await run_in(graph, folder, description="second")
    assert not second.repeated
    assert second.metric_value != first.metric_value
    assert second.verdict in {VerdictKind.WIN, VerdictKind.LOSS, VerdictKind.WITHIN_NOISE}  # held against the first
    edited = [each for each in second.earlier if each.kinship == "other_files"]
    assert [(each.experiment_id, name in each.note) for each in edited] == [(first.experiment_id, True)]
    (folder / name).write_text(before)
    assert (await run_in(graph, folder)).experiment_id == first.experiment_id


async def test_layout_of_a_module_beside_the_program_makes_no_other_run(graph: LoopGraph, tmp_path: Path) -> None:
    folder = loop(
        tmp_path / "many", {"train.py": "import settings\nprint('loss:', settings.X)\n", "settings.py": "X = 1\n"}
    )
    first = await run_in(graph, folder)
    (folder / "settings.py").write_text("# the best so far\nX   =   1\n")
    again = await run_in(graph, folder)
    assert (again.repeated, again.experiment_id) == (True, first.experiment_id)


async def test_a_prompt_in_the_editable_docstring_is_the_program(graph: LoopGraph, tmp_path: Path) -> None:
    source = 'class Classify:\n    """Say the mood."""\n'
    folder = loop(
        tmp_path / "prompt",
        {"train.py": source, "e.py": "import train\nprint('loss:', len(train.Classify.__doc__))\n"},
        command=["{python}", "e.py"],
    )
    assert (await run_in(graph, folder)).metric_value == 13
    (folder / "train.py").write_text(source.replace("mood", "whole mood"))
    changed = await run_in(graph, folder)
    assert (changed.repeated, changed.metric_value, changed.verdict) == (False, 19, VerdictKind.LOSS)


async def test_a_parent_that_never_ran_among_these_files_is_no_baseline(graph: LoopGraph, tmp_path: Path) -> None:
    program = "import settings\nA = 2.0\nprint('loss:', A + settings.X)\n"
    folder = loop(tmp_path / "many", {"train.py": program, "settings.py": "X = 1\n"})
    first = await run_in(graph, folder)
    (folder / "settings.py").write_text("X = 5\n")
    patch = "@@ @@\n-A = 2.0\n+A = 1.0\n"
    answer = await run_in(graph, folder, patch=patch, method_id="gqa")
    assert (answer.verdict, answer.metric_value) == (VerdictKind.NO_BASELINE, 6)
    assert answer.besides == [
        NextStep(Advice.IGNORE_FILES, about={"parent": first.experiment_id, "files": "settings.py"})
    ]
    await run_in(graph, folder, description="unchanged")
    assert (await graph.get_experiment(answer.experiment_id)).verdict is VerdictKind.WIN


async def test_programs_that_differ_in_the_seed_alone_are_replicates(graph: LoopGraph, tmp_path: Path) -> None:
    program = "import random\nSEED = 42\nrandom.seed(SEED)\nprint('loss:', 1 + random.gauss(0, 0.02))\n"
    folder = loop(tmp_path / "seeds", {"train.py": program})
    await run_in(graph, folder, description="baseline")
    values = []
    for seed in (1, 2, 3, 4, 5):
        (folder / "train.py").write_text(program.replace("42", str(seed)))
        answer = await run_in(graph, folder, description=f"seed {seed}")
        assert (answer.repeated, answer.verdict) == (False, VerdictKind.BASELINE)
        values.append(answer.metric_value)
    assert "replicate" in answer.earlier[-1].note
    assert len(set(values)) == 5
    best = await graph.best_result(workspace=str(folder))
    assert best is not None
    assert (best.is_baseline, best.runs, best.replicates) == (True, 6, 5)
    assert best.noise_floor > 0.008  # the default is half a percent
    assert "from 5 replicates" in answer.noise


@pytest.mark.parametrize("words", [["--seed", "{}"], ["--seed={}"], ["train.seed={}"]])
async def test_a_seed_in_the_command_makes_a_replicate(graph: LoopGraph, tmp_path: Path, words: list[str]) -> None:
    files = {"train.py": "import sys\nprint('loss:', 1 + int(sys.argv[-1].split('=')[-1]) / 1000)\n"}
    found = []
    for seed in (1, 2, 3, 1):
        command = ["{python}", "train.py", *(word.format(seed) for word in words)]
        folder = loop(tmp_path / "seeded", files, command=command)
        found.append(await run_in(graph, folder))
    assert [each.metric_value for each in found] == [1.001, 1.002, 1.003, 1.001]
    assert [each.verdict for each in found] == [VerdictKind.BASELINE] * 4
    assert (found[3].repeated, found[3].experiment_id) == (True, found[0].experiment_id)
    best = await graph.best_result(workspace=str(folder))
    assert best is not None
    assert best.runs == 3


# ---------------------------------------------------------------------------------------------- where

CATS = "KERNEL = 3\nprint('accuracy: 0.97')\n"
SPAM = "NGRAM = 1\nprint('accuracy: 0.80')\n"


@pytest.mark.parametrize("protected", [[], ["eval.py"]])
async def test_two_workspaces_share_no_best_program_standing_or_here(
    graph: LoopGraph, tmp_path: Path, protected: list[str]
) -> None:
    shared = {"metric": "accuracy", "direction": "higher", "protected": protected}
    cats = loop(tmp_path / "cats", {"train.py": CATS, "eval.py": ""}, **shared)
    spam = loop(tmp_path / "spam", {"train.py": SPAM, "eval.py": ""}, **shared)
    best = await run_in(graph, cats)
    better = await run_in(
        graph, cats, patch="@@ @@\n-print('accuracy: 0.97')\n+print('accuracy: 0.99')\n", method_id="gqa"
    )
    assert better.verdict is VerdictKind.WIN
    await run_in(graph, spam)
    answer = await graph.search_methods("attention heads", workspace=str(spam), limit=50)
    hit = {each.method_id: each for each in answer.hits}["gqa"]
    assert answer.best is None
    assert (hit.standing, hit.tries, hit.elsewhere.wins) == (Standing.UNTRIED, 0, 1)
    assert "untried here" in hit.why
    assert "other workspaces" in hit.why
    for experiment in (best, better):
        refused = await graph.get_code_edit(experiment.experiment_id, apply=True, workspace=str(spam))
        assert (refused.status, "another workspace" in refused.reason) == ("refused", True)
    assert (spam / "train.py").read_text() == SPAM
    here = {
        each.method_id: each
        for each in (await graph.search_methods("attention heads", workspace=str(cats), limit=50)).hits
    }
    assert here["gqa"].standing is Standing.PROVEN


async def test_an_edit_made_in_one_workspace_does_not_run_in_another(graph: LoopGraph, tmp_path: Path) -> None:
    one, other = (loop(tmp_path / name, {"train.py": "LR = 1\nprint('loss:', LR)\n"}) for name in ("one", "other"))
    await run_in(graph, one)
    made = await run_in(graph, one, patch="@@ @@\n-LR = 1\n+LR = 2\n")
    row = await experiments.get_experiment(graph.db, made.experiment_id)
    assert row is not None
    for replicate in (False, True):
        with pytest.raises(RunError, match="another workspace"):
            await run_in(graph, other, edit_id=row.edit_id, replicate=replicate)


@pytest.mark.parametrize(
    "changed",
    [
        {"command": ["{python}", "-B", "train.py"]},
        {"direction": "higher"},
        {"metric": "cost"},
        {"take": "best"},
        {"pattern": "loss: (.*)"},
        {"editable": "other.py"},
    ],
)
async def test_another_declaration_is_another_context(
    graph: LoopGraph, tmp_path: Path, changed: dict[str, object]
) -> None:
    files = {"train.py": "print('loss: 1')\nprint('cost: 1')\n", "other.py": "print('loss: 1')\n"}
    folder = loop(tmp_path / "one", files)
    first = await run_in(graph, folder)
    loop(folder, files, **changed)
    second = await run_in(graph, folder)
    assert not second.repeated
    rows = [await experiments.get_experiment(graph.db, each.experiment_id) for each in (first, second)]
    assert rows[0] is not None
    assert rows[1] is not None
    assert rows[0].context_id != rows[1].context_id


async def test_declared_variables_are_part_of_the_context_and_reach_the_run(
    graph: LoopGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import os\nprint('loss:', {'tiny': 2, 'full': 1}[os.environ['MODEL_SIZE']])\n"
    folder = loop(tmp_path / "sized", {"train.py": program}, context_env=["MODEL_SIZE"])
    monkeypatch.setenv("MODEL_SIZE", "tiny")
    tiny = await run_in(graph, folder)
    monkeypatch.setenv("MODEL_SIZE", "full")
    full = await run_in(graph, folder)
    assert (tiny.metric_value, full.metric_value, full.repeated, full.verdict) == (2, 1, False, VerdictKind.BASELINE)
    monkeypatch.setenv("MODEL_SIZE", "tiny")
    assert (await run_in(graph, folder)).experiment_id == tiny.experiment_id


# ------------------------------------------------------------------------------------ both, at random

PROGRAMS = [
    "LR = 1\n",
    "LR = 1  # fast\n",
    "LR = 2\n",
    '"""A."""\nLR = 1\n',
    '"""B."""\nLR = 1\n',
    "SEED = 1\n",
    "SEED = 2\n",
]
FILES = {
    "settings.py": [None, "X = 1\n", "X  =  1\n", "X = 2\n"],
    "prompt.md": [None, "# a\n", "# b\n"],
    "deep/data.txt": [None, "1\n", "1 \n"],
}
folders = st.fixed_dictionaries(
    {"train.py": st.sampled_from(PROGRAMS), **{name: st.sampled_from(each) for name, each in FILES.items()}}
)


def essence(files: dict[str, str | None]) -> dict[str, str]:
    """What a run can see, up to the layout of Python."""
    return {name: program_hash(text, name) for name, text in files.items() if text is not None}


@given(folders, folders, st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_an_outcome_is_offered_only_where_all_that_its_run_could_see_was_equal(
    tmp_path_factory: pytest.TempPathFactory,
    one: dict[str, str | None],
    other: dict[str, str | None],
    same_folder: bool,  # noqa: FBT001
) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        first = loop(root / "first", {name: text for name, text in one.items() if text is not None})
        options = Settings(home=root / "home", db_path=root / "home" / "x.db", workspace=first, device="cpu")
        async with LoopGraph.open(options) as graph:
            await record(graph, first, one["train.py"] or "")
            if same_folder:
                for name in FILES:
                    (first / name).unlink(missing_ok=True)
            second = first if same_folder else root / "second"
            loop(second, {name: text for name, text in other.items() if text is not None})
            assert await is_offered(graph, second, other["train.py"] or "") == (
                same_folder and essence(one) == essence(other)
            )
            hits = {
                each.method_id: each
                for each in (await graph.search_methods("heads", workspace=str(second), limit=60)).hits
            }
            assert ("gqa" in hits and hits["gqa"].tries == 1) == same_folder


async def record(graph: LoopGraph, folder: Path, program: str) -> None:
    where = await graph.state.here.workspace(str(folder))
    context = await graph.state.here.context(where, where.budget_s)
    inputs = await graph.state.here.inputs(where)
    new = NewExperiment(
        await edit_store.context_id(graph.db, context),
        "cpu-0",
        "x",
        42,
        60.0,
        30.0,
        method_ids=("gqa",),
        program_hash=await keep_program(graph.db, program, where.editable),
        ran=inputs.identify(program, where.editable),
        base_group_key="something else",
    )
    experiment_id, _ = await experiments.add_experiment(graph.db, new, now=1.0)
    await experiments.finish(graph.db, experiment_id, Outcome(OutcomeKind.FINISHED, 1.0, "", {}), now=2.0)


async def is_offered(graph: LoopGraph, folder: Path, program: str) -> bool:
    where = await graph.state.here.workspace(str(folder))
    context_id = await edit_store.context_id(graph.db, await graph.state.here.context(where, where.budget_s))
    key = (await graph.state.here.inputs(where)).identify(program, where.editable).run_key
    return bool(await experiments.runs_of(graph.db, context_id, key))


# --------------------------------------------------------------------------------- kept is not won


def on_win(workspace: Path, **settings: object) -> None:
    config = workspace / "loopgraph.toml"
    config.write_text(
        config.read_text() + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    )


SLIGHTLY = "@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.52\n"  # a hundredth: a fifth of the noise


async def test_a_gain_within_the_noise_is_applied_and_called_that(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    kept = await run(graph, patch=SLIGHTLY, description="a little")
    assert (kept.verdict, kept.decision, kept.tentative) == (VerdictKind.WITHIN_NOISE, Decision.KEEP, True)
    assert "LEARNING_RATE = 0.52" in (workspace / "train.py").read_text()
    last = (workspace / "results.tsv").read_text().splitlines()[-1]
    assert "a little (not distinguishable from noise)" in last
    best = await graph.best_result()
    assert best is not None
    assert not best.beats_noise


async def test_a_gain_within_the_noise_is_left_out_where_the_workspace_says_so(
    graph: LoopGraph, workspace: Path
) -> None:
    on_win(workspace, apply_tentative=False)
    before = (workspace / "train.py").read_text()
    await run(graph)
    left = await run(graph, patch=SLIGHTLY)
    assert (left.verdict, left.decision) == (VerdictKind.WITHIN_NOISE, Decision.DISCARD)
    assert "apply_tentative" in left.note
    assert (workspace / "train.py").read_text() == before
    won = await run(graph, patch=HIGHER_RATE)
    assert (won.verdict, won.decision) == (VerdictKind.WIN, Decision.KEEP)
    assert "LEARNING_RATE = 0.9" in (workspace / "train.py").read_text()


async def test_a_lucky_run_that_its_replicate_undoes_is_listed_as_undone(graph: LoopGraph, tmp_path: Path) -> None:
    program = (
        "import os\nA = 1\nS = int(os.environ['LOOPGRAPH_SEED'])\n"
        "print('loss:', 1.0 if A == 1 else {42: 0.9998}.get(S, 1.1))\n"
    )
    folder = loop(tmp_path / "lucky", {"train.py": program})
    await run_in(graph, folder)
    lucky = await run_in(graph, folder, patch="@@ @@\n-A = 1\n+A = 2\n", description="luck")
    assert (lucky.decision, lucky.tentative) == (Decision.KEEP, True)
    again = await run_in(graph, folder, replicate=True, description="luck again")
    assert again.decision is Decision.DISCARD
    assert lucky.experiment_id in again.note
    listed = {each.experiment_id: each for each in await graph.list_experiments(workspace=str(folder))}
    assert listed[lucky.experiment_id].undone_by == again.experiment_id
    best = await graph.best_result(workspace=str(folder))
    assert best is not None
    assert best.is_baseline
    rows = (folder / "results.tsv").read_text().splitlines()
    assert "undoes the keep of" in rows[-1]
    assert rows[-1].split("\t")[0] == rows[-2].split("\t")[0] != rows[-3].split("\t")[0]  # by what ran, not by HEAD


async def test_a_failing_baseline_charges_no_method(graph: LoopGraph, tmp_path: Path) -> None:
    folder = loop(tmp_path / "broken", {"train.py": "A = 1\nraise ValueError('no')\n"})
    first = await run_in(graph, folder, method_id="gqa")
    assert first.next_step.reason is Advice.FIX_BASELINE
    changed = await run_in(graph, folder, patch="@@ @@\n-A = 1\n+A = 2\n", method_id="swiglu")
    assert (changed.outcome, changed.verdict) == (OutcomeKind.CRASHED, VerdictKind.NO_BASELINE)
    records = (await graph.state.evidence(None)).records
    assert [records.of(each).crashes for each in ("gqa", "swiglu")] == [0, 0]
    assert records.of("gqa").standing is Standing.UNTRIED
