"""Which value of which knob to try next: a Gaussian process of what the runs measured over the knobs' natural scales.

The model knows nothing of any program: a knob is a name and a number, a run is knob values and a metric or a failure.
Runs of another context, or of a program that differs in more than its numbers, count as those of another group: less,
and by their difference to the first run of their own group.
"""

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import NamedTuple

from loopgraph_mcp.ranking.process import Kernel, Point, Process, condition, most_runs
from loopgraph_mcp.ranking.scales import Scale, scales_of

Values = Mapping[str, float]

_NORMAL = NormalDist()
_Z90 = _NORMAL.inv_cdf(0.95)

# Chosen on a surrogate of one seed's published runs, reported on another's (docs/proof.md); the results change little
# with any of them.
_LENGTH = 3.0  # steps
_ACROSS = 0.7  # correlation of another group's outcomes with this one's
_EFFECT_NOISES, _EFFECT_SHARE = 12.0, 0.004  # effects before any are seen: in noises, and as a share of the metric
_EFFECT_RUNS = 10.0  # runs that the first guess of how large effects are weighs as much as
_WARP = (
    1.6  # effects beyond this many times their usual size are compressed: a loss of ten is no worse than one of five
)
_CAUTION, _CAUTIOUS_RUNS = 1 / 12, 10.0  # most changes lose: usual effects a step squared, and runs that halve it
_FARTHEST = 3.0  # steps after which farther is not worse
_LEAN, _LEAN_STEPS = 0.4, 2.0  # usual effects a step for a lean of one, and steps that it holds for
_FAILS, _FAIL_LENGTH, _FAIL_NOISE = 0.05, 3.0, 0.05  # share of changes that fail before any are seen
# The best of hundreds of candidates is the one whose error flatters it most. What is shown of it is taken down by so
# many standard deviations, after which P(improves) is right on average (docs/proof.md); the order does not change.
_FLATTERED = 0.6
_STEPS = (0.3, 0.6, 1.0)
_SPREAD, _AT_ONCE = 0.8, 5  # of random changes: steps of a knob, and knobs at once
_RANDOM = 300
_COMBINED = 6


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run.

    Args:
        values: The knobs of its program.
        metric: What it measured; None where it failed by its own fault.
        group: 0 for the present context and program, another number for each other one.
    """

    values: Values
    metric: float | None
    group: int = 0


class Change(NamedTuple):
    """A knob's new value."""

    name: str
    old: float
    new: float


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Values to try, and what is expected of them, in metric units; positive is better.

    Args:
        changes: From the best program known; none to run that program again.
        gain: Expected gain over it.
        low: Lower end of the gain's 90 % interval.
        high: Upper end.
        worth: What the run is expected to improve the best program by, failures counted: the order of suggestions.
    """

    changes: tuple[Change, ...]
    gain: float
    low: float
    high: float
    p_improves: float
    p_fails: float
    worth: float

    @property
    def is_replicate(self) -> bool:
        """Whether it is the best program once more."""
        return not self.changes


@dataclass(frozen=True, slots=True)
class Advice:
    """What to try next.

    Args:
        best: Knob values of the best program, by the mean that its runs and their neighbours make likely.
        expected: That mean, in metric units; None before any run.
        suggestions: The most promising first: changes of one knob and of several, and a replicate.
        knobs: For each knob the most promising value.
    """

    best: Values
    expected: float | None
    suggestions: tuple[Suggestion, ...]
    knobs: tuple[Suggestion, ...]


def advise(
    present: Values,
    runs: Sequence[Run],
    *,
    lower: bool,
    noise: float,
    lean: Mapping[str, float] | None = None,
    seed: int = 0,
    limit: int = 5,
) -> Advice:
    """Return which values to try next.

    Args:
        present: The knobs of the present program.
        runs: Finished runs; those without one of its knobs are left out.
        lower: Whether the metric is to fall.
        noise: Standard deviation of runs of one program.
        lean: For knobs of which others' histories say so, the log of how much oftener a higher value was kept than any
            change, less the same of a lower value, halved.
        seed: Of the random changes among which the best is looked for.
        limit: How many suggestions, besides one for each knob.
    """
    names = [name for name, value in present.items() if math.isfinite(value)]
    usable = [run for run in runs if all(name in run.values for name in names)]
    if not names:
        return Advice(present, None, (), ())
    model = _Model(names, present, usable, lower=lower, noise=noise, lean=lean or {})
    return model.advise(random.Random(seed), limit)  # noqa: S311 - which changes are looked at, no secret


class _Seen(NamedTuple):
    """Runs of one program of one group: their mean, and how many."""

    point: Point
    group: int
    mean: float
    runs: int


class _Model:
    def __init__(
        self,
        names: Sequence[str],
        present: Values,
        runs: Sequence[Run],
        *,
        lower: bool,
        noise: float,
        lean: Mapping[str, float],
    ) -> None:
        self._names = names
        self._present = present
        self._sign = 1.0 if lower else -1.0
        first = next((run.values for run in runs if run.group == 0), present)
        self._scales: dict[str, Scale] = scales_of({name: first[name] for name in names})
        self._start = self._place(first)
        seen, failed = self._read(runs)
        here = [each.mean for each in seen if each.group == 0]
        self._zero = min(here) if here else 0.0
        self._effect = max(_EFFECT_NOISES * noise, _EFFECT_SHARE * abs(here[0] if here else 0.0), 1e-12)
        self._noise = noise
        at = self._place(present)
        if here:
            at = min((each for each in seen if each.group == 0), key=lambda each: each.mean).point
        # Those nearest the incumbent: what is far says little.
        self._seen = sorted(seen, key=lambda each: (math.dist(each.point, at), each.group))[: most_runs()]
        self._lean = [_LEAN * self._effect * lean.get(name, 0.0) for name in names]
        self._caution = self._effect * _CAUTION * _CAUTIOUS_RUNS / (_CAUTIOUS_RUNS + len(seen))
        base = next((each for each in seen if each.group == 0), None)
        self._level = self._warped(base.mean) - self._lost(base.point) if base else 0.0
        self._process = self._fit()
        self._failures = self._fit_failures(failed)
        self._at, self._best, self._best_sd = self._incumbent(at)
        exact = {self._place(run.values): run.values for run in runs if run.group == 0 and run.metric is not None}
        self._held = exact.get(self._at, present)
        self._known = {each.point for each in seen if each.group == 0}
        self._known |= {point for point, group in failed if group == 0}

    def _place(self, values: Values) -> Point:
        return tuple(self._scales[name].place(values[name]) for name in self._names)

    def _read(self, runs: Sequence[Run]) -> tuple[list[_Seen], list[tuple[Point, int]]]:
        """Return what was measured, each program once, and where runs failed."""
        measured = defaultdict[tuple[Point, int], list[float]](list)
        failed = list[tuple[Point, int]]()
        base = dict[int, float]()
        for run in runs:
            key = self._place(run.values), run.group
            if run.metric is None or not math.isfinite(run.metric):
                failed.append(key)
                continue
            base.setdefault(run.group, self._sign * run.metric)
            measured[key].append(self._sign * run.metric)
        shift = {group: base.get(0, 0.0) - value for group, value in base.items()}
        shift[0] = 0.0
        seen = [_Seen(*key, fmean(found) + shift[key[1]], len(found)) for key, found in measured.items()]
        return seen, failed

    # ------------------------------------------------------------------------------------------------ the model

    def _warped(self, value: float) -> float:
        width = _WARP * self._effect
        above = (value - self._zero) / width
        return width * (math.log1p(above) if above > 0 else above)

    def _unwarped(self, value: float) -> float:
        width = _WARP * self._effect
        return self._zero + width * (math.expm1(min(value / width, 50.0)) if value > 0 else value / width)

    def _lost(self, point: Point) -> float:
        """Return what is expected to be lost by going so far from where the search began, before any run."""
        steps = [a - b for a, b in zip(point, self._start, strict=True)]
        far = math.fsum(min(each * each, _FARTHEST**2) for each in steps)
        leaning = [
            lean * min(max(each, -_LEAN_STEPS), _LEAN_STEPS) for lean, each in zip(self._lean, steps, strict=True)
        ]
        return self._caution * far - math.fsum(leaning)

    def _fit(self) -> Process | None:
        if not self._seen:
            return None
        points = [each.point for each in self._seen]
        groups = [each.group for each in self._seen]
        values = [self._warped(each.mean) - self._lost(each.point) - self._level for each in self._seen]
        noise = [self._noise**2 / each.runs + 1e-18 for each in self._seen]
        amplitude = self._effect**2
        process = condition(Kernel(amplitude, _LENGTH, _ACROSS), points, groups, values, noise)
        times = (_EFFECT_RUNS + process.explained) / (_EFFECT_RUNS + len(values))
        return condition(Kernel(amplitude * times, _LENGTH, _ACROSS), points, groups, values, noise)

    def _fit_failures(self, failed: Sequence[tuple[Point, int]]) -> Process | None:
        if not failed:
            return None
        known = [(each.point, each.group, 0.0) for each in self._seen]
        known += [(point, group, 1.0) for point, group in dict.fromkeys(failed)][-most_runs() :]
        return condition(
            Kernel(1.0, _FAIL_LENGTH, _ACROSS),
            [point for point, _, _ in known],
            [group for _, group, _ in known],
            [value - _FAILS for _, _, value in known],
            [_FAIL_NOISE] * len(known),
        )

    def _predict(self, points: Sequence[Point]) -> tuple[list[float], list[float]]:
        """Return means and standard deviations on the warped scale, where lower is better."""
        if self._process is None:
            return [self._level + self._lost(each) for each in points], [self._effect] * len(points)
        means, sds = self._process.predict(points)
        return [mean + self._lost(each) + self._level for mean, each in zip(means, points, strict=True)], sds

    def _p_fails(self, points: Sequence[Point]) -> list[float]:
        if self._failures is None:
            return [_FAILS] * len(points)
        return [min(max(_FAILS + mean, 0.01), 0.99) for mean in self._failures.predict(points)[0]]

    def _incumbent(self, otherwise: Point) -> tuple[Point, float, float]:
        """Return the place of the best program that ran, and what is expected of it."""
        points = [each.point for each in self._seen if each.group == 0] or [otherwise]
        means, sds = self._predict(points)
        best = min(range(len(points)), key=means.__getitem__)
        return points[best], means[best], sds[best]

    # ------------------------------------------------------------------------------------------- what to try next

    def advise(self, rng: random.Random, limit: int) -> Advice:
        """Return suggestions, the most promising first."""
        one_knob = self._judged(self._singles())
        knobs = dict[int, tuple[Suggestion, Point]]()
        for place, (found, point) in one_knob:
            if place not in knobs or found.worth > knobs[place][0].worth:
                knobs[place] = found, point
        singles = sorted((found for found, _ in knobs.values()), key=lambda each: -each.worth)
        several = self._judged([*self._combinations(list(knobs.items())), *self._at_random(rng)])
        chosen = [*singles, *(found for _, (found, _) in several)]
        if (again := self._replicate()) is not None:
            chosen.append(again)
        chosen.sort(key=lambda each: -each.worth)
        expected = self._sign * self._unwarped(self._best) if self._process is not None else None
        shown = list(_distinct(chosen, limit))
        if not any(len(each.changes) == 1 for each in shown) and limit > 1:
            shown[-1:] = singles[:1]  # one idea at a time is what many want to try
        return Advice(self._values(self._at), expected, tuple(shown), tuple(singles))

    def _values(self, point: Point) -> Values:
        """Return the knob values at a place; what the best program holds is taken as it is, not rounded."""
        return {
            name: self._held[name] if x == now else self._scales[name].value(x)
            for name, x, now in zip(self._names, point, self._at, strict=True)
        }

    def _moved(self, moves: Mapping[int, float]) -> Point:
        """Return the place that some knobs are moved to, as far as a program's numbers can reach it."""
        point = list(self._at)
        for knob, to in moves.items():
            scale = self._scales[self._names[knob]]
            point[knob] = scale.place(scale.value(to))
        return tuple(point)

    def _singles(self) -> Iterator[tuple[int, Point]]:
        for knob, name in enumerate(self._names):
            scale, at = self._scales[name], self._at[knob]
            reached = set[Point]()
            for steps in (sign * size for size in _STEPS for sign in (1, -1)):
                point = self._moved({knob: at + steps})
                if scale.whole and math.isclose(point[knob], at):  # the next whole number is more than the step away
                    point = self._moved({knob: scale.place(scale.value(at) + (1 if steps > 0 else -1))})
                if not math.isclose(point[knob], at, abs_tol=1e-9) and point not in reached:
                    reached.add(point)
                    yield knob, point

    def _combinations(self, knobs: Sequence[tuple[int, tuple[Suggestion, Point]]]) -> Iterator[tuple[int, Point]]:
        """Yield the best single changes together, the most promising two, three and so on."""
        ranked = sorted(knobs, key=lambda item: -item[1][0].worth)
        for count in range(2, min(_COMBINED, len(ranked)) + 1):
            yield -1, self._moved({knob: point[knob] for knob, (_, point) in ranked[:count]})

    def _at_random(self, rng: random.Random) -> Iterator[tuple[int, Point]]:
        several = min(_AT_ONCE, len(self._names))
        for _ in range(_RANDOM):
            knobs = rng.sample(range(len(self._names)), rng.randint(1, several))
            yield -1, self._moved({knob: self._at[knob] + rng.gauss(0, _SPREAD) for knob in knobs})

    def _judged(
        self, wanted: Sequence[tuple[int, Point]] | Iterator[tuple[int, Point]]
    ) -> list[tuple[int, tuple[Suggestion, Point]]]:
        fresh = [(tag, point) for tag, point in wanted if point not in self._known and point != self._at]
        if not fresh:
            return []
        points = [point for _, point in fresh]
        means, sds = self._predict(points)
        fails = self._p_fails(points)
        return [
            (tag, (self._suggestion(point, mean, sd, p_fails), point))
            for (tag, point), mean, sd, p_fails in zip(fresh, means, sds, fails, strict=True)
        ]

    def _suggestion(self, point: Point, mean: float, sd: float, p_fails: float) -> Suggestion:
        best, z = self._unwarped(self._best), (self._best - mean) / sd
        improvement = sd * (z * _NORMAL.cdf(z) + _NORMAL.pdf(z))
        before, after = self._values(self._at), self._values(point)
        likely = mean + _FLATTERED * sd
        return Suggestion(
            changes=tuple(
                Change(name, before[name], after[name])
                for name, x, y in zip(self._names, self._at, point, strict=True)
                if x != y
            ),
            gain=best - self._unwarped(likely),
            low=best - self._unwarped(likely + _Z90 * sd),
            high=best - self._unwarped(likely - _Z90 * sd),
            p_improves=_NORMAL.cdf(z - _FLATTERED),
            p_fails=p_fails,
            worth=improvement * (1 - p_fails) ** 2,  # a failed run costs a run and says less than a finished one
        )

    def _replicate(self) -> Suggestion | None:
        """Return the best program once more: worth what going on from it loses where the next best one is better."""
        others = [each.point for each in self._seen if each.group == 0 and each.point != self._at]
        if not others:
            return None
        means, sds = self._predict(others)
        second = min(range(len(others)), key=means.__getitem__)
        # A run's noise hides the part of the doubt that a replicate cannot remove.
        learned = self._best_sd**2 / math.sqrt(self._best_sd**2 + self._noise**2 + 1e-18)
        z = (means[second] - self._best) / max(learned, 1e-12)
        half = self._unwarped(self._best + _Z90 * self._best_sd) - self._unwarped(self._best)
        doubt = math.hypot(self._best_sd, sds[second])
        p_luck = _NORMAL.cdf((self._best - means[second]) / max(doubt, 1e-12))
        worth = learned * (_NORMAL.pdf(z) - z * _NORMAL.cdf(-z))
        return Suggestion((), 0.0, -half, half, 1 - p_luck, 0.01, worth)


def _distinct(ranked: Sequence[Suggestion], limit: int) -> Iterator[Suggestion]:
    """Yield the best few, each of other knobs than those before it: near the best place many are about as good."""
    shown = list[frozenset[str]]()
    for each in ranked:
        names = frozenset(change.name for change in each.changes)
        if names not in shown and len(shown) < limit:
            shown.append(names)
            yield each
