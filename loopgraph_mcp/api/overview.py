"""The verb overview: all experiments of a workspace with their verdicts, what they cost, and what they add up to.

The figures are those of list_experiments, read once and then followed: a page asks again after every outcome.
"""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from loopgraph_mcp.api.answers import BestResult
from loopgraph_mcp.api.evidence import Outcomes, Records
from loopgraph_mcp.api.incumbent import as_result
from loopgraph_mcp.api.state import State
from loopgraph_mcp.errors import NotFoundError
from loopgraph_mcp.models import Context, Decision, NoiseFloor, Origin, OutcomeKind, RunState, Verdict, VerdictKind
from loopgraph_mcp.store import edits, experiments, nights, resources
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.store.nights import AskedAgain, Spent, WorkspaceRow
from loopgraph_mcp.store.version import read_newest

_MOST_SEEN = 50  # workspaces with a setting that are looked at, at one time
_RECENT = 20  # runs whose ends tell the pace
_NOT_MEASURED = frozenset({OutcomeKind.CANCELLED, OutcomeKind.INTERRUPTED, OutcomeKind.NO_METRIC, OutcomeKind.VOID})


class Mark(StrEnum):
    """What became of an experiment, in one word: what a chart colours and a table says."""

    BASELINE = "baseline"
    KEPT = "kept"
    TENTATIVE = "tentative"  # kept, and not distinguishable from noise
    NOISE = "within noise"
    WORSE = "worse"
    DISCARDED = "discarded"  # though it gained, or undone by a later run
    FAILED = "failed"
    UNMEASURED = "not measured"
    FINISHED = "finished"  # there is nothing to compare it with
    RUNNING = "running"
    QUEUED = "queued"


@dataclass(frozen=True, slots=True)
class Line:
    """One experiment of a workspace; the same figures as its ExperimentAnswer.

    Args:
        number: Its place among the workspace's experiments, from 1.
        group: What ran, up to the values of seeds: equal for replicates.
        parent: What it is compared with, likewise; None where there is nothing.
    """

    number: int
    experiment_id: str
    context_id: str
    description: str
    seed: int
    state: RunState
    group: str
    parent: str | None
    method_ids: tuple[str, ...]
    created_at: float
    started_at: float | None
    finished_at: float | None
    outcome: OutcomeKind | None = None
    reason: str = ""
    metric_value: float | None = None
    origin: Origin | None = None
    verdict: VerdictKind | None = None
    gain: float | None = None
    noise: NoiseFloor | None = None
    p_win: float | None = None
    decision: Decision | None = None
    tentative: bool = False
    undone_by: str | None = None

    @property
    def seconds(self) -> float | None:
        """How long it ran."""
        return None if self.started_at is None or self.finished_at is None else self.finished_at - self.started_at

    @property
    def stays(self) -> bool:
        """Whether its change is in the file: kept, and not undone since."""
        return self.decision is Decision.KEEP and self.undone_by is None

    @property
    def mark(self) -> Mark:
        """What became of it."""
        if self.state is not RunState.DONE:
            return Mark(self.state.value)
        if self.outcome in _NOT_MEASURED:
            return Mark.UNMEASURED
        if self.outcome is not OutcomeKind.FINISHED:
            return Mark.FAILED
        if self.verdict is VerdictKind.BASELINE:
            return Mark.BASELINE
        if self.stays:
            return Mark.TENTATIVE if self.tentative else Mark.KEPT
        if self.verdict is VerdictKind.LOSS:
            return Mark.WORSE
        if self.verdict is VerdictKind.WITHIN_NOISE:
            return Mark.NOISE
        return Mark.FINISHED if self.decision is None else Mark.DISCARDED


@dataclass(frozen=True, slots=True)
class Setting:
    """A context of a workspace with its runs: what makes their numbers comparable."""

    id: str
    context: Context
    experiments: int


@dataclass(frozen=True, slots=True)
class Overview:
    """A workspace's experiments, oldest first, and what they add up to in one of its settings.

    Args:
        settings: Those that have experiments, the one with the newest first.
        setting: The one that the best, the noise and the charts are of.
        best: What ran best in it; None where nothing was measured.
        noise: The noise of one run in it.
        methods: Name and family of every method that was tried.
        spent: What agents spent, oldest first.
        version: What is another number after each change; of one process.
        changed: The version in which each experiment changed last.
    """

    workspace: WorkspaceRow
    settings: tuple[Setting, ...]
    setting: Setting
    lines: tuple[Line, ...]
    best: BestResult | None
    noise: NoiseFloor | None
    methods: Mapping[str, tuple[str, str]]
    spent: tuple[Spent, ...]
    version: int = 0
    changed: Mapping[str, int] = field(default_factory=dict)

    @property
    def here(self) -> list[Line]:
        """The experiments of the setting, oldest first."""
        return [line for line in self.lines if line.context_id == self.setting.id]

    @property
    def tokens(self) -> int:
        """Tokens that agents spent, as far as they say."""
        return sum(each.tokens for each in self.spent)

    @property
    def cost_usd(self) -> float:
        """Dollars that they spent, likewise."""
        return sum(each.cost_usd for each in self.spent)

    @property
    def hours(self) -> float:
        """Hours of training, failed runs included."""
        return sum(line.seconds or 0.0 for line in self.lines) / 3600

    def family(self, line: Line) -> str:
        """Return the family of an experiment's first method; of a change that is no method, `by hand`."""
        known = next((self.methods[each][1] for each in line.method_ids if each in self.methods), None)
        return known or "by hand"


@dataclass(slots=True)
class _Followed:
    """What was read of one workspace, and up to where."""

    rows: dict[str, ExperimentRow] = field(default_factory=dict)
    after: int = 0
    decided: int = 0
    version: int = 0
    lines: tuple[Line, ...] = ()
    changed: dict[str, int] = field(default_factory=dict)
    _made: dict[str, tuple[ExperimentRow, object, Line]] = field(default_factory=dict)

    def line(self, outcomes: Outcomes, number: int, row: ExperimentRow) -> Line:
        """Return an experiment as it is shown, judged again only where what its verdict rests on is something else."""
        rests_on = outcomes.rests_on(row) if _is_judged(row) else None
        made = self._made.get(row.id)
        if made is None or made[0] is not row or made[1] != rests_on:
            verdict = outcomes.judge(row) if _is_judged(row) else None
            made = self._made[row.id] = row, rests_on, _line(number, row, verdict)
        return made[2]


class Overviews:
    """Overviews of workspaces: each is read once, then followed."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = asyncio.Lock()
        self._followed: dict[str, _Followed] = {}
        self._seen: dict[tuple[str | None, str | None], tuple[int, Overview]] = {}

    async def look(self, state: State, workspace_id: str | None = None, setting: str | None = None) -> Overview:
        """Return a workspace as it is now.

        Args:
            state: The open store.
            workspace_id: The workspace's id; by default that with the newest experiment.
            setting: The context that the best and the charts are of; by default that of the newest experiment.

        Raises:
            NotFoundError: There are no experiments of it.
        """
        async with self._lock:
            moved = await nights.data_version(self._db)
            seen = self._seen.get((workspace_id, setting))
            if seen is None or seen[0] != moved:
                seen = moved, await self._look(state, workspace_id, setting)
                if len(self._seen) >= _MOST_SEEN:
                    self._seen.clear()
                self._seen[workspace_id, setting] = seen
            return seen[1]

    async def _look(self, state: State, workspace_id: str | None, setting: str | None) -> Overview:
        known = await nights.workspaces(self._db)
        where = next((each for each in known if workspace_id in {None, each.id}), None)
        if where is None:
            raise NotFoundError("no experiments yet; `loopgraph run --description baseline` makes the first")
        followed = await self._follow(state, where)
        lines = followed.lines
        counts = dict[str, int]()
        for line in reversed(lines):
            counts[line.context_id] = counts.get(line.context_id, 0) + 1
        settings = tuple(
            [Setting(each, await edits.get_context(self._db, each), count) for each, count in counts.items()]
        )
        chosen = next((each for each in settings if each.id == setting), settings[0])
        best = Records(await state.outcomes(), chosen.context).best()
        tried = {each for line in lines for each in line.method_ids}
        return Overview(
            where,
            settings,
            chosen,
            lines,
            None if best is None else await as_result(self._db, best, chosen.context),
            None if best is None else best.noise,
            await nights.method_names(self._db, tried),
            tuple(await nights.spending(self._db, where.id, where.path)),
            followed.version,
            dict(followed.changed),
        )

    async def _follow(self, state: State, where: WorkspaceRow) -> _Followed:
        """Take in what is new of a workspace; its lines are judged again only where anything is."""
        known = self._followed.setdefault(where.id, _Followed())
        mark, newest = await resources.mark(self._db), await read_newest(self._db)
        live = [row.id for row in known.rows.values() if row.state is not RunState.DONE]
        changed = await experiments.changed_experiments(
            self._db, where.id, after=known.after, decided_after=known.decided, live=live
        )
        outcomes = await state.outcomes(newest)
        known.rows.update((row.id, row) for row in changed)
        lines = tuple(known.line(outcomes, number, row) for number, row in enumerate(known.rows.values(), start=1))
        known.after, known.decided = mark.experiments, mark.decisions
        before = dict(zip(known.rows, known.lines, strict=False))
        new = [line.experiment_id for line in lines if before.get(line.experiment_id) != line]
        if new:
            known.version += 1
            known.lines = lines
            known.changed.update(dict.fromkeys(new, known.version))
        return known


def _is_judged(row: ExperimentRow) -> bool:
    """Return whether an experiment has a verdict, as get_experiment gives it."""
    if row.state is not RunState.DONE or row.outcome is None:
        return False
    return row.outcome.kind.says_something and row.origin is not Origin.REPORTED


def _line(number: int, row: ExperimentRow, verdict: Verdict | None) -> Line:
    """Return an experiment as it is shown."""
    outcome = row.outcome if row.state is RunState.DONE else None
    decision = None if outcome is None else row.decision
    return Line(
        number=number,
        experiment_id=row.id,
        context_id=row.context_id,
        description=row.description,
        seed=row.seed,
        state=row.state,
        group=row.group_key,
        parent=row.base_group_key,
        method_ids=row.method_ids,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        outcome=None if outcome is None else outcome.kind,
        reason="" if outcome is None else outcome.reason,
        metric_value=None if outcome is None else outcome.metric_value,
        origin=None if outcome is None else row.origin,
        verdict=None if verdict is None else verdict.kind,
        gain=None if verdict is None else verdict.gain,
        noise=None if verdict is None else verdict.noise,
        p_win=None if verdict is None else verdict.p_win,
        decision=decision,
        tentative=decision is Decision.KEEP and verdict is not None and verdict.is_tentative,
        undone_by=row.undone_by if decision is Decision.KEEP else None,
    )


# ----------------------------------------------------------------------------------------- what they add up to


@dataclass(frozen=True, slots=True)
class Record:
    """How the changes of a family or a method ended, one a program: replicates are runs of one change.

    Args:
        better: Gained more than the noise.
        same: Within the noise.
        mean: Mean gain of those that finished, in metric units, positive is better; None of none.
        low: Where its 95 % interval begins.
        high: Where that ends.
        gains: Each change's gain.
    """

    name: str
    tries: int
    better: int
    same: int
    worse: int
    failed: int
    kept: int
    mean: float | None
    low: float | None
    high: float | None
    gains: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One change that the best program is made of.

    Args:
        runs: Runs of the program with it.
        low: Where the 95 % interval of its gain begins.
        high: Where that ends.
    """

    experiment_id: str
    description: str
    gain: float | None
    low: float | None
    high: float | None
    p_win: float | None
    runs: int
    tentative: bool


def changes(lines: Sequence[Line]) -> list[Line]:
    """Return the last run of each change: replicates are one, and baselines and what was not measured are none."""
    last = {(line.context_id, line.parent, line.group): line for line in lines if line.verdict is not None}
    return [line for line in last.values() if line.verdict not in {VerdictKind.BASELINE, VerdictKind.NO_BASELINE}]


def runs_of(lines: Sequence[Line], group: str | None) -> list[Line]:
    """Return the finished runs of a program that count as evidence."""
    return [
        line
        for line in lines
        if line.group == group and line.metric_value is not None and line.origin is not Origin.REPORTED
    ]


def records_by_family(overview: Overview) -> list[Record]:
    """Return how the changes of each family ended, the family with the largest mean gain first."""
    found = defaultdict[str, list[Line]](list)
    for line in changes(overview.here):
        found[overview.family(line)].append(line)
    records = [_record(name, lines) for name, lines in found.items()]
    return sorted(records, key=lambda each: (each.mean is None, -(each.mean or 0.0), each.name))


def records_by_method(overview: Overview) -> list[tuple[str, Record]]:
    """Return the id and the record of each method that was tried, the one tried most often first."""
    found = defaultdict[str, list[Line]](list)
    for line in changes(overview.here):
        for method_id in line.method_ids:
            found[method_id].append(line)
    records = [(each, _record(overview.methods.get(each, (each, ""))[0], lines)) for each, lines in found.items()]
    return sorted(records, key=lambda pair: (-pair[1].tries, -(pair[1].mean or 0.0), pair[0]))


def _record(name: str, lines: Sequence[Line]) -> Record:
    kinds = [line.verdict for line in lines]
    gains = tuple(line.gain for line in lines if line.gain is not None)
    mean = low = high = None
    if gains:
        mean = statistics.fmean(gains)
        # One change's gain is the difference of two means of a run each: its noise counts as one more observation,
        # so that a family of one or two has no interval narrower than the noise.
        noise = 2 * statistics.fmean(line.noise.sd**2 for line in lines if line.noise is not None)
        variance = (sum((gain - mean) ** 2 for gain in gains) + noise) / len(gains)
        error = 1.96 * (variance / len(gains)) ** 0.5
        low, high = mean - error, mean + error
    return Record(
        name=name,
        tries=len(lines),
        better=kinds.count(VerdictKind.WIN),
        same=kinds.count(VerdictKind.WITHIN_NOISE),
        worse=kinds.count(VerdictKind.LOSS),
        failed=kinds.count(VerdictKind.CRASH),
        kept=sum(line.stays for line in lines),
        mean=mean,
        low=low,
        high=high,
        gains=gains,
    )


def steps_to_best(overview: Overview) -> list[Step]:
    """Return the changes that lead from the baseline to the best program, in order; none where that is not known."""
    lines = overview.here
    by_id = {line.experiment_id: line for line in lines}
    line = None if overview.best is None else by_id.get(overview.best.experiment_id)
    steps, seen = list[Step](), set[str]()
    while line is not None and line.parent not in {None, line.group} and line.group not in seen:
        seen.add(line.group)
        own, before = runs_of(lines, line.group), runs_of(lines, line.parent)
        error = None
        if line.noise is not None and own and before:
            error = 1.96 * line.noise.sd * (1 / len(own) + 1 / len(before)) ** 0.5
        steps.append(
            Step(
                line.experiment_id,
                own[0].description if own else line.description,
                line.gain,
                None if line.gain is None or error is None else line.gain - error,
                None if line.gain is None or error is None else line.gain + error,
                line.p_win,
                len(own),
                line.verdict is not VerdictKind.WIN,
            )
        )
        line = before[-1] if before else None
    return steps[::-1]


def doubtful(overview: Overview) -> list[Line]:
    """Return the changes that a further run would decide, those nearest to a decision first.

    They are kept within the noise, or were discarded though they may well have gained.
    """
    found = [
        line
        for line in changes(overview.here)
        if (line.tentative and line.stays)
        or (line.verdict is VerdictKind.WITHIN_NOISE and (line.gain or 0.0) > 0 and not line.stays)
    ]
    return sorted(found, key=lambda line: (not line.stays, -(line.p_win or 0.0), line.number))


def per_hour(overview: Overview) -> float | None:
    """Return how many experiments end in an hour, by the median of the newest; None of fewer than three."""
    ends = sorted(line.finished_at for line in overview.lines if line.finished_at is not None)[-_RECENT:]
    between = [later - earlier for earlier, later in pairwise(ends) if later > earlier]
    return 3600 / statistics.median(between) if len(between) >= 2 else None


def spent_until(overview: Overview, at: float) -> float:
    """Return the dollars that were spent up to a moment."""
    return sum(each.cost_usd for each in overview.spent if each.at <= at)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A probability of a gain that was given before a change was run, and whether it gained."""

    experiment_id: str
    description: str
    p: float
    gained: bool


def predictions(overview: Overview, predicted: Mapping[str, float]) -> list[Prediction]:
    """Return what was predicted of the changes of a setting beside what came out; a failure gained nothing."""
    return [
        Prediction(line.experiment_id, line.description, predicted[line.experiment_id], (line.gain or 0.0) > 0)
        for line in changes(overview.here)
        if line.experiment_id in predicted
    ]


@dataclass(frozen=True, slots=True)
class Spared:
    """An experiment that answered calls in place of further runs, and the seconds that these would have taken."""

    line: Line
    times: int
    seconds: float


def spared(overview: Overview, again: Sequence[AskedAgain]) -> list[Spared]:
    """Return the experiments that were not run once more because they had been run."""
    by_id = {line.experiment_id: line for line in overview.lines}
    return [
        Spared(line, each.times, each.times * (line.seconds or 0.0))
        for each in again
        if (line := by_id.get(each.experiment_id)) is not None
    ]
