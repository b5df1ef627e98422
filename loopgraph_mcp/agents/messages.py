"""Messages between harness and researcher: texts, tools, tool calls, and what a reply cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, TypeAdapter


@dataclass(frozen=True)
class ToolCall:
    """A call as the researcher wrote it: its arguments are text that may not be JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class User:
    """What the harness says."""

    text: str
    role: Literal["user"] = "user"


@dataclass(frozen=True)
class Assistant:
    """What the researcher said; `as_text` where its calls stand in the text, for want of a better place."""

    text: str
    calls: list[ToolCall] = field(default_factory=list)
    as_text: bool = False
    role: Literal["assistant"] = "assistant"


@dataclass(frozen=True)
class ToolResult:
    """What came of a call; `data` is the same for programs and is not sent to a model."""

    call_id: str
    name: str
    text: str
    data: dict[str, Any] | None = None
    role: Literal["tool"] = "tool"


Message = Annotated[User | Assistant | ToolResult, Field(discriminator="role")]
MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
ASSISTANT: TypeAdapter[Assistant] = TypeAdapter(Assistant)
RESULT: TypeAdapter[ToolResult] = TypeAdapter(ToolResult)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model sees it; `schema` is the JSON schema of its arguments."""

    name: str
    description: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply: `prompt` is all that was read, of which `cached` came from and `written` went to a cache."""

    prompt: int
    completion: int
    cached: int = 0
    written: int = 0
    cost_usd: float | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply.

    Args:
        stop: `end`, `calls`, `length` or `refusal`.
        wasted: Estimated tokens of attempts that were cut off before this one.
        attempts: How often it was asked for.
    """

    message: Assistant
    usage: Usage
    stop: str = "end"
    wasted: int = 0
    attempts: int = 1


class EnoughError(Exception):
    """Raised by the callback of a streamed reply: the rest is not needed."""


class Researcher(Protocol):
    """Whoever chooses the next call: a model behind a provider, or a script."""

    name: str
    context_tokens: int

    async def reply(
        self, system: str, messages: Sequence[Message], tools: Sequence[ToolSpec], on_text: Callable[[str], None]
    ) -> Reply:
        """Return the next reply; `on_text` gets it as it streams, and may stop it with EnoughError."""
        ...
