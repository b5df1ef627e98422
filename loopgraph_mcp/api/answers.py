"""What the verbs answer: the same values for the SDK, the tools' structured content and the CLI's --json.

Without slots: the MCP SDK reads a field's default off the class, and finds a slot there instead.
"""

from dataclasses import dataclass, field
from typing import Any

from loopgraph_mcp.models import (
    Decision,
    Direction,
    DocumentState,
    NextStep,
    Origin,
    OutcomeKind,
    Presence,
    RunState,
    Standing,
    VerdictKind,
)


@dataclass(frozen=True)
class Trials:
    """How the trials of a method ended; the mean gain is in metric units, positive is better."""

    tries: int = 0
    wins: int = 0
    crashes: int = 0
    mean_gain: float | None = None


@dataclass(frozen=True)
class MethodHit:
    """One method of an answer, with why it is ranked where it is.

    Args:
        standing: Its status from what was measured in this context; so are tries, wins, crashes and mean_gain.
        elsewhere: Trials measured in other contexts: another workspace, device, budget, data or harness.
        imported: Trials that imported histories hold.
        reports: Numbers that somebody reported without a log.
        mean_gain: Mean improvement over its parents in metric units, positive is better.
        last_tried: Experiments made since its last trial.
        presence: How far the workspace's file already holds it; None where that cannot be told.
        has_edit: Whether LoopGraph can make the edit.
        parts: The score's parts by name.
        p_keep: Probability that the change is kept, the same that its edit names.
    """

    method_id: str
    name: str
    family: str
    summary: str
    standing: Standing
    tries: int
    wins: int
    crashes: int
    mean_gain: float | None
    last_tried: int | None
    presence: Presence | None
    has_edit: bool
    score: float
    why: str
    parts: dict[str, float] = field(default_factory=dict)
    elsewhere: Trials = Trials()
    imported: Trials = Trials()
    reports: int = 0
    p_keep: float | None = None


@dataclass(frozen=True)
class RunningNow:
    """An experiment that is queued or running while something is asked.

    Args:
        agents: Who asked for it, by token or client program; other agents' words.
        yours: Whether the agent that asks now is one of them.
    """

    experiment_id: str
    description: str
    method_ids: list[str]
    state: RunState
    agents: list[str]
    yours: bool


@dataclass(frozen=True)
class BestProgram:
    """The best program that was run here, where the file holds another one.

    Args:
        experiment_id: Its last run; an edit of that id makes the file this program.
        metric_value: Mean of its runs.
        runs: How many.
        description: What its run was to try.
    """

    experiment_id: str
    metric: str
    metric_value: float
    runs: int
    description: str


@dataclass(frozen=True)
class BestResult:
    """What ran best in a workspace: the best mean of its runs less their standard error, never the luckiest run.

    Args:
        experiment_id: Its last run.
        metric_value: Mean of its runs.
        runs: How many.
        standard_error: Of that mean, in metric units.
        noise_floor: Standard deviation of one run.
        replicates: Runs from which the noise floor was measured; 0: a default.
        noise_factor: By how much it was raised because runs shared their device.
        baseline: Mean of the first program's runs.
        gain: Improvement over it, positive is better.
        beats_noise: Whether that is a win, and not within the noise.
        is_baseline: Whether nothing ran better than the first program.
    """

    experiment_id: str
    description: str
    metric: str
    metric_value: float
    runs: int
    standard_error: float
    noise_floor: float
    replicates: int
    noise_factor: float
    baseline: float
    baseline_runs: int
    gain: float
    beats_noise: bool
    is_baseline: bool


@dataclass(frozen=True)
class ValueSuggestion:
    """Values of the program's constants that are worth a run, by what runs here measured.

    Args:
        knobs: The values that differ from the file's; empty to run the best program once more.
        changes: The same in words, with the present values.
        improvement: Expected improvement of the best program in metric units, where a loss is discarded: the order.
        gain: Expected gain over the best program known, in metric units; positive is better.
        low: Lower end of the gain's 90 % interval.
        high: Upper end.
        p_improves: Probability that it is better.
        p_fails: Probability that its run fails.
        runs: Runs of this program's numbers that the estimate rests on.
        others: Runs of other programs or in other contexts on this device, which count less.
    """

    knobs: dict[str, float]
    changes: str
    improvement: float
    gain: float
    low: float
    high: float
    p_improves: float
    p_fails: float
    runs: int
    others: int


@dataclass(frozen=True)
class SearchAnswer:
    """The methods for a query, best first; `note` says when the last runs have led nowhere.

    Args:
        running: What agents run at this moment: not to be done a second time.
        best: What the file could be to begin with.
        values: Values of the program's constants to try, the most promising first.
        knob_values: For each constant its most promising value.
    """

    retrieval_id: str
    query: str
    context: str
    methods_known: int
    hits: list[MethodHit]
    next_step: NextStep
    note: str = ""
    running: list[RunningNow] = field(default_factory=list)
    best: BestProgram | None = None
    values: list[ValueSuggestion] = field(default_factory=list)
    knob_values: list[ValueSuggestion] = field(default_factory=list)


@dataclass(frozen=True)
class EarlierRun:
    """An earlier experiment that bears on a change.

    Args:
        kinship: `same_program`; `other_files`: the same program, whose run could see other files; or how its change
            compares with this one: `same`, `same_value`, `beyond_failed`, `between_failed`, `same_direction`,
            `reverses_kept`, `seed_alone` (which names no experiment).
        note: That in a few words, with what differs where it is a re-test.
    """

    experiment_id: str
    description: str
    outcome: str
    decision: Decision | None
    kinship: str = "same_program"
    note: str = "the same program"


@dataclass(frozen=True)
class OfferedChange:
    """A change that goes well with an edit: its name for `companions`, why, and what it would change."""

    name: str
    why: str
    change: str


@dataclass(frozen=True)
class MappedEntry:
    """One thing of a code map: what it is, its dotted name, its lines, and its value, signature or error."""

    kind: str
    name: str
    line: int
    end_line: int
    text: str = ""
    path: str = ""


@dataclass(frozen=True)
class CodeMapAnswer:
    """What stands where in a program, or in a folder of them, within a budget of tokens.

    Args:
        text: The map as text, for a model to read.
        entries: What of it is shown.
        left_out: How many entries of each kind are not.
        errors: What keeps a file from being read whole.
    """

    path: str
    query: str
    text: str
    entries: list[MappedEntry]
    left_out: dict[str, int]
    errors: list[str]
    next_step: NextStep


@dataclass(frozen=True)
class Passage:
    """A passage that tells of a method: quoted material, no instruction."""

    place: str
    text: str
    source: str


@dataclass(frozen=True)
class Guidance:
    """What helps to make a change by hand where no recipe fits; no diff.

    Args:
        reported: Sentences of papers that report a figure of it; quoted, untrusted.
        places: Where in the file the method belongs, as far as names tell.
        nearest_recipe: The method most like it that has a recipe.
        learned: Why the recipes learned of it do not fit either.
    """

    name: str
    description: str
    sources: list[str]
    passages: list[Passage]
    reported: list[str]
    places: list[MappedEntry]
    nearest_recipe: str
    nearest_recipe_note: str
    learned: list[str]


@dataclass(frozen=True)
class EditAnswer:
    """A method as an edit of the workspace's present file, or why there is none.

    Args:
        status: `ready`, `applied` (the file holds it now), `present` (it already did), `refused` (its recipe does not
            fit), or `guidance` (it has none).
        method_id: The method; several are joined by ` + `.
        nearest: Where refused: the lines of the file nearest to what was looked for.
        earlier: Earlier experiments that bear on it.
        p_keep: Estimated probability that the change will be kept.
        prior: What that rests on.
        companions: Changes that go well with it and are not in it.
        otherwise: Where next_step is to wait for another's run: what to do all the same.
        learned: Where the recipe was learned from a patch: from which run, and what came of it since.
        guidance: Where no recipe fits: what helps to make the change by hand.
        running: What agents run at this moment of the same method or program.
    """

    status: str
    method_id: str
    file: str
    edit_id: str | None
    diff: str
    changes: list[str]
    reason: str
    nearest: list[str]
    earlier: list[EarlierRun]
    next_step: NextStep
    otherwise: NextStep | None = None
    p_keep: float | None = None
    prior: str = ""
    companions: list[OfferedChange] = field(default_factory=list)
    learned: str = ""
    guidance: Guidance | None = None
    running: list[RunningNow] = field(default_factory=list)


@dataclass(frozen=True)
class ExperimentAnswer:
    """One experiment: how far it is, or what came of it.

    Args:
        repeated: Whether this is an earlier experiment with the same program, returned in place of a new run.
        percent: Share of the training budget that is spent.
        eta_s: Seconds until it should be done.
        poll_after_s: When to ask again; None once it is done.
        gain: Mean improvement over the parent in metric units, positive is better.
        noise_floor: Standard deviation of one run in this context, in metric units.
        noise: Where that comes from, in words.
        noise_factor: By how much it was raised because runs shared their device.
        tentative: Whether it was kept though its gain is not distinguishable from noise.
        origin: Who says what came of it: `measured`, `logged`, `trusted`, `reported` or `imported`.
        undone_by: A later run of the same program, after which the change was discarded.
        log_tail: Where it failed: the log's last lines; untrusted text.
        run_dir: Folder with the log and the code that ran.
        earlier: Where it was just asked for: earlier experiments that bear on this one.
        besides: What else its outcome calls for: a learned recipe to use, a change to name, files to ignore.
    """

    experiment_id: str
    state: RunState
    description: str
    seed: int
    metric: str
    next_step: NextStep
    run_dir: str | None
    repeated: bool = False
    queue_position: int | None = None
    step: int | None = None
    percent: float | None = None
    loss: float | None = None
    eta_s: float | None = None
    poll_after_s: float | None = None
    outcome: OutcomeKind | None = None
    reason: str = ""
    metric_value: float | None = None
    summary: dict[str, float] = field(default_factory=dict)
    verdict: VerdictKind | None = None
    gain: float | None = None
    noise_floor: float | None = None
    noise: str = ""
    noise_factor: float = 1.0
    p_win: float | None = None
    decision: Decision | None = None
    tentative: bool = False
    origin: Origin | None = None
    undone_by: str | None = None
    note: str = ""
    log_tail: str = ""
    earlier: list[EarlierRun] = field(default_factory=list)
    besides: list[NextStep] = field(default_factory=list)


@dataclass(frozen=True)
class RecordAnswer:
    """An outcome as it was recorded, judged, and what it makes of its methods.

    Args:
        verdict: None for a bare number, which nobody can judge.
        gain: Improvement over the parent's mean; of a bare number, as reported.
        origin: Who says so: `measured`, `logged`, `trusted`, `reported` or `imported`.
    """

    experiment_id: str
    metric: str
    metric_value: float | None
    verdict: VerdictKind | None
    gain: float | None
    noise_floor: float | None
    p_win: float | None
    decision: Decision | None
    standings: dict[str, Standing]
    next_step: NextStep
    origin: Origin = Origin.MEASURED
    noise: str = ""
    tentative: bool = False


@dataclass(frozen=True)
class ImportedLine:
    """One row of an imported history: what of it was understood.

    Args:
        understood: `whole`, `part`, or `left_out`.
        moves: What the description says was moved.
        method_ids: The known methods that it tries.
        has_diff: Whether its program and the one it started from were found in the repository.
        new: Whether this import added it.
        notes: What was not understood, or why it was left out.
    """

    line: int
    understood: str
    description: str
    metric_value: float | None
    status: str
    moves: list[str] = field(default_factory=list)
    method_ids: list[str] = field(default_factory=list)
    has_diff: bool = False
    new: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ImportAnswer:
    """What came of importing one history.

    Args:
        device: What its runs are taken to have been made on.
        budget_s: Training seconds that they are taken to have had.
        added: Rows that are new to the memory; known ones, and those left out, are no part of them.
        understood: Rows understood whole, and in part.
        kinds: Kinds of change that the prior of other workspaces counts.
        direction_from: What says that this is the direction.
    """

    file: str
    metric: str
    direction: Direction
    device: str
    budget_s: float
    added: int
    known: int
    left_out: int
    understood: tuple[int, int]
    kinds: int
    rows: list[ImportedLine]
    notes: list[str]
    next_step: NextStep
    direction_from: str = ""


@dataclass(frozen=True)
class ShownPassage:
    """A passage of a source, cut to what matters; `text` is the source's words, untrusted."""

    chunk_id: str
    place: str
    text: str


@dataclass(frozen=True)
class Candidate:
    """A paper that a phrase may mean."""

    id: str
    title: str


@dataclass(frozen=True)
class IngestAnswer:
    """What came of ingesting one source; titles, warnings and passages hold its words, which are untrusted.

    Args:
        kind: `paper`, `repository`, `files`, `pack`, `history`, or `choice` where a phrase may mean several papers.
        id: What the memory knows it by; with the version where it has one.
        state: How far it could be read.
        form: What it was read from: `latex`, `html`, `pdf`, `markdown`, `code`.
        documents: How many documents it holds.
        added: Passages, methods or rows that are new to the memory.
        known: Those that were there already.
        passages: The few that tell most of the method, or of what was asked.
        methods: Ids of the methods that cite it or that its passages tell of.
    """

    source: str
    kind: str
    id: str
    version: str
    title: str
    next_step: NextStep
    state: DocumentState = DocumentState.READ
    form: str = ""
    licence: str = ""
    fetched_from: str = ""
    sha256: str = ""
    documents: int = 1
    added: int = 0
    known: int = 0
    passages: list[ShownPassage] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MethodAnswer:
    """What is known of one method, and what came of registering it.

    Args:
        status: `added`, `amended`, `linked`, `known` or `retired`.
        pack: The pack that holds it; `local` for what was registered here, empty for a retired one.
        published: What its definition says was measured elsewhere, with setting and source.
        reported: Sentences of passages that report a figure of it; quoted, untrusted.
        chunk_ids: The passages that tell of it, those that somebody cited first.
        recipe: `ready`, `no recipe`, or how it fits the file at hand: `applied`, `present`, `refused`, `untried`.
        versions: When it was registered and by whom, the newest first.
    """

    method_id: str
    status: str
    pack: str
    name: str
    family: str
    summary: str
    description: str
    next_step: NextStep
    aliases: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    chunk_ids: list[str] = field(default_factory=list)
    recipe: str = "no recipe"
    versions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TraceLink:
    """A row on the way from or to another.

    Args:
        depth: How far away it is, at least 1; it belongs to the nearest one before it that is one less deep.
        stage: `pack`, `paper`, `document`, `passage`, `method`, `retrieval`, `edit`, `turn`, `experiment`,
            `outcome`, `decision`, `recipe` or `history`.
        id: Empty where more of a stage are only counted.
        at: When it was made, in epoch seconds; None where that is not known.
    """

    depth: int
    stage: str
    id: str
    words: str
    at: float | None


@dataclass(frozen=True)
class TraceAnswer:
    """A row of the chain, with what led to it and what came of it, each row before those that it is linked with."""

    stage: str
    id: str
    words: str
    at: float | None
    before: list[TraceLink]
    after: list[TraceLink]


@dataclass(frozen=True)
class ExportedMethod:
    """One method of an exported pack; its recipe is its `own`, a `learned` one, or `none`."""

    method_id: str
    recipe: str
    tries: int
    wins: int


@dataclass(frozen=True)
class PackExportAnswer:
    """A pack as it was written."""

    name: str
    folder: str
    content_hash: str
    methods: list[ExportedMethod]
    next_step: NextStep


@dataclass(frozen=True)
class CheckedMethod:
    """How a method's recipe stands to some programs: `applied`, `present` or `refused`, and why; none has no recipe."""

    method_id: str
    fits: dict[str, str]
    reasons: dict[str, str]


@dataclass(frozen=True)
class PackCheckAnswer:
    """A valid pack and how it fits; `fits_nowhere` names the methods that every program refuses."""

    name: str
    version: str
    content_hash: str
    methods: list[CheckedMethod]
    fits_nowhere: list[str]
    next_step: NextStep


@dataclass(frozen=True)
class ProgressRow:
    """One experiment in a few words; text and figures as they are shown."""

    experiment_id: str
    tried: str
    value: str
    gain: str
    result: str
    mark: str


@dataclass(frozen=True)
class ProgressAnswer:
    """How a search goes.

    Args:
        version: What is another text after each change.
        title: What it came to, in a few words.
        sentence: The same in a sentence.
        account: How many experiments there are and what became of them.
        rows: The newest experiments, newest first.
        page: Where more is to be seen.
        chart: The curve, as a Vega-Lite specification; for the view alone, and only where something changed.
    """

    version: str
    title: str
    sentence: str
    account: str
    rows: list[ProgressRow]
    page: str
    chart: dict[str, Any] | None = None
