"""What several tests share: settings in a folder of their own, a workspace whose training takes a blink, a server."""

import asyncio
import os
import signal
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings

ROOT = Path(__file__).parent.parent
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it in its background: no Ctrl-C would be heard
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
async def graph(settings: Settings) -> AsyncIterator[LoopGraph]:
    """The memory under these settings, open."""
    async with LoopGraph.open(settings) as opened:
        yield opened


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


@dataclass(frozen=True)
class Asked:
    """One request that a server got."""

    path: str
    headers: dict[str, str]


Reply = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """A loopback HTTP server that sends what it is told to, byte by byte, so that it can misbehave."""

    url: str = ""
    replies: dict[str, Reply | list[Reply]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            request = Asked(head[0].split(" ")[1], headers)
            self.asked.append(request)
            reply = self.replies.get(request.path) or self.replies.get(request.path.partition("?")[0])
            if isinstance(reply, list):
                reply = reply.pop(0) if len(reply) > 1 else reply[0]
            await (reply or answer(404))(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def paths(self) -> list[str]:
        return [each.path for each in self.asked]


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Reply:
    """A reply in full; headers by their names with `_` for `-`."""

    async def reply(_: Asked, writer: asyncio.StreamWriter) -> None:
        told = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in told.items()), "Connection: close"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    return reply


@pytest.fixture
def reply() -> Callable[..., Reply]:
    return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        listening.close()
