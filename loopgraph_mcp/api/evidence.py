"""Brings stored outcomes before the pure judges: verdicts on experiments, evidence for ranking methods."""

import asyncio
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from statistics import fmean

from loopgraph_mcp.models import (
    Context,
    Direction,
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
from loopgraph_mcp.store import edits, methods, outcomes
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.store.outcomes import Run
from loopgraph_mcp.store.version import Newest, read_newest

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
class Memory:
    """The evidence of every method, as one question needs it; worked out for the methods that are asked for."""

    ledger: "Ledger"
    here: Context | None

    def record(self, method_id: str) -> TrackRecord:
        """Return what is known of a method."""
        return self.ledger.record(method_id, self.here)

    def appraisal(self, method: Method) -> Appraisal:
        """Return what ranks a method: its trials, and what others published of it, for little."""
        return self.ledger.appraisal(method, self.here)

    def best(self) -> "Best | None":
        """Return what ran best here."""
        return None if self.here is None else self.ledger.best(self.here)

    def plateau_families(self, runs: int) -> frozenset[str]:
        """Return the families that the last runs here tried, if none of those runs was a win; else none."""
        return frozenset() if self.here is None else self.ledger.plateau_families(self.here, runs)


@dataclass(slots=True)
class _FamilyMeans:
    """What families gained, as seen from one context, and the methods of which that is to be worked out again."""

    here: Context | None = None
    seen: dict[str, list[Observation]] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    sigmas: dict[str, float] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    up_to: int = -1


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


@dataclass(slots=True)
class _Best:
    """The best program of a context, and the programs that ran since it was looked for."""

    sigma: float = math.nan
    worth: float = -math.inf
    group: str = ""
    touched: set[str] = field(default_factory=set)


class Ledger:
    """All runs of a store: read once, then followed; what is judged of them is kept until a new run bears on it.

    `seen` is the place of the newest outcome that was read.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = asyncio.Lock()
        self.seen = 0
        self._imported: list[int] = []  # places of imported outcomes: one's own do not fade by them
        self._contexts: dict[str, Context] = {}
        self._values: dict[str, dict[str, list[float]]] = defaultdict(dict)
        self._replicated: dict[str, list[str]] = defaultdict(list)  # programs with several of those values
        self._disturbed: dict[str, dict[str, list[float]]] = defaultdict(dict)  # runs beside others' work
        self._sizes: dict[str, list[tuple[float, float]]] = defaultdict(list)  # tokens and parameters of each run
        self._runs: dict[str, dict[tuple[str, str | None, str], Run]] = defaultdict(dict)
        self._failed: dict[str, set[str]] = defaultdict(set)
        self._first: dict[str, str] = {}  # what was measured first in each context
        self._reports: dict[str, list[Run]] = defaultdict(list)  # bare numbers, by method
        self._newest: list[Run] = []
        self._families: dict[str, str] = {}
        self._versions: dict[str, int] = defaultdict(int)
        self._sigmas: dict[str, tuple[int, NoiseFloor]] = {}
        self._verdicts: dict[tuple[str, str | None, str], tuple[tuple[float, ...], Verdict]] = {}
        self._bearing: dict[tuple[str, str], set[str]] = defaultdict(set)  # methods whose trials a program stands in
        self._known_for: tuple[int, Context | None] = (-1, None)
        self._records: dict[str, TrackRecord] = {}
        self._appraisals: dict[str, Appraisal] = {}
        self._families_of = _FamilyMeans()
        self._bests: dict[str, _Best] = defaultdict(_Best)

    async def follow(self, newest: Newest | None = None) -> None:
        """Take in the outcomes that are new."""
        newest = newest or await read_newest(self._db)
        async with self._lock:
            if newest.outcome <= self.seen:
                return
            for run in await outcomes.runs_between(self._db, self.seen, newest.outcome):
                if run.context_id not in self._contexts:
                    self._contexts[run.context_id] = await edits.get_context(self._db, run.context_id)
                if run.origin is Origin.REPORTED:
                    for method_id in run.method_ids:
                        self._reports[method_id].append(run)
                    continue
                self._versions[run.context_id] += 1
                (self._imported.append(run.row) if run.origin is Origin.IMPORTED else self._newest.append(run))
                if run.metric_value is not None:
                    self._take_value(run, run.metric_value)
                else:
                    self._failed[run.context_id].add(run.group)
                for method_id in run.method_ids:  # replicates of one change are one trial; the newest tells its age
                    self._runs[method_id][run.context_id, run.base_group, run.group] = run
                    for group in (run.group, run.base_group or ""):
                        self._bearing[run.context_id, group].add(method_id)
                self._families_of.stale |= self._bearing.get((run.context_id, run.group), set())
            self._newest = self._newest[-_PLATEAU_LOOK:]
            self.seen = newest.outcome
            if not (self._runs.keys() | self._reports.keys()) <= self._families.keys():
                self._families = await methods.families(self._db)

    def _take_value(self, run: Run, value: float) -> None:
        self._first.setdefault(run.context_id, run.group)
        self._bests[run.context_id].touched.add(run.group)
        sizes = self._sizes[run.context_id]
        beside_others = verdicts.disturbed(run.other_load, run.tokens, run.params, sizes)
        values = self._disturbed if beside_others else self._values
        same = values[run.context_id].setdefault(run.group, [])
        same.append(value)
        if len(same) == 2 and not beside_others:
            self._replicated[run.context_id].append(run.group)
        if run.tokens and run.params and not beside_others:
            sizes.append((run.tokens, run.params))

    def _measured(self, context_id: str, group: str | None) -> tuple[list[float], bool]:
        """Return what runs of a program measured, and whether all of them shared the device: the others count alone."""
        quiet = self._values[context_id].get(group or "", [])
        disturbed = self._disturbed[context_id].get(group or "", [])
        return (quiet, False) if quiet or not disturbed else (disturbed, True)

    async def recall(self, here: Context | None, newest: Newest | None = None) -> Memory:
        """Return the evidence of every method that was ever run, seen from one context."""
        await self.follow(newest)
        return Memory(self, here)

    async def judge(self, experiment: ExperimentRow, newest: Newest | None = None) -> Verdict:
        """Judge a finished experiment with all runs of its program and of its parent's in its context."""
        await self.follow(newest)
        group, base_group = experiment.group_key, experiment.base_group_key
        failed = experiment.outcome is not None and experiment.outcome.metric_value is None
        if experiment.context_id not in self._contexts:
            self._contexts[experiment.context_id] = await edits.get_context(self._db, experiment.context_id)
        return self._judge(experiment.context_id, group if base_group is None else base_group, group, failed=failed)

    def verdict_of(self, experiment: ExperimentRow) -> Verdict:
        """Judge a finished experiment as `judge` does, once the ledger has followed; most of it is kept."""
        group, base_group = experiment.group_key, experiment.base_group_key
        base = group if base_group is None else base_group
        if experiment.outcome is not None and experiment.outcome.metric_value is None:
            return self._judge(experiment.context_id, base, group, failed=True)
        return self._verdict(experiment.context_id, base, group)

    def record(self, method_id: str, here: Context | None) -> TrackRecord:
        """Return what is known of a method, seen from one context."""
        self._forget_stale(here)
        if method_id not in self._records:
            self._records[method_id] = TrackRecord(tuple(self._trials(method_id, here)))
        return self._records[method_id]

    def appraisal(self, method: Method, here: Context | None) -> Appraisal:
        """Return what a method's trials, and what others published of it, say of it."""
        self._forget_stale(here)
        if method.id not in self._appraisals:
            record = self.record(method.id, here)
            seen = _observations(record, bare=False)
            bare = _observations(record, bare=True)
            prior = self.family_means(here).get(method.family, PRIOR_MEAN)
            found = appraise(seen, record.crashes, prior_mean=prior)
            if method.published or method.outcomes or bare:
                near = (each for each in method.outcomes if _kappa(each, here) > LITERATURE_KAPPA)
                crashes = record.crashes + sum(each.crashes for each in near)
                both = appraise([*seen, *bare, *_others(method, here)], crashes, prior_mean=prior)
                found = replace(both, reward=found.reward, told=both.reward / found.reward)
            self._appraisals[method.id] = found
        return self._appraisals[method.id]

    def _forget_stale(self, here: Context | None) -> None:
        """Drop what was worked out before the newest outcome, or for another context."""
        if self._known_for != (self.seen, here):
            self._known_for = (self.seen, here)
            self._records.clear()
            self._appraisals.clear()

    def _trials(self, method_id: str, here: Context | None) -> Iterator[Trial]:
        """Yield each change that a method made, with the verdict on all its runs, oldest first."""
        for (context_id, base_group, group), run in self._runs.get(method_id, {}).items():
            verdict = self._verdict(context_id, base_group, group)
            failed_baseline = base_group in {None, group} and verdict.kind is VerdictKind.CRASH
            if verdict.kind is VerdictKind.BASELINE or failed_baseline:
                continue
            context = self._contexts[context_id]
            age = self._age(run)
            observation = self._observation(run, verdict, kappa=_kappa_of(run, context, here), age=age)
            yield Trial(context, verdict, observation, age, here in {None, context}, run.origin)
        reports = self._reports.get(method_id, ())
        for run in reports:
            context = self._contexts[run.context_id]
            kappa = _BARE_REPORT_KAPPA / len(reports)
            failed = run.metric_value is None
            yield Trial(
                context,
                None,
                self._reported(run, kappa),
                self._age(run),
                here in {None, context},
                run.origin,
                failed=failed,
            )

    def _reported(self, run: Run, kappa: float) -> Observation | None:
        """Return a bare number as evidence: its gain over the incumbent's mean of that time, drawn in."""
        parent, _ = self._measured(run.context_id, run.base_group)
        if run.metric_value is None or not parent:
            return None
        direction, noise = self._contexts[run.context_id].direction, self._sigma(run.context_id)
        gain = direction.gain(fmean(parent), run.metric_value) / noise.sd
        return Observation(min(max(gain, -_BARE_REPORT_CLIP), _BARE_REPORT_CLIP), n_parent=len(parent), kappa=kappa)

    def _observation(self, run: Run, verdict: Verdict, *, kappa: float, age: int) -> Observation | None:
        if verdict.gain is None:
            return None
        return Observation(
            verdict.gain / verdict.noise_floor,
            n_parent=len(self._measured(run.context_id, run.base_group)[0]),
            n_child=len(self._measured(run.context_id, run.group)[0]),
            age=age,
            kappa=kappa,
            shared=len(run.method_ids),
        )

    def _age(self, run: Run) -> int:
        """Return how many outcomes of one's own came after a run."""
        imported_since = len(self._imported) - bisect_right(self._imported, run.row)
        return self.seen - run.row - imported_since

    def family_means(self, here: Context | None) -> Mapping[str, float]:
        """Return the gain to expect of each family's next method, in noise floors, where it has any trial.

        It is the weak end of the evidence, and does not fade with age: so a new run changes only what it touches.
        """
        known = self._families_of
        if (known.up_to, known.here) == (self.seen, here):
            return known.means
        known.up_to = self.seen
        sigmas = {context_id: self._sigma(context_id).sd for context_id in self._contexts}
        if known.here != here or not known.seen.keys() <= self._runs.keys():
            known.here, known.seen, known.stale = here, {}, set(self._runs)
        for context_id, sigma in sigmas.items():
            if known.sigmas.get(context_id) != sigma:
                known.stale |= {
                    each for (where, _), found in self._bearing.items() if where == context_id for each in found
                }
        known.sigmas = sigmas
        touched = {self._families.get(method_id, "") for method_id in known.stale}
        for method_id in known.stale:
            known.seen[method_id] = self._ageless(method_id, here)
        known.stale = set()
        members: dict[str, list[str]] = defaultdict(list)
        for method_id in sorted(known.seen):
            members[self._families.get(method_id, "")].append(method_id)
        for family in touched:
            seen = [each for method_id in members[family] for each in known.seen[method_id]]
            known.means[family] = family_mean(seen)
        return known.means

    def _ageless(self, method_id: str, here: Context | None) -> list[Observation]:
        found = []
        for run in self._runs[method_id].values():
            verdict = self._verdict(run.context_id, run.base_group, run.group)
            seen = self._observation(run, verdict, kappa=_kappa_of(run, self._contexts[run.context_id], here), age=0)
            if seen is not None and verdict.kind is not VerdictKind.BASELINE:
                found.append(seen)
        return found

    def best(self, here: Context) -> Best | None:
        """Return what ran best in a context, and not by luck alone."""
        context_id = next((each for each, context in self._contexts.items() if context == here), None)
        group = "" if context_id is None else self._best_of(context_id, here.direction).group
        if context_id is None or not group:
            return None
        first = self._first[context_id]
        values, disturbed = self._measured(context_id, group)
        return Best(
            context_id,
            group,
            tuple(values),
            _raised(self._sigma(context_id), disturbed=disturbed),
            self._verdict(context_id, first, group),
            tuple(self._measured(context_id, first)[0]),
        )

    def _best_of(self, context_id: str, direction: Direction) -> "_Best":
        """Return the best program of one context; all are looked at again only where it or the noise floor moved."""
        best, sigma = self._bests[context_id], self._sigma(context_id).sd
        if best.sigma != sigma or best.group in best.touched:
            best.sigma, best.worth, best.group = sigma, -math.inf, ""
            best.touched = {*self._values[context_id], *self._disturbed[context_id]}
        for group in best.touched:
            best.worth, best.group = max((best.worth, best.group), (self._worth(context_id, group, direction), group))
        best.touched = set()
        return best

    def _worth(self, context_id: str, group: str, direction: Direction) -> float:
        """Return how good a program is beyond doubt; runs beside others' work leave more of it."""
        values, disturbed = self._measured(context_id, group)
        sigma = _raised(self._sigma(context_id), disturbed=disturbed).sd
        return direction.gain(0.0, verdicts.cautious(values, direction=direction, sigma=sigma))

    def plateau_families(self, here: Context, runs: int) -> frozenset[str]:
        """Return the families that a context's last runs tried, if there are so many and none of them was a win."""
        judged = (
            (run, self._verdict(run.context_id, run.base_group, run.group))
            for run in reversed(self._newest)
            if self._contexts[run.context_id] == here
        )
        changes = list(islice((pair for pair in judged if pair[1].kind not in _NO_CHANGES), runs))
        if len(changes) < runs or any(verdict.kind is VerdictKind.WIN for _, verdict in changes):
            return frozenset()
        tried = {self._families.get(method_id, "") for run, _ in changes for method_id in run.method_ids}
        return frozenset(tried or {"edits by hand"})

    def _verdict(self, context_id: str, base_group: str | None, group: str) -> Verdict:
        """Return the verdict on a change, worked out again only where its runs or the noise floor have changed."""
        counts = [
            len(kind[context_id].get(each or "", ()))
            for kind in (self._values, self._disturbed)
            for each in (base_group, group)
        ]
        rests_on = (self._sigma(context_id).sd, len(self._failed[context_id]), *counts)
        known = self._verdicts.get((context_id, base_group, group))
        if known is None or known[0] != rests_on:
            known = rests_on, self._judge(context_id, base_group, group)
            self._verdicts[context_id, base_group, group] = known
        return known[1]

    def _judge(self, context_id: str, base_group: str | None, group: str, *, failed: bool = False) -> Verdict:
        """Judge a change against its base, or a program that is its own base as a baseline.

        A run that failed has no values, whatever others of the same program did.
        """
        noise = self._sigma(context_id)
        child, disturbed = ([], False) if failed else self._measured(context_id, group)
        if base_group == group:
            return verdicts.baseline(child, noise=noise)
        parent, parent_disturbed = self._measured(context_id, base_group)
        if not child and not parent and base_group in self._failed[context_id]:
            return verdicts.failing_parent(noise=noise)
        direction = self._contexts[context_id].direction
        noise = _raised(noise, disturbed=disturbed or parent_disturbed)
        return verdicts.judge(parent, child, direction=direction, noise=noise)

    def _sigma(self, context_id: str) -> NoiseFloor:
        version = self._versions[context_id]
        known = self._sigmas.get(context_id)
        if known is None or known[0] != version:
            known = self._sigmas[context_id] = (
                version,
                _noise_floor(self._contexts[context_id], self._values[context_id], self._replicated[context_id]),
            )
        return known[1]


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


def _noise_floor(context: Context, values: Mapping[str, list[float]], replicated: Sequence[str]) -> NoiseFloor:
    typical = fmean(next(iter(values.values()))) if values else 1.0
    default = verdicts.default_noise(context.metric, context.device, typical)
    return verdicts.noise_floor(default, [values[group] for group in replicated])
