"""Who searches a surrogate in process: scripted researchers, classical optimisers, and LoopGraph's advice on values."""

import importlib
import importlib.util
import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopgraph_mcp.agents.policies import HABITS, Heard, Proposal
from loopgraph_mcp.agents.surrogates.model import Constants, Surrogate
from loopgraph_mcp.code.constants import tunable
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.ingest.published import read_day_one
from loopgraph_mcp.ranking.features import TrialHistory
from loopgraph_mcp.ranking.leanings import leanings
from loopgraph_mcp.ranking.prior import Prior
from loopgraph_mcp.ranking.response import Run, advise
from loopgraph_mcp.ranking.scales import scales_of

# A researcher proposes programs and hears what each measured, None where it failed.
Researcher = Generator[Constants, float | None, None]

EARLIER = 100  # experiments of the session that a warm memory holds
_WARM_SEED = 1_000  # added to a session's seed for the session before it
# The ranges that the published searches drew from (arXiv 2603.24647); a classical optimiser needs to be given one.
_SPACE: Mapping[str, tuple[float, float]] = {
    "DEPTH": (4, 24), "ASPECT_RATIO": (32, 128), "HEAD_DIM": (64, 256), "DEVICE_BATCH_SIZE": (32, 256),
    "TOTAL_BATCH_SIZE": (2**16, 2**21), "EMBEDDING_LR": (0.01, 2.0), "UNEMBEDDING_LR": (0.0005, 0.05),
    "MATRIX_LR": (0.005, 0.2), "SCALAR_LR": (0.05, 2.0), "WEIGHT_DECAY": (0.0, 0.5), "WARMUP_RATIO": (0.0, 0.3),
    "WARMDOWN_RATIO": (0.1, 0.8), "FINAL_LR_FRAC": (0.0, 0.2),
}  # fmt: skip
_POWERS = frozenset({"HEAD_DIM", "DEVICE_BATCH_SIZE", "TOTAL_BATCH_SIZE"})
_RATES = frozenset({"EMBEDDING_LR", "UNEMBEDDING_LR", "MATRIX_LR", "SCALAR_LR"})
_CMA_FIRST = 10  # random programs before CMA-ES, where it knows none
NOISE = 0.0005  # of runs of the same program; a store knows it from replicates, and from its prior before any


@dataclass(frozen=True, slots=True)
class Start:
    """Where a session begins.

    Args:
        constants: Of the program at the start.
        baseline: What its run measured.
        seed: Of the researcher's choices.
        remembered: Runs of earlier sessions, of which a warm memory knows; group 0 is the same context.
    """

    constants: Constants
    baseline: float
    seed: int
    surrogate: Surrogate
    other: Surrogate

    @property
    def numbers(self) -> dict[str, float]:
        """The constants that researchers turn."""
        return {name: self.constants[name] for name in self.constants if name in _SPACE and tunable(name)}


# ---------------------------------------------------------------------------------------------- without a memory


def scripted(policy: str) -> Callable[[Start], Researcher]:
    """Return a scripted researcher, which goes on from its best program so far."""

    def research(start: Start) -> Researcher:
        kept, best = dict(start.constants), start.baseline
        turned = start.numbers
        habit = HABITS[policy](random.Random(start.seed), lambda: turned, lower=True)  # noqa: S311 - choices
        proposal = next(habit)
        while True:
            program = kept | _read(proposal, turned)
            metric = yield program
            better = metric is not None and metric < best
            if metric is not None and better:
                kept, best = program, metric
                turned.update({name: program[name] for name in turned})
            proposal = habit.send(Heard(better, metric, turned))

    return research


def _read(proposal: Proposal, turned: Mapping[str, float]) -> dict[str, float]:
    return {name: type(turned[name])(float(value)) for name, value in proposal.values}


def at_random(start: Start) -> Researcher:
    """Draw each constant from its published range."""
    rng = random.Random(start.seed)  # noqa: S311 - choices
    while True:
        yield dict(start.constants) | {name: _drawn(name, rng.random()) for name in start.numbers}


def _drawn(name: str, share: float) -> float:
    low, high = _SPACE[name]
    if name in _RATES:
        return math.exp(math.log(low) + share * math.log(high / low))
    if name in _POWERS:
        return int(2 ** round(math.log2(low) + share * math.log2(high / low)))
    value = low + share * (high - low)
    return round(value) if isinstance(low, int) else value


def optimiser(kind: str, *, from_default: bool) -> Callable[[Start], Researcher]:
    """Return one of Optuna's optimisers: around the default program, which it knows of, or over the whole ranges."""

    def research(start: Start) -> Researcher:
        optuna: Any = importlib.import_module("optuna")  # an extra, and heavy
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers = optuna.samplers
        sampler = (
            samplers.TPESampler(seed=start.seed, multivariate=True)
            if kind == "tpe"
            else samplers.CmaEsSampler(seed=start.seed, n_startup_trials=1 if from_default else _CMA_FIRST)
        )
        study = optuna.create_study(direction="minimize", sampler=sampler)
        # CMA-ES begins in the middle: where it is to begin at the default program, that is the middle of each range.
        middle = {name: _share(name, value) if from_default else 0.5 for name, value in start.numbers.items()}
        space = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in middle}
        if from_default:
            first = optuna.trial.create_trial(
                params=dict.fromkeys(middle, 0.5), distributions=space, value=start.baseline
            )
            study.add_trial(first)
        while True:
            trial = study.ask(space)
            shares = {name: _bent(trial.params[name], middle[name]) for name in middle}
            metric = yield dict(start.constants) | {name: _drawn(name, share) for name, share in shares.items()}
            study.tell(trial, metric, state=optuna.trial.TrialState.FAIL if metric is None else None)

    return research


def _bent(share: float, middle: float) -> float:
    """Return a share of a range so that a half is its middle."""
    return 2 * share * middle if share < 0.5 else middle + (2 * share - 1) * (1 - middle)


def _share(name: str, value: float) -> float:
    """Return where in its range a value lies, as `_drawn` takes it."""
    low, high = _SPACE[name]
    if name in _RATES or name in _POWERS:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


# ---------------------------------------------------------------------------------------------- with LoopGraph


def advised(memory: str) -> Callable[[Start], Researcher]:
    """Return a researcher that runs the first suggestion of values each time.

    Args:
        memory: `cold`: what ships; `no-prior`: that without what other people's histories say; `warm`: an earlier
            session of a greedy researcher besides, in the same context; `warm-other`: that session in another context;
            `placebo`: what `warm` knows with its changes ascribed to other knobs, and all outcomes, those of this
            session too, shuffled between the runs each time.
    """

    def research(start: Start) -> Researcher:
        rng = random.Random(start.seed)  # noqa: S311 - choices
        names = list(start.numbers)
        lean = {} if memory == "no-prior" else prior(start)
        remembered = remember(start, memory)
        if memory == "placebo":
            lean = dict(zip(names, rng.sample(list(lean.values()), len(lean)), strict=True))
            remembered = _misattributed(remembered, start.numbers, rng)
        own = [Run(start.numbers, start.baseline)]
        present = start.numbers
        while True:
            known = [*remembered, *own]
            if memory == "placebo":
                known = _shuffled(known, rng)
            advice = advise(present, known, lower=True, noise=NOISE, lean=lean, seed=rng.randrange(2**31), limit=1)
            present = dict(advice.best)
            changed = {change.name: change.new for change in advice.suggestions[0].changes}
            metric = yield dict(start.constants) | present | changed
            own.append(Run(present | changed, metric))

    return research


def prior(start: Start) -> dict[str, float]:
    """Return which way the published histories that ship with LoopGraph lean for each constant."""
    return leanings(start.numbers, Prior(read_day_one().counts), TrialHistory())


def remember(start: Start, memory: str) -> list[Run]:
    """Return the runs of the session before, as a warm memory holds them."""
    if memory in {"cold", "no-prior"}:
        return []
    surrogate = start.other if memory == "warm-other" else start.surrogate
    seed = start.seed + _WARM_SEED
    found = session(scripted("greedy"), start.constants, surrogate, start.other, seed=seed, experiments=EARLIER)
    group = 1 if memory == "warm-other" else 0
    return [Run({name: each.constants[name] for name in start.numbers}, each.metric, group) for each in found]


def _misattributed(runs: Sequence[Run], start: Mapping[str, float], rng: random.Random) -> list[Run]:
    """Return runs whose changes from the start were made to other knobs: which programs were run tells much alone."""
    names, scales = list(start), scales_of(start)
    other = dict(zip(names, rng.sample(names, len(names)), strict=True))

    def moved(values: Mapping[str, float]) -> dict[str, float]:
        steps = {name: scales[name].place(values[name]) - scales[name].place(start[name]) for name in names}
        return {
            name: scales[name].value(scales[name].place(start[name]) + steps[other[name]])
            if steps[other[name]]
            else start[name]
            for name in names
        }

    return [Run(moved(run.values), run.metric, run.group) for run in runs]


def _shuffled(runs: Sequence[Run], rng: random.Random) -> list[Run]:
    metrics = rng.sample([run.metric for run in runs], len(runs))
    return [Run(run.values, metric, run.group) for run, metric in zip(runs, metrics, strict=True)]


ARMS: Mapping[str, Callable[[Start], Researcher]] = {
    "none": scripted("greedy"),
    "random": at_random,
    "tpe": optimiser("tpe", from_default=True),
    "tpe-cold": optimiser("tpe", from_default=False),
    "cma-es": optimiser("cma-es", from_default=True),
    "cma-es-cold": optimiser("cma-es", from_default=False),
    "cold": advised("cold"),
    "no-prior": advised("no-prior"),
    "warm": advised("warm"),
    "warm-other": advised("warm-other"),
    "placebo": advised("placebo"),
}


def check_arms(arms: Sequence[str]) -> None:
    """Refuse to begin what would end for want of an arm or a package.

    Raises:
        ConfigError: An arm is unknown, or is Optuna's, and Optuna is not there.
    """
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ConfigError(f"no arm {', '.join(unknown)} on a surrogate; the arms are {', '.join(ARMS)}")
    wanted = {"optuna": "tpe", "cmaes": "cma-es"}
    missing = [
        package
        for package, kind in wanted.items()
        if any(arm.startswith(kind) for arm in arms) and importlib.util.find_spec(package) is None
    ]
    if missing:
        raise ConfigError(f"these arms need {' and '.join(missing)}: pip install 'loopgraph-mcp[bench]'")


# ---------------------------------------------------------------------------------------------- a session


@dataclass(frozen=True, slots=True)
class Made:
    """One experiment of a session; the first is the program that it starts from.

    Args:
        metric: What its run measured; None where it failed.
        true: What the surrogate says of it without noise; None where it failed.
    """

    constants: Constants
    metric: float | None
    true: float | None


def session(
    arm: Callable[[Start], Researcher],
    constants: Constants,
    surrogate: Surrogate,
    other: Surrogate,
    *,
    seed: int,
    experiments: int,
) -> list[Made]:
    """Return what a researcher ran, its baseline first."""

    def ran(program: Constants) -> Made:
        outcome = surrogate.run(program, seed)
        return Made(program, outcome.val_bpb, None if outcome.val_bpb is None else outcome.true_bpb)

    made = [ran(constants)]
    if made[0].metric is None:
        return made
    researcher = arm(Start(constants, made[0].metric, seed, surrogate, other))
    program = next(researcher)
    while True:
        made.append(ran(program))
        if len(made) > experiments:
            researcher.close()
            return made
        program = researcher.send(made[-1].metric)
