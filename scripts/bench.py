"""Measures the server beside a server with one trivial tool, in one run, alternating, so that noise hits both alike.

`start_ratio` is of the quickest start of each, which other work on the machine disturbs least; the targets are 1.3 and,
after 10,000 calls, 120 MB.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from mcp import Client, StdioServerParameters
from rich.console import Console
from rich.table import Table

from loopgraph_mcp.config import bundled
from loopgraph_mcp.runner.workspace import create_workspace

TRIVIAL = """
from mcp.server import MCPServer
server = MCPServer("trivial")

@server.tool()
async def search_methods(query: str) -> str:
    return query

server.run("stdio")
"""
SERVERS = {"floor": ["-c", TRIVIAL], "loopgraph": ["-m", "loopgraph_mcp"]}
IMPORTS = {"floor": "import mcp.server", "loopgraph": "import loopgraph_mcp.__main__"}
QUERIES = ["attention", "learning rate", "what helps a short run on a small device", "SwiGLU", ""]


def import_seconds(code: str, environment: dict[str, str]) -> float:
    """Return the seconds from starting Python to having imported a module."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)  # noqa: S603 - fixed code
    return time.perf_counter() - began


async def serve(name: str, environment: dict[str, str], calls: int) -> dict[str, Any]:
    """Start a server, time its first answer and its calls, and look at its memory."""
    began = time.perf_counter()
    params = StdioServerParameters(command=sys.executable, args=SERVERS[name], env=environment)
    async with Client(params) as client:
        await client.list_tools()
        first_answer_s = time.perf_counter() - began
        took = []
        for number in range(calls):
            before = time.perf_counter()
            await client.call_tool("search_methods", {"query": QUERIES[number % len(QUERIES)]})
            took.append(time.perf_counter() - before)
        rss = max(process.memory_info().rss for process in psutil.Process().children(recursive=True))
    return {"first_answer_s": first_answer_s, "calls_s": took, "rss_mb": rss / 2**20}


async def measure(rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Alternate between both servers and return the figures of each."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"import_s": [], "first_answer_s": [], "rss_mb": [], "calls_s": []} for name in SERVERS
    }
    with tempfile.TemporaryDirectory() as folder:
        where, _ = create_workspace(Path(folder) / "workspace", bundled("trainer"), budget_s=30)
        environment = {
            **os.environ,
            "LOOPGRAPH_HOME": folder,
            "LOOPGRAPH_WORKSPACE": str(where.path),
            "LOOPGRAPH_DEVICE": "cpu",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled, and so is the floor's
        for name in SERVERS:
            await serve(name, environment, 1)
        for _ in range(rounds):
            for name, seen in found.items():
                seen["import_s"].append(import_seconds(IMPORTS[name], environment))
                run = await serve(name, environment, calls)
                seen["first_answer_s"].append(run["first_answer_s"])
                seen["rss_mb"].append(run["rss_mb"])
                seen["calls_s"] += run["calls_s"]
    quickest = {name: min(each["first_answer_s"]) for name, each in found.items()}
    figures = {name: _figures(seen) for name, seen in found.items()}
    for name, each in figures.items():
        each["start_ratio"] = quickest[name] / quickest["floor"]
    return figures


def _figures(seen: dict[str, list[float]]) -> dict[str, float]:
    ordered = sorted(seen["calls_s"])
    return {
        "import_s": statistics.median(seen["import_s"]),
        "first_answer_s": statistics.median(seen["first_answer_s"]),
        "rss_mb": max(seen["rss_mb"]),
        "call_median_ms": 1e3 * statistics.median(ordered),
        "call_p99_ms": 1e3 * ordered[int(0.99 * (len(ordered) - 1))],
    }


def main() -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each server (%(default)d)")
    parser.add_argument("--calls", type=int, default=200, help="search_methods calls in each round (%(default)d)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.rounds, options.calls))
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    table = Table(title=f"{options.rounds} rounds, {options.calls} calls each; floor: the SDK with one trivial tool")
    for name in ("", "floor", "loopgraph", "ratio"):
        table.add_column(name, justify="right")
    for key, floor in figures["floor"].items():
        ours = figures["loopgraph"][key]
        table.add_row(key, f"{floor:.3g}", f"{ours:.3g}", f"{ours / floor:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
