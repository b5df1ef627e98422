"""A number that a run printed is measured again before it is kept; one that cannot be is set aside."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.verify import implausible, over_budget
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import Decision, Direction, OutcomeKind
from loopgraph_mcp.runner import restoring
from loopgraph_mcp.runner.workspace import load_workspace
from tests.api.test_loop import HIGHER_RATE, mishap, run
from tests.conftest import ROOT

VERIFIER = """
import json, os
import prepare

with open(os.path.join(os.environ["LOOPGRAPH_STATE_DIR"], "state.json")) as file:
    print(f"val_bpb: {prepare.evaluate(json.load(file)['rate']):.6f}")
"""
SAVES = """
    with open(os.path.join(os.environ["LOOPGRAPH_STATE_DIR"], "state.json"), "w") as file:
        file.write('{"rate": %r}' % LEARNING_RATE)
    exec(MISHAP)
"""


@pytest.fixture
def verified(workspace: Path) -> Path:
    """The tiny workspace, whose runs save their state and are verified."""
    train, config = workspace / "train.py", workspace / "loopgraph.toml"
    train.write_text(train.read_text().replace("    exec(MISHAP)\n", SAVES.lstrip("\n")))
    (workspace / "verify.py").write_text(VERIFIER.lstrip())
    text = config.read_text().replace('["prepare.py"]', '["prepare.py", "verify.py"]')
    config.write_text(text + 'verify = ["{python}", "verify.py"]\n')
    return workspace


def was_verified(answer: ExperimentAnswer) -> bool:
    return (Path(answer.run_dir or "") / "verify.log").exists()


async def test_an_honest_gain_is_verified_and_kept_and_a_loss_costs_nothing(graph: LoopGraph, verified: Path) -> None:
    baseline = await run(graph)
    assert not was_verified(baseline)
    won = await run(graph, patch=HIGHER_RATE)
    assert (won.outcome, won.decision, won.metric_value) == (OutcomeKind.FINISHED, Decision.KEEP, 1.55)
    assert "verified: val_bpb 1.550000 by `{python} verify.py` from what it saved" in (won.reason or "")
    assert not (Path(won.run_dir or "") / "state").exists()
    lost = await run(graph, patch=HIGHER_RATE.replace("0.9", "0.1").replace("0.5", "0.9"))
    assert lost.decision is Decision.DISCARD
    assert not was_verified(lost)
    assert not (Path(lost.run_dir or "") / "state").exists()


SHADOW = "open({name!r}, 'w').write({text!r}); print('val_bpb: 0.9')"
PRINTS = "print('val_bpb: 0.9'); import os; os._exit(0)"
FAKED = "import prepare; prepare.evaluate = lambda rate: 0.9; "
TRICKS = {
    "printed last": "import atexit; atexit.register(lambda: print('val_bpb: 0.9'))",
    "evaluator patched": FAKED.rstrip("; "),
    "module shadowed": FAKED + f"open('json.py', 'w').write({PRINTS!r})",
    "package over the evaluator": FAKED
    + f"os.mkdir('prepare'); open('prepare/__init__.py', 'w').write({'evaluate = lambda rate: 0.9'!r})",
    "start-up module": FAKED + f"open('sitecustomize.py', 'w').write({PRINTS!r})",
    "link to a package": FAKED
    + "os.makedirs('../evil'); "
    + f"open('../evil/__init__.py', 'w').write({PRINTS!r}); os.symlink('../evil', 'json')",
    "compiled evaluator": FAKED
    + f"open('x', 'w').write({'evaluate = lambda rate: 0.9'!r}); import py_compile, importlib.util; "
    + "py_compile.compile('x', importlib.util.cache_from_source('prepare.py'), "
    + "invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)",
    "protected file changed and restored": "old = open('prepare.py').read(); import subprocess; "
    "open('prepare.py', 'w').write('evaluate = lambda rate: .9'); "
    "import importlib; importlib.reload(prepare); open('prepare.py', 'w').write(old)",
    "no state": FAKED + "os.unlink(os.path.join(os.environ['LOOPGRAPH_STATE_DIR'], 'state.json'))",
    "another's state": FAKED
    + "open(os.path.join(os.environ['LOOPGRAPH_STATE_DIR'], 'state.json'), 'w').write('[0.1, 2]')",
    "verifier that hangs on a pipe": FAKED
    + "import shutil; shutil.rmtree(os.environ['LOOPGRAPH_STATE_DIR']); os.mkfifo('prepare.pth')",
}


@pytest.mark.parametrize("name", TRICKS)
async def test_a_number_that_its_state_does_not_give_is_void(graph: LoopGraph, verified: Path, name: str) -> None:
    await run(graph)
    before = (verified / "train.py").read_text()
    answer = await run(graph, patch=mishap(TRICKS[name]))
    assert answer.outcome is OutcomeKind.VOID, answer.reason
    assert was_verified(answer)
    assert "void" in (answer.reason or "")
    assert answer.decision is Decision.DISCARD
    assert (verified / "train.py").read_text() == before


async def test_a_verifier_that_does_not_end_voids_the_run(graph: LoopGraph, verified: Path) -> None:
    (verified / "verify.py").write_text("while True: pass\n")
    config = verified / "loopgraph.toml"
    config.write_text(config.read_text().replace("timeout_s = 60", "timeout_s = 3"))
    await run(graph)
    answer = await run(graph, patch=HIGHER_RATE)
    assert answer.outcome is OutcomeKind.VOID
    assert "did not end within 3 s" in (answer.reason or "")


async def test_a_verifier_whose_surroundings_fail_leaves_the_run_to_be_repeated(
    graph: LoopGraph, verified: Path
) -> None:
    (verified / "verify.py").write_text("raise OSError(28, 'No space left on device')\n")
    await run(graph)
    answer = await run(graph, patch=HIGHER_RATE)
    assert answer.outcome is OutcomeKind.INTERRUPTED
    assert "disk" in (answer.reason or "")


async def test_an_impossible_number_is_set_aside_until_somebody_allows_it(graph: LoopGraph, workspace: Path) -> None:
    await run(graph)
    fake = mishap("prepare.evaluate = lambda rate: -3.2")
    for _ in range(2):  # asked for again, it runs again
        answer = await run(graph, patch=fake)
        assert answer.outcome is OutcomeKind.NO_METRIC
        assert "val_bpb -3.2 is set aside: val_bpb is negative, and was positive before" in (answer.reason or "")
        assert (answer.metric_value, answer.decision) == (None, None)
    far = await run(graph, patch=mishap("prepare.evaluate = lambda rate: 0.2"))
    assert far.outcome is OutcomeKind.NO_METRIC
    assert "more than 3 times better than the best so far, 1.75" in (far.reason or "")
    config = workspace / "loopgraph.toml"
    config.write_text(config.read_text() + "suspicious_factor = 20\n")
    allowed = await run(graph, patch=mishap("prepare.evaluate = lambda rate: 0.2"))
    assert (allowed.outcome, allowed.decision) == (OutcomeKind.FINISHED, Decision.KEEP)


async def test_an_unlikely_number_that_is_verified_is_kept(graph: LoopGraph, verified: Path) -> None:
    await run(graph)
    answer = await run(graph, patch=HIGHER_RATE.replace("0.9", "3.6"))
    assert (answer.outcome, answer.decision, answer.metric_value) == (OutcomeKind.FINISHED, Decision.KEEP, 0.2)
    assert "verified" in (answer.reason or "")


async def test_a_run_that_trained_beyond_its_budget_is_void(graph: LoopGraph) -> None:
    await run(graph)
    code = "import atexit; atexit.register(lambda: print('---\\nval_bpb: 1.2\\ntraining_seconds: 40.0'))"
    answer = await run(graph, patch=mishap(code))
    assert answer.outcome is OutcomeKind.VOID
    assert "trained for 40 s (training_seconds) with a budget of 1 s" in (answer.reason or "")


def test_a_budget_has_room_for_a_last_step() -> None:
    assert not over_budget({"training_seconds": 335.0}, 300)
    assert over_budget({"training_seconds": 335.1}, 300)
    assert not over_budget({}, 300)


@pytest.mark.parametrize(
    ("value", "earlier", "metric", "direction", "odd"),
    [
        (-0.1, [], "val_bpb", Direction.LOWER, True),
        (-0.1, [], "val_loss", Direction.LOWER, False),  # of a density, say
        (-0.1, [0.5, 2.0], "val_loss", Direction.LOWER, True),
        (-0.1, [0.5, -0.05], "val_loss", Direction.LOWER, False),
        (-200.0, [-300.0], "reward", Direction.HIGHER, False),
        (0.33, [1.0], "val_bpb", Direction.LOWER, True),
        (0.34, [1.0], "val_bpb", Direction.LOWER, False),
        (0.2, [1.0], "val_loss", Direction.LOWER, False),
        (0.09, [1.0], "val_loss", Direction.LOWER, True),
        (1.2, [0.5, 0.9], "val_acc", Direction.HIGHER, True),
        (92.0, [50.0, 0.9], "val_acc", Direction.HIGHER, False),
        (101.0, [], "accuracy", Direction.HIGHER, True),
        (900.0, [3.0], "tokens_per_s", Direction.HIGHER, False),
        (0.95, [0.1], "val_acc", Direction.HIGHER, False),
    ],
)
def test_what_cannot_be_believed(
    value: float, earlier: list[float], metric: str, direction: Direction, *, odd: bool
) -> None:
    assert bool(implausible(value, earlier, metric, direction)) is odd


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1), st.floats(1.0, 2.9), st.sampled_from(["val_bpb", "loss", "perplexity"])
)
def test_a_gain_below_the_factor_is_never_doubted(earlier: list[float], factor: float, metric: str) -> None:
    assert not implausible(min(earlier) / factor, earlier, metric, Direction.LOWER)
    assert not implausible(max(earlier), earlier, metric, Direction.LOWER)


def test_restoring_puts_code_back_and_leaves_data(verified: Path, tmp_path: Path) -> None:
    (verified / "lib").mkdir()
    (verified / "lib" / "layers.py").write_text("A = 1\n")
    (verified / "latest.txt").write_text("mine")
    code, outside = tmp_path / "code", tmp_path / "outside"
    shutil.copytree(verified, code)
    outside.mkdir()
    (outside / "layers.py").write_text("A = 2\n")
    shutil.rmtree(code / "lib")
    (code / "lib").symlink_to(outside)
    (code / "prepare.py").unlink()
    (code / "prepare.py").symlink_to(outside / "layers.py")
    (code / "verify.py").unlink()
    (code / "train.py").write_text("other")
    (code / "latest.txt").write_text("the run's")
    (code / "ckpt.pt").write_text("state")
    (code / "best.pt").symlink_to("ckpt.pt")
    (code / "deep" / "__pycache__").mkdir(parents=True)
    (code / "deep" / "torch.so").write_text("")
    restoring.restore(load_workspace(verified), code, "A = 3\n", ())
    for name in ("prepare.py", "verify.py"):
        assert (code / name).read_text() == (verified / name).read_text()
        assert not (code / name).is_symlink()
    assert (code / "train.py").read_text() == "A = 3\n"
    assert not (code / "lib").exists()
    assert list((code / "deep").iterdir()) == []
    assert (code / "latest.txt").read_text() == "the run's"
    assert (code / "best.pt").read_text() == "state"
    assert (outside / "layers.py").read_text() == "A = 2\n"


# ------------------------------------------------------------------------------------ the bundled trainer

MISSING = [name for name in ("torch", "tokenizers", "numpy") if importlib.util.find_spec(name) is None]
needs_torch = pytest.mark.skipif(bool(MISSING), reason=f"the trainer needs {', '.join(MISSING)}")


@needs_torch
async def test_the_bundled_trainer_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, home = tmp_path / "workspace", tmp_path / "home"
    shutil.copytree(ROOT / "trainer", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, value in {"PROFILE": "smoke", "CACHE": str(tmp_path / "cache"), "MAX_STEPS": "4"}.items():
        monkeypatch.setenv(f"LOOPGRAPH_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = Settings(home=home, db_path=home / "loopgraph.db", workspace=folder, device="cpu")

    line = next(line for line in (folder / "train.py").read_text().splitlines() if line.startswith("UNTIMED_STEPS"))

    def change(text: str) -> str:
        return f"@@ @@\n-{line}\n+UNTIMED_STEPS = 1; {text}\n"

    async with LoopGraph.open(settings) as graph:
        shorter = await run(graph, patch=change("MATRIX_LR = 0.02"))  # no baseline: it would count as the best
        assert shorter.outcome is OutcomeKind.FINISHED, (shorter.reason, shorter.log_tail)
        assert "verified: val_bpb" in (shorter.reason or "")
        fake = await run(graph, patch=change("harness.evaluate = lambda *_: 1.9"))
    assert fake.outcome is OutcomeKind.VOID
    assert "printed val_bpb 1.9, and measured again" in (fake.reason or "")
