"""Models behind HTTP: presets, keys from the environment alone, retries, and the two protocols."""

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Self

import httpx
from pydantic import ValidationError

from loopgraph_mcp.agents import wires
from loopgraph_mcp.agents.messages import MESSAGES, Assistant, EnoughError, Message, Reply, ToolSpec
from loopgraph_mcp.errors import ConfigError, ProviderError
from loopgraph_mcp.text import estimate_tokens

Protocol = Literal["openai", "anthropic"]

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_OVERFLOW = ("context length", "context_length", "context window", "too many tokens", "prompt is too long",
             "exceeds the available context", "maximum context", "exceed_context", "input is too long")  # fmt: skip
_ATTEMPTS = 6  # half a minute of waiting in all; a longer outage is for --resume
_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 60.0
_MAX_RETRY_AFTER_S = 300.0  # a provider that asks for hours is out of quota
_CONNECT_S = 10.0  # a reachable server accepts within seconds
_MAX_REPLY_CHARS = 2_000_000  # a stream without an end must not fill the memory
_SHOWN_CHARS = 300  # of a provider's error


class ContextOverflowError(ProviderError):
    """The prompt is longer than the model reads."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Where a provider is, what it speaks, and which variable holds its key (None: it needs none).

    Args:
        limit_field: The field of a request that bounds the reply.
        context_tokens: The context window of its models, unless given.
        free: Whether its tokens cost nothing: it runs on this machine.
    """

    base_url: str
    key_variable: str | None = None
    protocol: Protocol = "openai"
    limit_field: str = "max_tokens"
    context_tokens: int = 100_000
    free: bool = False


def _local(port: int, context_tokens: int) -> Preset:
    return Preset(f"http://127.0.0.1:{port}/v1", context_tokens=context_tokens, free=True)


PRESETS: Mapping[str, Preset] = {
    "openai": Preset("https://api.openai.com/v1", "OPENAI_API_KEY", limit_field="max_completion_tokens"),
    "anthropic": Preset("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", "anthropic"),
    "openrouter": Preset("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "venice": Preset("https://api.venice.ai/api/v1", "VENICE_API_KEY", context_tokens=32_000),
    "ollama": _local(11434, 4_096),
    "llama.cpp": _local(8080, 4_096),
    "vllm": _local(8000, 16_000),
    "lmstudio": _local(1234, 4_096),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model at one provider. The key is never shown, not even in a traceback."""

    provider: str
    model: str
    base_url: str
    protocol: Protocol
    limit_field: str
    context_tokens: int
    free: bool
    key: str | None = field(repr=False)
    timeout_s: float = 180.0
    reply_tokens: int = 4_096


def find_endpoint(
    provider: str,
    model: str,
    environment: Mapping[str, str],
    *,
    base_url: str | None = None,
    key_variable: str | None = None,
    context_tokens: int | None = None,
    timeout_s: float = 180.0,
    reply_tokens: int = 4_096,
) -> Endpoint:
    """Return a model by its provider's name; another base URL makes it any server that speaks its protocol.

    Raises:
        ConfigError: No such provider, or the variable that should hold its key is not set.
    """
    preset = PRESETS.get(provider)
    if preset is None:
        raise ConfigError(
            f"no provider {provider!r}; use one of {', '.join(PRESETS)}, and --base-url for another server, with "
            "`openai` or `anthropic` as its protocol"
        )
    variable = key_variable or (None if base_url else preset.key_variable)
    key = environment.get(variable) if variable else None
    if variable and not key:
        raise ConfigError(f"{variable} is not set; {provider} reads its key from it: export {variable}=…")
    elsewhere = base_url is not None and base_url.rstrip("/") != preset.base_url
    return Endpoint(
        provider=provider,
        model=model,
        base_url=(base_url or preset.base_url).rstrip("/"),
        protocol=preset.protocol,
        limit_field="max_tokens" if elsewhere else preset.limit_field,
        context_tokens=context_tokens or preset.context_tokens,
        free=preset.free,
        key=key,
        timeout_s=timeout_s,
        reply_tokens=min(reply_tokens, (context_tokens or preset.context_tokens) // 4),
    )


class HttpModel:
    """Asks a model over HTTP, again where that may help; an async context manager.

    Args:
        endpoint: Which model, and where.
        on_wait: Called with the reason for a retry and the seconds until it.
        sleep: Waits between attempts.
        rng: Spreads retries, so that several agents do not come back at once.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        on_wait: Callable[[str, float], None] = lambda _words, _seconds: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.name = f"{endpoint.provider}:{endpoint.model}"
        self.context_tokens = endpoint.context_tokens
        self._endpoint = endpoint
        self._on_wait = on_wait
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries
        timeout = httpx.Timeout(endpoint.timeout_s, connect=_CONNECT_S)
        self._client = httpx.AsyncClient(timeout=timeout, follow_redirects=False, headers=_headers(endpoint))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    def scrub(self, text: str) -> str:
        """Return a text without the key, should a server have sent it back."""
        return text.replace(self._endpoint.key, "[key]") if self._endpoint.key else text

    async def reply(
        self, system: str, messages: Sequence[Message], tools: Sequence[ToolSpec], on_text: Callable[[str], None]
    ) -> Reply:
        """Return what the model says next; a reply that was cut off is asked for again, and what it cost is counted.

        Raises:
            ContextOverflowError: The prompt is too long.
            ProviderError: It cannot be had.
        """
        there = self._endpoint
        build = wires.messages_payload if there.protocol == "anthropic" else wires.chat_payload
        payload = build(there.model, system, messages, tools, limit={there.limit_field: there.reply_tokens})
        asked = f"{system}{MESSAGES.dump_json(list(messages)).decode()}{[tool.schema for tool in tools]}"
        wasted = 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                reply = await self._once(payload, asked, on_text)
                return dataclasses.replace(
                    reply, message=self._scrubbed(reply.message), wasted=wasted, attempts=attempt
                )
            except _AgainError as again:
                wasted += again.wasted
                if again.mute:  # some servers give the reason only without streaming
                    payload["stream"] = False
                    payload.pop("stream_options", None)
                if attempt == _ATTEMPTS:
                    raise ProviderError(
                        f"{self.name} failed {attempt} times, last: {self.scrub(str(again))}; "
                        "resume later with `loopgraph agent --resume`"
                    ) from None  # a traceback would show headers
                wait_s = again.after_s if again.after_s is not None else self._backoff_s(attempt)
                self._on_wait(self.scrub(str(again)), wait_s)
                await self._sleep(wait_s)
        raise AssertionError  # the last attempt returned or raised

    def _scrubbed(self, message: Assistant) -> Assistant:
        calls = [dataclasses.replace(call, arguments=self.scrub(call.arguments)) for call in message.calls]
        return Assistant(self.scrub(message.text), calls)

    def _backoff_s(self, attempt: int) -> float:
        return float(min(_BACKOFF_S * 2 ** (attempt - 1), _MAX_BACKOFF_S) * self._rng.uniform(0.5, 1.0))

    async def _once(self, payload: dict[str, Any], asked: str, on_text: Callable[[str], None]) -> Reply:
        there = self._endpoint
        path = "messages" if there.protocol == "anthropic" else "chat/completions"
        stream = wires.MessagesStream() if there.protocol == "anthropic" else wires.ChatStream()
        answered = False
        try:
            async with self._client.stream("POST", f"{there.base_url}/{path}", json=payload) as response:
                if response.status_code != httpx.codes.OK:
                    body = (await response.aread()).decode("utf-8", "replace")[:4_000]
                    raise self._refused(response, body, payload)
                answered = True
                try:
                    await _hear(response, stream, on_text)
                except EnoughError:
                    stream.end()
            return stream.finish(asked)
        except wires.CutStreamError as error:
            wasted = _cost_of(asked, error.heard)
            raise _AgainError(str(error), wasted=wasted, mute=not error.heard) from None
        except ValidationError as error:
            raise _AgainError(f"the reply does not follow the protocol: {error.errors()[0]['msg']}",
                              wasted=_cost_of(asked, "")) from None  # fmt: skip
        except httpx.TimeoutException:
            raise _AgainError(f"no data for {there.timeout_s:g} s") from None
        except httpx.ConnectError as error:
            raise _AgainError(f"{there.base_url} cannot be reached ({error})") from None
        except httpx.TransportError as error:
            raise _AgainError(f"the connection broke: {error}", mute=answered) from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigError(f"{there.base_url} is not the URL of a server ({error}); see --base-url") from None

    def _refused(self, response: httpx.Response, body: str, payload: dict[str, Any]) -> Exception:
        """Return what an answer other than 200 means: ask again, ask for less, or give up."""
        failure = f"{self.name} answered {response.status_code}: {' '.join(self.scrub(body).split())[:_SHOWN_CHARS]}"
        if response.status_code == httpx.codes.BAD_REQUEST and "stream_options" in body:
            payload.pop("stream_options", None)  # an older server: without its usage, tokens are estimated
            return _AgainError(failure, after_s=0.0)
        if response.status_code in {400, 413, 422, 500} and any(words in body.lower() for words in _OVERFLOW):
            return ContextOverflowError(failure)
        if response.status_code in _RETRIED:
            return _AgainError(failure, after_s=_retry_after_s(response.headers.get("retry-after"), time.time()))
        hint = {
            401: "its key is wrong",
            402: "its account has no credit left",
            403: "its key has no access to this model",
            404: "the model or the URL is unknown; see --model and --base-url",
        }.get(response.status_code, "it refuses the request; for a model without tools, try --menu on")
        return ProviderError(f"{failure} ({hint})")


class _AgainError(Exception):
    """An attempt failed in a way that another one may not.

    Args:
        wasted: Tokens that were spent on it.
        mute: Whether the server began to answer, and broke off without a word.
    """

    def __init__(self, words: str, *, after_s: float | None = None, wasted: int = 0, mute: bool = False) -> None:
        super().__init__(words)
        self.after_s = after_s
        self.wasted = wasted
        self.mute = mute


def _headers(endpoint: Endpoint) -> dict[str, str]:
    if endpoint.protocol == "anthropic":
        version = {"anthropic-version": "2023-06-01"}
        return version | ({"x-api-key": endpoint.key} if endpoint.key else {})
    return {"authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}


def _cost_of(asked: str, heard: str) -> int:
    return estimate_tokens(asked) + estimate_tokens(heard)


def _retry_after_s(value: str | None, now: float) -> float | None:
    """Read Retry-After, in seconds or as a date; a server may not hold us for longer than five minutes."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S) if seconds == seconds else None  # noqa: PLR0124 - NaN


async def _hear(response: httpx.Response, stream: wires.Stream, on_text: Callable[[str], None]) -> None:
    """Feed a stream its events, or the whole reply of a server that does not stream."""
    heard = 0
    if "event-stream" not in response.headers.get("content-type", ""):
        on_text(stream.feed((await response.aread()).decode("utf-8", "replace")))
        return
    async for line in response.aiter_lines():
        heard += len(line)
        if heard > _MAX_REPLY_CHARS:
            raise wires.CutStreamError(f"the reply has over {_MAX_REPLY_CHARS:,} characters")
        if line.startswith("data:") and line[5:].strip():
            on_text(stream.feed(line[5:].strip()))
