"""Statistics of a comparison: means over seeds with bootstrap intervals, and each arm's difference to the first."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

_RESAMPLES = 4_000  # the noise of resampling is then small beside that of the seeds
_LOW, _HIGH = 0.025, 0.975


@dataclass(frozen=True)
class Point:
    """How far a session is after one more experiment; `best` is the mean of its best program's runs so far."""

    experiments: int
    tokens: int
    seconds: float
    best: float | None


@dataclass(frozen=True)
class Trial:
    """One session of a comparison.

    Args:
        curve: A point for the baseline and one for each experiment.
        repeats: Experiments spent on programs that this session had run before, to no gain.
        from_memory: Runs that the memory answered, at no training.
        valid: The share of tool calls that could be carried out.
        seeded: What the memory held before it began.
        again: What the program it ended with reached on fresh seeds; no run of it was chosen for being good.
        estimated_turns: Turns without token counts from the provider.
    """

    arm: str
    seed: int
    curve: list[Point]
    repeats: int
    from_memory: int
    valid: float
    usd: float
    ended: str
    session_id: str
    seeded: str
    again: list[float] = field(default_factory=list)
    estimated_turns: int = 0


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % bootstrap interval, and of how many seeds."""

    mean: float
    low: float
    high: float
    seeds: int


Measure = Callable[[Trial, Trial], float | None]


def reached(trial: Trial, goal: Trial, *, lower: bool) -> Point | None:
    """Return from where on a session was as good as another one ended, or None where it did not end so.

    A lucky run that a replicate undid later is no arrival.
    """
    target = goal.curve[-1].best
    sign = 1 if lower else -1
    found = None
    for point in reversed(trial.curve):
        if point.best is None or target is None or sign * point.best > sign * target:
            break
        found = point
    return found


def measures(*, lower: bool) -> Mapping[str, Measure]:
    """Return what is measured of a session beside the first arm's session of the same seed."""

    def at_goal(name: str) -> Measure:
        def measure(trial: Trial, first: Trial) -> float | None:
            point = reached(trial, first, lower=lower)
            return None if point is None else float(getattr(point, name))

        return measure

    return {
        "best": lambda trial, _: trial.curve[-1].best,
        "its last program on fresh seeds": lambda trial, _: fmean(trial.again) if trial.again else None,
        "tokens": lambda trial, _: trial.curve[-1].tokens,
        "seconds": lambda trial, _: trial.curve[-1].seconds,
        "experiments to the first arm's best": at_goal("experiments"),
        "tokens to the first arm's best": at_goal("tokens"),
        "seconds to the first arm's best": at_goal("seconds"),
        "repeats of failed ideas": lambda trial, _: trial.repeats,
        "answered from memory": lambda trial, _: trial.from_memory,
        "valid calls": lambda trial, _: trial.valid,
        "dollars": lambda trial, _: trial.usd,
    }


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean with its percentile-bootstrap interval; the draws are the same each time."""
    if not values:
        return None
    rng = random.Random(len(values))  # noqa: S311 - resampling
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    low, high = (means[int(share * (_RESAMPLES - 1))] for share in (_LOW, _HIGH))
    return Estimate(fmean(values), low, high, len(values))


def compare(trials: Sequence[Trial], arms: Sequence[str], *, lower: bool) -> dict[str, dict[str, Estimate | None]]:
    """Return each arm's measures, and as `difference in …` what it has over the first arm, seed by seed."""
    by_place = {(trial.arm, trial.seed): trial for trial in trials}
    seeds = sorted({trial.seed for trial in trials})
    found: dict[str, dict[str, Estimate | None]] = {arm: {} for arm in arms}
    for name, measure in measures(lower=lower).items():
        for arm in arms:
            pairs = [
                (measure(trial, first), measure(first, first))
                for seed in seeds
                if (trial := by_place.get((arm, seed))) is not None
                and (first := by_place.get((arms[0], seed))) is not None
            ]
            found[arm][name] = estimate([value for value, _ in pairs if value is not None])
            differences = [value - base for value, base in pairs if value is not None and base is not None]
            found[arm][f"difference in {name}"] = None if arm == arms[0] else estimate(differences)
    return found
