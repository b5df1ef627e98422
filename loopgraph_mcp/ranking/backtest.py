"""Replays histories in order and judges who foretells best which changes are kept.

The primary figure is the order-balanced AUC on frozen pools. At every tenth row of a history the memory is frozen: it
knows what came earlier and what other owners' histories teach. It scores the next twenty changes that were really
tried, and then it learns. The AUC is the share of pairs of a kept and an unkept change that the scores put in the right
order, averaged over the pairs in which the keep came first and those in which it came later: an agent tries what it
believes in first, and so its own order scores exactly one half. Pools that lack one kind of pair say nothing.
"""

import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking import prior
from loopgraph_mcp.ranking.features import Past, Try
from loopgraph_mcp.ranking.knobs import FAMILIES
from loopgraph_mcp.ranking.prior import Foreseen, Foresight, Lesson, lessons, windows

RESAMPLES = 2_000
_TOP = 5
_SKIPPED = 0.2
_RELATIVE_NOISE = 0.001  # of the metric: repeated baselines differ by .0008 on an H100 at 0.998 bpb
_BINS = 10


@dataclass(frozen=True, slots=True)
class Replay:
    """One history to be replayed.

    Args:
        texts: The outcome-stripped description of each try, in their order.
    """

    name: str
    owner: str
    tries: tuple[Try, ...]
    texts: tuple[str, ...]
    higher_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a ranker may know when it scores a pool: nothing of the pool's own outcomes."""

    past: Past
    before: tuple[tuple[Try, str], ...]
    owner: str


Ranker = Callable[[Frozen, Sequence[tuple[Try, str]]], list[float]]


@dataclass(frozen=True, slots=True)
class HistoryFigures:
    """The figures of one history."""

    name: str
    owner: str
    pools: int
    auc: float | None
    auc_above_noise: float | None
    baselines: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Bin:
    """Foretold against seen, for changes whose probability of being kept fell into one tenth."""

    foretold: float
    kept: float
    changes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a backtest found; AUCs are averaged over pools, then over histories.

    Args:
        ci95: Of the AUC, by resampling owners.
        pools: Pools with both kinds of pairs.
        above_noise: AUC where only gains above the noise count as kept.
        first_win_rank: Mean place of the first keep in a pool's order, and the mean that chance would give.
        top_lift: Keeps among a pool's best five over what chance would give.
        repeats: Changes that repeat a failed one: how many, how many were warned of, how many of the warned were kept.
        calibration: Foretold against seen.
        brier: Mean squared error of the probabilities, and that of always saying the history's keep rate so far.
        runs_saved: Share of runs that skipping the worst fifth of each pool saves.
        gain_lost: Share of the kept gains that it loses.
        ablation: The AUC with one part of the score left out.
    """

    order_balanced_auc: float | None
    ci95: tuple[float, float] | None
    owners_mean: float | None
    histories: int
    pools: int
    above_noise: float | None
    first_win_rank: tuple[float, float] | None
    top_lift: float | None
    repeats: tuple[int, int, int]
    calibration: tuple[Bin, ...]
    brier: tuple[float, float] | None
    runs_saved: float
    gain_lost: float
    baselines: Mapping[str, float]
    ablation: Mapping[str, float]
    per_history: tuple[HistoryFigures, ...]


def order_balanced_auc(scores: Sequence[float], kept: Sequence[bool]) -> float | None:
    """Return the AUC of scores in the order in which changes were tried; None where a kind of pair is missing."""
    right, pairs = [0.0, 0.0], [0, 0]
    for i, keep in enumerate(kept):
        for j, other in enumerate(kept):
            if keep and not other:
                later = int(i > j)
                right[later] += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
                pairs[later] += 1
    if not all(pairs):
        return None
    return (right[0] / pairs[0] + right[1] / pairs[1]) / 2


# ------------------------------------------------------------------------------------------------ baselines


def _key(move: Move, past: Past) -> str:
    return prior.about_move(move, past.direction(move))


def agent_order(_: Frozen, pool: Sequence[tuple[Try, str]]) -> list[float]:
    """Score changes in the order in which the agent tried them."""
    return [-float(place) for place in range(len(pool))]


def at_random(frozen: Frozen, pool: Sequence[tuple[Try, str]]) -> list[float]:
    """Score changes by chance, the same in every run."""
    chance = random.Random(f"{frozen.owner} {len(frozen.before)}")  # noqa: S311 - not for secrets
    return [chance.random() for _ in pool]


def family_here(frozen: Frozen, pool: Sequence[tuple[Try, str]]) -> list[float]:
    """Score a change by how often its family was kept in this history."""
    seen: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for done, _ in frozen.before:
        for move in done.moves if done.is_change else ():
            seen[FAMILIES.get(move.knob, "other")][0] += done.kept
            seen[FAMILIES.get(move.knob, "other")][1] += 1
    rates = {family: (kept + 1) / (tries + 6) for family, (kept, tries) in seen.items()}
    return [fmean(rates.get(FAMILIES.get(move.knob, "other"), 1 / 6) for move in each.moves) for each, _ in pool]


def pooled_counts(histories: Iterable[Replay]) -> Ranker:
    """Return a ranker by how often a knob moved this way was kept in other owners' histories, all rows alike."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for history in histories:
        past = Past(history.higher_is_better)
        for each in history.tries:
            for move in each.moves if each.is_change else ():
                seen = counts[history.owner, _key(move, past)]
                seen[0] += each.kept
                seen[1] += 1
            past.learn(each)
    by_key: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for (owner, key), (kept, tries) in counts.items():
        by_key[key].append((owner, kept, tries))

    def rate(move: Move, frozen: Frozen) -> float:
        others = [each for each in by_key[_key(move, frozen.past)] if each[0] != frozen.owner]
        return (sum(each[1] for each in others) + 1) / (sum(each[2] for each in others) + 6)

    return lambda frozen, pool: [fmean(rate(move, frozen) for move in each.moves) for each, _ in pool]


def unlike_failures(frozen: Frozen, pool: Sequence[tuple[Try, str]]) -> list[float]:
    """Score a change by how little its words are like those of the failure most like it."""
    failed = [_words(text) for done, text in frozen.before if done.is_change and not done.kept]
    return [-max((_jaccard(_words(text), other) for other in failed), default=0.0) for _, text in pool]


def by_category(classify: Callable[[str], object]) -> Ranker:
    """Return a ranker by the share of keeps of a change's category in this history, categories being another tool's."""

    def score(frozen: Frozen, pool: Sequence[tuple[Try, str]]) -> list[float]:
        seen: dict[object, list[int]] = defaultdict(lambda: [0, 0])
        for done, text in frozen.before:
            if done.is_change:
                seen[classify(text)][0] += done.kept
                seen[classify(text)][1] += 1
        rates = {category: (kept + 1) / (tries + 6) for category, (kept, tries) in seen.items()}
        return [rates.get(classify(text), 1 / 6) for _, text in pool]

    return score


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


# --------------------------------------------------------------------------------------------------- replay


@dataclass(slots=True)
class _Tally:
    """What is counted over all pools."""

    first_ranks: list[tuple[float, float]] = field(default_factory=list)
    top: list[tuple[float, float]] = field(default_factory=list)
    foretold: list[tuple[float, float, bool]] = field(default_factory=list)
    gains: list[tuple[float, float]] = field(default_factory=list)
    skipped: list[tuple[int, int]] = field(default_factory=list)

    def add(self, pool: Sequence[Try], foreseen: Sequence[Foreseen], rate: float) -> None:
        """Count one pool."""
        order = sorted(range(len(pool)), key=lambda place: (-foreseen[place].score, place))
        kept = [pool[place].kept for place in order]
        chance = (len(pool) + 1) / (sum(kept) + 1)
        self.first_ranks.append((kept.index(True) + 1, chance))
        self.top.append((sum(kept[:_TOP]), sum(kept) * _TOP / len(pool)))
        self.foretold += [(seen.p_keep, rate, each.kept) for seen, each in zip(foreseen, pool, strict=True)]
        worst = order[len(order) - int(_SKIPPED * len(order)) :]
        gain = {place: max(each.gain or 0.0, 0.0) * each.kept for place, each in enumerate(pool)}
        self.gains.append((math.fsum(gain[place] for place in worst), math.fsum(gain.values())))
        self.skipped.append((len(worst), len(pool)))


def run(
    histories: Sequence[Replay],
    memory: Sequence[Lesson],
    *,
    others: Sequence[Replay] = (),
    extra: Mapping[str, Ranker] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Replay histories against a memory; lessons of a history's own owner never count for it.

    Args:
        histories: What is judged.
        memory: What other histories taught.
        others: The histories behind the memory, for the baseline that pools their counts.
        extra: More baselines by name.
        progress: Called with each history's name as its turn comes.
    """
    rankers: dict[str, Ranker] = {
        "random": at_random,
        "agent order": agent_order,
        "family win rate here": family_here,
        "family x direction, pooled over other owners": pooled_counts(others),
        "unlike past failures, by text": unlike_failures,
        **(extra or {}),
    }
    tally, figures, parts = _Tally(), list[HistoryFigures](), list[Mapping[str, float]]()
    sights = {owner: Foresight(memory, without=owner) for owner in {each.owner for each in histories}}
    for history in histories:
        progress(history.name)
        found, without = _replay(history, sights[history.owner], rankers, tally)
        figures.append(found)
        parts.append(without)
    scored = [each for each in figures if each.auc is not None]
    return Report(
        order_balanced_auc=_mean(each.auc for each in figures),
        ci95=_interval(scored),
        owners_mean=_mean(_mean(each.auc for each in scored if each.owner == owner) for owner in _owners(scored)),
        histories=len(scored),
        pools=sum(each.pools for each in figures),
        above_noise=_mean(each.auc_above_noise for each in figures),
        first_win_rank=_means(tally.first_ranks),
        top_lift=_ratio(tally.top),
        repeats=_repeats(histories),
        calibration=_calibration(tally.foretold),
        brier=_brier(tally.foretold),
        runs_saved=_ratio(tally.skipped) or 0.0,
        gain_lost=_ratio(tally.gains) or 0.0,
        baselines={name: _mean(each.baselines.get(name) for each in scored) or 0.5 for name in rankers},
        ablation={name: _mean(each.get(name) for each in parts) or 0.5 for name in _WITHOUT},
        per_history=tuple(figures),
    )


_WITHOUT: Mapping[str, Callable[[Foreseen], float]] = {
    "elsewhere alone": lambda seen: seen.parts.elsewhere,
    "without elsewhere": lambda seen: seen.score - seen.parts.elsewhere,
    "without place": lambda seen: seen.score - prior.PLACE_WEIGHT * seen.parts.place,
    "without lately": lambda seen: seen.score - prior.LATELY_WEIGHT * seen.parts.lately,
}


def _replay(
    history: Replay, sight: Foresight, rankers: Mapping[str, Ranker], tally: _Tally
) -> tuple[HistoryFigures, Mapping[str, float]]:
    rows = list(zip(history.tries, history.texts, strict=True))
    past, learned = Past(history.higher_is_better), 0
    aucs: dict[str, list[float]] = defaultdict(list)
    for start, _ in windows(history.tries):
        for done, _text in rows[learned:start]:
            past.learn(done)
        learned = start
        pool = [each for each in rows[start:] if each[0].is_change][: prior.WINDOW]
        tries = [each for each, _ in pool]
        kept = [each.kept for each in tries]
        foreseen = [sight.foresee(each.moves, past) for each in tries]
        tally.add(tries, foreseen, past.keep_rate)
        frozen = Frozen(past, tuple(rows[:start]), history.owner)
        scores = {name: rank(frozen, pool) for name, rank in rankers.items()}
        scores["ours"] = [seen.score for seen in foreseen]
        scores |= {name: [score(seen) for seen in foreseen] for name, score in _WITHOUT.items()}
        for name, given in scores.items():
            if (auc := order_balanced_auc(given, kept)) is not None:
                aucs[name].append(auc)
        noise = _RELATIVE_NOISE * abs(past.first or 0.0)
        above = [each.kept and each.gain is not None and each.gain > noise for each in tries]
        if (auc := order_balanced_auc(scores["ours"], above)) is not None:
            aucs["above noise"].append(auc)
    means = {name: fmean(found) for name, found in aucs.items()}
    baselines = {name: means[name] for name in rankers if name in means}
    ours = means.get("ours")
    made = HistoryFigures(history.name, history.owner, len(aucs["ours"]), ours, means.get("above noise"), baselines)
    return made, {name: means[name] for name in _WITHOUT if name in means}


def _repeats(histories: Sequence[Replay]) -> tuple[int, int, int]:
    """Count changes that repeat a failed one, those of them warned of, and the warned changes that were kept."""
    repeats = caught = wrong = 0
    for history in histories:
        past, failed = Past(history.higher_is_better), set[str]()
        for done, text in zip(history.tries, history.texts, strict=True):
            if done.is_change:
                warned = bool(done.moves) and all(past.place(move) in _FAILED_BEFORE for move in done.moves)
                repeats += text in failed
                caught += text in failed and warned
                wrong += warned and done.kept
                if not done.kept:
                    failed.add(text)
            past.learn(done)
    return repeats, caught, wrong


_FAILED_BEFORE = frozenset({"value failed before", "after a failure, without a value"})


# -------------------------------------------------------------------------------------------------- figures


def _owners(figures: Sequence[HistoryFigures]) -> list[str]:
    return sorted({each.owner for each in figures})


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    return (fmean(one for one, _ in pairs), fmean(other for _, other in pairs)) if pairs else None


def _ratio(pairs: Sequence[tuple[float, float]]) -> float | None:
    below = math.fsum(other for _, other in pairs)
    return math.fsum(one for one, _ in pairs) / below if below else None


def _interval(figures: Sequence[HistoryFigures]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean over histories, owners drawn with replacement, the same in every run."""
    by_owner = {owner: [each.auc or 0.0 for each in figures if each.owner == owner] for owner in _owners(figures)}
    if len(by_owner) < 2:
        return None
    chance = random.Random(0)  # noqa: S311 - not for secrets
    drawn = []
    for _ in range(RESAMPLES):
        owners = chance.choices(list(by_owner), k=len(by_owner))
        drawn.append(fmean(auc for owner in owners for auc in by_owner[owner]))
    drawn.sort()
    return drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES) - 1]


def _calibration(foretold: Sequence[tuple[float, float, bool]]) -> tuple[Bin, ...]:
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for p_keep, _, kept in foretold:
        bins[min(int(p_keep * _BINS), _BINS - 1)].append((p_keep, kept))
    return tuple(
        Bin(fmean(p for p, _ in found), fmean(kept for _, kept in found), len(found))
        for _, found in sorted(bins.items())
    )


def _brier(foretold: Sequence[tuple[float, float, bool]]) -> tuple[float, float] | None:
    if not foretold:
        return None
    return (
        fmean((p_keep - kept) ** 2 for p_keep, _, kept in foretold),
        fmean((rate - kept) ** 2 for _, rate, kept in foretold),
    )


def taught_by(histories: Iterable[Replay]) -> list[Lesson]:
    """Return the lessons of histories."""
    return [
        lesson
        for history in histories
        for lesson in lessons(history.tries, owner=history.owner, higher_is_better=history.higher_is_better)
    ]
