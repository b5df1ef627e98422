"""The two provider protocols as pure functions: requests to a model, and its streamed reply."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from loopgraph_mcp.agents.messages import Assistant, Message, Reply, ToolCall, ToolResult, ToolSpec, Usage, User
from loopgraph_mcp.text import estimate_tokens

_STOPS = {
    "stop": "end", "end_turn": "end", "stop_sequence": "end", "tool_calls": "calls", "tool_use": "calls",
    "function_call": "calls", "length": "length", "max_tokens": "length", "content_filter": "refusal",
    "refusal": "refusal",
}  # fmt: skip


class CutStreamError(Exception):
    """A reply was cut off; `heard` is the part that arrived."""

    def __init__(self, reason: str, heard: str = "") -> None:
        super().__init__(reason)
        self.heard = heard


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Function(_Loose):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _CallPart(_Loose):
    index: int | None = None
    id: str | None = None
    function: _Function = Field(default_factory=_Function)


class _Delta(_Loose):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_CallPart] | None = None


class _Choice(_Loose):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Details(_Loose):
    cached_tokens: int | None = None


class _ChatUsage(_Loose):
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    prompt_tokens_details: _Details | None = None
    cost: float | None = Field(default=None, ge=0)


class _Chunk(_Loose):
    choices: list[_Choice] = Field(default_factory=list)
    usage: _ChatUsage | None = None
    error: dict[str, Any] | str | None = None


class Stream(Protocol):
    """Puts the pieces of a reply together."""

    def feed(self, data: str) -> str:
        """Take one event's JSON; return the text in it. Raises a ValueError where it is none of the protocol's."""
        ...

    def end(self) -> None:
        """Take what has come for the whole reply."""
        ...

    def finish(self, asked: str) -> Reply:
        """Return the reply, or raise CutStreamError where its end has not come."""
        ...


class ChatStream:
    """A reply of the chat-completions protocol, streamed or whole."""

    def __init__(self) -> None:
        self._text, self._refusal = "", ""
        self._calls: dict[int, list[str]] = {}
        self._stop: str | None = None
        self._usage: _ChatUsage | None = None
        self._ended = False

    def feed(self, data: str) -> str:
        """Take one chunk, `[DONE]`, or a whole reply."""
        if data.strip() == "[DONE]":
            self._ended = True
            return ""
        chunk = _Chunk.model_validate_json(data)
        if chunk.error is not None:
            raise CutStreamError(f"the provider stopped: {chunk.error}", self._heard())
        self._usage = chunk.usage or self._usage  # some servers repeat it, counted up, in every chunk
        text = ""
        for choice in chunk.choices[:1]:
            part = choice.delta or choice.message or _Delta()
            text += part.content or ""
            self._refusal += part.refusal or ""
            for place, call in enumerate(part.tool_calls or []):
                self._take(place if call.index is None else call.index, call)
            self._stop = choice.finish_reason or self._stop
        self._text += text
        return text

    def end(self) -> None:
        """Take what has come for the whole reply."""
        self._ended = True

    def _take(self, index: int, part: _CallPart) -> None:
        call = self._calls.setdefault(index, ["", "", ""])
        call[0] = call[0] or part.id or ""
        call[1] += part.function.name or ""
        arguments = part.function.arguments or ""
        call[2] += arguments if isinstance(arguments, str) else _json(arguments)

    def _heard(self) -> str:
        return self._text + "".join(call[2] for call in self._calls.values())

    def finish(self, asked: str) -> Reply:
        """Return the reply; some servers end it with `[DONE]` alone, some with a reason alone."""
        if self._stop is None and not self._ended:
            raise CutStreamError("the reply was cut off", self._heard())
        calls = [ToolCall(each[0] or f"call_{place}", each[1], each[2]) for place, each in sorted(self._calls.items())]
        message = Assistant(self._text or self._refusal, calls)
        stop = "refusal" if self._refusal and not calls else _STOPS.get(self._stop or "", "end")
        if self._usage is None or not self._usage.prompt_tokens:
            return Reply(message, _estimated(asked, self._heard()), stop)
        details = self._usage.prompt_tokens_details
        sent = Usage(
            self._usage.prompt_tokens,
            self._usage.completion_tokens,
            cached=min((details and details.cached_tokens) or 0, self._usage.prompt_tokens),
            cost_usd=self._usage.cost,
        )
        return Reply(message, sent, stop)


class _Block(_Loose):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    input: dict[str, Any] = Field(default_factory=dict)


class _MessagesUsage(_Loose):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Started(_Loose):
    usage: _MessagesUsage | None = None


class _Part(_Loose):
    text: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(_Loose):
    type: str
    index: int = 0
    message: _Started | None = None
    content_block: _Block | None = None
    delta: _Part | None = None
    usage: _MessagesUsage | None = None
    error: dict[str, Any] | None = None
    content: list[_Block] = Field(default_factory=list)  # of a whole reply
    stop_reason: str | None = None


class MessagesStream:
    """A reply of Anthropic's messages protocol, streamed or whole."""

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._json: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._stop: str | None = None
        self._ended = False

    def feed(self, data: str) -> str:
        """Take one event, or a whole reply."""
        event = _Event.model_validate_json(data)
        for usage in (event.usage, event.message and event.message.usage):
            if usage is not None:
                self._counts.update(usage.model_dump(exclude_none=True))
        match event.type:
            case "error":
                raise CutStreamError(f"the provider stopped: {event.error}", self._heard())
            case "message":
                self._blocks = dict(enumerate(event.content))
                self._json = {place: _json(each.input) for place, each in self._blocks.items()}
                self._stop, self._ended = event.stop_reason, True
            case "content_block_start" if event.content_block is not None:
                self._blocks[event.index] = event.content_block
            case "content_block_delta" if event.delta is not None:
                block = self._blocks.setdefault(event.index, _Block(type="text"))
                block.text += event.delta.text
                self._json[event.index] = self._json.get(event.index, "") + event.delta.partial_json
                return event.delta.text
            case "message_delta" if event.delta is not None:
                self._stop = event.delta.stop_reason or self._stop
            case "message_stop":
                self._ended = True
        return ""

    def end(self) -> None:
        """Take what has come for the whole reply."""
        self._ended = True

    def _heard(self) -> str:
        return "".join(each.text for each in self._blocks.values()) + "".join(self._json.values())

    def finish(self, asked: str) -> Reply:
        """Return the reply; the three counts of input are apart in this protocol and together in ours."""
        if not self._ended:
            raise CutStreamError("the reply was cut off", self._heard())
        blocks = sorted(self._blocks.items())
        calls = [
            ToolCall(each.id or f"call_{place}", each.name, self._json.get(place) or "{}")
            for place, each in blocks
            if each.type == "tool_use"
        ]
        message = Assistant("".join(each.text for _, each in blocks if each.type == "text"), calls)
        stop = _STOPS.get(self._stop or "", "end")
        if "input_tokens" not in self._counts:
            return Reply(message, _estimated(asked, self._heard()), stop)
        cached, written = (self._counts.get(f"cache_{name}_input_tokens", 0) for name in ("read", "creation"))
        prompt = self._counts["input_tokens"] + cached + written
        return Reply(message, Usage(prompt, self._counts.get("output_tokens", 0), cached, written), stop)


def _estimated(asked: str, heard: str) -> Usage:
    return Usage(estimate_tokens(asked), estimate_tokens(heard), estimated=True)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(arguments: str) -> dict[str, Any]:
    """Return arguments as the object that the protocol wants, also where the model did not write one."""
    try:
        value = json.loads(arguments)
    except ValueError:
        value = arguments
    return value if isinstance(value, dict) else {"text": value}


def _as_written(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation in which calls that were written as text stay text, and so do their answers.

    Sent as calls too, they would appear twice, and a model repeats what it sees.
    """
    sent, written = list[Message](), set[str]()
    for message in messages:
        if isinstance(message, Assistant) and message.as_text:
            written |= {call.id for call in message.calls}
            sent.append(Assistant(message.text))
        elif isinstance(message, ToolResult) and message.call_id in written:
            answer = f"<tool_response>\n{message.text}\n</tool_response>"
            last = sent[-1]
            if isinstance(last, User):  # roles must take turns
                sent[-1] = User(f"{last.text}\n{answer}")
            else:
                sent.append(User(answer))
        else:
            sent.append(message)
    return sent


def chat_payload(
    model: str, system: str, messages: Sequence[Message], tools: Sequence[ToolSpec], *, limit: Mapping[str, int]
) -> dict[str, Any]:
    """Return a request of the chat-completions protocol; `limit` names the field that bounds the reply."""
    sent: list[dict[str, Any]] = [{"role": "system", "content": system}]
    for message in _as_written(messages):
        match message:
            case User(text=text):
                sent.append({"role": "user", "content": text})
            case Assistant(text=text, calls=calls):
                said: dict[str, Any] = {"role": "assistant", "content": text or None}
                if calls:
                    said["tool_calls"] = [
                        {
                            "id": call.id,
                            "type": "function",
                            "function": {"name": call.name, "arguments": call.arguments},
                        }
                        for call in calls
                    ]
                elif not text:
                    said["content"] = "(nothing)"
                sent.append(said)
            case ToolResult(call_id=call_id, text=text):
                sent.append({"role": "tool", "tool_call_id": call_id, "content": text})
    payload: dict[str, Any] = {
        "model": model, "messages": sent, "stream": True, "stream_options": {"include_usage": True}, **limit,
    }  # fmt: skip
    if tools:
        payload["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema},
            }
            for tool in tools
        ]
    return payload


def messages_payload(
    model: str, system: str, messages: Sequence[Message], tools: Sequence[ToolSpec], *, limit: Mapping[str, int]
) -> dict[str, Any]:
    """Return a request of Anthropic's messages protocol, with what it begins with marked for its cache."""
    sent: list[dict[str, Any]] = []
    for message in _as_written(messages):
        role, blocks = _blocks(message)
        if sent and sent[-1]["role"] == role:
            sent[-1]["content"] += blocks  # roles must take turns
        else:
            sent.append({"role": role, "content": blocks})
    cached = {"type": "ephemeral"}
    if sent:
        sent[-1]["content"][-1]["cache_control"] = cached
    payload: dict[str, Any] = {
        "model": model, "system": [{"type": "text", "text": system, "cache_control": cached}], "messages": sent,
        "stream": True, **limit,
    }  # fmt: skip
    if tools:
        payload["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.schema} for tool in tools
        ]
    return payload


def _blocks(message: Message) -> tuple[str, list[dict[str, Any]]]:
    match message:
        case User(text=text):
            return "user", [{"type": "text", "text": text}]
        case ToolResult(call_id=call_id, text=text):
            return "user", [{"type": "tool_result", "tool_use_id": call_id, "content": text}]
        case Assistant(text=text, calls=calls):
            said: list[dict[str, Any]] = [{"type": "text", "text": text}] if text.strip() else []
            said += [
                {"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call.arguments)}
                for call in calls
            ]
            return "assistant", said or [{"type": "text", "text": "(nothing)"}]
