"""Foretells which of some changes will be kept: from what such moves did elsewhere, and where they stand here.

Three parts, each a log of kept over expected:

- elsewhere: the same family moved the same way at this stage of a search, the same knob, the same knob by as large a
  step, in histories whose metric started and stood near to ours (a token-starved laptop and a data-centre GPU want
  opposite things), each history's own keep rate taken out;
- place: how the new value lies among those tried here (never tried, known to fail, beyond or short of a failure, on the
  open side), how large the step is, of which family, and what such places were worth in all histories;
- lately: how the knob's last move ended, and which way it went.

Within a part each kind of move is narrower than the one before, and shrunken to it where little of it was seen: the
widest to nothing. Which parts help, and by how much, is measured by `loopgraph backtest` and written down in
docs/foresight.md.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import Self

from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.features import Past, Try
from loopgraph_mcp.ranking.knobs import FAMILIES

PLACE_WEIGHT, LATELY_WEIGHT = 0.6, 0.5
_PRIOR, _NARROWER_PRIOR = 8.0, 6.0  # expected keeps that weigh as much as what was seen: of a widest kind, of others
_LEVEL_WIDTH = 0.3  # in logs of the metric: 1.0 and 1.35 bpb are one width apart
_NEAR_ENOUGH = 2.0  # expected keeps near our metric, for others' tries there to be told apart
_EARLY = 20  # changes: what pays at first pays less later
_COMING = (8.0, 48.0)  # keeps and tries before the first: keeps grow rarer, so that early ones promise less
WINDOW, STEP, FEWEST = 20, 10, 10


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one history says of one kind of move, by its name in `kinds`.

    Args:
        owner: Whose history it is; lessons of one owner are left out of what foretells that owner's.
        about: The kind.
        level: Logs of the metric at the start and, on average, at the time; None where they are not known, or where
            the kind is worth the same everywhere.
        expected: Keeps to expect at the keep rate of the rows around.
        kept: Keeps seen, each row counted by its share among the moves of its change.
        tries: Rows that made such a move; of a knob alone, as are values and gains.
        values: The least and the greatest value it was moved to, where it has values.
        gains: Mean and spread of the gains over the best before, in metric units, of the rows that finished.
    """

    owner: str
    about: str
    level: tuple[float, float] | None
    expected: float
    kept: float
    tries: int = 0
    values: tuple[float, float] | None = None
    gains: tuple[float, float] | None = None


def about_move(move: Move, direction: int) -> str:
    """Return the name under which moves are pooled."""
    word = move.word if move.value is None else ""  # a pattern is pooled by its share of long windows
    return f"move:{move.knob} {direction:+d} {word}".rstrip()


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kinds of move that a move is one of, by part, each narrower than the one before it."""

    elsewhere: tuple[str, ...]
    place: tuple[str, ...]
    lately: tuple[str, ...]


def kinds(move: Move, past: Past) -> Kinds:
    """Return what a move is one of, given what was learned up to now."""
    family, way, step, place = FAMILIES.get(move.knob, "other"), past.direction(move), past.step(move), past.place(move)
    stage, knob = "early" if past.changes < _EARLY else "late", about_move(move, way)
    return Kinds(
        elsewhere=(f"family:{family} {way:+d} {stage}", knob, f"step:{knob.removeprefix('move:')}, {step}"),
        place=(f"place:{place}", f"place:{place}, {step}", f"place:{place}, of {family}"),
        lately=(f"lately:{past.lately(move)}",),
    )


def windows(tries: Sequence[Try]) -> Iterator[tuple[int, list[Try]]]:
    """Yield at every tenth row the next twenty changes really made, where there are ten, some kept and some not.

    A history starts from its baseline: what was run before the first change is known at its first window.
    """
    first = next((row for row, each in enumerate(tries) if each.is_change), 0)
    for start in range(0, len(tries), STEP):
        ahead = [each for each in tries[start:] if each.is_change][:WINDOW]
        kept = sum(each.kept for each in ahead)
        if len(ahead) >= FEWEST and 0 < kept < len(ahead):
            yield max(start, first), ahead


def lessons(tries: Sequence[Try], *, owner: str, higher_is_better: bool = False) -> list[Lesson]:
    """Return what a whole history teaches others; each window counts half, for each row stands in two."""
    past, learned = Past(higher_is_better), 0
    sums: dict[str, _Sum] = defaultdict(_Sum)
    for start, ahead in windows(tries):
        for each in tries[learned:start]:
            past.learn(each)
        learned = start
        rate = sum(each.kept for each in ahead) / len(ahead)
        for row, each in enumerate(ahead):
            for move in each.moves:
                found = kinds(move, past)
                for about in found.elsewhere:
                    told = row < STEP and not about.startswith("family:")  # whose values are of many knobs
                    sums[about].add(each, move, past.level, rate, told=told)
                for about in found.place + found.lately:
                    sums[about].add(each, move, None, rate, told=False)
    return [found.lesson(owner, about) for about, found in sorted(sums.items())]


@dataclass(slots=True)
class _Sum:
    """Gathers one lesson over the windows of a history."""

    expected: float = 0.0
    kept: float = 0.0
    levels: list[tuple[float, float]] = field(default_factory=list)
    tries: int = 0
    values: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)

    def add(self, done: Try, move: Move, level: tuple[float, float] | None, rate: float, *, told: bool) -> None:
        """Take in one row of a window; of what stands in two windows, one tells its value and gain."""
        share = 0.5 / len(done.moves)
        self.expected += share * rate
        self.kept += share * done.kept
        if level is not None:
            self.levels.append(level)
        if told:
            self.tries += 1
            self.values += [] if move.value is None else [move.value]
            self.gains += [] if done.gain is None else [done.gain]

    def lesson(self, owner: str, about: str) -> Lesson:
        """Return what was gathered."""
        level = None
        if self.levels:
            level = fmean(first for first, _ in self.levels), fmean(now for _, now in self.levels)
        values = (min(self.values), max(self.values)) if self.values else None
        gains = (fmean(self.gains), pstdev(self.gains)) if self.gains else None
        return Lesson(owner, about, level, self.expected, self.kept, self.tries, values, gains)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a score, in logs of kept over expected."""

    elsewhere: float = 0.0
    place: float = 0.0
    lately: float = 0.0

    @property
    def score(self) -> float:
        """The parts together."""
        return self.elsewhere + PLACE_WEIGHT * self.place + LATELY_WEIGHT * self.lately


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What others made of a move.

    Args:
        tries: How often they made it.
        ratio: How often they kept it, over how often any change.
        near: Whether that counts most where their metric stood near to ours.
    """

    tries: int
    ratio: float
    near: bool


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What is foreseen of one change.

    Args:
        parts: Of the score, averaged over its moves.
        p_keep: Probability that it is kept.
        place: How its first move lies among what was tried.
        elsewhere: What others made of its first move.
    """

    parts: Parts
    p_keep: float
    place: str
    elsewhere: Elsewhere | None = None

    @property
    def score(self) -> float:
        """What changes are ordered by."""
        return self.parts.score

    def with_odds(self, factor: float) -> Self:
        """Return the same where something else, such as a method's own record, raises the odds by a factor."""
        odds = factor * self.p_keep / (1 - self.p_keep)
        return replace(self, p_keep=odds / (1 + odds))


class Foresight:
    """Foretells changes from other people's lessons and one history's past."""

    def __init__(self, taught: Iterable[Lesson], *, without: str | None = None) -> None:
        self._by_about: dict[str, list[Lesson]] = defaultdict(list)
        for lesson in taught:
            if lesson.owner != without:
                self._by_about[lesson.about].append(lesson)
        self._foreseen_of: tuple[Past | None, int] = (None, 0)
        self._foreseen: dict[tuple[Move, ...], Foreseen] = {}
        self._sums_at: tuple[float, float] | None = None
        self._summed: dict[tuple[str, bool], tuple[float, float]] = {}

    def seen(self, move: Move, past: Past) -> Elsewhere | None:
        """Return what others made of a move, from histories whose metric stood near to ours where there is enough."""
        about, level = about_move(move, past.direction(move)), past.level
        if self._sums(about, level)[1] < _NEAR_ENOUGH:
            level = None
        kept, expected = self._sums(about, level)
        tries = sum(lesson.tries for lesson in self._by_about.get(about, ()))
        return Elsewhere(tries, kept / expected, near=level is not None) if tries and expected else None

    def foreseen(self, moves: tuple[Move, ...], past: Past) -> Foreseen:
        """Return what is foreseen of a change, worked out once as long as the same past is asked about."""
        if self._foreseen_of[0] is not past or self._foreseen_of[1] != past.learned:
            self._foreseen_of, self._foreseen = (past, past.learned), {}
        if moves not in self._foreseen:
            self._foreseen[moves] = self.foresee(moves, past)
        return self._foreseen[moves]

    def foresee(self, moves: Sequence[Move], past: Past) -> Foreseen:
        """Return what is foreseen of a change, given what was learned up to now."""
        level = past.level
        each = [
            Parts(*(self._log_ratio(part, level) for part in (found.elsewhere, found.place, found.lately)))
            for found in (kinds(move, past) for move in moves)
        ]
        count = max(len(each), 1)
        parts = Parts(
            math.fsum(part.elsewhere for part in each) / count,
            math.fsum(part.place for part in each) / count,
            math.fsum(part.lately for part in each) / count,
        )
        rate = (past.keeps + _COMING[0]) / (past.changes + _COMING[1])
        odds = rate / (1 - rate) * math.exp(parts.score)
        place, elsewhere = (past.place(moves[0]), self.seen(moves[0], past)) if moves else ("", None)
        return Foreseen(parts, odds / (1 + odds), place, elsewhere)

    def _log_ratio(self, narrowing: Sequence[str], level: tuple[float, float] | None) -> float:
        """Return the log of kept over expected for the last of some kinds, each shrunken to the one before."""
        ratio, prior = 1.0, _PRIOR
        for about in narrowing:
            kept, expected = self._sums(about, level)
            ratio, prior = (kept + prior * ratio) / (expected + prior), _NARROWER_PRIOR
        return math.log(ratio)

    def _sums(self, about: str, level: tuple[float, float] | None) -> tuple[float, float]:
        """Return keeps seen and expected for a kind, those that were seen far from a level of the metric for less."""
        if level is not None and self._sums_at != level:
            self._sums_at, self._summed = level, {}
        key = about, level is None
        if key not in self._summed:
            weighted = [(_nearness(level, lesson.level), lesson) for lesson in self._by_about.get(about, ())]
            self._summed[key] = (
                math.fsum(weight * lesson.kept for weight, lesson in weighted),
                math.fsum(weight * lesson.expected for weight, lesson in weighted),
            )
        return self._summed[key]


def _nearness(level: tuple[float, float] | None, other: tuple[float, float] | None) -> float:
    if level is None or other is None:
        return 1.0
    return math.exp(-0.5 * math.fsum(((a - b) / _LEVEL_WIDTH) ** 2 for a, b in zip(level, other, strict=True)))
