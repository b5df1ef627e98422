"""Real runs on stand-in GPUs: what they see, what they hold, and who waits for whom."""

import asyncio
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopgraph_mcp.api import recovery
from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import OutcomeKind, RunState
from loopgraph_mcp.runner import device
from loopgraph_mcp.runner.locks import is_held
from loopgraph_mcp.store import edits, experiments

NVIDIA_SMI = """#!/bin/sh
case "$*" in *index,name*) for n in 0 1 2 3; do echo "$n, NVIDIA H100 80GB HBM3"; done ;; *utilization*) echo 0 ;; esac
"""
SEES = """print("the run sees", os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("CUDA_DEVICE_ORDER"))
print("and hip", os.environ.get("HIP_VISIBLE_DEVICES"), os.environ.get("ROCR_VISIBLE_DEVICES"))
"""


@pytest.fixture
def gpus(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four GPUs, and a trainer that says what it sees."""
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text(NVIDIA_SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    program = workspace / "train.py"
    program.write_text(program.read_text().replace("import prepare\n", f"import prepare\n{SEES}"))
    device.find_devices.cache_clear()
    yield
    device.find_devices.cache_clear()


def on(settings: Settings, name: str | None, *visible: str) -> Settings:
    return dataclasses.replace(settings, device=name, visible_gpus=visible or None)


def declare(workspace: Path, line: str) -> None:
    with (workspace / "loopgraph.toml").open("a") as file:
        file.write(f"{line}\n")


def log_of(answer: ExperimentAnswer) -> str:
    return (Path(answer.run_dir or "") / "run.log").read_text()


async def label_of(graph: LoopGraph, answer: ExperimentAnswer) -> str:
    row = await experiments.get_experiment(graph.db, answer.experiment_id)
    assert row is not None
    return (await edits.get_context(graph.db, row.context_id)).device


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (("GPU-33333333-3333", "0"), "GPU-33333333-3333,0"),
        (("MIG-33333333-3333",), "MIG-33333333-3333"),
        (("3", "1"), "3,1"),
    ],
)
async def test_a_run_sees_the_gpu_that_was_given(
    settings: Settings, visible: tuple[str, ...], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(visible))
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2")
    async with LoopGraph.open(on(settings, None, *visible)) as graph:
        answer = await graph.run_experiment(wait_s=30)
    assert answer.outcome is OutcomeKind.FINISHED, answer
    assert f"the run sees {seen} PCI_BUS_ID\nand hip 1 2\n" in log_of(answer)


@pytest.mark.usefixtures("gpus")
async def test_a_run_of_several_gpus_sees_and_holds_each_of_them(settings: Settings, workspace: Path) -> None:
    declare(workspace, "devices_per_run = 2")
    slow = "@@ @@\n-SLEEP_S = 0.05\n+SLEEP_S = 1.0\n"
    async with LoopGraph.open(on(settings, "cuda:1,2,3")) as both, LoopGraph.open(on(settings, "cuda:2")) as one:
        wide = await both.run_experiment(patch=slow, wait_s=0)
        while wide.state is not RunState.RUNNING:
            wide = await both.get_experiment(wide.experiment_id, wait_s=0.1)
        assert [is_held(settings.locks_dir, f"cuda-{n}") for n in range(4)] == [False, True, True, False]
        config = workspace / "loopgraph.toml"  # the next run asks for one
        config.write_text(config.read_text().replace("devices_per_run = 2", ""))
        narrow = await one.run_experiment(wait_s=0)
        assert narrow.state is RunState.QUEUED
        assert narrow.queue_position == 1
        wide, narrow = await asyncio.gather(
            both.get_experiment(wide.experiment_id, wait_s=40), one.get_experiment(narrow.experiment_id, wait_s=40)
        )
        rows = [await experiments.get_experiment(one.db, each.experiment_id) for each in (wide, narrow)]
        assert await label_of(both, wide) == "cuda: NVIDIA H100 80GB HBM3 x2"
        assert await label_of(one, narrow) == "cuda: NVIDIA H100 80GB HBM3"
    assert "the run sees 1,2 " in log_of(wide)
    assert "the run sees 2 " in log_of(narrow)
    first, second = rows
    assert first is not None
    assert second is not None
    assert (second.started_at or 0.0) >= (first.finished_at or 0.0)
    assert not any(is_held(settings.locks_dir, f"cuda-{n}") for n in range(4))


@pytest.mark.usefixtures("gpus")
async def test_runs_on_overlapping_gpus_all_come_to_their_end(settings: Settings, workspace: Path) -> None:
    async with (
        LoopGraph.open(on(settings, "cuda:0")) as zero,
        LoopGraph.open(on(settings, "cuda:1")) as one,
        LoopGraph.open(on(settings, "cuda:0,1")) as both,
    ):
        asked = [
            await graph.run_experiment(patch=f"@@ @@\n-STEPS = 3\n+STEPS = {n}\n", wait_s=0)
            for n, graph in enumerate([zero, both, one, both], start=4)
        ]
        done = [await zero.get_experiment(each.experiment_id, wait_s=90) for each in asked]
    assert [each.outcome for each in done] == [OutcomeKind.FINISHED] * 4


async def test_slots_that_share_no_card_have_queues_of_their_own(graph: LoopGraph) -> None:
    assert await recovery.slots_beside(graph.db, "cpu-0") == ["cpu-0"]
