"""Real MCP clients over stdio and HTTP, in both protocol eras: the same calls, the same answers."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from loopgraph_mcp.models import RunState

Connect = Callable[..., AbstractAsyncContextManager[Client]]
SERVER = [sys.executable, "-m", "loopgraph_mcp"]
SLOW = "@@ @@\n-SLEEP_S = 0.05\n-STEPS = 3\n+SLEEP_S = 0.1\n+STEPS = 50\n"
ERAS = ["legacy", "auto"]


def server(environment: dict[str, str]) -> StdioServerParameters:
    return StdioServerParameters(command=SERVER[0], args=SERVER[1:], env=environment)


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


async def error_of(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.content
    return str(getattr(result.content[0], "text", ""))


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_improves_the_trainer(connect: Connect, workspace: Path, era: Any) -> None:
    (workspace / "train.py").write_text("MATRIX_LR = 0.04\n" + (workspace / "train.py").read_text())
    seen: list[tuple[float, str | None]] = []

    async def progress(done: float, _total: float | None, message: str | None) -> None:
        seen.append((done, message))

    async with connect(era) as client:
        baseline = await client.call_tool("run_experiment", {"description": "base"}, progress_callback=progress)
        assert baseline.structured_content is not None
        assert baseline.structured_content["verdict"] == "baseline"
        found = await call(client, "search_methods", query="muon step size", detail="detailed")
        assert "muon-lr" in [hit["method_id"] for hit in found["hits"]]
        edit = await call(client, "get_code_edit", method_id="muon-lr", retrieval_id=found["retrieval_id"])
        run = await call(client, "run_experiment", edit_id=edit["edit_id"], description="muon", wait_s=30)
        assert run["state"] == "done"
        noted = await call(client, "record_outcome", experiment_id=run["experiment_id"], tokens=10, decision="discard")
        assert noted["decision"] == "discard"
        again = await call(client, "get_experiment", experiment_id=run["experiment_id"])
        assert again["decision"] == "discard"
        after = await call(client, "search_methods", query="muon step size")
        assert [hit["tries"] for hit in after["hits"] if hit["method_id"] == "muon-lr"] == [1]
    assert seen
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("era", ERAS)
async def test_wrong_calls_teach(connect: Connect, era: Any) -> None:
    async with connect(era) as client:
        assert "nope" in await error_of(client, "search_methods", query="x", nope=1)
        assert "a whole number from 1 to 20" in await error_of(client, "search_methods", limit="five")
        assert "did you mean gqa" in await error_of(client, "get_code_edit", method_id="gqaa")
        assert "run_experiment() starts one" in await error_of(client, "get_experiment", experiment_id="exp_x")
        assert "leave it out" in await error_of(client, "get_code_edit", method_id="gqa", retrieval_id="ret_x")
        refused = await call(client, "get_code_edit", method_id="gqa")
        assert (refused["status"], refused["edit_id"]) == ("refused", None)
        assert "a number of key and value heads" in refused["reason"]


@pytest.mark.parametrize("era", ERAS)
async def test_hostile_queries_are_answered(connect: Connect, era: Any) -> None:
    async with connect(era) as client:
        for query in ('"', "'; DROP TABLE method; --", "a\x00b", "NEAR(a b) *", "attention " * 100_000, "٣ ﬁ 😀"):
            assert "hits" in await call(client, "search_methods", query=query)
        assert (await call(client, "search_methods", query="attention"))["methods_known"] >= 10


async def test_the_tools_are_described_for_a_model(connect: Connect) -> None:
    async with connect() as client:
        listed = (await client.list_tools()).tools
        told = client.instructions
        assert told is not None
        assert "baseline" in told
    names = [tool.name for tool in listed]
    assert names == [
        "search_methods",
        "get_code_edit",
        "run_experiment",
        "get_experiment",
        "cancel_experiment",
        "record_outcome",
        "ingest",
        "add_method",
        "trace",
        "map_code",
        "show_progress",
    ]
    for tool in listed:
        assert tool.description
        assert tool.title
        assert tool.annotations is not None
        assert tool.annotations.open_world_hint is (tool.name == "ingest")
        assert tool.output_schema is None  # an answer's text says what it holds
        assert tool.input_schema["additionalProperties"] is False
        for name, schema in tool.input_schema["properties"].items():
            assert schema.get("description"), f"{tool.name}.{name}"
    spoken = json.dumps([tool.model_dump(by_alias=True, exclude_none=True, mode="json") for tool in listed])
    assert len(spoken) < 12_500  # less than 3,000 tokens in every conversation: scripts/bench turn counts them
    assert len(told) < 1_100  # 250 tokens


@pytest.mark.parametrize("era", ERAS)
async def test_the_prompt_of_the_loop_is_the_skill_with_a_goal(connect: Connect, era: Any) -> None:
    async with connect(era) as client:
        (prompt,) = (await client.list_prompts()).prompts
        assert prompt.name == "research_loop"
        asked = {"goal": "a lower loss", "experiments": "7"}
        (message,) = (await client.get_prompt("research_loop", asked)).messages
        tools = {tool.name for tool in (await client.list_tools()).tools}
    told = getattr(message.content, "text", "")
    assert told.startswith("# Research with LoopGraph")
    assert "Goal: a lower loss." in told
    assert "Run 7 experiments" in told
    named = set(re.findall(r"`([a-z]+_[a-z]+)`", told))
    assert named - {"retrieval_id", "edit_id", "method_id"} <= tools


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [("reserch_loop", {}, "use research_loop"), ("research_loop", {"aim": "x"}, "arguments: experiments, goal")],
)
async def test_a_wrong_prompt_is_the_callers_mistake(
    connect: Connect, era: Any, name: str, arguments: dict[str, str], told: str
) -> None:
    async with connect(era) as client:
        with pytest.raises(MCPError, match=told) as refused:
            await client.get_prompt(name, arguments)
    assert refused.value.error.code == INVALID_PARAMS


async def test_a_killed_server_loses_nothing(environment: dict[str, str], workspace: Path) -> None:
    async with Client(server(environment)) as client:
        started = await call(client, "run_experiment", patch=SLOW, idempotency_key="k", wait_s=2)
        assert started["state"] == RunState.RUNNING
        (victim,) = [
            process for process in psutil.Process().children(recursive=True) if "loopgraph_mcp" in process.cmdline()
        ]
        victim.send_signal(signal.SIGKILL)
        with pytest.raises(Exception, match=r"(?i)clos|connection|broken"):  # whatever the SDK makes of a dead server
            await asyncio.wait_for(client.call_tool("search_methods", {"query": "x"}), 10)
    async with Client(server(environment)) as client:
        done = await call(client, "run_experiment", patch=SLOW, idempotency_key="k", wait_s=30)
        assert (done["experiment_id"], done["outcome"]) == (started["experiment_id"], "finished")
    lines = (workspace / "results.tsv").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_gives_up_cancels_its_call_and_not_the_run(connect: Connect, era: Any) -> None:
    async with connect(era) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.call_tool("run_experiment", {"patch": SLOW, "wait_s": 40}), 2)
        running = await call(client, "run_experiment", patch=SLOW, wait_s=0)
        assert (running["state"], running["repeated"]) == ("running", True)
        cancelled = await call(client, "cancel_experiment", experiment_id=running["experiment_id"])
        assert cancelled["outcome"] == "cancelled"


async def test_two_clients_of_one_store_see_each_others_runs(connect: Connect) -> None:
    async with connect() as one, connect() as two:
        queries = [call(client, "search_methods", query=f"attention {n}") for n in range(100) for client in (one, two)]
        answers = await asyncio.gather(*queries)
        assert len({answer["retrieval_id"] for answer in answers}) == 200
        run = await call(one, "run_experiment", wait_s=30)
        seen = await call(two, "get_experiment", experiment_id=run["experiment_id"])
        assert seen["outcome"] == "finished"


HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    },
}


def test_a_server_whose_client_is_gone_ends_and_leaves_nothing(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        SERVER, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(json.dumps(HELLO) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["id"] == 1
    process.stdout.close()  # whoever reads is gone, as a client that was killed
    ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "search_methods", "arguments": {}}}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    process.stdin.write(f"{json.dumps(ready)}\n{json.dumps(ask)}\n")
    process.stdin.close()
    assert process.wait(timeout=20) in {0, 1}  # it may see the end of its input before that nobody hears its answer
    assert process.stderr.read().strip() in {"", "loopgraph-mcp: the client closed the connection"}
    process.stderr.close()


async def test_nothing_but_protocol_reaches_stdout(environment: dict[str, str]) -> None:
    done = subprocess.run(
        SERVER,
        input=json.dumps(HELLO) + "\n",
        env={**environment, "LOOPGRAPH_LOG_LEVEL": "DEBUG"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0]["result"]["serverInfo"]["name"] == "loopgraph"


def inspector(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    # The Inspector hands the server a short list of variables only: without -e, it would open the user's own store.
    ours = [f"{name}={value}" for name, value in environment.items() if name.startswith("LOOPGRAPH_")]
    handed = [word for setting in ours for word in ("-e", setting)]
    command = ["npx", "--yes", "@modelcontextprotocol/inspector@2.12.0", "--cli", *handed, *SERVER, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="session")
def npx() -> None:
    if shutil.which("npx") is None:
        pytest.skip("npx is not installed: the Inspector cannot run")
    probe = subprocess.run(
        ["npx", "--yes", "@modelcontextprotocol/inspector@2.12.0", "--version"],
        capture_output=True,
        timeout=200,
        check=False,
        env=dict(os.environ),
    )
    if b"E404" in probe.stderr or b"ENOTFOUND" in probe.stderr or b"EAI_AGAIN" in probe.stderr:
        pytest.skip("npm cannot fetch the Inspector here")


@pytest.mark.usefixtures("npx")
def test_the_inspector_finds_no_fault_with_the_schemas(environment: dict[str, str]) -> None:
    listed = inspector(environment, "--method", "tools/list", "--format", "json", "--strict")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert len(json.loads(listed.stdout)["result"]["tools"]) >= 11


@pytest.mark.usefixtures("npx")
def test_the_inspector_calls_a_tool(environment: dict[str, str]) -> None:
    called = inspector(
        environment,
        *("--method", "tools/call", "--tool-name", "search_methods", "--tool-arg", "query=GQA"),
        *("--format", "json"),
    )
    assert called.returncode == 0, called.stdout + called.stderr
    assert "gqa" in called.stdout
    wrong = inspector(
        environment,
        *("--method", "tools/call", "--tool-name", "get_experiment", "--tool-arg", "experiment_id=exp_x"),
        *("--format", "json"),
    )
    assert wrong.returncode == 5, wrong.stdout + wrong.stderr
