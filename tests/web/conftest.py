"""A night of experiments to look at, made once."""

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from loopgraph_mcp.config import Settings

ROOT = Path(__file__).parent.parent.parent
BEGAN = 1_790_000_000.0
EXPERIMENTS = 18


def environment_of(settings: Settings) -> dict[str, str]:
    """Return settings as a child process's environment."""
    return {
        **os.environ,
        "LOOPGRAPH_HOME": str(settings.home),
        "LOOPGRAPH_DB": str(settings.db_path),
        "LOOPGRAPH_WORKSPACE": str(settings.workspace),
        "LOOPGRAPH_DEVICE": "cpu",
    }


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


@pytest.fixture
def start() -> Iterator[Callable[..., str]]:
    """Starts `loopgraph ui`, or the HTTP server, for settings; returns the link or the address that it says."""
    with ExitStack() as stack:

        def started(settings: Settings, *command: str, prefix: str = "http") -> str:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=environment_of(settings),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            for line in process.stdout:
                if found := re.search(rf"{prefix}\S*", line):
                    return found.group()
            raise AssertionError("it ended before it said where it listens")

        yield started
