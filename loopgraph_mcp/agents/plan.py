"""The plan of a session, its limits, and what it has spent."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from loopgraph_mcp.store.sessions import CallRow, TurnRow

MemoryArm = Literal["off", "outcomes", "packs", "on"]
MenuMode = Literal["auto", "on", "off"]
_TURNS_EACH = 12  # for every experiment, before a researcher that leads nowhere is stopped
_TURNS_MORE = 20  # for reading the program, whatever the number of experiments


class Plan(BaseModel):
    """One session as it was asked for: all that it takes to go on with it, and never a key.

    Args:
        policy: The habit of a scripted researcher; a model's provider otherwise.
        key_variable: The variable that holds the key.
        skill: Whether the skill's text is part of the prompt.
        seed: The seed of every run, and of a scripted researcher unless it has its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str = ""
    model: str = ""
    policy: str = ""
    base_url: str | None = None
    key_variable: str | None = None
    context_tokens: int | None = None
    prices: str | None = None
    experiments: int = Field(ge=1)
    memory: MemoryArm = "on"
    skill: bool = False
    menu: MenuMode = "auto"
    budget_s: float | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0)
    max_usd: float | None = Field(default=None, gt=0)
    max_turns: int | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=180.0, gt=0)
    seed: int | None = Field(default=None, ge=0)
    choice_seed: int | None = Field(default=None, ge=0)

    @property
    def researcher(self) -> str:
        """Who researches, in a word."""
        return f"policy:{self.policy}" if self.policy else f"{self.provider}:{self.model}"

    @property
    def turns(self) -> int:
        """How many turns it may take."""
        return self.max_turns or _TURNS_MORE + _TURNS_EACH * self.experiments * (5 if self.policy else 1)


@dataclass(slots=True)
class Spent:
    """What a session has cost; each turn is counted once, also after a crash and a restart."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    wasted_tokens: int = 0
    estimated_turns: int = 0
    usd: float = 0.0
    unpriced_turns: int = 0
    seconds: float = 0.0
    turns: int = 0
    calls: int = 0
    invalid_calls: int = 0

    @property
    def tokens(self) -> int:
        """All tokens: read, written, and wasted on replies that were cut off."""
        return self.prompt_tokens + self.completion_tokens + self.wasted_tokens

    def add_turn(self, row: TurnRow) -> None:
        """Count a turn."""
        self.prompt_tokens += row.prompt_tokens
        self.cached_tokens += row.cached_tokens
        self.completion_tokens += row.completion_tokens
        self.wasted_tokens += row.wasted_tokens
        self.estimated_turns += row.estimated
        self.usd += row.cost_usd or 0.0
        self.unpriced_turns += row.cost_usd is None
        self.seconds += row.seconds
        self.turns += row.number > 0

    def add_call(self, row: CallRow) -> None:
        """Count a call."""
        self.calls += 1
        self.invalid_calls += not row.valid
        self.seconds += row.seconds

    def over(self, plan: Plan, counted: int) -> str | None:
        """Return which cap is reached, or None; a cap is looked at between turns, so the last turn may pass it."""
        caps: tuple[tuple[bool, str], ...] = (
            (counted >= plan.experiments, f"{counted} experiments done"),
            (plan.budget_s is not None and self.seconds >= plan.budget_s, f"the budget of {plan.budget_s} s is spent"),
            (plan.max_tokens is not None and self.tokens >= plan.max_tokens, f"{self.tokens:,} tokens are spent"),
            (plan.max_usd is not None and self.usd >= plan.max_usd, f"${self.usd:.4f} are spent"),
            (self.turns >= plan.turns, f"{self.turns} turns led to {counted} experiments"),
        )
        return next((reason for reached, reason in caps if reached), None)
