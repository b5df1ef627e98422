"""Each method of the shipped pack, applied to the shipped trainer, must still train."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loopgraph_mcp.edits import apply_method, detect
from loopgraph_mcp.models import Applied, Method, Presence
from loopgraph_mcp.sources.packs import read_pack

ROOT = Path(__file__).parent.parent
METHODS = {method.id: method for method in read_pack(ROOT / "methodpacks").methods}
MISSING = [name for name in ("torch", "tokenizers", "numpy") if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the trainer needs {', '.join(MISSING)}")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all runs: only the first one prepares the corpus."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_trainer_trains_with_a_method(method: Method, tmp_path: Path, cache: Path) -> None:
    made = apply_method(method, (ROOT / "trainer" / "train.py").read_text(encoding="utf-8"), {})
    assert isinstance(made, Applied), made
    assert detect(method, made.text) is Presence.PRESENT
    (tmp_path / "train.py").write_text(made.text, encoding="utf-8")
    for name in ("harness.py", "prepare.py"):
        shutil.copy(ROOT / "trainer" / name, tmp_path)
    environment = {
        **os.environ,
        "LOOPGRAPH_PROFILE": "smoke",
        "LOOPGRAPH_MAX_STEPS": "2",
        "LOOPGRAPH_BUDGET_S": "5",
        "LOOPGRAPH_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    found = re.findall(r"^val_bpb:\s+(\S+)$", run.stdout, re.MULTILINE)
    assert len(found) == 1
    assert math.isfinite(float(found[0]))
    assert re.search(r"^num_steps:\s+2$", run.stdout, re.MULTILINE)
