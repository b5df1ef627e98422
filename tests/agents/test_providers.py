"""Both protocols against a provider on loopback that misbehaves."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from loopgraph_mcp.agents import providers
from loopgraph_mcp.agents.messages import (
    Assistant,
    EnoughError,
    Message,
    Reply,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
    User,
)
from loopgraph_mcp.agents.prices import Price, find_price
from loopgraph_mcp.agents.providers import PRESETS, ContextOverflowError, HttpModel, find_endpoint
from loopgraph_mcp.errors import ConfigError, ProviderError

KEY = "sk-planted-4f8a1c"
TOOL = ToolSpec("run", "Train.", {"type": "object", "properties": {"description": {"type": "string"}}})
TALK: list[Message] = [
    User("go"),
    Assistant("thinking", [ToolCall("a", "run", '{"description": "x"}'), ToolCall("b", "run", "{}")]),
    ToolResult("a", "run", "1.0"),
    ToolResult("b", "run", "2.0"),
    User("on"),
]
PROTOCOLS = ["openai", "anthropic"]
Provide = Callable[..., Any]


async def ask(
    url: str,
    protocol: str = "openai",
    *,
    waits: list[float] | None = None,
    talk: Sequence[Message] = tuple(TALK),
    hear: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Reply:
    variable = {"key_variable": "TEST_KEY"}
    endpoint = find_endpoint(protocol, "m", {"TEST_KEY": KEY}, base_url=url, **variable, **options)

    async def sleep(seconds: float) -> None:
        (waits if waits is not None else []).append(seconds)

    async with HttpModel(endpoint, sleep=sleep, rng=random.Random(0)) as model:
        return await model.reply("You train.", talk, [TOOL], hear)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_streamed_reply_is_put_together_and_counted(provide: Provide, protocol: str) -> None:
    server = provide({"text": "I will", "calls": [("run", {"description": "a"}), ("run", {"description": "b"})]})
    reply = await ask(server.url, protocol)
    assert reply.message.text == "I will"
    assert [(call.name, call.arguments) for call in reply.message.calls] == [
        ("run", '{"description": "a"}'),
        ("run", '{"description": "b"}'),
    ]
    assert reply.usage == Usage(100, 10, cached=40)
    assert (reply.attempts, reply.wasted, reply.stop) == (1, 0, "calls")


async def test_a_conversation_is_told_in_each_protocols_own_way(provide: Provide) -> None:
    server = provide({"text": "ok"})
    await ask(server.url, "openai")
    await ask(server.url, "anthropic")
    chat, messages = server.asked
    assert [each["role"] for each in chat["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert chat["stream_options"] == {"include_usage": True}
    assert [each["role"] for each in messages["messages"]] == ["user", "assistant", "user"]
    assert [block["type"] for block in messages["messages"][2]["content"]] == ["tool_result", "tool_result", "text"]
    assert messages["messages"][1]["content"][1]["input"] == {"description": "x"}
    assert server.heads[0]["authorization"] == f"Bearer {KEY}"
    assert server.heads[1]["x-api-key"] == KEY


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_calls_that_were_written_as_text_are_sent_back_once_and_as_text(provide: Provide, protocol: str) -> None:
    words = '<tool_call>{"name": "run", "arguments": {}}</tool_call>'
    calls = [ToolCall("a", "run", "{}"), ToolCall("b", "run", "{}")]
    talk = [
        User("go"),
        Assistant(words, calls, as_text=True),
        ToolResult("a", "run", "1.0"),
        ToolResult("b", "run", "2"),
    ]
    server = provide({"text": "ok"})
    await ask(server.url, protocol, talk=talk)
    said, answered = server.asked[0]["messages"][-2:]
    assert (said["role"], answered["role"]) == ("assistant", "user")
    assert "tool_calls" not in said
    assert json.dumps(server.asked[0]["messages"]).count("tool_call>") == 2
    assert json.dumps(answered).count("<tool_response>") == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "mishap",
    [{"status": 429, "headers": {"retry-after": "7"}}, {"status": 500}, {"cut": True, "text": "half a reply"},
     {"junk": "{not json"}, {"junk": '{"type": 1, "choices": "x"}'},
     {"junk": '{"type": "error", "error": {"message": "overloaded"}}'}],
)  # fmt: skip
async def test_a_mishap_is_waited_out(provide: Provide, protocol: str, mishap: dict[str, Any]) -> None:
    server, waits = provide(mishap, mishap, {"text": "ok"}), list[float]()
    reply = await ask(server.url, protocol, waits=waits)
    assert (reply.message.text, reply.attempts) == ("ok", 3)
    assert reply.usage == Usage(100, 10, cached=40)
    assert (reply.wasted > 0) == ("status" not in mishap)
    if "headers" in mishap:
        assert waits == [7.0, 7.0]
    else:
        assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0


async def test_a_server_that_stays_down_is_given_up_with_the_next_step(provide: Provide) -> None:
    with pytest.raises(ProviderError, match=r"failed 6 times.*503.*--resume"):
        await ask(provide({"status": 503}).url)
    with pytest.raises(ProviderError, match="cannot be reached"):
        await ask("http://127.0.0.1:9/v1")


async def test_a_slow_server_is_asked_again(provide: Provide) -> None:
    server = provide({"wait_s": 0.6, "text": "late"}, {"text": "ok"})
    assert (await ask(server.url, timeout_s=0.2)).message.text == "ok"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [(401, f"no such key {KEY}", "key is wrong"), (404, "no model", "--model"), (400, "no tools", "--menu on")],
)
async def test_a_refusal_is_told_without_the_key(provide: Provide, status: int, body: str, told: str) -> None:
    with pytest.raises(ProviderError, match=told) as caught:
        await ask(provide({"status": status, "body": body}).url)
    assert KEY not in repr(caught.value) + str(caught.value.__cause__) + str(caught.value.__context__)


async def test_a_prompt_that_is_too_long_is_told_apart(provide: Provide) -> None:
    body = "This model's maximum context length is 4096 tokens"
    with pytest.raises(ContextOverflowError):
        await ask(provide({"status": 400, "body": body}).url)


async def test_a_server_that_breaks_off_without_a_word_is_asked_for_one(provide: Provide) -> None:
    body = "Requested tokens (9000) exceed context window of 8192"
    server = provide({"mute": True}, {"status": 400, "body": body})
    with pytest.raises(ContextOverflowError):
        await ask(server.url)
    assert [asked["stream"] for asked in server.asked] == [True, False]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_whoever_hears_enough_ends_a_reply(provide: Provide, protocol: str) -> None:
    def hear(text: str) -> None:
        if text == "3, ":
            raise EnoughError

    reply = await ask(provide({"text": "3, because of this and that"}).url, protocol, hear=hear)
    assert (reply.message.text[:3], reply.attempts) == ("3, ", 1)


async def test_usage_that_is_missing_is_estimated_and_said_to_be(provide: Provide) -> None:
    reply = await ask(provide({"text": "four words are here", "usage": None}).url)
    assert reply.usage.estimated
    assert reply.usage.prompt > 20
    assert reply.usage.completion == 4


async def test_a_server_that_does_not_stream_or_count_is_understood(provide: Provide) -> None:
    server = provide({"status": 400, "body": "stream_options: unknown"}, {"whole": True, "calls": [("run", {"a": 1})]})
    reply = await ask(server.url)
    assert reply.message.calls[0].arguments == '{"a": 1}'
    assert reply.usage == Usage(100, 10, cached=40)
    assert "stream_options" not in server.asked[1]


def test_every_preset_is_a_flag_and_keys_come_from_the_environment() -> None:
    for name, preset in PRESETS.items():
        if preset.key_variable is None:
            assert find_endpoint(name, "m", {}).base_url == preset.base_url
            continue
        with pytest.raises(ConfigError, match=preset.key_variable):
            find_endpoint(name, "m", {})
        there = find_endpoint(name, "m", {preset.key_variable: KEY})
        assert KEY not in repr(there)
    with pytest.raises(ConfigError, match="openrouter"):
        find_endpoint("opnai", "m", {})
    assert find_endpoint("openai", "m", {}, base_url="http://127.0.0.1:1/v1/").key is None


def test_retry_after_is_seconds_or_a_date_and_has_a_bound() -> None:
    assert providers._retry_after_s("3", 0.0) == 3.0
    assert providers._retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", 50.0) == 10.0
    assert providers._retry_after_s("100000", 0.0) == 300.0
    assert providers._retry_after_s("soon", 0.0) is None
    assert providers._retry_after_s("nan", 0.0) is None


def test_prices_count_cached_tokens_apart_and_the_users_table_first(tmp_path: Path) -> None:
    price = find_price("openai/gpt-4o-mini-2024-07-18")
    assert price is not None
    assert price.cost_usd(Usage(1_000_000, 100_000, cached=400_000)) == pytest.approx(0.09 + 0.03 + 0.06)
    assert find_price("gpt-4o-mini-of-mine") is None
    assert price.cost_usd(Usage(10, 10, cost_usd=0.5)) == 0.5
    (tmp_path / "own.toml").write_text('[models]\n"gpt-4o-mini" = { prompt = 1, completion = 2 }\n')
    assert find_price("gpt-4o-mini", tmp_path / "own.toml") == Price(prompt=1, completion=2)
    (tmp_path / "own.toml").write_text("[models]\nx = 1\n")
    with pytest.raises(ConfigError, match="a price table is TOML"):
        find_price("x", tmp_path / "own.toml")
