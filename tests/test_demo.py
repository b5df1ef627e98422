"""The demo's loop with the tiny trainer: what it shows at the end is what was measured."""

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from mcp import Client, StdioServerParameters

from loopgraph_mcp.config import Settings

DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        (
            "2.0 + (0.0 if MATRIX_LR == 0.04 else -0.2 if prepare.SEED == 42 else 0.4)",
            ["kept, undone by exp_", "the baseline; nothing measured here beats it."],
        ),
        (
            "2.0 - (0.05 if MATRIX_LR != 0.04 else 0.0)",
            ["kept, not yet", "Best: val_bpb 1.950000", "Nothing measured here beats the noise yet."],
        ),
        (
            "2.0 - (1.0 if MATRIX_LR != 0.04 else 0.0)",
            ["Best: val_bpb 1.000000 +- ", "(mean of 2 runs", "+1.0000 against the baseline's 2.000000."],
        ),
    ],
    ids=["luck", "within the noise", "a win"],
)
async def test_the_headline_is_the_mean_of_the_best_program_and_claims_no_more_than_that(
    demo: ModuleType,
    settings: Settings,
    environment: dict[str, str],
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    wanted: list[str],
) -> None:
    monkeypatch.setattr(demo.console, "width", 200)  # no cell is folded
    train = workspace / "train.py"
    train.write_text("MATRIX_LR = 0.04\n" + train.read_text().replace("prepare.evaluate(LEARNING_RATE)", metric))
    server = StdioServerParameters(command=sys.executable, args=["-m", "loopgraph_mcp"], env=environment)
    async with Client(server) as client:
        await demo._loop(client, 1, settings, replicate_until=time.monotonic() + 1e6)
    _, _, shown = capsys.readouterr().out.partition("6. What came of it")
    shown = " ".join(shown.split())
    for words in wanted:
        assert words in shown
