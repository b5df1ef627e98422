"""What several tests share: settings in a folder of their own, and a workspace whose training takes a blink."""

import os
import textwrap
from pathlib import Path

import pytest

from loopgraph_mcp.config import Settings

ROOT = Path(__file__).parent.parent

# A training script in the loop's form that needs no torch. What it does beside printing is told by KNOB lines, so that
# tests make it fail in each way by an edit, as an agent would.
TINY_TRAINER = """
import os, sys, time
import prepare

LEARNING_RATE = 0.5
SLEEP_S = 0.05
STEPS = 3
MISHAP = ""

def main():
    for step in range(STEPS):
        done = 100 * step / STEPS
        left = (STEPS - step) * SLEEP_S
        print(f"\\rstep {step:05d} ({done:.1f}%) | loss: {3 - step:.6f} | remaining: {left:.0f}s  ", end="", flush=True)
        time.sleep(SLEEP_S)
    print()
    exec(MISHAP)
    print("---")
    print(f"val_bpb:          {prepare.evaluate(LEARNING_RATE):.6f}")
    print("training_seconds: 0.1")
    print("peak_vram_mb:     2048.0")
    print("num_steps:        3")

main()
"""
TINY_PREPARE = """
import os

SEED = int(os.environ.get("LOOPGRAPH_SEED", "42"))
BUDGET_S = float(os.environ.get("LOOPGRAPH_BUDGET_S", "1"))

def evaluate(rate):
    return 2.0 - rate / 2 + (SEED % 7) * 0.001
"""
TINY_CONFIG = """
[workspace]
editable = "train.py"
protected = ["prepare.py"]
command = ["{python}", "train.py"]
budget_s = 1
timeout_s = 60
silence_s = 30
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with the tiny trainer; 0.01 more learning rate is worth 0.005 bits."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name, text in (("train.py", TINY_TRAINER), ("prepare.py", TINY_PREPARE), ("loopgraph.toml", TINY_CONFIG)):
        (folder / name).write_text(textwrap.dedent(text).lstrip())
    return folder


@pytest.fixture
def settings(tmp_path: Path, workspace: Path) -> Settings:
    """Settings whose store, runs and locks lie in the test's own folder; runs use the CPU."""
    home = tmp_path / "home"
    return Settings(home=home, db_path=home / "loopgraph.db", workspace=workspace, device="cpu")


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """The same settings as a child process's environment."""
    return {
        **os.environ,
        "LOOPGRAPH_HOME": str(settings.home),
        "LOOPGRAPH_DB": str(settings.db_path),
        "LOOPGRAPH_WORKSPACE": str(settings.workspace),
        "LOOPGRAPH_DEVICE": "cpu",
    }
