"""The runs of a session: how each is listed, and the best program by the mean of its runs and their noise."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from loopgraph_mcp.api import explain
from loopgraph_mcp.models import Decision, Direction, NoiseFloor, OutcomeKind, VerdictKind
from loopgraph_mcp.ranking import verdicts


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run, as the table of runs shows it. Fields with a default are missing in older sessions.

    Args:
        program: Hash of its syntax tree: equal programs are equal, comments and layout aside.
        repeated: Whether the memory answered in its place: nothing was trained.
        counts: Whether it is one of the experiments asked for; the baseline and repeats are not.
        again: Whether this session had run the program before, and it failed or was discarded.
        group: The same hash for all programs that differ in the values of seeds alone.
        replicate: Whether it trained the kept program again.
        tentative: Whether it was kept for a gain that is not distinguishable from noise.
        noise_floor: Standard deviation of one run, in metric units, as it was known after this run.
        noise_factor: By how much that was raised because the run shared its device.
    """

    number: int
    description: str
    experiment_id: str
    outcome: str
    metric_value: float | None
    decision: str
    program: str
    repeated: bool
    counts: bool
    again: bool
    seconds: float
    group: str = ""
    replicate: bool = False
    tentative: bool = False
    noise_floor: float | None = None
    noise_factor: float = 1.0

    @property
    def is_kept(self) -> bool:
        """Whether its program was kept."""
        return self.decision == Decision.KEEP.value


@dataclass(frozen=True, slots=True)
class Best:
    """The best program of a session: the best mean of its runs less their standard error, never the luckiest run.

    Args:
        mean: Of its runs.
        runs: How many.
        standard_error: Of that mean, in metric units.
        noise_floor: Standard deviation of one run.
        number: Its last run.
        baseline: Mean of the baseline's runs.
        gain: Improvement over it, positive is better; None where the baseline has no metric.
        is_baseline: Whether nothing ran better than the baseline.
        beats_noise: Whether its gain is a win, and not within the noise.
    """

    mean: float
    runs: int
    standard_error: float
    noise_floor: float
    number: int
    baseline: float | None
    gain: float | None
    is_baseline: bool
    beats_noise: bool

    def __str__(self) -> str:
        """Return it in a sentence that claims no more than was measured."""
        which = f"run {self.number}" if self.runs == 1 else f"mean of {self.runs} runs, the last is run {self.number}"
        value = f"{self.mean:.6f} +- {self.standard_error:.6f} ({which})"
        if self.is_baseline:
            return f"{value}: the baseline; nothing measured here beats it."
        if self.baseline is None or self.gain is None:
            return f"{value}; there is no baseline to compare it with."
        against = f"{value}, {explain.signed(self.gain)} against the baseline's {self.baseline:.6f}"
        if self.beats_noise:
            return f"{against}."
        return f"{against}: not distinguishable from noise. Nothing measured here beats the noise yet."


def find_best(runs: Sequence[Run], *, direction: Direction, metric: str, device: str) -> Best | None:
    """Return the best program of a session, or None where nothing has finished.

    Args:
        runs: The session's runs in order, the baseline first.
        direction: Which way the metric improves.
        metric: Its name.
        device: The kind of device, for the default noise where no run says what the noise is.
    """
    groups = _by_group(runs)
    measured = {
        group: [run.metric_value for run in each if run.metric_value is not None] for group, each in groups.items()
    }
    sd = _noise_of_one_run(runs, metric, device)
    group = verdicts.best_of(measured, direction=direction, sigma=sd)
    if group is None:
        return None
    baseline = groups.get(runs[0].group, [])
    factor = max(_factor(groups[group]), _factor(baseline))
    noise = NoiseFloor(sd * factor, factor=factor)
    values, before = measured[group], measured.get(runs[0].group, [])
    verdict = verdicts.judge(before, values, direction=direction, noise=noise)
    is_baseline = group == runs[0].group
    return Best(
        mean=fmean(values),
        runs=len(values),
        standard_error=noise.sd / math.sqrt(len(values)),
        noise_floor=noise.sd,
        number=groups[group][-1].number,
        baseline=fmean(before) if before else None,
        gain=verdict.gain,
        is_baseline=is_baseline,
        beats_noise=verdict.kind is VerdictKind.WIN and not is_baseline,
    )


def _by_group(runs: Sequence[Run]) -> Mapping[str, list[Run]]:
    """Return the runs of each program that finished, each experiment once: the memory may answer twice with one.

    Where a program ran on a quiet device as well, its runs beside others' work are left out.
    """
    groups: dict[str, dict[str, Run]] = defaultdict(dict)
    for run in runs:
        if run.metric_value is not None:
            groups[run.group].setdefault(run.experiment_id, run)
    found = {}
    for group, each in groups.items():
        quiet = [run for run in each.values() if run.noise_factor == 1]
        found[group] = quiet or list(each.values())
    return found


def _factor(runs: Sequence[Run]) -> float:
    return min((run.noise_factor for run in runs), default=1.0)


def _noise_of_one_run(runs: Sequence[Run], metric: str, device: str) -> float:
    """Return the noise as it was known last: every replicate makes it surer."""
    known = [run.noise_floor / run.noise_factor for run in runs if run.noise_floor]
    if known:
        return known[-1]
    typical = next((run.metric_value for run in runs if run.metric_value is not None), 1.0)
    return verdicts.default_noise(metric, device, typical)


def undone_by(run: Run, later: Sequence[Run]) -> int | None:
    """Return the number of the replicate after which a kept run's program was kept no more, or None.

    Args:
        run: The run.
        later: The runs after it.
    """
    verdict = _last_replicate(run, later)
    if not run.number or not run.is_kept or verdict is None or verdict.is_kept:  # nothing undoes the baseline
        return None
    return verdict.number


def _last_replicate(run: Run, later: Sequence[Run]) -> Run | None:
    again = (each for each in reversed(later) if each.replicate and each.group == run.group)
    return next((each for each in again if OutcomeKind(each.outcome).says_something), None)


def decided(run: Run, later: Sequence[Run] = ()) -> str:
    """Return what was decided on a run, in the light of the replicates after it.

    Args:
        run: The run.
        later: The runs after it.
    """
    if not run.is_kept:
        return "not kept"
    undoing = undone_by(run, later)
    if undoing is not None:
        return f"kept, undone by run {undoing}"
    again = _last_replicate(run, later)
    if run.tentative and again is not None and not again.tentative:
        return f"kept, confirmed by run {again.number}"
    return explain.decision(Decision.KEEP, tentative=True) if run.tentative else "kept"


def result_text(run: Run, later: Sequence[Run] = ()) -> str:
    """Return a run's result in a few words."""
    value = run.outcome.replace("_", " ") if run.metric_value is None else f"{run.metric_value:.6f}"
    how = "answered from memory, nothing was trained" if run.repeated else decided(run, later)
    return f"{value}, {how}"
