"""A server over stdio on a fresh workspace of the bundled trainer: small profile, CPU, a store of its own."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mcp import Client, StdioServerParameters

from loopgraph_mcp.config import bundled
from loopgraph_mcp.runner.workspace import Workspace, create_workspace, prepare_command


@asynccontextmanager
async def fresh_server(*, budget_s: float) -> AsyncIterator[tuple[Workspace, Client]]:
    """Yield a workspace whose data is prepared, in a folder that is gone at the end, and a client of its server."""
    with tempfile.TemporaryDirectory() as folder:
        where, _ = create_workspace(Path(folder) / "my-research", bundled("trainer"), budget_s=budget_s)
        environment = {
            **os.environ,
            "LOOPGRAPH_HOME": folder,
            "LOOPGRAPH_WORKSPACE": str(where.path),
            "LOOPGRAPH_DEVICE": "cpu",
            "LOOPGRAPH_PROFILE": "smoke",
        }
        prepare = await asyncio.create_subprocess_exec(
            *prepare_command(where.path), cwd=where.path, env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        await prepare.wait()
        started = StdioServerParameters(command=sys.executable, args=["-m", "loopgraph_mcp"], env=environment)
        async with Client(started) as client:
            yield where, client
