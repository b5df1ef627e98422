"""Measures searches of many agents at once over HTTP while an experiment runs: how long they wait, what is lost.

The callers share the server's cores, so they speak HTTP/1.1 by hand: one request text each, answers read by length.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from loopgraph_mcp.config import bundled
from loopgraph_mcp.workspace import create_workspace

QUERIES = ["attention", "learning rate", "what helps a short run on a small device", "SwiGLU", "", "muon step size"]
SLEEPER = "import time\nfor step in range(100_000):\n    print(f'step {step}', flush=True)\n    time.sleep(1)\n"
VERSION = "2026-07-28"


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
    """Search at a steady rate for a while; a late answer does not make the next call later."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    wires = [request("search_methods", {"query": query}, token) for query in QUERIES]
    began = time.perf_counter() + number / rate / 50
    try:
        for call in range(int(rate * seconds)):
            due = began + call / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            status, body = await ask(reader, writer, wires[(number + call) % len(wires)])
            now = time.perf_counter()
            seen.took_s.append(now - sent)
            seen.late_s.append(now - due)
            found = re.search(rb'"retrieval_id":\s*"(ret_\w+)"', body)
            if status != 200 or found is None:
                seen.errors.append(f"{status}: {body[:200]!r}")
            else:
                seen.retrievals.add(found[1].decode())
    finally:
        writer.close()


async def measure(
    folder: Path, clients: int, rate: float, seconds: float, *, idle: int, arguments: list[str]
) -> dict[str, Any]:
    """Start a server and a run, let the clients search, and look for every row afterwards."""
    where, _ = create_workspace(folder / "workspace", bundled("trainer"), budget_s=30)
    (where.path / "train.py").write_text(SLEEPER)
    environment = {
        **os.environ,
        "LOOPGRAPH_HOME": str(folder),
        "LOOPGRAPH_WORKSPACE": str(where.path),
        "LOOPGRAPH_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "loopgraph_mcp.server", "--http", "127.0.0.1:0", *arguments]
    # Before the callers start, nothing else is to be done on this loop.
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603, ASYNC220
        assert server.stdout is not None  # noqa: S101 - a pipe was asked for
        server.stdout.readline()
        port = int(re.findall(r":(\d+)/mcp", server.stdout.readline())[0])
        add = "from loopgraph_mcp.cli import main; main()"
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
        seen, process = Seen(), psutil.Process(server.pid)
        before = process.cpu_times()
        began = time.perf_counter()
        await asyncio.gather(*(agent(port, token, n, rate, seconds, seen) for n in range(clients)))
        took = time.perf_counter() - began
        after = process.cpu_times()
        rss = process.memory_info().rss
        for _, idler in idlers:
            idler.close()
        await ask(reader, writer, request("cancel_experiment", {"experiment_id": experiment}, token))
        writer.close()
        server.terminate()
    with sqlite3.connect(folder / "loopgraph.db") as conn:
        stored = {row[0] for row in conn.execute("SELECT id FROM retrieval")}
    ordered, late = sorted(seen.took_s), sorted(seen.late_s)
    return {
        "clients": clients,
        "idle_connections": idle,
        "asked_per_s": clients * rate,
        "answered_per_s": len(ordered) / took,
        "p50_ms": 1e3 * statistics.median(ordered),
        "p99_ms": 1e3 * ordered[int(0.99 * (len(ordered) - 1))],
        "p99_from_due_ms": 1e3 * late[int(0.99 * (len(late) - 1))],
        "server_cpu_ms_a_call": 1e3 * (after.user + after.system - before.user - before.system) / len(ordered),
        "errors": len(seen.errors),
        "first_error": next(iter(seen.errors), ""),
        "lost_rows": len(seen.retrievals - stored) + len(ordered) - len(seen.errors) - len(seen.retrievals),
        "rss_mb": rss / 2**20,
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench http", description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rate", type=float, default=20.0, help="searches a second of each (%(default)g)")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--idle", type=int, default=0, help="further connections that are open and silent")
    parser.add_argument("server", nargs="*", help="further arguments of loopgraph-mcp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(
            measure(
                Path(folder),
                options.clients,
                options.rate,
                options.seconds,
                idle=options.idle,
                arguments=list(options.server),
            )
        )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
