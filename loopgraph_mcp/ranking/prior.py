"""Predicts which changes are kept: counts of such changes in other histories, around the search's recent keep rate.

Trials are pooled by knob and direction, and those again by the size of the step. A rate of few trials is shrunk to the
wider one before it, the widest to the rate of all changes. The trials of the same user's other searches are counted
the same way, on top of the pool. How often such changes were kept, over how often any was, multiplies the odds of the
search's recent keep rate. What was measured and left out is in docs/prior.md.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Self

from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.features import Trial, TrialHistory

_SHRINKAGE = 30  # trials that weigh as much as the wider rate; from 10 to 80 the figures hardly differ
_LARGE_OWNER = 100  # trials; two thirds of the published ones are one owner's, so that larger ones count by their root
_USUAL_RATE, _USUAL_TRIALS = 0.18, 10  # keep rate of published histories, and its weight where few trials are known


@dataclass(frozen=True, slots=True)
class KindCount:
    """How often one kind of change was tried in one history, and kept.

    Args:
        owner: Whose history it is; an owner's counts do not predict the same owner's changes.
        kind: Knob, direction and step, as `TrialHistory.kind` names them.
    """

    owner: str
    kind: str
    kept: int
    trials: int


def wider(kind: str) -> str:
    """Return a kind without its step: `matrix_lr -1, down much` is one of `matrix_lr -1`."""
    return kind.rpartition(", ")[0]


def count_kinds(trials: Sequence[Trial], *, owner: str) -> list[KindCount]:
    """Return the counts of a whole history."""
    kept, tried = Counter[str](), Counter[str]()
    history = TrialHistory()
    for trial in trials:
        if trial.is_change:
            kinds = [history.kind(move) for move in trial.moves]
            tried.update(kinds)
            kept.update(kinds if trial.kept else ())
        history.learn(trial)
    return [KindCount(owner, kind, kept[kind], tried[kind]) for kind in sorted(tried)]


@dataclass(frozen=True, slots=True)
class PooledRate:
    """How changes of one knob in one direction went.

    Args:
        trials: How often they were tried.
        ratio: How often they were kept, over how often any change was.
    """

    trials: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The prediction for one change.

    Args:
        p_keep: Probability that it is kept.
        log_ratio: Log of how often such changes are kept over how often any is; what changes are ranked by.
        keep_rate: The search's recent keep rate.
        pooled: Its first move in other people's histories.
        own: Its first move in the user's other searches.
    """

    p_keep: float
    log_ratio: float
    keep_rate: float
    pooled: PooledRate | None = None
    own: PooledRate | None = None

    def with_odds(self, factor: float) -> Self:
        """Return the same with the odds multiplied, such as by a method's own record."""
        return replace(self, p_keep=_probability(factor * _odds(self.p_keep)))


class Prior:
    """Predicts changes from counts of other people's histories and of the user's other searches."""

    def __init__(self, pooled: Iterable[KindCount], own: Iterable[KindCount] = ()) -> None:
        pooled = list(pooled)
        sizes = Counter[str]()
        for count in pooled:
            sizes[count.owner] += count.trials
        weights = {owner: (max(size, _LARGE_OWNER) / _LARGE_OWNER) ** -0.5 for owner, size in sizes.items()}
        self._pooled, self._own = _Rates(pooled, weights), _Rates(own, {})
        self._log_ratios: dict[str, float] = {}

    def estimate(self, moves: Sequence[Move], history: TrialHistory) -> Estimate:
        """Return the prediction for a change, given the trials before it."""
        kinds = [history.kind(move) for move in moves]
        log_ratio = fmean(map(self.log_ratio, kinds)) if kinds else 0.0
        rate = history.keep_rate
        p_keep = _probability(_odds(rate) * math.exp(log_ratio))
        if not kinds:
            return Estimate(p_keep, log_ratio, rate)
        first = wider(kinds[0])
        return Estimate(p_keep, log_ratio, rate, self._pooled.of(first), self._own.of(first))

    def log_ratio(self, kind: str) -> float:
        """Return the log of how often one kind of change is kept over how often any is."""
        if kind not in self._log_ratios:
            ratio = 1.0
            for rates in (self._pooled, self._own):
                for each in (wider(kind), kind):
                    ratio = rates.shrunk(each, ratio)
            self._log_ratios[kind] = math.log(ratio)
        return self._log_ratios[kind]


class _Rates:
    """Weighted keeps and trials of each kind, and of each kind without its step."""

    def __init__(self, counts: Iterable[KindCount], weights: dict[str, float]) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._trials = Counter[str]()
        kept, trials = _USUAL_RATE * _USUAL_TRIALS, float(_USUAL_TRIALS)
        for count in counts:
            weight = weights.get(count.owner, 1.0)
            kept += weight * count.kept
            trials += weight * count.trials
            for kind in (wider(count.kind), count.kind):
                self._sums[kind][0] += weight * count.kept
                self._sums[kind][1] += weight * count.trials
                self._trials[kind] += count.trials
        self._rate = kept / trials

    def shrunk(self, kind: str, ratio: float) -> float:
        """Return the ratio of a kind's keep rate to that of all changes, shrunk to a wider kind's ratio."""
        kept, trials = self._sums.get(kind, (0.0, 0.0))
        return (kept / self._rate + _SHRINKAGE * ratio) / (trials + _SHRINKAGE)

    def of(self, kind: str) -> PooledRate | None:
        """Return how a kind of change went, unshrunk; None where it was not tried."""
        if not self._trials[kind]:
            return None
        kept, trials = self._sums[kind]
        return PooledRate(self._trials[kind], kept / trials / self._rate)


def _odds(probability: float) -> float:
    return probability / (1 - probability)


def _probability(odds: float) -> float:
    return odds / (1 + odds)
