"""Replays histories in order and measures how well the prior ranks changes and how honest its probabilities are.

At every tenth row of a history the prior is frozen: it knows the rows before and other owners' histories, and ranks the
next twenty changes that were really tried. The primary figure is the order-balanced, gain-weighted AUC: the share of
pairs of a kept and a discarded change that are ranked right, a pair weighing log(1 + gain / sigma) of the kept one,
averaged over the pairs in which the kept change was tried first and those in which it was tried later. An agent tries
what it believes in first, so its own order scores exactly one half. Figures are means over an owner's pools, then over
owners; each other ranking is compared with the prior on the same pools.

Probabilities are judged on every change of a history, each predicted from the rows before it.
"""

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from loopgraph_mcp.ranking.features import Trial, TrialHistory
from loopgraph_mcp.ranking.knobs import FAMILIES
from loopgraph_mcp.ranking.prior import KindCount, Prior, count_kinds, wider

RESAMPLES = 2_000
_POOL, _EVERY, _SMALLEST_POOL, _LEAST_OF_A_KIND = 20, 10, 10, 2
_PICKS = 10
_SEEDS = 50  # of the random ranking: a single one is off by .02
_SIGMA = 0.001  # of the first metric: repeated baselines differ by .0008 on an H100 at 0.998 bpb
_BINS = 10


def is_held_out(owner: str) -> bool:
    """Return whether an owner's histories were set aside to judge the prior; docs/prior.md says when they were seen.

    The first bit of a hash of the name decides, so that no outcome does. Of the nine published owners fourcolors,
    karpathy, pimlock and trevin-creator are held out; ArmanJR, elementalcollision, markbriers, miolini and
    radozaprazny are those to choose on.
    """
    return hashlib.sha256(owner.encode()).digest()[0] >= 0x80


@dataclass(frozen=True, slots=True)
class Replay:
    """One history to be replayed; `fingerprint` tells it from others whatever its file is called."""

    name: str
    owner: str
    fingerprint: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class CountedHistory:
    """One history that the prior learns from."""

    owner: str
    fingerprint: str
    counts: tuple[KindCount, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference with its 95 % interval: owners, then their histories, drawn with replacement."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well one way of ranking does; each figure is a mean over owners.

    Args:
        weighted_auc: Order-balanced AUC, pairs weighed by the gain of the kept change.
        auc: Order-balanced AUC, pairs weighed alike.
        gain_share: Share of a pool's gain among the first ten of its order.
        prior_gain: By how much the prior's weighted AUC is higher; None of the prior itself.
    """

    weighted_auc: float
    auc: float
    gain_share: float
    prior_gain: Difference | None = None


@dataclass(frozen=True, slots=True)
class Bin:
    """Predicted and observed keep rate of the changes whose probability fell into one tenth."""

    p_keep: float
    kept: float
    changes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a backtest found.

    Args:
        prior: The prior's own figures; None where no pool has two changes of each kind.
        rankings: Others by name: baselines, and the prior without one of its parts.
        by_owner: The prior's weighted AUC and the plain counts' for each owner.
        pools: Pools that were ranked.
        changes: Changes whose probability was predicted.
        brier: Mean squared error of the probabilities, over an owner's changes and then over owners.
        brier_recent_rate: The same of always predicting the recent keep rate.
        brier_difference: The first minus the second; below zero is better.
        calibration: Over all changes.
    """

    prior: Ranking | None
    rankings: Mapping[str, Ranking]
    by_owner: Mapping[str, tuple[float, float]]
    histories: int
    pools: int
    changes: int
    brier: float | None
    brier_recent_rate: float | None
    brier_difference: Difference | None
    calibration: tuple[Bin, ...]


def order_balanced_auc(scores: Sequence[float], weights: Sequence[float | None]) -> float | None:
    """Return the AUC of scores in the order in which changes were tried; None where a kind of pair is missing.

    Args:
        scores: One of each change, in that order.
        weights: What a pair with this kept change weighs; None for a discarded change.
    """
    right, pairs = [0.0, 0.0], [0.0, 0.0]
    for i, weight in enumerate(weights):
        for j, other in enumerate(weights):
            if weight is not None and other is None:
                later = int(i > j)
                right[later] += weight * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
                pairs[later] += weight
    if not all(pairs):
        return None
    return (right[0] / pairs[0] + right[1] / pairs[1]) / 2


def gain_share(scores: Sequence[float], gains: Sequence[float]) -> float | None:
    """Return the share of the gains that the first ten of an order hold, ties shared out; None without gains."""
    total, share, left = math.fsum(gains), 0.0, _PICKS
    if not total:
        return None
    for score in sorted(set(scores), reverse=True):
        tied = [gain for gain, own in zip(gains, scores, strict=True) if own == score]
        taken = min(left, len(tied))
        share += math.fsum(tied) * taken / len(tied)
        left -= taken
    return share / total


# ----------------------------------------------------------------------------------------------- rankings

PLAIN, RANDOM = "plain counts of knob x direction", "random"
_PRIOR = "LoopGraph"
Ranker = Callable[[TrialHistory, Sequence[Trial]], list[float]]


def _rankers(pooled: Sequence[KindCount], own: Sequence[KindCount] | None, prior: Prior) -> dict[str, list[Ranker]]:
    """Return the rankings of one history's changes by name; the figures of a name are the mean over its rankers."""
    without = {} if own is None else {"without own other searches": [_by_prior(Prior(pooled))]}
    own = own or []
    alike = [replace(each, owner=str(place)) for place, each in enumerate(pooled)]  # none is large
    return {
        _PRIOR: [_by_prior(prior)],
        "without steps": [_by_prior(Prior(_stepless(pooled), _stepless(own)))],
        "without weights of owners": [_by_prior(Prior(alike, own))],
        PLAIN: [_plain([*pooled, *own], wider)],
        "plain counts of family x direction": [_plain([*pooled, *own], _family)],
        "agent order": [_agent_order],
        RANDOM: [_at_random(seed) for seed in range(_SEEDS)],
        **without,
    }


def _by_prior(prior: Prior) -> Ranker:
    return lambda history, pool: [prior.estimate(each.moves, history).log_ratio for each in pool]


def _stepless(counts: Iterable[KindCount]) -> list[KindCount]:
    return [replace(each, kind=f"{wider(each.kind)}, ") for each in counts]


def _plain(counts: Iterable[KindCount], key: Callable[[str], str]) -> Ranker:
    """Return a ranker by the share of keeps among all trials, whoever made them."""
    kept, trials = Counter[str](), Counter[str]()
    for count in counts:
        kept[key(count.kind)] += count.kept
        trials[key(count.kind)] += count.trials

    def rate(kind: str) -> float:
        return (kept[key(kind)] + 1) / (trials[key(kind)] + 6)

    return lambda history, pool: [fmean(rate(history.kind(move)) for move in each.moves) for each in pool]


def _family(kind: str) -> str:
    knob, _, direction = wider(kind).rpartition(" ")
    return f"{FAMILIES.get(knob, 'other')} {direction}"


def _agent_order(_: TrialHistory, pool: Sequence[Trial]) -> list[float]:
    return [-float(place) for place in range(len(pool))]


def _at_random(seed: int) -> Ranker:
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    return lambda _, pool: [chance.random() for _ in pool]


# ------------------------------------------------------------------------------------------------- replay


@dataclass(frozen=True, slots=True)
class _Value:
    """One value of one history, to be averaged over owners."""

    owner: str
    history: str
    value: float


@dataclass(slots=True)
class _Tally:
    """What the replays give: figures of each ranking in the order of the pools, and each change's probability."""

    pools: int = 0
    weighted_aucs: dict[str, list[_Value]] = field(default_factory=lambda: defaultdict(list))
    aucs: dict[str, list[_Value]] = field(default_factory=lambda: defaultdict(list))
    gain_shares: dict[str, list[_Value]] = field(default_factory=lambda: defaultdict(list))
    errors: list[_Value] = field(default_factory=list)
    errors_of_rate: list[_Value] = field(default_factory=list)
    predicted: list[tuple[float, bool]] = field(default_factory=list)

    def rank(self, replay: Replay, rankers: Mapping[str, list[Ranker]]) -> None:
        """Let all rankers rank the pools of one history."""
        first = next((each.metric_value for each in replay.trials if each.metric_value is not None), None)
        sigma = _SIGMA * abs(first or 1.0) or _SIGMA
        for history, pool in pools(replay.trials):
            self.pools += 1
            gains = [max(each.gain or 0.0, 0.0) * each.kept for each in pool]
            alike = [1.0 if each.kept else None for each in pool]
            weights = [math.log1p(gain / sigma) if each.kept else None for each, gain in zip(pool, gains, strict=True)]
            for name, several in rankers.items():
                scores = [rank(history, pool) for rank in several]
                for into, figures in (
                    (self.weighted_aucs, [order_balanced_auc(each, weights) for each in scores]),
                    (self.aucs, [order_balanced_auc(each, alike) for each in scores]),
                    (self.gain_shares, [gain_share(each, gains) for each in scores]),
                ):
                    known = [each for each in figures if each is not None]
                    into[name] += [_Value(replay.owner, replay.name, fmean(known))] if known else []

    def predict(self, replay: Replay, prior: Prior) -> None:
        """Compare each change's probability, from the rows before it, with what became of it."""
        history = TrialHistory()
        for trial in replay.trials:
            if trial.is_change:
                rate, p_keep = history.keep_rate, prior.estimate(trial.moves, history).p_keep
                self.errors.append(_Value(replay.owner, replay.name, (p_keep - trial.kept) ** 2))
                self.errors_of_rate.append(_Value(replay.owner, replay.name, (rate - trial.kept) ** 2))
                self.predicted.append((p_keep, trial.kept))
            history.learn(trial)

    def ranking(self, name: str) -> Ranking | None:
        """Return the figures of one ranking; None where no pool has both kinds of pairs."""
        found = self.weighted_aucs[name]
        if not found:
            return None
        better = None if name == _PRIOR else _difference(self.weighted_aucs[_PRIOR], found)
        return Ranking(_mean(found), _mean(self.aucs[name]), _mean(self.gain_shares[name]), better)


def pools(trials: Sequence[Trial]) -> Iterator[tuple[TrialHistory, list[Trial]]]:
    """Yield the history before every tenth row with the next twenty changes, ten at least and two of each kind.

    A history starts from its baseline: what was run before the first change is known to the first pool.
    """
    first = next((row for row, each in enumerate(trials) if each.is_change), 0)
    history, learned = TrialHistory(), 0
    for start in range(0, len(trials), _EVERY):
        for trial in trials[learned : max(start, first)]:
            history.learn(trial)
        learned = max(start, first)
        pool = [each for each in trials[start:] if each.is_change][:_POOL]
        kept = sum(each.kept for each in pool)
        if len(pool) >= _SMALLEST_POOL and min(kept, len(pool) - kept) >= _LEAST_OF_A_KIND:
            yield history, pool


def run(
    replays: Sequence[Replay],
    memory: Sequence[CountedHistory],
    *,
    own_searches: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Replay histories, each predicted from the histories of other owners.

    Args:
        replays: Histories to be predicted.
        memory: Histories to learn from.
        own_searches: Whether an owner's other histories are known too, as the owner's other searches.
        progress: Called with each history's name as its turn comes.
    """
    tally = _Tally()
    for replay in replays:
        progress(replay.name)
        others = [each for each in memory if each.owner != replay.owner]
        same = [each for each in memory if each.owner == replay.owner and each.fingerprint != replay.fingerprint]
        pooled = [count for each in others for count in each.counts]
        own = [count for each in same for count in each.counts] if own_searches else None
        prior = Prior(pooled, own or ())
        tally.rank(replay, _rankers(pooled, own, prior))
        tally.predict(replay, prior)
    rankings = {name: ranking for name in tally.weighted_aucs if (ranking := tally.ranking(name)) is not None}
    ours, plain = (_by_owner(tally.weighted_aucs[name]) for name in (_PRIOR, PLAIN))
    return Report(
        prior=rankings.pop(_PRIOR, None),
        rankings=rankings,
        by_owner={owner: (fmean(ours[owner]), fmean(plain[owner])) for owner in sorted(ours)},
        histories=len(replays),
        pools=tally.pools,
        changes=len(tally.predicted),
        brier=_mean(tally.errors) if tally.errors else None,
        brier_recent_rate=_mean(tally.errors_of_rate) if tally.errors else None,
        brier_difference=_difference(tally.errors, tally.errors_of_rate),
        calibration=_calibration(tally.predicted),
    )


def counted(replay: Replay) -> CountedHistory:
    """Return what the prior learns from a history."""
    return CountedHistory(replay.owner, replay.fingerprint, tuple(count_kinds(replay.trials, owner=replay.owner)))


# ------------------------------------------------------------------------------------------------ figures


def _by_owner(values: Iterable[_Value]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for each in values:
        found[each.owner].append(each.value)
    return found


def _mean(values: Iterable[_Value]) -> float:
    return fmean(map(fmean, _by_owner(values).values()))


def _difference(ours: Sequence[_Value], others: Sequence[_Value]) -> Difference | None:
    """Return the mean of one less the other over owners, with the interval; None with a single history."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one, other in zip(ours, others, strict=True):
        found[one.owner][one.history].append(one.value - other.value)
    owners = [[*histories.values()] for histories in found.values()]
    if sum(map(len, owners)) < 2:
        return None
    # A mean over drawn histories needs their sums and counts alone.
    sums = [[(math.fsum(values), len(values)) for values in histories] for histories in owners]
    chance = random.Random(0)  # noqa: S311 - not for secrets; the same interval in every run
    drawn = sorted(
        fmean(_pooled_mean(chance.choices(each, k=len(each))) for each in chance.choices(sums, k=len(sums)))
        for _ in range(RESAMPLES)
    )
    return Difference(fmean(map(_pooled_mean, sums)), drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES) - 1])


def _pooled_mean(sums: Sequence[tuple[float, int]]) -> float:
    return math.fsum(total for total, _ in sums) / sum(count for _, count in sums)


def _calibration(predicted: Iterable[tuple[float, bool]]) -> tuple[Bin, ...]:
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for p_keep, kept in predicted:
        bins[min(int(p_keep * _BINS), _BINS - 1)].append((p_keep, kept))
    return tuple(
        Bin(fmean(p_keep for p_keep, _ in found), fmean(kept for _, kept in found), len(found))
        for _, found in sorted(bins.items())
    )
