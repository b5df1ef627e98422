"""Calls as clients make them: numbers as text, empty for not given, wrong ones; every refusal is in our words."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import create_mcp_http_client

Connect = Callable[..., AbstractAsyncContextManager[Client]]
NEEDED = {"method_id": "gqa", "experiment_id": "exp_x", "source": "x", "chunk_ids": ["chk_x"], "id": "gqa"}
# By JSON type: values that no argument of the type may take.
WRONG: dict[str, list[Any]] = {
    "string": [5, 1.5, True, [], {}, ["a"]],
    "integer": ["abc", "", 1.5, "1.5", [], {}, True, -(10**9), 10**30, "9" * 5_000],
    "number": ["abc", "nan", "1e999", [], {}, True],
    "boolean": ["maybe", 2, 1.5, [], {}],
    "array": [5, 1.5, {}, [1], [[]], "[1]"],
    "object": [5, "x", "{", [1], True],
}
FOREIGN = re.compile(r"pydantic|Traceback|errors\.|validation error|input_value|failed inside", re.IGNORECASE)


def kinds(schema: dict[str, Any]) -> set[str]:
    found = {kind for branch in schema.get("anyOf", []) for kind in kinds(branch)}
    return (found | ({schema["type"]} if "type" in schema else set())) - {"null"}


def wrong_values(schema: dict[str, Any], *, needed: bool) -> list[Any]:
    """Values that are wrong for every type that an argument may have."""
    taken = kinds(schema)
    values = [value for kind in taken for value in WRONG[kind]]
    allowed = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}
    if len(taken) > 1:
        values = [each for each in values if type(each) not in {allowed[kind] for kind in taken} | {str}]
    too_long = ["x" * 100_000] if "maxLength" in json.dumps(schema) and "enum" not in schema else []
    no_choice = ["sideways"] if "enum" in json.dumps(schema) else []
    blank = ["", "  ", None] if needed else []
    given = [each for each in values if each != "" and not (each == ["a"] and "array" in taken)]
    return given + too_long + no_choice + blank


async def test_every_wrong_argument_of_every_tool_is_refused_in_our_words(environment: dict[str, str]) -> None:
    tried = 0
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "loopgraph_mcp"], env=environment)
    async with Client(parameters) as client:
        for tool in (await client.list_tools()).tools:
            required = tool.input_schema.get("required", [])
            needed = {name: NEEDED[name] for name in required}
            calls = [("bogus", {**needed, "bogus": 1})]
            calls += [(name, {key: value for key, value in needed.items() if key != name}) for name in required]
            for name, schema in tool.input_schema["properties"].items():
                calls += [(name, {**needed, name: value}) for value in wrong_values(schema, needed=name in required)]
            for name, arguments in calls:
                result = await client.call_tool(tool.name, arguments)
                said = "".join(getattr(each, "text", "") for each in result.content)
                assert result.is_error, (tool.name, arguments, said)
                assert name in said, (tool.name, arguments, said)
                assert re.search(r"give |there is ", said), (tool.name, arguments, said)
                assert not FOREIGN.search(said), (tool.name, arguments, said)
                assert len(said) < 1_200
                tried += 1
    assert tried > 300


@pytest.mark.parametrize("path", ["\0", "~nosuchuser/x", "x" * 5_000])
async def test_what_can_be_no_path_is_refused_in_our_words(connect: Connect, path: str) -> None:
    async with connect() as client:
        for tool, needed in (("search_methods", {}), ("get_code_edit", {"method_id": "gqa"}), ("map_code", {})):
            result = await client.call_tool(tool, {**needed, "workspace": path})
            said = getattr(result.content[0], "text", "")
            assert result.is_error
            assert "is not a valid path" in said
            assert not FOREIGN.search(said)


async def test_arguments_are_taken_as_clients_send_them(connect: Connect, workspace: Path) -> None:
    program = workspace / "train.py"
    program.write_text("MATRIX_LR = 0.04\nWARMUP_RATIO = 0.0\n" + program.read_text())
    async with connect() as client:

        async def call(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, result.content
            return result.structured_content or {}

        found = await call("search_methods", query="5", limit="2", family="", standing=None, detail="Detailed")
        assert found["query"] == "5"
        assert len((await call("search_methods", limit="2.0", workspace=" "))["hits"]) == 2
        edit = await call(
            "get_code_edit", method_id="Matrix LR", also='["lr_warmup"]', knobs='{"rate": "0.05"}', apply="False"
        )
        assert "+MATRIX_LR = 0.05" in edit["diff"]
        assert edit["method_id"] == "muon-lr + lr-warmup"
        alone = await call("get_code_edit", method_id="muon-lr", also="lr-warmup", knobs={"muon_lr.rate": 0.05})
        assert alone["diff"] == edit["diff"]
        ran = await call(
            "run_experiment",
            edit_id="",
            patch="",
            description="",
            seed="7",
            wait_s="30",
            replicate="no",
            priority="HIGH",
        )
        assert (ran["state"], ran["seed"]) == ("done", 7)
        noted = await call(
            "record_outcome",
            experiment_id=ran["experiment_id"],
            decision="Keep",
            tokens="10",
            cost_usd="0.5",
            commit="",
        )
        assert noted["decision"] == "keep"


async def test_a_patch_sent_again_after_its_win_returns_that_run(connect: Connect, workspace: Path) -> None:
    patch = "@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.9\n"
    async with connect() as client:
        await client.call_tool("run_experiment", {"wait_s": 30})
        won = (await client.call_tool("run_experiment", {"patch": patch, "wait_s": 30})).structured_content or {}
        assert won["decision"] == "keep"
        again = (await client.call_tool("run_experiment", {"patch": patch, "wait_s": 30})).structured_content or {}
    assert (again["experiment_id"], again["repeated"]) == (won["experiment_id"], True)
    assert "LEARNING_RATE = 0.9" in (workspace / "train.py").read_text()


async def test_an_unknown_tool_is_refused_with_the_nearest(connect: Connect) -> None:
    async with connect() as client:
        result = await client.call_tool("serch_methods", {})
        assert result.is_error
        assert "did you mean search_methods?" in getattr(result.content[0], "text", "")


def raw(environment: dict[str, str], *params: Any) -> list[dict[str, Any]]:
    """Return the answers to tool calls whose parameters no SDK would send."""
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}}
    asked = [{"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}]
    asked += [{"jsonrpc": "2.0", "method": "notifications/initialized"}]  # type: ignore[dict-item]  # no id
    asked += [
        {"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": each} for n, each in enumerate(params, start=1)
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "loopgraph_mcp"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(each) + "\n" for each in asked))
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(len(params) + 1)]
        process.stdin.close()
    return sorted(answers, key=lambda each: each["id"])[1:]


def test_arguments_sent_as_text_are_read_and_what_is_no_object_is_refused(environment: dict[str, str]) -> None:
    answers = raw(
        environment,
        {"name": "search_methods", "arguments": '{"limit": "1"}'},
        {"name": "search_methods", "arguments": '{"limit": '},
        {"name": "search_methods", "arguments": [1]},
        {"arguments": {}},
    )
    assert len(answers[0]["result"]["structuredContent"]["hits"]) == 1
    for answer, said in zip(answers[1:], ("text that is not JSON", "a list of 1 item", "name is missing"), strict=True):
        assert answer["error"]["code"] == -32602
        assert said in answer["error"]["message"]
        assert "give " in answer["error"]["message"]


async def test_a_body_that_is_no_message_is_refused_in_our_words(start_http: Callable[..., Any]) -> None:
    server = start_http()
    headers = {
        "Authorization": f"Bearer {server.token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    async with create_mcp_http_client(headers=headers) as http:
        for body in ('{"foo": 1}', "[1, 2]", '"x"', '{"jsonrpc": "2.0", "id": 1, "method": 5}', '{"jsonrpc": "2.0"'):
            answer = await http.post(server.url, content=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["message"]
            assert not FOREIGN.search(answer.text), answer.text


async def test_a_wrong_argument_over_http_is_refused_in_our_words(connect: Connect) -> None:
    async with connect() as client:
        result = await client.call_tool("search_methods", {"limit": 21, "nope": 1})
        said = getattr(result.content[0], "text", "")
    assert result.is_error
    assert "limit is 21; give a whole number from 1 to 20" in said
    assert 'no argument "nope"' in said
