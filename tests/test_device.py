import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopgraph_mcp.config import read_settings
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.runner import device, load
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


def test_others_share_is_what_is_busy_beside_ones_own() -> None:
    assert load.others_share(busy_s=20.0, own_s=8.0, elapsed_s=10.0, cores=2) == pytest.approx(0.6)
    assert load.others_share(busy_s=7.9, own_s=8.0, elapsed_s=10.0, cores=2) == 0.0
    assert load.others_share(busy_s=50.0, own_s=0.0, elapsed_s=10.0, cores=2) == 1.0


def test_work_of_others_during_a_run_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = device.choose_device("cpu")
    assert load.LoadMeter.start(cpu).read() is None  # too short to tell
    monkeypatch.setattr(load, "MIN_S", 0.2)
    burn = [sys.executable, "-c", "import time; end = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"]
    others = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 1)]
    time.sleep(0.3)
    meter = load.LoadMeter.start(cpu)
    time.sleep(0.5)
    seen = meter.read()
    for other in others:
        other.wait()
    assert seen is not None
    assert seen > 0.4


def test_a_gpu_that_others_use_is_told_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\ncase "$*" in *utilization.gpu*"-i 1") echo 37 ;; *) exit 1 ;; esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(load, "MIN_S", 0.0)
    monkeypatch.setattr(load, "SETTLE_S", 0.0)
    assert load.LoadMeter.start(device.Device("cuda", 1, "H100")).read() == pytest.approx(0.37)
    assert load.LoadMeter.start(device.Device("cuda", 0, "H100")).read() is None


def test_a_lock_is_held_by_one_and_seen_by_all(tmp_path: Path) -> None:
    assert not is_held(tmp_path, "cpu-0")
    with try_lock(tmp_path, "cpu-0") as mine:
        assert mine
        assert is_held(tmp_path, "cpu-0")
        with try_lock(tmp_path, "cpu-0") as theirs:
            assert not theirs
    assert not is_held(tmp_path, "cpu-0")
