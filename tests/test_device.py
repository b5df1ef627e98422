import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopgraph_mcp.config import read_settings
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.runner import device
from loopgraph_mcp.runner.locks import is_held, try_lock

# What nvidia-smi prints for the query that finds devices, on a machine with two GPUs.
NVIDIA_SMI = """#!/bin/sh
echo "0, NVIDIA H100 80GB HBM3"
echo "1, NVIDIA H100 80GB HBM3"
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    script = tmp_path / "nvidia-smi"
    script.write_text(NVIDIA_SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    device.find_devices.cache_clear()
    yield
    device.find_devices.cache_clear()


@pytest.mark.usefixtures("two_gpus")
def test_gpus_come_first_and_each_run_sees_its_own() -> None:
    first = device.choose_device(None)
    second = device.choose_device("cuda:1")
    assert (first.slot, second.slot) == ("cuda-0", "cuda-1")
    assert first.label == second.label == "cuda: NVIDIA H100 80GB HBM3"
    assert second.environment() == {"CUDA_VISIBLE_DEVICES": "1"}
    assert device.choose_device("cpu").environment() == {"CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(ConfigError, match="cuda:0, cuda:1, cpu:0"):
        device.choose_device("cuda:7")


@pytest.mark.usefixtures("two_gpus")
def test_a_hidden_gpu_is_not_used(tmp_path: Path) -> None:
    def chosen(listed: str) -> str:
        settings = read_settings({"CUDA_VISIBLE_DEVICES": listed}, tmp_path)
        return device.choose_device(settings.device, settings.visible_gpus).slot

    assert chosen("1") == "cuda-1"
    assert chosen("1,0") == "cuda-0"
    assert chosen("") == "cpu-0"
    assert chosen("-1") == "cpu-0"
    assert chosen("GPU-8932f937") == "cuda-0"


def test_a_lock_is_held_by_one_and_seen_by_all(tmp_path: Path) -> None:
    assert not is_held(tmp_path, "cpu-0")
    with try_lock(tmp_path, "cpu-0") as mine:
        assert mine
        assert is_held(tmp_path, "cpu-0")
        with try_lock(tmp_path, "cpu-0") as theirs:
            assert not theirs
    assert not is_held(tmp_path, "cpu-0")
