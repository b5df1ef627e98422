"""The tries of one history, and how a move stands to them: which way it goes, how far, to what place."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loopgraph_mcp.models import Move

_STEPS = ((0.15, "slightly"), (0.4, "somewhat"), (1.0, "much"), (math.inf, "vastly"))  # in logs of the value
_RATE_PRIOR = (1.5, 8.0)  # keeps and tries before the first: about 19 %, as in published histories

# Where karpathy/autoresearch's train.py starts, as far as a move's way is only told by its value.
DEFAULTS: Mapping[str, float] = {
    "adam_beta1": 0.8, "adam_beta2": 0.95, "depth": 8, "embed_lr": 0.6, "final_lr": 0, "head_dim": 128,
    "matrix_lr": 0.04, "mlp_ratio": 4, "muon_ns": 5, "rope": 10_000, "scalar_lr": 0.5, "softcap": 15,
    "unembed_lr": 0.004, "warmdown": 0.5, "warmup": 0, "weight_decay": 0.2, "width": 64, "window": 0.25,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Try:
    """One change that was run.

    Args:
        moves: What it moved.
        kept: Whether it stayed.
        metric_value: What it reached; None where it failed.
        gain: Its improvement over the best before it; None where it failed or nothing came before.
        is_change: False for a baseline or a replicate: it moved nothing.
    """

    moves: tuple[Move, ...]
    kept: bool
    metric_value: float | None = None
    gain: float | None = None
    is_change: bool = True


@dataclass(frozen=True, slots=True)
class Tried:
    """One move of one knob, as it was made."""

    direction: int
    value: float | None
    kept: bool


@dataclass(slots=True)
class Past:
    """What one history has taught so far; `learn` takes its tries in order.

    Args:
        higher_is_better: Which way its metric improves.
    """

    higher_is_better: bool = False
    learned: int = 0
    changes: int = 0
    keeps: int = 0
    first: float | None = None
    best: float | None = None
    knobs: dict[str, list[Tried]] = field(default_factory=lambda: defaultdict(list))
    current: dict[str, float] = field(default_factory=dict)

    def learn(self, done: Try) -> None:
        """Take in one try."""
        self.learned += 1
        value = done.metric_value if done.metric_value is not None and math.isfinite(done.metric_value) else None
        if value is not None and self.first is None:
            self.first = self.best = value
        if not done.is_change:
            return
        self.changes += 1
        self.keeps += done.kept
        for move in done.moves:
            if move.old is not None:
                self.current.setdefault(move.knob, move.old)
            self.knobs[move.knob].append(Tried(self.direction(move), move.value, done.kept))
            if done.kept and move.value is not None:
                self.current[move.knob] = move.value
        if done.kept and value is not None and self.best is not None:
            self.best = max(self.best, value) if self.higher_is_better else min(self.best, value)

    @property
    def keep_rate(self) -> float:
        """Share of changes kept so far, shrunken to what is usual."""
        return (self.keeps + _RATE_PRIOR[0]) / (self.changes + _RATE_PRIOR[1])

    @property
    def level(self) -> tuple[float, float] | None:
        """Logs of the metric at the start and now; None where there is none or it is not positive."""
        if self.first is None or self.best is None or min(self.first, self.best) <= 0:
            return None
        return math.log(self.first), math.log(self.best)

    def direction(self, move: Move) -> int:
        """Return which way a move goes from where its knob stands now."""
        at = self.current.get(move.knob, DEFAULTS.get(move.knob))
        if move.value is None or at is None or move.value == at:
            return move.direction
        return 1 if move.value > at else -1

    def place(self, move: Move) -> str:
        """Return how a move's value lies among those that were tried."""
        tried = self.knobs.get(move.knob, [])
        said = "at a value" if move.value is not None else "without a value"
        if not tried:
            return f"new, {said}"
        if move.value is None:
            return f"after a {'keep' if tried[-1].kept else 'failure'}, {said}"
        if any(each.value == move.value for each in tried):
            return (
                f"value {'kept' if any(each.value == move.value and each.kept for each in tried) else 'failed'} before"
            )
        at = self.current.get(move.knob)
        if at is None or at == move.value:
            return "no other value known"
        return self._among(move.value, at, tried)

    @staticmethod
    def _among(value: float, at: float, tried: Sequence[Tried]) -> str:
        way = 1 if value > at else -1
        failed = [(each.value - at) * way for each in tried if each.value is not None and not each.kept]
        reach = (value - at) * way
        if any(0 < each < reach for each in failed):
            side = "beyond a failure"
        elif any(each > reach for each in failed):
            side = "short of a failure"
        else:
            side = "open side"
        other = ", other side failed" if any(each < 0 for each in failed) else ""
        return side + other + (", moved before" if any(each.kept for each in tried) else "")

    def step(self, move: Move) -> str:
        """Return how far a move goes from where its knob stands, in proportion."""
        at = self.current.get(move.knob, DEFAULTS.get(move.knob)) if move.old is None else move.old
        if move.value is None:
            return "to no value"
        if at is None or at <= 0 or move.value <= 0:
            return "from no value"
        far = math.log(move.value / at)
        if far == 0:
            return "nowhere"
        return f"{'up' if far > 0 else 'down'} {next(word for size, word in _STEPS if abs(far) <= size)}"

    def lately(self, move: Move) -> str:
        """Return how a knob's last move ended, and whether it went the same way."""
        tried = self.knobs.get(move.knob)
        if not tried:
            return "never moved"
        way = "the same way" if tried[-1].direction == self.direction(move) else "another way"
        return f"{'kept' if tried[-1].kept else 'failed'}, {way}"
