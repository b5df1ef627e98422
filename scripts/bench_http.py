"""Measures searches of many agents at once over HTTP while an experiment runs: how long they wait, what is lost.

The same is asked of the SDK alone, whose one tool returns a text as long, for what a call costs before any search. The
callers share the server's cores, so they speak HTTP/1.1 by hand: one request text each, answers read by length.
"""

import argparse
import asyncio
import json
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from loopgraph_mcp.config import bundled
from loopgraph_mcp.runner.workspace import create_workspace

QUERIES = ["attention", "learning rate", "what helps a short run on a small device", "SwiGLU", "", "muon step size"]
SLEEPER = "import time\nfor step in range(100_000):\n    print(f'step {step}', flush=True)\n    time.sleep(1)\n"
VERSION = "2026-07-28"
CLIENTS = 50
RATES = [25.0, 50.0, 100.0, 150.0, 200.0, 300.0]
P99_MS = 100.0
FLOOR = """
import asyncio, socket, sys, uvicorn
from mcp.server import MCPServer
server = MCPServer("floor")

@server.tool()
async def search_methods(query: str) -> str:
    return "ret_none " + "x" * 1500

listener = socket.create_server(("127.0.0.1", 0))
print(f"serves http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
quiet = {"log_config": None, "access_log": False, "log_level": "error"}
config = uvicorn.Config(server.streamable_http_app(streamable_http_path="/mcp"), ws="none", **quiet)
asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
"""


@dataclass
class Seen:
    """What the callers saw."""

    took_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)  # from when the call was due
    errors: list[str] = field(default_factory=list)
    retrievals: set[str] = field(default_factory=set)


def request(tool: str, arguments: dict[str, Any], token: str, *, version: str = VERSION) -> bytes:
    """Return one tool call as it goes over the wire, in the stateless era."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    head = (
        f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:80\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\n"
        f"Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {version}\r\nMcp-Method: tools/call\r\n"
        f"Mcp-Name: {tool}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: bytes) -> tuple[int, bytes]:
    """Send one request and return the answer's status and body."""
    writer.write(wire)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(length[1])) if length else await _chunks(reader)
    return int(head[9:12]), body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    whole = b""
    while size := int((await reader.readline()).strip() or b"0", 16):
        whole += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return whole


async def agent(port: int, token: str, number: int, rate: float, seconds: float, seen: Seen) -> None:
    """Search at a steady rate for a while, or twice as long where answers are late: those do not move the next call."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    wires = [request("search_methods", {"query": query}, token) for query in QUERIES]
    began = time.perf_counter() + number / rate / CLIENTS
    try:
        for call in range(int(rate * seconds)):
            due = began + call / rate
            if time.perf_counter() - began > 2 * seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            status, body = await ask(reader, writer, wires[(number + call) % len(wires)])
            now = time.perf_counter()
            seen.took_s.append(now - sent)
            seen.late_s.append(now - due)
            found = re.search(rb"ret_\w+", body)
            if status != 200 or found is None:
                seen.errors.append(f"{status}: {body[:200]!r}")
            else:
                seen.retrievals.add(found[0].decode())
    finally:
        writer.close()


@asynccontextmanager
async def served(arguments: list[str], environment: dict[str, str]) -> AsyncIterator[tuple[int, psutil.Process]]:
    """Start a server and give its port and process; end it afterwards."""
    command = [sys.executable, *arguments]
    # Before the callers start, nothing else is to be done on this loop.
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603, ASYNC220
        assert server.stdout is not None  # noqa: S101 - a pipe was asked for
        said = next(line for line in server.stdout if "/mcp" in line)
        try:
            await asyncio.sleep(1.2)
            yield int(re.findall(r":(\d+)/mcp", said)[0]), psutil.Process(server.pid)
        finally:
            server.terminate()


async def load(
    port: int, process: psutil.Process, token: str, per_s: float, seconds: float
) -> tuple[Seen, dict[str, Any]]:
    """Let the callers search at a rate of all together; return what they saw, and its figures."""
    seen, before = Seen(), process.cpu_times()
    began = time.perf_counter()
    await asyncio.gather(*(agent(port, token, n, per_s / CLIENTS, seconds, seen) for n in range(CLIENTS)))
    took, after = time.perf_counter() - began, process.cpu_times()
    late = sorted(seen.late_s)
    return seen, {
        "asked_per_s": per_s,
        "answered_per_s": len(late) / took,
        "p50_ms": 1e3 * statistics.median(seen.took_s),
        "p99_ms": 1e3 * late[int(0.99 * (len(late) - 1))],
        "cpu_ms_a_call": 1e3 * (after.user + after.system - before.user - before.system) / len(late),
        "errors": seen.errors,
    }


async def climb(
    port: int, process: psutil.Process, token: str, rates: list[float], seconds: float
) -> tuple[Seen, list[Any]]:
    """Ask at higher and higher rates, until answers are late; return what the callers saw, and each rate's figures."""
    everything, found = Seen(), []
    for per_s in rates:
        seen, figures = await load(port, process, token, per_s, seconds)
        everything.took_s += seen.took_s
        everything.errors += seen.errors
        everything.retrievals |= seen.retrievals
        found.append(figures)
        print(f"{per_s:g} a second: p99 {figures['p99_ms']:.0f} ms", file=sys.stderr, flush=True)
        if figures["p99_ms"] > P99_MS:
            break
    return everything, found


async def measure(
    folder: Path, rates: list[float], seconds: float, *, idle: int, arguments: list[str]
) -> dict[str, Any]:
    """Ask the SDK alone, then a server while a run goes on, and look for every row afterwards."""
    environment = {**os.environ, "LOOPGRAPH_HOME": str(folder), "LOOPGRAPH_DEVICE": "cpu"}
    async with served(["-c", FLOOR], environment) as (port, process):
        _, floor = await climb(port, process, "none", rates, seconds)
    where, _ = create_workspace(folder / "workspace", bundled("trainer"), budget_s=30)
    (where.path / "train.py").write_text(SLEEPER)
    environment["LOOPGRAPH_WORKSPACE"] = str(where.path)
    async with served(["-m", "loopgraph_mcp", "--http", "127.0.0.1:0", *arguments], environment) as (
        port,
        process,
    ):
        add = "from loopgraph_mcp.cli.main import main; main()"
        other = [sys.executable, "-c", add, "token", "add", "bench", "--calls-per-minute", "10000000"]
        made = subprocess.run(other, env=environment, check=True, capture_output=True, text=True)  # noqa: S603, ASYNC221
        token = made.stdout.strip()
        await asyncio.sleep(1.2)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        status, body = await ask(reader, writer, request("run_experiment", {"wait_s": 3}, token))
        if status != 200 or b"exp_" not in body:
            raise SystemExit(f"the run did not start: {body!r}")
        experiment = re.findall(rb"exp_\w+", body)[0].decode()
        idlers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(idle)]
        seen, ours = await climb(port, process, token, rates, seconds)
        rss = process.memory_info().rss
        for _, idler in idlers:
            idler.close()
        await ask(reader, writer, request("cancel_experiment", {"experiment_id": experiment}, token))
        writer.close()
    with sqlite3.connect(folder / "loopgraph.db") as conn:
        stored = {row[0] for row in conn.execute("SELECT id FROM retrieval")}
    told = len(seen.took_s) - len(seen.errors)
    return {
        "clients": CLIENTS,
        "idle_connections": idle,
        "floor": floor,
        "loopgraph": ours,
        "lost_rows": len(seen.retrievals - stored) + told - len(seen.retrievals),
        "rss_mb": rss / 2**20,
    }


def show(found: dict[str, Any]) -> None:
    """Print a table."""
    table = Table(title=f"{CLIENTS} clients, {found['idle_connections']} idle connections; floor: the SDK, no search")
    for name in ("", "asked a second", "answered", "p50 ms", "p99 ms from due", "server CPU ms a call", "errors"):
        table.add_column(name, justify="right")
    for name in ("floor", "loopgraph"):
        for each in found[name]:
            told = [each[key] for key in ("asked_per_s", "answered_per_s", "p50_ms", "p99_ms")]
            table.add_row(
                name, *(f"{value:.0f}" for value in told), f"{each['cpu_ms_a_call']:.1f}", str(len(each["errors"]))
            )
    console = Console()
    console.print(table)
    console.print(f"rows lost: {found['lost_rows']}; {found['rss_mb']:.0f} MB")


def main() -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench http", description=__doc__)
    parser.add_argument(
        "--rate", type=float, action="append", help="searches a second of all together; again for a higher one"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each rate is kept (%(default)g)")
    parser.add_argument("--idle", type=int, default=0, help="further connections that are open and silent")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("server", nargs="*", help="further arguments of loopgraph-mcp")
    options = parser.parse_args()
    rates, more = options.rate or RATES, list(options.server)
    if min(rates) * options.seconds < CLIENTS:
        parser.error(f"each of the {CLIENTS} clients must search once: raise --rate or --seconds")
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), rates, options.seconds, idle=options.idle, arguments=more))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
