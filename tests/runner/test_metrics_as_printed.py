"""Real runs whose metric is printed as people print it, and runs that their surroundings ended."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Advice, Direction, OutcomeKind, VerdictKind
from loopgraph_mcp.runner.metric_log import read_metric
from loopgraph_mcp.runner.printed import NotFound, Wanted
from loopgraph_mcp.runner.workspace import load_workspace


def workspace_of(folder: Path, program: str, **keys: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(program)
    declared = {"editable": "train.py", "command": ["{python}", "train.py"], "budget_s": 1, "timeout_s": 60, **keys}
    lines = [f"{key} = {json.dumps(value)}" for key, value in declared.items()]
    (folder / "loopgraph.toml").write_text("\n".join(["[workspace]", *lines, ""]))
    return folder


async def run(graph: LoopGraph, workspace: Path, **asked: Any) -> ExperimentAnswer:
    return await graph.run_experiment(workspace=str(workspace), wait_s=50.0, **asked)


PRINTED = {
    "nanoGPT": ("val loss", 'print("step 250: train loss 1.5000, val loss 1.6000")', 1.6),
    "modded-nanogpt": ("val_loss", 'print("step:10/10 val_loss:3.2790 train_time:100ms")', 3.279),
    "parameter-golf": ("val_bpb", 'print("final_roundtrip val_loss:2.0700 val_bpb:1.2200")', 1.22),
    "nanochat": ("Validation bpb", 'print("Step 00100 | Validation bpb: 0.9000")', 0.9),
    "a tag": ("time_ms", 'print("METRIC time_ms=12.5")', 12.5),
    "JSON": ("acc", 'print(\'{"step": 10, "acc": 0.91}\')', 0.91),
    "a dict after a bar": ("eval_loss", "print(\"100%|##| 8/8 [00:01]{'eval_loss': 0.66}\")", 0.66),
    "percent": ("acc", 'print("acc: 91.3%")', 91.3),
    "a unit": ("time_ms", 'print("time_ms: 12.5 ms")', 12.5),
    "colours": ("acc", r'print("\x1b[32macc: 0.91\x1b[0m")', 0.91),
    "logging": ("acc", 'import logging; logging.basicConfig(level=20); logging.info("acc: 0.91")', 0.91),
    "early": ("acc", 'print("acc: 0.91")\nfor i in range(2000): print("saving shard %d ................." % i)', 0.91),
    "a table": ("acc", 'print("| name | value |\\n|---|---|\\n| acc | 0.91 |")', 0.91),
    "not UTF-8": ("acc", "import os; os.write(1, b'\\xff\\xfe acc: 0.91\\n')", 0.91),
    "last": ("acc", 'for a in (0.5, 0.93, 0.88): print("acc:", a)', 0.88),
}


@pytest.mark.parametrize("shape", PRINTED)
async def test_a_run_finishes_with_the_metric_as_it_was_printed(settings: Settings, tmp_path: Path, shape: str) -> None:
    metric, program, value = PRINTED[shape]
    async with LoopGraph.open(settings) as graph:
        answer = await run(graph, workspace_of(tmp_path / "theirs", program, metric=metric))
    assert (answer.outcome, answer.metric_value) == (OutcomeKind.FINISHED, value), answer.reason
    assert answer.summary[metric] == value


async def test_the_workspace_says_which_value_counts(graph: LoopGraph, tmp_path: Path) -> None:
    program = 'for a in (0.5, 0.93, 0.88): print("acc:", a)'
    best = await run(graph, workspace_of(tmp_path / "a", program, metric="acc", direction="higher", take="best"))
    assert (best.metric_value, best.reason) == (0.93, "acc 0.930000 (the best of 3 printed)")
    first = await run(graph, workspace_of(tmp_path / "b", program, metric="acc", take="first"))
    assert first.metric_value == 0.5


async def test_a_pattern_finds_what_a_name_cannot(graph: LoopGraph, tmp_path: Path) -> None:
    program = 'print("train: loss 1.5\\nval: loss 1.6")'
    answer = await run(graph, workspace_of(tmp_path / "a", program, metric="loss", pattern=r"val: loss ([\d.]+)"))
    assert (answer.outcome, answer.metric_value) == (OutcomeKind.FINISHED, 1.6)


NOT_FOUND = {
    'print("val_bbp: 0.99")': "closest: `val_bbp: 0.99`",
    'print("val_bpb: 9,311")': "`val_bpb: 9,311` may mean two numbers",
    "import os; os.write(1, os.urandom(200_000))": "no line gives a number for `val_bpb`",
    "pass": "no line gives a number for `val_bpb`",
}


@pytest.mark.parametrize("program", NOT_FOUND)
async def test_a_metric_that_is_not_found_costs_no_method_anything_and_is_run_again(
    graph: LoopGraph, workspace: Path, program: str
) -> None:
    await run(graph, workspace)
    patch = f'@@ @@\n-MISHAP = ""\n+MISHAP = {program + "; sys.exit(0)"!r}\n'
    answer = await run(graph, workspace, patch=patch, method_id="swiglu")
    assert answer.outcome is OutcomeKind.NO_METRIC
    assert NOT_FOUND[program] in answer.reason
    assert (answer.verdict, answer.decision) == (None, None)
    assert answer.next_step.reason is Advice.FIX_SURROUNDINGS
    again = await run(graph, workspace, patch=patch, method_id="swiglu")
    assert not again.repeated
    assert again.experiment_id != answer.experiment_id


SURROUNDINGS = {
    "raise OSError(28, os.strerror(28))": "the disk is full",
    "raise OSError(5, os.strerror(5))": "the disk failed",
    "raise OSError(30, os.strerror(30), 'out')": "read-only",
    "import socket; socket.create_connection(('127.0.0.1', 1))": "the network failed",
    "import urllib.request as u; u.urlopen('http://name.invalid')": "the network failed",
    "import no_such_module_here": "`no_such_module_here` is not installed",
    "import ctypes; ctypes.CDLL('libnothere.so.1')": "a shared library",
    "os.execvp('sh', ['sh', '-c', 'no-such-tool --train'])": "could not be started",
    "os.kill(os.getpid(), 15); time.sleep(9)": "SIGTERM",
}


@pytest.mark.parametrize("mishap", SURROUNDINGS)
async def test_a_failure_of_the_surroundings_charges_no_method_and_says_what_to_fix(
    graph: LoopGraph, workspace: Path, mishap: str
) -> None:
    await run(graph, workspace)
    full = workspace.parent / "full"
    full.touch()
    code = f"if os.path.exists({str(full)!r}): exec({mishap!r})"
    patch = f'@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.9\n@@ @@\n-MISHAP = ""\n+MISHAP = {code!r}\n'
    failed = await run(graph, workspace, patch=patch, method_id="embedding-lr")
    assert failed.outcome is OutcomeKind.INTERRUPTED, failed
    assert SURROUNDINGS[mishap] in failed.reason
    assert "run it again" in failed.reason
    assert (failed.verdict, failed.decision) == (None, None)
    full.unlink()
    again = await run(graph, workspace, patch=patch, method_id="embedding-lr")
    assert (again.outcome, again.verdict, again.repeated) == (OutcomeKind.FINISHED, VerdictKind.WIN, False)


@pytest.mark.parametrize(
    "mishap",
    [
        "print('warning: No space left on device'); raise ValueError('bad shape')",
        "from prepare import no_such_name",
        "open('no_such_file.bin')",
        "os.kill(os.getpid(), 11)",
    ],
)
async def test_a_crash_that_the_change_caused_stays_a_crash(graph: LoopGraph, workspace: Path, mishap: str) -> None:
    answer = await run(graph, workspace, patch=f'@@ @@\n-MISHAP = ""\n+MISHAP = {mishap!r}\n')
    assert answer.outcome is OutcomeKind.CRASHED, answer.reason


async def test_a_command_that_cannot_start_is_no_crash(graph: LoopGraph, tmp_path: Path) -> None:
    for command in (["no-such-program-here"], ["sh", "-c", "no-such-program-here"], ["{python}", "no_such_file.py"]):
        answer = await run(graph, workspace_of(tmp_path / "theirs", "pass", command=command))
        assert answer.outcome is OutcomeKind.INTERRUPTED, answer
        assert "could not be started" in answer.reason


@pytest.mark.parametrize(
    ("keys", "wrong"),
    [
        ({"pattern": "acc=([0-9"}, "workspace.pattern: .* not a valid regular expression"),
        ({"pattern": "acc=[0-9.]+"}, "workspace.pattern: .* put the number in parentheses"),
        ({"metric": " "}, "workspace.metric: empty"),
    ],
)
def test_keys_that_cannot_find_a_metric_are_refused_with_the_next_step(
    tmp_path: Path, keys: dict[str, str], wrong: str
) -> None:
    with pytest.raises(WorkspaceError, match=wrong):
        load_workspace(workspace_of(tmp_path / "theirs", "pass", **keys))


def test_a_pattern_that_never_ends_is_stopped(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("a" * 60 + "!\n")
    began = time.monotonic()
    found = read_metric(log, Wanted("acc", Direction.LOWER, pattern="(a|a?)+$"), timeout_s=3)
    assert time.monotonic() - began < 20
    assert isinstance(found, NotFound)
    assert "took over 3 s" in found.reason


def test_a_search_with_a_pattern_loads_no_module_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('loaded')")
    (tmp_path / "run.log").write_text("acc=0.91\n")
    monkeypatch.chdir(tmp_path)
    found = read_metric(tmp_path / "run.log", Wanted("acc", pattern="acc=(.*)"))
    assert not isinstance(found, NotFound), found
    assert found.value == 0.91
