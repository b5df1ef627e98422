"""Keeps a conversation within a model's context window: old turns are removed, the table of runs stays."""

from collections.abc import Sequence
from dataclasses import replace

from loopgraph_mcp.agents.messages import Assistant, Message, ToolResult, User
from loopgraph_mcp.text import estimate_tokens

_KEPT_TURNS = 2  # read whole at the end; older results are shortened before whole turns go
_SHORT_CHARS = 300
_MARK = "Earlier turns were removed to save space. Runs so far:\n"


def cost(messages: Sequence[Message]) -> int:
    """Return the estimated tokens of a conversation."""
    return sum(_cost(message) for message in messages)


def _cost(message: Message) -> int:
    calls = message.calls if isinstance(message, Assistant) else []
    return 4 + estimate_tokens(message.text) + sum(estimate_tokens(call.name + call.arguments) for call in calls)


def condense(messages: Sequence[Message], *, limit: int, runs: str) -> list[Message]:
    """Return a conversation of at most `limit` tokens, as far as its task and its last turn leave that to us.

    Its first message, the task, stays; a call never loses its result.

    Args:
        messages: The conversation; its first message is the task.
        limit: Tokens it may have.
        runs: The table of runs, to stand in for what is left out.
    """
    if cost(messages) <= limit:
        return list(messages)
    turns = _turns(messages[1:])
    shortened = [
        message
        for place, turn in enumerate(turns)
        for message in (turn if place >= len(turns) - _KEPT_TURNS else map(_short, turn))
    ]
    if cost([messages[0], *shortened]) <= limit:
        return [messages[0], *shortened]
    table = User(_MARK + runs)
    turns = [turn for turn in _turns(shortened) if not (isinstance(turn[0], User) and turn[0].text.startswith(_MARK))]
    while len(turns) > 1 and cost([messages[0], table, *(each for turn in turns for each in turn)]) > 0.7 * limit:
        del turns[0]  # to well below the limit: each time it is reached, the provider's cache is lost
    last = [each for turn in turns for each in turn]
    if cost([messages[0], table, *last]) > limit:
        last = [_short(each) for each in last]
    return [messages[0], table, *last]


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Return the messages in groups that begin with what the harness or the researcher says."""
    turns = list[list[Message]]()
    for message in messages:
        if isinstance(message, ToolResult) and turns:
            turns[-1].append(message)
        else:
            turns.append([message])
    return turns


def _short(message: Message) -> Message:
    if isinstance(message, Assistant):
        return message if len(message.text) <= _SHORT_CHARS else replace(message, text=_cut(message.text))
    return replace(message, text=_cut(message.text)) if len(message.text) > 2 * _SHORT_CHARS else message


def _cut(text: str) -> str:
    return f"{text[:_SHORT_CHARS]} … ({len(text) - _SHORT_CHARS} characters left out)"
