"""A night of experiments to look at, made once."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from loopgraph_mcp.config import Settings

ROOT = Path(__file__).parent.parent.parent
BEGAN = 1_790_000_000.0
EXPERIMENTS = 18


def sample_night() -> ModuleType:
    """Return scripts/sample_night.py as a module."""
    spec = importlib.util.spec_from_file_location("sample_night", ROOT / "scripts" / "sample_night.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sample_night"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a store that holds a night of experiments; it is only read."""
    made = sample_night()
    settings: Settings = made.settings_in(tmp_path_factory.mktemp("night"))
    asyncio.run(made.fill(settings, EXPERIMENTS, began=BEGAN))
    return settings
