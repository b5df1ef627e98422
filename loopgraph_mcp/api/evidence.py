"""What stored outcomes say: verdicts on changes, and of each method what ranks it; one value a version of the store."""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from statistics import fmean

from loopgraph_mcp.api.tries import Tries
from loopgraph_mcp.models import (
    Context,
    Method,
    NoiseFloor,
    Origin,
    SharedOutcome,
    Standing,
    Verdict,
    VerdictKind,
)
from loopgraph_mcp.ranking import verdicts
from loopgraph_mcp.ranking.posterior import (
    LITERATURE_KAPPA,
    OTHER_DEVICE_KAPPA,
    PRIOR_MEAN,
    Appraisal,
    Observation,
    appraise,
    family_mean,
)
from loopgraph_mcp.ranking.prior import Prior
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.store.outcomes import Run

_OTHER_SCALE_KAPPA = 0.5
_OTHER_WORKSPACE_KAPPA = 0.3  # just above what others published: measured, but of another program
_REPORT_KAPPA = 0.8  # a report with its log: read like ours, of a run that nobody watched
_BARE_REPORT_KAPPA = 0.1  # all bare reports of a method together: one agent's word moves a rank by little
_BARE_REPORT_CLIP = 2.0  # in sigmas
_PUBLISHED_ON = "cuda"
_AS_LONG = 4.0  # budgets within this factor are one scale
_PLATEAU_LOOK = 200  # newest runs of all contexts among which those of one are looked for
_NO_CHANGES = frozenset({VerdictKind.BASELINE, VerdictKind.NO_BASELINE})


@dataclass(frozen=True, slots=True)
class Trial:
    """All runs of one change that a method made, in one context.

    Args:
        verdict: What its runs say of it; None where somebody only reported a number.
        here: Whether it was measured where the question is asked.
        origin: Who says so.
        failed: Whether a reported run failed.
    """

    context: Context
    verdict: Verdict | None
    observation: Observation | None
    age: int
    here: bool
    origin: Origin = Origin.MEASURED
    failed: bool = False

    @property
    def imported(self) -> bool:
        """Whether somebody's history holds it."""
        return self.origin is Origin.IMPORTED

    @property
    def gain(self) -> float | None:
        """Mean improvement over the parent, in metric units."""
        return None if self.verdict is None else self.verdict.gain

    @property
    def kind(self) -> VerdictKind | None:
        """What it was judged; None where somebody only reported a number."""
        return None if self.verdict is None else self.verdict.kind


@dataclass(frozen=True)
class Count:
    """How some trials ended; the mean gain is in metric units and counts those that finished."""

    tries: int = 0
    wins: int = 0
    losses: int = 0
    crashes: int = 0
    mean_gain: float | None = None
    last_age: int | None = None

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> "Count":
        """Count trials."""
        found = list(trials)
        kinds = [trial.kind for trial in found]
        gains = [trial.gain for trial in found if trial.gain is not None]
        return cls(
            tries=len(found),
            wins=kinds.count(VerdictKind.WIN),
            losses=kinds.count(VerdictKind.LOSS),
            crashes=kinds.count(VerdictKind.CRASH),
            mean_gain=fmean(gains) if gains else None,
            last_age=min((trial.age for trial in found if not trial.imported), default=None),
        )


@dataclass(frozen=True)
class TrackRecord:
    """What this store's outcomes say of one method, kept apart by where they were measured and by whom."""

    trials: tuple[Trial, ...] = ()

    @cached_property
    def here(self) -> Count:
        """Trials measured in the context that is asked about; without one, in all contexts."""
        return Count.of(trial for trial in self.trials if trial.here and trial.origin.is_evidence)

    @cached_property
    def elsewhere(self) -> Count:
        """Trials measured in other contexts: another workspace, device, budget, data or harness."""
        return Count.of(trial for trial in self.trials if not trial.here and trial.origin.is_evidence)

    @cached_property
    def imported(self) -> Count:
        """Trials that other people's histories hold."""
        return Count.of(trial for trial in self.trials if trial.imported)

    @cached_property
    def reports(self) -> int:
        """How often somebody reported a number without its log."""
        return sum(trial.origin is Origin.REPORTED for trial in self.trials)

    @cached_property
    def crashes(self) -> int:
        """Changes that failed, wherever; reports of failures count as one at most."""
        failed = [trial for trial in self.trials if trial.kind is VerdictKind.CRASH]
        only_reported = any(trial.failed for trial in self.trials)
        return len(failed) + only_reported

    @cached_property
    def standing(self) -> Standing:
        """One word: untried, proven (wins, no losses), flopped (losses or crashes, no win), or mixed."""
        bad = self.here.losses + self.here.crashes
        if not self.here.tries:
            return Standing.UNTRIED
        if self.here.wins and not bad:
            return Standing.PROVEN
        return Standing.FLOPPED if bad and not self.here.wins else Standing.MIXED


@dataclass(frozen=True, slots=True)
class Best:
    """What ran best in a context: the best mean of its runs less their standard error, and not the luckiest run.

    Args:
        group_key: What ran, up to the values of seeds.
        values: What its runs measured.
        noise: The noise of one run.
        verdict: How it compares with the first program that was measured there.
        baseline: What that program's runs measured.
    """

    context_id: str
    group_key: str
    values: tuple[float, ...]
    noise: NoiseFloor
    verdict: Verdict
    baseline: tuple[float, ...]


@dataclass
class _InContext:
    """What the programs of one context measured, read from its runs in the order they ended.

    Args:
        quiet: Values of each program, up to the values of seeds.
        disturbed: The same of runs beside others' work: they count where a program has no other.
        failed: Programs that failed in some run.
        first: The program that was measured first.
    """

    context: Context
    quiet: dict[str, list[float]] = field(default_factory=dict)
    disturbed: dict[str, list[float]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    first: str = ""

    @classmethod
    def of(cls, context: Context, runs: Iterable[Run]) -> "_InContext":
        """Sort a context's runs by what ran."""
        found = cls(context)
        sizes = list[tuple[float, float]]()
        for run in runs:
            if run.metric_value is None:
                found.failed.add(run.group)
                continue
            found.first = found.first or run.group
            beside_others = verdicts.disturbed(run.other_load, run.tokens, run.params, sizes)
            (found.disturbed if beside_others else found.quiet).setdefault(run.group, []).append(run.metric_value)
            if run.tokens and run.params and not beside_others:
                sizes.append((run.tokens, run.params))
        return found

    def measured(self, group: str | None) -> tuple[list[float], bool]:
        """Return what runs of a program measured, and whether all of them shared the device."""
        quiet, disturbed = self.quiet.get(group or "", []), self.disturbed.get(group or "", [])
        return (quiet, False) if quiet or not disturbed else (disturbed, True)

    @cached_property
    def noise(self) -> NoiseFloor:
        """The noise of one run that had the device to itself."""
        typical = fmean(next(iter(self.quiet.values()))) if self.quiet else 1.0
        default = verdicts.default_noise(self.context.metric, self.context.device, typical)
        return verdicts.noise_floor(default, [values for values in self.quiet.values() if len(values) > 1])

    def judge(self, base_group: str | None, group: str, *, failed: bool = False) -> Verdict:
        """Judge a change against its base, or a program that is its own base as a baseline.

        A run that failed has no values, whatever others of the same program did.
        """
        child, disturbed = ([], False) if failed else self.measured(group)
        if base_group == group:
            return verdicts.baseline(child, noise=self.noise)
        parent, parent_disturbed = self.measured(base_group)
        if not child and not parent and base_group in self.failed:
            return verdicts.failing_parent(noise=self.noise)
        noise = _raised(self.noise, disturbed=disturbed or parent_disturbed)
        return verdicts.judge(parent, child, direction=self.context.direction, noise=noise)

    def worth(self, group: str) -> float:
        """Return how good a program is beyond doubt; runs beside others' work leave more of it."""
        values, disturbed = self.measured(group)
        sigma = _raised(self.noise, disturbed=disturbed).sd
        direction = self.context.direction
        return direction.gain(0.0, verdicts.cautious(values, direction=direction, sigma=sigma))

    @cached_property
    def best(self) -> str:
        """The program that is best beyond doubt; empty where none was measured."""
        return max(((self.worth(group), group) for group in {*self.quiet, *self.disturbed}), default=(0.0, ""))[1]


class Outcomes:
    """All outcomes of a store up to one of them: a value, of which each part is worked out when it is first asked for.

    Args:
        runs: The outcomes that say something of an idea, in the order they came.
        contexts: Where they were measured, by id.
        families: The family of each method.
        newest: The place of the newest outcome.
    """

    def __init__(
        self, runs: Sequence[Run], contexts: Mapping[str, Context], families: Mapping[str, str], newest: int
    ) -> None:
        self.runs = runs
        self.contexts = contexts
        self.families = families
        self.newest = newest
        self._in: dict[str, _InContext] = {}
        self._verdicts: dict[tuple[str, str | None, str], Verdict] = {}

    @cached_property
    def _by_context(self) -> Mapping[str, list[Run]]:
        found = defaultdict[str, list[Run]](list)
        for run in self.runs:
            if run.origin is not Origin.REPORTED:  # a bare number counts for its method alone
                found[run.context_id].append(run)
        return found

    @cached_property
    def changes(self) -> Mapping[str, Mapping[tuple[str, str | None, str], Run]]:
        """The changes that each method made, with the newest run of each: replicates are one trial."""
        found = defaultdict[str, dict[tuple[str, str | None, str], Run]](dict)
        for run in self.runs:
            if run.origin is not Origin.REPORTED:
                for method_id in run.method_ids:
                    found[method_id][run.context_id, run.base_group, run.group] = run
        return found

    @cached_property
    def reports(self) -> Mapping[str, list[Run]]:
        """Bare numbers that somebody reported, by method."""
        found = defaultdict[str, list[Run]](list)
        for run in self.runs:
            if run.origin is Origin.REPORTED:
                for method_id in run.method_ids:
                    found[method_id].append(run)
        return found

    @cached_property
    def _imported(self) -> list[int]:
        return [run.row for run in self.runs if run.origin is Origin.IMPORTED]

    def in_context(self, context_id: str) -> _InContext:
        """Return what the programs of a context measured."""
        if context_id not in self._in:
            self._in[context_id] = _InContext.of(self.contexts[context_id], self._by_context.get(context_id, ()))
        return self._in[context_id]

    def judge(self, experiment: ExperimentRow) -> Verdict:
        """Judge a finished experiment with all runs of its program and of its parent's in its context."""
        group = experiment.group_key
        base_group = group if experiment.base_group_key is None else experiment.base_group_key
        if experiment.outcome is not None and experiment.outcome.metric_value is None:
            return self.in_context(experiment.context_id).judge(base_group, group, failed=True)
        return self._verdict(experiment.context_id, base_group, group)

    def rests_on(self, experiment: ExperimentRow) -> object:
        """Return what the verdict on a finished experiment rests on: while it is the same, so is the verdict."""
        found = self.in_context(experiment.context_id)
        base_group = experiment.base_group_key
        return found.noise, found.measured(experiment.group_key), found.measured(base_group), base_group in found.failed

    def verdict(self, run: Run) -> Verdict:
        """Return the verdict on the change that a run is one of."""
        return self._verdict(run.context_id, run.base_group, run.group)

    def _verdict(self, context_id: str, base_group: str | None, group: str) -> Verdict:
        key = context_id, base_group, group
        if key not in self._verdicts:
            self._verdicts[key] = self.in_context(context_id).judge(base_group, group)
        return self._verdicts[key]

    def age(self, run: Run) -> int:
        """Return how many outcomes came after a run; imported ones do not count."""
        return self.newest - run.row - (len(self._imported) - bisect_right(self._imported, run.row))


class Records:
    """What outcomes say of each method, seen from one context; without one, from all of them.

    Args:
        outcomes: All outcomes.
        here: The context.
    """

    def __init__(self, outcomes: Outcomes, here: Context | None) -> None:
        self.outcomes = outcomes
        self.here = here
        self._records: dict[str, TrackRecord] = {}
        self._appraisals: dict[str, Appraisal] = {}

    def of(self, method_id: str) -> TrackRecord:
        """Return what is known of a method."""
        if method_id not in self._records:
            self._records[method_id] = TrackRecord(tuple(self._trials(method_id)))
        return self._records[method_id]

    def appraisal(self, method: Method) -> Appraisal:
        """Return what ranks a method: its trials, and what others published of it, for little."""
        if method.id not in self._appraisals:
            self._appraisals[method.id] = self._appraise(method)
        return self._appraisals[method.id]

    def _appraise(self, method: Method) -> Appraisal:
        record = self.of(method.id)
        seen, bare = _observations(record, bare=False), _observations(record, bare=True)
        prior = self.family_means.get(method.family, PRIOR_MEAN)
        found = appraise(seen, record.crashes, prior_mean=prior)
        if not (method.published or method.outcomes or bare):
            return found
        near = (each for each in method.outcomes if _kappa(each, self.here) > LITERATURE_KAPPA)
        crashes = record.crashes + sum(each.crashes for each in near)
        both = appraise([*seen, *bare, *_others(method, self.here)], crashes, prior_mean=prior)
        return replace(both, reward=found.reward, told=both.reward / found.reward)

    def _trials(self, method_id: str) -> Iterator[Trial]:
        """Yield each change that a method made, with the verdict on all its runs, oldest first."""
        outcomes, here = self.outcomes, self.here
        for run in outcomes.changes.get(method_id, {}).values():
            verdict = outcomes.verdict(run)
            failed_baseline = run.base_group in {None, run.group} and verdict.kind is VerdictKind.CRASH
            if verdict.kind is VerdictKind.BASELINE or failed_baseline:
                continue
            context, age = outcomes.contexts[run.context_id], outcomes.age(run)
            observation = self._observation(run, verdict, age=age)
            yield Trial(context, verdict, observation, age, here in {None, context}, run.origin)
        reports = outcomes.reports.get(method_id, ())
        for run in reports:
            context = outcomes.contexts[run.context_id]
            seen = self._reported(run, _BARE_REPORT_KAPPA / len(reports))
            failed = run.metric_value is None
            yield Trial(context, None, seen, outcomes.age(run), here in {None, context}, run.origin, failed=failed)

    def _reported(self, run: Run, kappa: float) -> Observation | None:
        """Return a bare number as evidence: its gain over the incumbent's mean of that time, drawn in."""
        found = self.outcomes.in_context(run.context_id)
        parent, _ = found.measured(run.base_group)
        if run.metric_value is None or not parent:
            return None
        gain = found.context.direction.gain(fmean(parent), run.metric_value) / found.noise.sd
        return Observation(min(max(gain, -_BARE_REPORT_CLIP), _BARE_REPORT_CLIP), n_parent=len(parent), kappa=kappa)

    def _observation(self, run: Run, verdict: Verdict, *, age: int) -> Observation | None:
        if verdict.gain is None:
            return None
        found = self.outcomes.in_context(run.context_id)
        return Observation(
            verdict.gain / verdict.noise_floor,
            n_parent=len(found.measured(run.base_group)[0]),
            n_child=len(found.measured(run.group)[0]),
            age=age,
            kappa=_kappa_of(run, found.context, self.here),
            shared=len(run.method_ids),
        )

    @cached_property
    def family_means(self) -> Mapping[str, float]:
        """The gain to expect of each family's next method, in noise floors, where it has any trial.

        It is the weak end of the evidence, and does not fade with age.
        """
        seen = defaultdict[str, list[Observation]](list)
        for method_id, changes in sorted(self.outcomes.changes.items()):
            for run in changes.values():
                verdict = self.outcomes.verdict(run)
                observation = self._observation(run, verdict, age=0)
                if observation is not None and verdict.kind is not VerdictKind.BASELINE:
                    seen[self.outcomes.families.get(method_id, "")].append(observation)
        return {family: family_mean(found) for family, found in seen.items()}

    def noise(self) -> float:
        """Return the standard deviation of runs of one program here."""
        if self.here is None:
            return 0.0
        known = next((each for each, context in self.outcomes.contexts.items() if context == self.here), None)
        if known is None:
            return verdicts.default_noise(self.here.metric, self.here.device, 1.0)
        return self.outcomes.in_context(known).noise.sd

    def best(self) -> Best | None:
        """Return what ran best here, and not by luck alone."""
        contexts = self.outcomes.contexts
        context_id = next((each for each, context in contexts.items() if context == self.here), None)
        if self.here is None or context_id is None:
            return None
        found = self.outcomes.in_context(context_id)
        if not found.best:
            return None
        values, disturbed = found.measured(found.best)
        return Best(
            context_id,
            found.best,
            tuple(values),
            _raised(found.noise, disturbed=disturbed),
            found.judge(found.first, found.best),
            tuple(found.measured(found.first)[0]),
        )

    def plateau_families(self, runs: int) -> frozenset[str]:
        """Return the families that the last runs here tried, if there are so many and none of them was a win."""
        own = (run for run in reversed(self.outcomes.runs) if run.origin.is_evidence)
        recent = islice(own, _PLATEAU_LOOK)
        judged = (
            (run, self.outcomes.verdict(run)) for run in recent if self.outcomes.contexts[run.context_id] == self.here
        )
        changes = list(islice((pair for pair in judged if pair[1].kind not in _NO_CHANGES), runs))
        if self.here is None or len(changes) < runs or any(each.kind is VerdictKind.WIN for _, each in changes):
            return frozenset()
        families = self.outcomes.families
        tried = {families.get(method_id, "") for run, _ in changes for method_id in run.method_ids}
        return frozenset(tried or {"edits by hand"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a question in one context rests on, as of one version of the store.

    Args:
        records: What outcomes say of each method, seen from that context.
        tries: What was tried in its workspace.
        prior: Of other histories and the user's other searches.
        learned: Methods that have a learned recipe.
    """

    records: Records
    tries: Tries
    prior: Prior
    learned: Collection[str]

    def work_out(self, methods: Iterable[Method]) -> None:
        """Work out what every search asks for; of ten thousand runs it takes a good part of a second."""
        for method in methods:
            self.records.appraisal(method)
            self.prior.estimate(method.moves, self.tries.history)


def _raised(noise: NoiseFloor, *, disturbed: bool) -> NoiseFloor:
    """Return the noise of runs that shared their device, where they did."""
    factor = verdicts.DISTURBED_NOISE if disturbed else 1.0
    return replace(noise, sd=noise.sd * factor, factor=factor)


def _observations(record: TrackRecord, *, bare: bool) -> list[Observation]:
    """Return what a method's trials show: the bare reports alone, or all others."""
    return [
        trial.observation
        for trial in record.trials
        if trial.observation is not None and (trial.origin is Origin.REPORTED) is bare
    ]


def _kappa_of(run: Run, context: Context, here: Context | None) -> float:
    """Return how far a run counts, seen from a context: by where it was made and who says so."""
    word = _REPORT_KAPPA if run.origin.is_report else 1.0
    if here is None or context == here:
        return word
    alike = context.workspace_id == here.workspace_id or context.is_same_loop(here)
    return word * (_OTHER_SCALE_KAPPA if alike else _OTHER_WORKSPACE_KAPPA)


def _others(method: Method, here: Context | None) -> Iterator[Observation]:
    """Yield what others measured of a method: less the less their device and budget are like ours."""
    # Most published gains are of val_bpb on a data-centre GPU; in its noise floors they travel best.
    unit = verdicts.default_noise("val_bpb", _PUBLISHED_ON, 1.0)
    foreign = here is not None and here.device_class != _PUBLISHED_ON
    for result in method.published:
        if result.gain is not None:
            yield Observation(result.gain / unit, kappa=OTHER_DEVICE_KAPPA if foreign else LITERATURE_KAPPA)
    for outcome in method.outcomes:
        if outcome.gain_sigmas is not None:
            runs = outcome.runs or 1
            yield Observation(outcome.gain_sigmas, n_parent=runs, n_child=runs, kappa=_kappa(outcome, here))


def _kappa(outcome: SharedOutcome, here: Context | None) -> float:
    """Return how far somebody's outcome counts: as one's own of another scale where device and budget are alike."""
    if here is None or not outcome.device:
        return LITERATURE_KAPPA
    if outcome.device != here.device_class:
        return OTHER_DEVICE_KAPPA
    alike = outcome.budget_s is not None and abs(math.log(outcome.budget_s / here.budget_s)) <= math.log(_AS_LONG)
    return _OTHER_SCALE_KAPPA if alike and outcome.metric == here.metric else LITERATURE_KAPPA
