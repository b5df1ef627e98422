"""The wheel holds all that a fresh machine needs."""

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling builds the wheel; scripts/test installs it")
def test_trainer_packs_and_migrations_travel_in_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    bundled = {f"loopgraph_mcp/_bundled/{path.relative_to(ROOT)}" for path in (ROOT / "methodpacks").glob("*.toml")}
    for name in ("train.py", "harness.py", "prepare.py", "verify.py", "climbmix.py", "program.md", "loopgraph.toml"):
        bundled.add(f"loopgraph_mcp/_bundled/trainer/{name}")
    migrations = {str(path.relative_to(ROOT)) for path in (ROOT / "loopgraph_mcp").rglob("*.sql")}
    assert migrations
    plugin = {str(path.relative_to(ROOT)) for path in (ROOT / "loopgraph_mcp" / "plugin").rglob("*") if path.is_file()}
    assert len(plugin) >= 3
    web = {str(path.relative_to(ROOT)) for path in (ROOT / "loopgraph_mcp" / "web").rglob("*.[hcj]*") if path.is_file()}
    web = {path for path in web if "__pycache__" not in path}
    assert len(web) >= 13
    assert bundled | migrations | plugin | web | {"loopgraph_mcp/py.typed"} <= names
    assert not [name for name in names if "corpus.json" in name or "results.tsv" in name or name.startswith("tests/")]
