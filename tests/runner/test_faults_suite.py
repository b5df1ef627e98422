"""The short form of `scripts/faults`: real servers, supervisors and trainings that are killed, stopped and starved."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SUITE = ROOT / "scripts" / "faults.py"


@pytest.mark.parametrize("kind", ["kills", "stops", "clocks", "disk", "readonly"])
def test_no_fault_loses_doubles_or_misjudges_a_run(kind: str) -> None:
    # How quick a recovery is depends on what else the machine does: the full form asks for 5 s.
    command = [sys.executable, str(SUITE), "--short", "--only", kind, "--seed", "1", "--within", "60", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=360)
    assert done.stdout, done.stderr
    (part,) = json.loads(done.stdout)
    assert not part["broke"], "\n".join(part["broke"])
    if part["skipped"]:
        pytest.skip(part["skipped"])
    assert done.returncode == 0
    assert part["done"]["accepted"] > 0
    assert part["outcomes"]["finished"] > 0
