"""A provider on loopback that speaks both protocols, plays a script of replies, and misbehaves where asked to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest


@dataclass
class Say:
    """One answer: text and calls as (name, arguments), or a mishap."""

    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    usage: tuple[int, int, int] | None = (100, 10, 40)  # read, written, of the read: cached
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    cut: bool = False
    mute: bool = False
    junk: str = ""
    wait_s: float = 0.0
    whole: bool = False
    stop: str = ""


class Provider(ThreadingHTTPServer):
    """Answers requests in the order of `script`, its last entry for ever; keeps what it was asked and billed."""

    daemon_threads = True

    def __init__(self, script: list[Say]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self.billed = [0, 0, 0]
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            say = self.server.script[min(len(self.server.asked), len(self.server.script) - 1)]
            self.server.asked.append(asked)
            self.server.heads.append({name.lower(): value for name, value in self.headers.items()})
        time.sleep(say.wait_s)
        if say.status != 200:
            self._send(say.status, say.headers, say.body.encode())
            return
        events = _anthropic(say) if self.path.endswith("/messages") else _openai(say)
        if say.usage and not say.cut and not say.junk and not say.mute:
            with self.server.lock:
                self.server.billed = [a + b for a, b in zip(self.server.billed, say.usage, strict=True)]
        if say.whole:
            self._send(200, {"content-type": "application/json"}, json.dumps(_whole(say)).encode())
            return
        lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events]
        if say.junk:
            lines = [f"data: {say.junk}\n\n"]
        if say.cut or say.mute:
            lines = [] if say.mute else lines[: len(lines) // 2]
        self._send(200, {"content-type": "text/event-stream"}, "".join(lines).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provide() -> Iterator[Callable[..., Provider]]:
    """Start a provider that answers with the given replies in turn; each is what `Say` is made of."""
    with ExitStack() as stack:
        yield lambda *script: stack.enter_context(Provider([Say(**each) for each in script]))


def _arguments(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given)


def _openai(say: Say) -> list[Any]:
    calls = [
        {"index": place, "id": f"id{place}", "function": {"name": name, "arguments": _arguments(given)}}
        for place, (name, given) in enumerate(say.calls)
    ]
    pieces: list[Any] = [{"choices": [{"delta": {"content": part}}]} for part in (say.text[:3], say.text[3:]) if part]
    for call in calls:
        head, rest = call["function"]["arguments"][:5], call["function"]["arguments"][5:]
        pieces.append(
            {"choices": [{"delta": {"tool_calls": [{**call, "function": {**call["function"], "arguments": head}}]}}]}
        )
        pieces.append(
            {"choices": [{"delta": {"tool_calls": [{"index": call["index"], "function": {"arguments": rest}}]}}]}
        )
    pieces.append({"choices": [{"delta": {}, "finish_reason": say.stop or ("tool_calls" if calls else "stop")}]})
    if say.usage:
        read, written, cached = say.usage
        usage = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        pieces.append({"choices": [], "usage": usage})
    return [*pieces, "[DONE]"]


def _whole(say: Say) -> dict[str, Any]:
    calls = [
        {"id": f"id{place}", "type": "function", "function": {"name": name, "arguments": _arguments(given)}}
        for place, (name, given) in enumerate(say.calls)
    ]
    read, written, cached = say.usage or (0, 0, 0)
    usage = {"prompt_tokens": read, "completion_tokens": written, "prompt_tokens_details": {"cached_tokens": cached}}
    message = {"role": "assistant", "content": say.text or None, "tool_calls": calls or None}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage if say.usage else None}


def _anthropic(say: Say) -> list[Any]:
    read, written, cached = say.usage or (0, 0, 0)
    usage = {"input_tokens": read - cached, "cache_read_input_tokens": cached, "output_tokens": 1}
    events: list[Any] = [{"type": "message_start", "message": {"usage": usage if say.usage else None}}]
    if say.text:
        events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        events.append({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": say.text}})
    for place, (name, given) in enumerate(say.calls, start=1):
        block = {"type": "tool_use", "id": f"tool{place}", "name": name, "input": {}}
        events.append({"type": "content_block_start", "index": place, "content_block": block})
        for part in (_arguments(given)[:5], _arguments(given)[5:]):
            delta = {"type": "input_json_delta", "partial_json": part}
            events.append({"type": "content_block_delta", "index": place, "delta": delta})
    stop = say.stop or ("tool_use" if say.calls else "end_turn")
    told = {"output_tokens": written} if say.usage else None
    events.append({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": told})
    return [*events, {"type": "message_stop"}]
