"""Brings stored outcomes before the pure judges: verdicts on experiments, evidence for ranking methods."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from loopgraph_mcp import verdicts
from loopgraph_mcp.models import Context, Method, Standing, Verdict, VerdictKind
from loopgraph_mcp.ranking import LITERATURE_KAPPA, Evidence, Observation
from loopgraph_mcp.store import edits, outcomes
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow

_OTHER_SCALE_KAPPA = 0.5


@dataclass(frozen=True, slots=True)
class Trial:
    """All runs of one change that a method made, in one context.

    Args:
        gain: Mean improvement over the parent in metric units; None where it failed or has no parent.
        same_context: Whether it was measured where the question is asked.
        imported: Whether somebody's history tells of it.
    """

    context: Context
    verdict: Verdict
    observation: Observation | None
    age: int
    same_context: bool
    imported: bool = False

    @property
    def gain(self) -> float | None:
        """Mean improvement over the parent, in metric units."""
        return self.verdict.gain


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """What this store's outcomes say of one method."""

    trials: tuple[Trial, ...] = ()

    @property
    def tries(self) -> int:
        """Changes that were run."""
        return len(self.trials)

    @property
    def wins(self) -> int:
        """Changes judged a win."""
        return sum(1 for trial in self.trials if trial.verdict.kind is VerdictKind.WIN)

    @property
    def crashes(self) -> int:
        """Changes that failed."""
        return sum(1 for trial in self.trials if trial.verdict.kind is VerdictKind.CRASH)

    @property
    def mean_gain(self) -> float | None:
        """Mean gain in metric units, over the trials of the context asked for, or else over all."""
        here = [trial.gain for trial in self.trials if trial.same_context and trial.gain is not None]
        gains = here or [trial.gain for trial in self.trials if trial.gain is not None]
        return fmean(gains) if gains else None

    @property
    def last_age(self) -> int | None:
        """Experiments made since the last trial of one's own."""
        return min((trial.age for trial in self.trials if not trial.imported), default=None)

    @property
    def standing(self) -> Standing:
        """One word: untried, proven (wins, no losses), flopped (losses or crashes, no win), or mixed."""
        bad = sum(1 for trial in self.trials if trial.verdict.kind in {VerdictKind.LOSS, VerdictKind.CRASH})
        if not self.trials:
            return Standing.UNTRIED
        if self.wins and not bad:
            return Standing.PROVEN
        return Standing.FLOPPED if bad and not self.wins else Standing.MIXED


@dataclass(frozen=True, slots=True)
class Memory:
    """The evidence of every method, as one question needs it."""

    records: Mapping[str, TrackRecord]
    by_family: Mapping[str, Sequence[Observation]] = field(default_factory=dict)

    def record(self, method_id: str) -> TrackRecord:
        """Return what is known of a method."""
        return self.records.get(method_id, TrackRecord())

    def evidence(self, method: Method, shown_ages: Sequence[int]) -> Evidence:
        """Return what ranks a method: its trials, and what others published of it, for little."""
        record = self.record(method.id)
        observations = [trial.observation for trial in record.trials if trial.observation is not None]
        # Most published gains are of val_bpb on a data-centre GPU; in its noise floors they travel best.
        unit = verdicts.default_noise("val_bpb", "cuda", 1.0)
        observations += [
            Observation(result.gain / unit, kappa=LITERATURE_KAPPA)
            for result in method.published
            if result.gain is not None
        ]
        return Evidence(tuple(observations), record.crashes, tuple(shown_ages))


def _noise_floor(context: Context, groups: Sequence[Sequence[float]]) -> float:
    typical = fmean(groups[0]) if groups else 1.0
    default = verdicts.default_noise(context.metric, context.device, typical)
    return verdicts.noise_floor(default, [group for group in groups if len(group) > 1])


async def judge_experiment(db: Database, experiment: ExperimentRow) -> Verdict:
    """Judge a finished experiment with all runs of its program and of its parent's in its context."""
    context = await edits.get_context(db, experiment.context_id)
    values = await outcomes.finished_values(db, [experiment.context_id])
    tree, base_tree = await outcomes.compared_trees(db, experiment.id)
    sigma = _noise_floor(context, list(values.values()))
    child = values.get((experiment.context_id, tree), [])
    if experiment.outcome is not None and experiment.outcome.metric_value is None:
        child = []  # this run failed, whatever others of the same program did
    if child and base_tree in {None, tree}:
        return verdicts.baseline(child, sigma=sigma)
    parent = values.get((experiment.context_id, base_tree or ""), [])
    return verdicts.judge(parent, child, direction=context.direction, sigma=sigma)


async def recall(db: Database, here: Context | None) -> Memory:
    """Return the evidence of every method that was ever run, seen from one context."""
    runs = await outcomes.method_runs(db)
    contexts = {run.context_id: run.context for run in runs}
    values = await outcomes.finished_values(db, list(contexts))
    groups: dict[str, list[list[float]]] = defaultdict(list)
    for (context_id, _), found in values.items():
        groups[context_id].append(found)
    sigmas = {identity: _noise_floor(context, groups[identity]) for identity, context in contexts.items()}

    trials: dict[tuple[str, str, str | None, str], tuple[outcomes.MethodRun, Trial]] = {}
    for run in runs:  # replicates of one change are one trial; the newest run tells its age
        key = (run.method_id, run.context_id, run.base_tree, run.tree)
        trials[key] = run, _trial(run, values, sigmas[run.context_id], here)

    records: dict[str, list[Trial]] = defaultdict(list)
    by_family: dict[str, list[Observation]] = defaultdict(list)
    for run, trial in trials.values():
        if trial.verdict.kind is VerdictKind.BASELINE:
            continue
        records[run.method_id].append(trial)
        if trial.observation is not None:
            by_family[run.family].append(trial.observation)
    return Memory({method: TrackRecord(tuple(found)) for method, found in records.items()}, by_family)


def _trial(
    run: outcomes.MethodRun, values: Mapping[tuple[str, str], list[float]], sigma: float, here: Context | None
) -> Trial:
    child = values.get((run.context_id, run.tree), [])
    parent = values.get((run.context_id, run.base_tree or ""), [])
    comparable = here is not None and _comparable(run.context, here)
    if run.base_tree == run.tree and child:
        verdict = verdicts.baseline(child, sigma=sigma)
    else:
        verdict = verdicts.judge(parent, child, direction=run.context.direction, sigma=sigma)
    observation = None
    if verdict.gain is not None:
        observation = Observation(
            verdict.gain / sigma,
            n_parent=len(parent),
            n_child=len(child),
            age=run.age,
            kappa=1.0 if comparable or here is None else _OTHER_SCALE_KAPPA,
            shared=run.shared,
        )
    return Trial(run.context, verdict, observation, run.age, comparable, run.imported)


def _comparable(one: Context, other: Context) -> bool:
    """Return whether two contexts differ in nothing but the folder."""
    return (one.device, one.budget_s, one.dataset_hash, one.harness_hash, one.metric) == (
        other.device,
        other.budget_s,
        other.dataset_hash,
        other.harness_hash,
        other.metric,
    )
