"""The package as a library: what docs/sdk.md shows, and `wrap`."""

import asyncio
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loopgraph_mcp
from loopgraph_mcp import LoopGraph, wrap
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import Decision, OutcomeKind, VerdictKind
from tests.conftest import ROOT

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sdk.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["own-loop", "wrap"])
def test_the_examples_run_as_they_stand(environment: dict[str, str], workspace: Path, example: str) -> None:
    (workspace / "train.py").write_text("MATRIX_LR = 0.04\n" + (workspace / "train.py").read_text())
    done = subprocess.run(
        [sys.executable, "-c", example], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "not recorded" not in done.stderr


def test_every_verb_in_the_docs_is_one() -> None:
    table = (ROOT / "docs" / "sdk.md").read_text().partition("| verb |")[2].partition("##")[0]
    verbs = re.findall(r"`(\w+)`", table)
    assert len(verbs) > 10
    assert all(asyncio.iscoroutinefunction(getattr(LoopGraph, verb)) for verb in verbs)


def test_the_package_imports_its_sdk_only_when_asked() -> None:
    code = "import sys, loopgraph_mcp; assert 'loopgraph_mcp.api.loopgraph' not in sys.modules; loopgraph_mcp.LoopGraph"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError):
        _ = loopgraph_mcp.nothing  # type: ignore[attr-defined]


def test_each_call_is_recorded_by_what_changed(settings: Settings) -> None:
    def plain(lr: float, *, depth: int = 4) -> float:
        return 2.0 - lr / depth

    train = wrap(plain, settings=settings)
    assert train(0.1) == 1.975
    assert train.last is not None
    assert train.last.verdict is VerdictKind.BASELINE
    train(0.9)
    assert (train.last.verdict, train.last.decision) == (VerdictKind.WIN, Decision.KEEP)
    train(0.9, depth=40)
    assert train.last.decision is Decision.DISCARD
    train(0.8)

    async def told() -> list[str]:
        async with LoopGraph.open(settings) as graph:
            return [each.description for each in await graph.list_experiments()]

    assert asyncio.run(told()) == ["lr 0.9 to 0.8", "depth 4 to 40", "lr 0.1 to 0.9", "baseline"]


async def test_an_async_function_is_awaited_and_a_mapping_read(settings: Settings, workspace: Path) -> None:
    async def train(rate: float) -> dict[str, float]:
        await asyncio.sleep(0)
        return {"val_bpb": 2 - rate}

    wrapped = wrap(train, workspace=workspace, settings=settings, method_id="embedding-lr")
    assert (await wrapped(0.5))["val_bpb"] == 1.5
    assert wrapped.last is not None
    assert wrapped.last.metric_value == 1.5
    assert "embedding-lr" in wrapped.last.standings


async def test_what_fails_is_recorded_and_raised(graph: LoopGraph, settings: Settings) -> None:
    def train(how: str) -> float:
        if how == "nan":
            return float("nan")
        raise {"memory": MemoryError, "bug": KeyError}[how](how)

    wrapped = wrap(train, settings=settings)
    with pytest.raises(MemoryError):
        wrapped("memory")  # also from within a running event loop
    with pytest.raises(KeyError):
        wrapped("bug")
    wrapped("nan")
    kinds = [each.outcome for each in await graph.list_experiments()]
    assert kinds == [OutcomeKind.DIVERGED, OutcomeKind.CRASHED, OutcomeKind.OUT_OF_MEMORY]


@pytest.mark.parametrize("broken", ["no folder", "no number"])
def test_a_call_that_cannot_be_recorded_costs_nothing(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    def train() -> dict[str, float]:
        return {"loss": 1.0}

    where = tmp_path / "nowhere" if broken == "no folder" else None
    wrapped = wrap(train, workspace=where, settings=settings)
    with caplog.at_level(logging.WARNING):
        assert wrapped() == {"loss": 1.0}
    assert wrapped.last is None
    assert "was not recorded" in caplog.text
