"""Sends a server thousands of wrong and random calls, over stdio and HTTP, and says what it made of them.

Counts what must not be: a traceback in the log, a call without an answer, an answer that took over a second, memory
that did not come back. The same seed makes the same calls.

    python scripts/fuzz_calls.py --calls 5000 --bodies 10000
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil

from loopgraph_mcp.config import bundled
from loopgraph_mcp.runner.workspace import create_workspace

MOST_S = 1.0
MOST_MIB = 20.0
WARM_UP = 1_000  # calls after which memory counts: caches and the threads' own heaps are full by then
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "fuzz", "version": "0"}}
WORDS = (
    "",
    " ",
    "gqa",
    "learning rate",
    "exp_x",
    "edt_x",
    "\0",
    "\x1b[31m",
    "\n",
    "~",
    "~nouser/x",
    "../..",
    "/etc/passwd",
)
WORDS += (
    "x" * 5_000,
    "é" * 300,
    "\u202e",
    "[/x]",
    "Next: run_experiment()",
    "2" * 400,
    "NaN",
    "1e999",
    "-0",
    "null",
    "{}",
)
WORDS += (
    "[]",
    "true",
    '"',
    "'; DROP TABLE method; --",
    "* OR (",
    "%s%n",
    "file:///etc/passwd",
    "http://127.0.0.1:1/x",
    "a\tb",
)
NUMBERS = (0, -1, 1, 2**31, 2**53, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1e300, 50, 20)
NOT_RUN = {"run_experiment"}  # with its arguments as they should be it would train


@dataclass(slots=True)
class Report:
    """What a server made of all that was sent."""

    sent: int = 0
    seconds: list[float] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    def took(self, seconds: float, what: str) -> None:
        """Count an answer."""
        self.sent += 1
        self.seconds.append(seconds)
        if seconds > MOST_S:
            self.slow.append(f"{seconds:.2f} s: {what[:160]}")


def value(chance: random.Random, depth: int = 0) -> Any:
    """Return any JSON value; text half of the time."""
    kind = chance.random()
    if kind < 0.5:
        words = chance.choice(WORDS)
        return words if chance.random() < 0.8 else words + "".join(chr(chance.randrange(1, 0xD800)) for _ in range(9))
    if kind < 0.75:
        return chance.choice(NUMBERS)
    if kind < 0.85 or depth > 4:
        return chance.choice((None, True, False))
    if kind < 0.93:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {str(chance.choice(WORDS))[:60]: value(chance, depth + 1) for _ in range(chance.randrange(4))}


def calls(chance: random.Random, tools: list[dict[str, Any]], count: int) -> Iterator[tuple[str, Any]]:
    """Yield tools with arguments: some of their own names, some not, with any values."""
    for _ in range(count):
        tool = chance.choice(tools)
        names = list(tool["inputSchema"]["properties"])
        chosen = chance.sample(names, min(len(names), chance.randrange(5)))
        given: Any = {name: value(chance) for name in chosen}
        if chance.random() < 0.1:
            given[str(value(chance))[:40]] = value(chance)
        if tool["name"] in NOT_RUN:
            given["budget_s"] = "wrong"
        if "wait_s" in names:
            given["wait_s"] = chance.choice((0, 0, "0", -1, 1e9, "x"))
        if chance.random() < 0.05 and tool["name"] not in NOT_RUN:
            given = value(chance)
        yield (tool["name"] if chance.random() < 0.97 else str(value(chance))), given


def bodies(chance: random.Random, tools: list[dict[str, Any]], count: int) -> Iterator[bytes]:
    """Yield bodies: calls with a few bytes changed, cut, doubled, nested, and mere noise."""
    for name, given in calls(chance, tools, count):
        message: dict[str, Any] = {
            "jsonrpc": chance.choice(("2.0", "2.0", "2.0", "1.0", None)),
            "id": chance.choice((1, 1, "a", None, 1.5, [], 2**70)),
            "method": chance.choice(
                ("tools/call", "resources/read", "prompts/get", "completion/complete", "x", 5, "ping")
            ),
            "params": {
                "name": name,
                "arguments": given,
                "uri": f"loopgraph://{value(chance)}",
                "cursor": value(chance),
            },
        }
        raw = bytearray(json.dumps(message).encode())
        match chance.randrange(8):
            case 0:
                raw = bytearray(chance.randbytes(chance.randrange(200)))
            case 1:
                del raw[chance.randrange(len(raw)) :]
            case 2:
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            case 3:
                raw = raw + bytes(raw)
            case 4:
                depth = chance.choice((10, 190, 250, 5_000))
                raw = bytearray(
                    b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * depth + b"]" * depth + b"}}"
                )
            case 5:
                raw = bytearray(b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\\ud800"}}')
        yield bytes(raw)


class Nothing(BaseHTTPRequestHandler):
    """Answers for the sites that papers and repositories are fetched from: nothing is there."""

    def do_GET(self) -> None:
        """Find nothing."""
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Say nothing of it."""


class Stdio:
    """A server over stdio, asked one thing after another."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "loopgraph_mcp"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.number = 0
        self.ask("initialize", HELLO)
        self.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}')

    def write(self, line: bytes) -> None:
        """Send a line."""
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        self.process.stdin.write(line.replace(b"\n", b" ") + b"\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Receive a line."""
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, method: str, params: Any) -> dict[str, Any]:
        """Return the answer to a request."""
        self.number += 1
        self.write(json.dumps({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}).encode())
        while (answer := self.read()).get("id") != self.number:
            pass
        return answer

    def end(self) -> None:
        """Close it."""
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        self.process.stdin.close()
        self.process.wait(20)


def mib(process: int) -> float:
    """Return how much memory a process holds."""
    return float(psutil.Process(process).memory_info().rss) / 2**20


def fuzz_stdio(environment: dict[str, str], log: Path, chance: random.Random, count: int) -> tuple[Report, float]:
    """Call tools, and send lines that are no messages between them."""
    server, report, before = Stdio(environment, log), Report(), 0.0
    tools = server.ask("tools/list", {})["result"]["tools"]
    lines = bodies(chance, tools, count)
    for number, (name, given) in enumerate(calls(chance, tools, count)):
        if number == min(WARM_UP, count // 2):
            before = mib(server.process.pid)
        began = time.perf_counter()
        answer = server.ask("tools/call", {"name": name, "arguments": given})
        report.took(time.perf_counter() - began, f"{name} {given!r}")
        result = answer.get("result", {})
        report.answers["error" if "error" in answer else "refused" if result.get("isError") else "ok"] += 1
        told = json.dumps(answer)
        if "failed inside" in told or "Traceback" in told or answer.get("error", {}).get("code") == 0:
            report.wrong.append(f"{name} {given!r:.200} -> {told:.300}")
        if number % 5 == 0:  # a line that may be anything must not break the next call
            server.write(next(lines))
    gc.collect()
    grown = mib(server.process.pid) - before
    server.end()
    return report, grown


def fuzz_http(environment: dict[str, str], log: Path, chance: random.Random, count: int) -> tuple[Report, float]:
    """Post bodies, most of which are no messages."""
    report = Report()
    with log.open("w") as errors, HttpServer(environment, errors, log) as server, httpx.Client(timeout=30) as client:
        url, token = server
        headers = {
            "authorization": f"Bearer {token[1]}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
        }
        opened = client.post(
            url, headers=headers, json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        )
        own = {**headers, "mcp-session-id": opened.headers["mcp-session-id"]}
        client.post(url, headers=own, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        listed = client.post(url, headers=own, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        tools = json.loads(listed.text.split("data: ", 1)[1])["result"]["tools"]
        before = 0.0
        for number, body in enumerate(bodies(chance, tools, count)):
            if number == min(WARM_UP, count // 2):
                before = mib(token[0])
            began = time.perf_counter()
            try:
                answer = client.post(url, headers=chance.choice((own, own, headers)), content=body)
            except httpx.HTTPError as error:
                report.wrong.append(f"{body[:200]!r} -> {error!r}")
                continue
            report.took(time.perf_counter() - began, repr(body))
            report.answers[str(answer.status_code)] += 1
            if answer.status_code >= 500 or "Traceback" in answer.text or "pydantic" in answer.text:
                report.wrong.append(f"{body[:200]!r} -> {answer.status_code} {answer.text[:200]}")
            if answer.status_code == 429:
                time.sleep(float(answer.headers.get("retry-after", "1")))
        return report, mib(token[0]) - before


class HttpServer:
    """A server over HTTP: its address, its process and a token."""

    def __init__(self, environment: dict[str, str], errors: Any, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loopgraph_mcp", "--http", "127.0.0.1:0"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def __enter__(self) -> tuple[str, tuple[int, str]]:
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError(self.log.read_text())
        token = said.split()[-1]
        return self.process.stdout.readline().split()[-1], (self.process.pid, token)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)


def say(name: str, report: Report, grown: float, log: Path) -> bool:
    """Print what came of it; return whether all is well."""
    tracebacks = log.read_text(errors="replace").count("Traceback")
    ordered = sorted(report.seconds) or [0.0]
    median, longest = 1000 * ordered[len(ordered) // 2], 1000 * ordered[-1]
    told = f"median {median:.1f} ms, longest {longest:.0f} ms; memory {grown:+.1f} MiB; tracebacks {tracebacks}"
    print(f"{name}: {report.sent} sent; answers {dict(report.answers)}; {told}")
    if tracebacks:
        print(log.read_text(errors="replace")[:4_000])
    for each in (report.slow + report.wrong)[:20]:
        print(f"  {each}")
    return not (report.slow or report.wrong or tracebacks or grown > MOST_MIB)


def main() -> None:
    """Fuzz a server in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=500, metavar="N", help="tool calls over stdio (%(default)d)")
    parser.add_argument("--bodies", type=int, default=500, metavar="N", help="bodies over HTTP (%(default)d)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of what is sent (%(default)d)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="loopgraph-fuzz-") as name,
        ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as nothing,
    ):
        folder = Path(name)
        where, _ = create_workspace(folder / "a" / "b" / "workspace", bundled("trainer"), budget_s=30)
        environment = {
            **os.environ,
            "HOME": str(folder / "a"),  # a call may name it, and the user's own is none of ours to read
            "LOOPGRAPH_HOME": str(folder / "home"),
            "LOOPGRAPH_WORKSPACE": str(where.path),
            "LOOPGRAPH_DEVICE": "cpu",
            "LOOPGRAPH_ARXIV_URL": f"http://127.0.0.1:{nothing.server_port}",
            "LOOPGRAPH_GITHUB_URL": f"http://127.0.0.1:{nothing.server_port}",
        }
        Thread(target=nothing.serve_forever, daemon=True).start()
        chance = random.Random(options.seed)
        well = [
            say(kind, *fuzz(environment, folder / f"{kind}.log", chance, count), folder / f"{kind}.log")
            for kind, fuzz, count in (("stdio", fuzz_stdio, options.calls), ("http", fuzz_http, options.bodies))
        ]
        nothing.shutdown()
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
