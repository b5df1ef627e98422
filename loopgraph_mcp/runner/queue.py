"""The order of runs on a device: agents take turns, and each orders its own experiments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Priority(StrEnum):
    """How soon an experiment should run: `low` after everybody's others, `high` before the agent's own others."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Waiting:
    """An experiment in a device's queue: who asked for it, by token and by agent."""

    id: str
    token: str
    agent: str
    priority: Priority = Priority.NORMAL


def in_turn(queue: Sequence[Waiting], served: Mapping[Waiting, float]) -> list[str]:
    """Return a queue, oldest first, in the order in which it should run.

    The token that was served longest ago is next, among its agents the one served longest ago, and of that one's
    experiments the most urgent, then the oldest. So nobody waits for more than one run of each other agent.

    Args:
        queue: What waits, oldest first.
        served: When recent runs started.
    """
    tokens, agents = dict[str, float](), dict[str, float]()
    for run, at in served.items():
        _serve(run, at, tokens, agents)
    now = max(served.values(), default=0.0)
    left, order = list(queue), list[str]()
    while left:
        chosen = min(
            left,
            key=lambda each: (
                each.priority is Priority.LOW,
                tokens.get(each.token, 0.0) if each.token else agents.get(each.agent, 0.0),
                agents.get(each.agent, 0.0),
                each.priority is not Priority.HIGH,
            ),
        )
        left.remove(chosen)
        order.append(chosen.id)
        now += 1.0
        _serve(chosen, now, tokens, agents)
    return order


def _serve(run: Waiting, at: float, tokens: dict[str, float], agents: dict[str, float]) -> None:
    tokens[run.token] = max(at, tokens.get(run.token, 0.0))
    agents[run.agent] = max(at, agents.get(run.agent, 0.0))
