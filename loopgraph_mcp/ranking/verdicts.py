"""Judges a change against its context's noise floor: win, loss, within noise, crash, and what to do next."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from loopgraph_mcp.models import Advice, Decision, Direction, NextStep, NoiseFloor, Verdict, VerdictKind
from loopgraph_mcp.ranking.posterior import Observation, posterior

WIN_P, LOSS_P = 0.9, 0.1
REPLICATE_P = (0.2, 0.9)
MAX_REPLICATES = 3
LOAD_LIMIT = 0.25  # a run that left a quarter of its device to others is not what it would have been alone
DISTURBED_NOISE = 4.0  # one overnight log's baseline beside other jobs: 0.16 worse than the quiet one
_USUAL_TOKENS = 0.6
_USUAL_RUNS = 3
_SAME_SIZE = 0.01
_PRIOR_WEIGHT = 6  # the default noise counts like six degrees of freedom

# Standard deviation of val_bpb over seeds, by device class. cuda: repeated baselines on H100 and RTX 5090 (0.0008,
# 0.0006); mps: M5 Max (0.003); cpu: short runs of the bundled trainer on two cores.
_DEFAULT_NOISE = {"cuda": 0.0007, "mps": 0.003, "cpu": 0.05}
_RELATIVE_NOISE = 0.005  # for a metric we know nothing of: half a percent of its value


def default_noise(metric: str, device: str, typical_value: float) -> float:
    """Return a noise floor (sd of one run, in metric units) for a context without replicates."""
    device_class = device.split(":", 1)[0]
    if metric == "val_bpb" and device_class in _DEFAULT_NOISE:
        return _DEFAULT_NOISE[device_class]
    return max(abs(typical_value) * _RELATIVE_NOISE, 1e-12)


def disturbed(
    other_load: float | None, tokens: float | None, params: float | None, before: Sequence[tuple[float, float]]
) -> bool:
    """Return whether a run shared its device: measured, or told by far fewer tokens than models of its size saw.

    Args:
        other_load: The share of the device that others used, where that was measured.
        tokens: Tokens it trained on.
        params: The size of its model.
        before: Tokens and size of the runs before it in its context.
    """
    if other_load is not None:
        return other_load > LOAD_LIMIT
    if not tokens or not params:
        return False
    alike = [seen for seen, size in before if abs(size - params) <= _SAME_SIZE * params]
    return len(alike) >= _USUAL_RUNS and tokens < _USUAL_TOKENS * median(alike)


def noise_floor(default: float, replicates: Sequence[Sequence[float]]) -> NoiseFloor:
    """Return the noise of one run, pooled over groups of identical runs that differ in their seed, and shrunken.

    Args:
        default: The noise floor before any replicate.
        replicates: Metric values of each group.
    """
    squares, freedom, more = _PRIOR_WEIGHT * default**2, _PRIOR_WEIGHT, 0
    for values in replicates:
        mean = fmean(values)
        squares += math.fsum((value - mean) ** 2 for value in values)
        more += len(values) - 1
    return NoiseFloor(math.sqrt(squares / (freedom + more)), more)


def judge(parent: Sequence[float], child: Sequence[float], *, direction: Direction, noise: NoiseFloor) -> Verdict:
    """Judge the runs of a change against the runs of its parent.

    Args:
        parent: Metric values of the program it started from, in this context.
        child: Metric values of the changed program; empty where it has none because it failed.
        direction: Which way the metric improves.
        noise: The context's noise floor, raised where all runs of the one or the other shared their device.
    """
    if not child:
        next_step = NextStep(Advice.FIX_OR_DISCARD)
        return Verdict(VerdictKind.CRASH, None, noise, None, Decision.DISCARD, next_step)
    if not parent:
        next_step = NextStep(Advice.RUN_BASELINE, "run_experiment")
        return Verdict(VerdictKind.NO_BASELINE, None, noise, None, Decision.DISCARD, next_step)
    gain = direction.gain(fmean(parent), fmean(child))
    belief = posterior([Observation(gain / noise.sd, n_parent=len(parent), n_child=len(child))])
    decision = Decision.KEEP if gain > 0 else Decision.DISCARD
    if belief.p_win >= WIN_P:
        return Verdict(VerdictKind.WIN, gain, noise, belief.p_win, decision, NextStep(Advice.BUILD_ON_IT))
    if belief.p_win <= LOSS_P:
        return Verdict(VerdictKind.LOSS, gain, noise, belief.p_win, decision, NextStep(Advice.REVERT))
    if noise.factor > 1:
        next_step = NextStep(Advice.REPLICATE_WHEN_QUIET)
    else:
        next_step = _next_within_noise(belief.p_win, len(parent), len(child), decision)
    return Verdict(VerdictKind.WITHIN_NOISE, gain, noise, belief.p_win, decision, next_step)


def cautious(runs: Sequence[float], *, direction: Direction, sigma: float) -> float:
    """Return the mean of a program's runs, worse by its standard error: one lucky run does not beat three good ones."""
    error = sigma / math.sqrt(len(runs))
    return fmean(runs) + (error if direction is Direction.LOWER else -error)


def best_of(groups: Mapping[str, Sequence[float]], *, direction: Direction, sigma: float) -> str | None:
    """Return the group of runs with the best mean, its standard error taken off; ties by name; None of none.

    Args:
        groups: What the runs of each program measured, by the program.
        direction: Which way the metric improves.
        sigma: Standard deviation of one run.
    """
    worth = {
        name: direction.gain(0.0, cautious(runs, direction=direction, sigma=sigma))
        for name, runs in groups.items()
        if runs
    }
    return max(worth, key=lambda name: (worth[name], name), default=None)


def failing_parent(*, noise: NoiseFloor) -> Verdict:
    """Return the verdict on a change whose parent fails as well: that says nothing of the change."""
    next_step = NextStep(Advice.FIX_PARENT, "run_experiment")
    return Verdict(VerdictKind.NO_BASELINE, None, noise, None, Decision.DISCARD, next_step)


def baseline(runs: Sequence[float], *, noise: NoiseFloor) -> Verdict:
    """Return the verdict on an unchanged program: something to compare with, or what has to work first."""
    if not runs:
        next_step = NextStep(Advice.FIX_BASELINE)
        return Verdict(VerdictKind.CRASH, None, noise, None, Decision.DISCARD, next_step)
    reason = Advice.REPLICATE_BASELINE if len(runs) < MAX_REPLICATES else Advice.SEARCH
    next_step = NextStep(reason, "search_methods", about={"runs": str(len(runs))})
    return Verdict(VerdictKind.BASELINE, None, noise, None, Decision.KEEP, next_step)


def _next_within_noise(p_win: float, n_parent: int, n_child: int, decision: Decision) -> NextStep:
    low, high = REPLICATE_P
    if not low < p_win < high or min(n_parent, n_child) >= MAX_REPLICATES:
        return NextStep(Advice.KEEP_IF_SIMPLER if decision is Decision.KEEP else Advice.REVERT_UNMEASURABLE)
    return NextStep(Advice.REPLICATE_CHANGE if n_child <= n_parent else Advice.REPLICATE_PARENT)
