"""The trials of one search so far: where its knobs are, its recent keep rate, and the kind of each change."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from loopgraph_mcp.models import Move

_STEPS = ((0.15, "slightly"), (0.4, "somewhat"), (1.0, "much"), (math.inf, "vastly"))  # in logs of the value
_HALF_LIFE = 20  # changes: a search's keep rate falls as it goes on, and its last twenty changes say most of the next
_USUAL_RATE, _USUAL_CHANGES = 0.25, 4.0  # a quarter of a published search's first changes is kept; weight of that

# Where karpathy/autoresearch's train.py starts; used where a description gives a new value and no old one.
DEFAULTS: Mapping[str, float] = {
    "adam_beta1": 0.8, "adam_beta2": 0.95, "depth": 8, "embed_lr": 0.6, "final_lr": 0, "head_dim": 128,
    "matrix_lr": 0.04, "mlp_ratio": 4, "muon_ns": 5, "rope": 10_000, "scalar_lr": 0.5, "softcap": 15,
    "unembed_lr": 0.004, "warmdown": 0.5, "warmup": 0, "weight_decay": 0.2, "width": 64, "window": 0.25,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trial:
    """One program that was run.

    Args:
        moves: What it changed in its parent.
        kept: Whether the change was kept.
        metric_value: What it reached; None where it failed.
        gain: Its improvement over the best before it; None where it failed or nothing came before.
        is_change: False for a baseline or a replicate.
    """

    moves: tuple[Move, ...]
    kept: bool
    metric_value: float | None = None
    gain: float | None = None
    is_change: bool = True


@dataclass(slots=True)
class TrialHistory:
    """What the trials of one search show so far; `learn` takes them in order."""

    changes: int = 0
    current: dict[str, float] = field(default_factory=dict)
    _recent_keeps: float = 0.0
    _recent_changes: float = 0.0

    def learn(self, trial: Trial) -> None:
        """Add the next trial."""
        if not trial.is_change:
            return
        fading = 0.5 ** (1 / _HALF_LIFE)
        self.changes += 1
        self._recent_keeps = self._recent_keeps * fading + trial.kept
        self._recent_changes = self._recent_changes * fading + 1
        for move in trial.moves:
            if move.old is not None:
                self.current.setdefault(move.knob, move.old)
            if trial.kept and move.value is not None:
                self.current[move.knob] = move.value

    @property
    def keep_rate(self) -> float:
        """Share of recent changes that were kept, shrunk to the usual rate."""
        return (self._recent_keeps + _USUAL_CHANGES * _USUAL_RATE) / (self._recent_changes + _USUAL_CHANGES)

    def direction(self, move: Move) -> int:
        """Return which way a move goes from its knob's present value."""
        at = self.current.get(move.knob, DEFAULTS.get(move.knob))
        if move.value is None or at is None or move.value == at:
            return move.direction
        return 1 if move.value > at else -1

    def step(self, move: Move) -> str:
        """Return how far a move goes from its knob's present value, in proportion."""
        at = self.current.get(move.knob, DEFAULTS.get(move.knob)) if move.old is None else move.old
        if move.value is None:
            return "to no value"
        if at is None or at <= 0 or move.value <= 0:
            return "from no value"
        far = math.log(move.value / at)
        if far == 0:
            return "nowhere"
        return f"{'up' if far > 0 else 'down'} {next(word for size, word in _STEPS if abs(far) <= size)}"

    def kind(self, move: Move) -> str:
        """Return the kind of a move, under which trials are counted: `matrix_lr -1, down much`."""
        return f"{move.knob} {self.direction(move):+d}, {self.step(move)}"
