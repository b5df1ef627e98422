"""Runs other people's programs against the server: the conformance suite, the Inspector, two clients' own CLIs."""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import MISSING_REQUIRED_CLIENT_CAPABILITY, CallToolResult
from mcp_types import ClientCapabilities as Can
from mcp_types import SamplingCapability as Sampling

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import HttpOptions, Settings, bundled, read_settings
from loopgraph_mcp.runner.workspace import create_workspace
from loopgraph_mcp.server import http
from loopgraph_mcp.server.app import build_server
from loopgraph_mcp.server.tasks import Tasks
from loopgraph_mcp.server.tools import experiment_result

REVISION = "2026-07-28"
BASELINE = Path(__file__).with_suffix(".yml")
SERVER = [sys.executable, "-m", "loopgraph_mcp"]
SLEEPER = """
import time
SECONDS = {}
time.sleep(SECONDS)
print("---")
print("val_bpb: 1.0")
"""


async def greet(name: str) -> str:
    """Greet, for the suite: a tool that is never a task."""
    return f"Hello, {name}!"


async def slow_compute(
    ctx: Context[LoopGraph, Any], seconds: float, label: str = "", wait_s: float = 20.0
) -> CallToolResult:
    """Run an experiment that takes some seconds, for the suite."""
    graph: LoopGraph = ctx.request_context.lifespan_context
    patch = f"@@ @@\n-SECONDS = 0\n+SECONDS = {seconds}  # {label}\n"
    answer = await graph.run_experiment(patch=patch, description=label, replicate=True, wait_s=wait_s)
    return await experiment_result(graph, "slow_compute", answer)


async def failing_job(ctx: Context[LoopGraph, Any], wait_s: float = 20.0) -> CallToolResult:
    """Run an experiment that crashes, for the suite."""
    return await slow_compute(ctx, -1, "crash", wait_s)


async def test_missing_capability(ctx: Context[LoopGraph, Any]) -> str:
    """Need sampling, for the suite."""
    if not ctx.session.check_client_capability(Can(sampling=Sampling())):
        data = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(code=MISSING_REQUIRED_CLIENT_CAPABILITY, message="needs sampling", data=data)
    return "it has"


async def test_trigger_tool_change(ctx: Context[LoopGraph, Any]) -> str:
    """Tell that the tools changed, for the suite: LoopGraph's never do."""
    await ctx.notify_tools_changed()
    return "told"


async def test_trigger_prompt_change(ctx: Context[LoopGraph, Any]) -> str:
    """Tell that the prompts changed, for the suite: LoopGraph's never do."""
    await ctx.notify_prompts_changed()
    return "told"


def build_with_fixtures(settings: Settings, graph: LoopGraph | None = None) -> MCPServer[LoopGraph]:
    """Return the server with the tools that the suite calls by their names."""
    Tasks.tools_that_start |= {"slow_compute", "failing_job"}
    server = build_server(settings, graph)
    started = (greet, slow_compute, failing_job)
    for tool in (*started, test_missing_capability, test_trigger_tool_change, test_trigger_prompt_change):
        server.add_tool(tool, structured_output=False)
    return server


@contextmanager
def served(environment: dict[str, str], *arguments: str) -> Iterator[list[str]]:
    """Start a server over HTTP; yield what it says at its start: a token if it makes one, then its address."""
    command = [*SERVER, "--http", "127.0.0.1:0"] if not arguments else [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - ours
        said: list[str] = []
        while process.stdout is not None and (line := process.stdout.readline()):
            said.append(line.split()[-1])
            if "serves" in line:
                break
        try:
            yield said
        finally:
            process.terminate()


def run(*command: str, environment: dict[str, str], timeout_s: float = 300) -> str:
    """Run a program and return what it printed; stop with all of it where it fails."""
    done = subprocess.run(  # noqa: S603 - the programs this script is about
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def suite(environment: dict[str, str]) -> None:
    """Run everything that the revision requires of a server, and the tasks extension."""
    with served(environment, "serve") as (url,):
        told = run(
            *("conformance", "server", "--url", url, "--requirements", REVISION),
            *("--expected-failures", str(BASELINE)),
            environment=environment,
        )
    for line in told[told.rindex("=== SUMMARY ===") :].splitlines():
        if line.strip():
            print(line)


def inspector(environment: dict[str, str]) -> None:
    """List and call over stdio and over HTTP, and compare what comes back; then search many times at once."""
    ours = [f"{name}={value}" for name, value in environment.items() if name.startswith("LOOPGRAPH_")]
    over_stdio = ["mcp-inspector", "--cli", *(word for each in ours for word in ("-e", each)), *SERVER]
    asked = [
        ["--method", "tools/list", "--strict"],
        ["--method", "resources/list"],
        ["--method", "resources/templates/list"],
        ["--method", "resources/read", "--uri", "loopgraph://methods/gqa"],
        ["--method", "tools/call", "--tool-name", "map_code"],
    ]
    with served(environment) as said:
        over_http = ["mcp-inspector", "--cli", said[-1], "--transport", "http"]
        over_http += ["--header", f"Authorization: Bearer {said[0]}"]
        for words in asked:
            answers = [
                json.loads(_json(run(*command, *words, "--format", "json", environment=environment)))
                for command in (over_stdio, over_http)
            ]
            if answers[0] != answers[1]:
                raise SystemExit(f"{words}: stdio and HTTP differ:\n{answers[0]}\n{answers[1]}")
            print(f"✓ inspector {' '.join(words)}: the same over stdio and HTTP")
        search = ["--method", "tools/call", "--tool-name", "search_methods", "--tool-arg", "query=attention"]
        load = ["--load", "--load-concurrency", "10", "--load-requests", "500", "--format", "json"]
        loaded = json.loads(_json(run(*over_http, *search, *load, environment=environment)))["result"]
        if loaded["ok"] != loaded["requests"]:
            raise SystemExit(f"inspector --load: not every search was answered:\n{loaded}")
        p50, p99 = (loaded["latencyMs"][each] for each in ("p50", "p99"))
        print(f"✓ inspector --load: {loaded['ok']} searches, ten at a time, p50 {p50:.0f} ms, p99 {p99:.0f} ms")


def _json(printed: str) -> str:
    """Return the JSON line of what the Inspector printed, which has remarks around it."""
    return next(line for line in printed.splitlines() if line.startswith("{"))


def clients(environment: dict[str, str]) -> None:
    """Add the server to Claude Code and to Codex by their own commands, and see that they list it, or reach it."""
    with tempfile.TemporaryDirectory() as home, served(environment) as said:
        theirs = {**environment, "HOME": home, "CODEX_HOME": home, "LOOPGRAPH_TOKEN": said[0]}
        header = f"Authorization: Bearer {said[0]}"
        setting = f"LOOPGRAPH_HOME={environment['LOOPGRAPH_HOME']}"
        run("claude", "mcp", "add", "loopgraph", "-e", setting, "--", *SERVER, environment=theirs)
        run("claude", "mcp", "add", "-t", "http", "lab", said[-1], "--header", header, environment=theirs)
        listed = run("claude", "mcp", "list", environment=theirs)
        for name in ("loopgraph", "lab"):
            if not re.search(rf"^{name}: .*Connected", listed, re.MULTILINE):
                raise SystemExit(f"claude mcp list does not reach {name}:\n{listed}")
            print(f"✓ claude mcp add, list: {name} is connected")
        run("codex", "mcp", "add", "loopgraph", "--env", setting, "--", *SERVER, environment=theirs)
        token_in = ["--bearer-token-env-var", "LOOPGRAPH_TOKEN"]
        run("codex", "mcp", "add", "lab", "--url", said[-1], *token_in, environment=theirs)
        printed = run("codex", "mcp", "list", "--json", environment=theirs)
        names = sorted(re.findall(r'"name": "(\w+)"', printed))
        if names != ["lab", "loopgraph"]:
            raise SystemExit(f"codex mcp list --json names {names}:\n{printed}")
        print("✓ codex mcp add, list: both are listed")


def audit(environment: dict[str, str]) -> None:
    """Ask PyPI's advisories about every package of this environment; it takes `pip install pip-audit`."""
    audited = run(sys.executable, "-m", "pip_audit", "--skip-editable", environment=environment)
    if "could not be audited" in audited:
        raise SystemExit(f"pip-audit does not reach the advisories, so it says nothing:\n{audited}")
    print(f"✓ pip-audit: {audited.strip().splitlines()[-1]}")


PARTS = {"suite": suite, "inspector": inspector, "clients": clients, "audit": audit}


def main() -> None:
    """Run the parts that are named, each in a workspace and with a store of its own."""
    parser = argparse.ArgumentParser(prog="scripts/conformance", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "serve"])
    parts = parser.parse_args().parts
    if "serve" in parts:
        settings = read_settings(os.environ, Path.cwd())
        options = HttpOptions("127.0.0.1", 0, auth=False)
        asyncio.run(http.serve(settings, options, build_with_fixtures, lambda line: print(line, flush=True)))
        return
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            where, _ = create_workspace(Path(folder) / "workspace", bundled("trainer"), budget_s=30)
            if part == "suite":
                (where.path / "train.py").write_text(SLEEPER.format(0))
            PARTS[part](
                {
                    **os.environ,
                    "LOOPGRAPH_HOME": folder,
                    "LOOPGRAPH_WORKSPACE": str(where.path),
                    "LOOPGRAPH_DEVICE": "cpu",
                    "LOOPGRAPH_LOG_LEVEL": "ERROR",
                }
            )


if __name__ == "__main__":
    main()
