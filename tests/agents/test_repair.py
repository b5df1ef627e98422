"""Calls that are nearly right are fixed, code that was cut off never, and conversations stay within bounds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.agents import repair
from loopgraph_mcp.agents.context_window import condense, cost
from loopgraph_mcp.agents.messages import Assistant, Message, ToolCall, ToolResult, ToolSpec, User
from loopgraph_mcp.agents.prompts import chosen
from loopgraph_mcp.agents.repair import Fixed, Refused


def spec(tool: str, /, *required: str, **properties: Any) -> ToolSpec:
    return ToolSpec(tool, tool, {"type": "object", "properties": properties, "required": list(required)})


TEXT = {"type": "string"}
TOOLS = [
    spec("set_value", "name", "value", name={"type": "string", "enum": ["DEPTH", "MATRIX_LR"]}, value=TEXT),
    spec("edit_code", "search", "replace", search=TEXT, replace=TEXT),
    spec("read_code", start={"type": "integer", "default": 1}),
    spec("run", "description", description=TEXT),
]


@pytest.mark.parametrize(
    ("name", "arguments", "fixed"),
    [
        ("set_value", '{"name": "DEPTH", "value": "6"}', {"name": "DEPTH", "value": "6"}),
        ("functions.set_value", '{"name": "depth", "value": 6}', {"name": "DEPTH", "value": "6"}),
        ("set-values", "{'name': 'MATRIX_LR', 'value': 0.1}", {"name": "MATRIX_LR", "value": "0.1"}),
        ("set_value", '{"name": "DEPTH", "value": "6"', {"name": "DEPTH", "value": "6"}),
        ("set_value", '```json\n{"name": "DEPTH", "value": "6"}\n```', {"name": "DEPTH", "value": "6"}),
        ("set_value", json.dumps('{"name": "DEPTH", "value": "6"}'), {"name": "DEPTH", "value": "6"}),
        ("run", '{"desc": "deeper", "why": "x"}', {"description": "deeper"}),
        ("read_code", '{"start": "12"}', {"start": 12}),
        ("read_code", "", {}),
    ],
)
def test_a_near_miss_is_mended(name: str, arguments: str, fixed: dict[str, Any]) -> None:
    found = repair.fix(ToolCall("1", name, arguments), TOOLS)
    assert isinstance(found, Fixed)
    assert found.arguments == fixed
    assert json.loads(found.call.arguments) == fixed


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("launch_rocket", "{}", "the tools are set_value"),
        ("edit_code", '{"search": "a", "replace": "def f():\\n    ret', "cut off"),
        ("edit_code", '{"search": "a"}', "also needs replace"),
        ("set_value", '{"name": "COLOUR", "value": "1"}', "use one of DEPTH"),
        ("run", "[1]", "not a JSON object"),
    ],
)
def test_what_cannot_be_mended_says_what_to_do(name: str, arguments: str, told: str) -> None:
    found = repair.fix(ToolCall("1", name, arguments), TOOLS)
    assert isinstance(found, Refused)
    assert told in found.reason


@pytest.mark.parametrize(
    "text",
    [
        '<think>DEPTH?</think><tool_call>{"name": "run", "arguments": {"description": "a"}}</tool_call>',
        'Sure!\n```json\n{"tool": "run", "parameters": {"description": "a"}}\n```',
        '[{"function": {"name": "run", "arguments": "{\\"description\\": \\"a\\"}"}}]',
        'I call run(description="a") now.',
        'Then `run("a")`.',
        'The plan:\n```json\n{"run": {"description": "a"}}\n```',
        'The plan:\n```json\n{"run": {"arguments": {"description": "a"}}}\n```',
        '{{"name": "run", "arguments": {"description": "a"}}}}',
        '<tools>\n{"name": "run", "arguments": {"description": "a"}}\n</tools>\n\n# Tools\n<tools>\n'
        '{"type": "function", "function": {"name": "read_code", "parameters": {"type": "object", "properties": {}}}}',
        '<tool_call>\n{{"name": "run", "arguments": {"description": "a"}}\n</tool_call>',
    ],
)
def test_calls_written_as_text_are_found(text: str) -> None:
    (call,) = repair.calls_in_text(text, TOOLS)
    assert (call.name, json.loads(call.arguments)) == ("run", {"description": "a"})


def test_words_are_no_calls() -> None:
    assert not repair.calls_in_text("I would run(it) with a {deeper} model [1].", TOOLS)
    assert not repair.calls_in_text("then run((1)+(2)) or run (it)*(2) or run(it)(2), run(x)+(2)", TOOLS)


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    repair.fix(ToolCall("1", text[:20], text), TOOLS)
    repair.calls_in_text(text, TOOLS)
    repair.calls_in_text(f'<tool_call>{{"name": "run", {text}', TOOLS)
    assert chosen(text, 9) in {None, *range(9)}


def test_a_number_is_chosen_where_one_is_named() -> None:
    assert chosen("I choose 3, because 0.5 is low", 4) == 2
    assert chosen("0.5 and 50%", 9) is None
    assert chosen("12", 9) is None


def conversation(sizes: list[int]) -> list[Message]:
    talk: list[Message] = [User("the task")]
    for number, size in enumerate(sizes):
        talk += [Assistant("", [ToolCall(f"c{number}", "run", "{}")]), ToolResult(f"c{number}", "run", "word " * size)]
    return talk


@given(st.lists(st.integers(0, 3_000), max_size=30), st.integers(600, 5_000))
def test_a_condensed_conversation_fits_and_keeps_the_table_and_its_pairs(sizes: list[int], limit: int) -> None:
    talk = conversation(sizes)
    short = condense(talk, limit=limit, runs="1. deeper: 1.2, kept")
    assert cost(short) <= limit
    assert short[0] == talk[0]
    assert [each.text for each in short[-1:]] == [each.text for each in talk[-1:]] or len(talk[-1].text) > 600
    calls = [call.id for each in short if isinstance(each, Assistant) for call in each.calls]
    assert calls == [each.call_id for each in short if isinstance(each, ToolResult)]
    whole = sum(isinstance(each, Assistant) for each in short) == len(sizes)
    assert whole or "1. deeper: 1.2, kept" in short[1].text
    assert condense(short, limit=limit, runs="") == short
