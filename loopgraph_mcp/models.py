"""The loop's types: methods and recipes, edits, experiments, outcomes, verdicts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo

# ---------------------------------------------------------------------------------------------- metric


class Direction(StrEnum):
    """Which way a metric improves."""

    LOWER = "lower"
    HIGHER = "higher"

    def gain(self, before: float, after: float) -> float:
        """Return how far a value improved, in the metric's own unit; positive is better."""
        return before - after if self is Direction.LOWER else after - before


# --------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True, slots=True)
class Source:
    """Where a method comes from; `ref` is an arXiv id, a repository or a URL, by `kind`."""

    kind: str
    ref: str
    title: str


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """What somebody else reported of a method; weak evidence. `gain` is in metric units, positive is better."""

    claim: str
    setting: str
    source: str
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class SharedOutcome:
    """What a method did in somebody else's LoopGraph, in one context; weak evidence.

    Args:
        context: The device, the budget and the metric, in words.
        mean_gain: Mean improvement in units of the metric, positive is better.
        gain_sigmas: The same in noise floors of that context.
        runs: Training runs behind the mean, several of one try where they differ in their seed.
        device: The device's class, such as `cuda`; empty if unknown.
        budget_s: Training seconds of a run, if known.
    """

    context: str
    metric: str
    tries: int
    wins: int
    crashes: int
    mean_gain: float | None = None
    gain_sigmas: float | None = None
    runs: int | None = None
    device: str = ""
    budget_s: float | None = None


KnobValue = int | float | str

# A pack is somebody else's text that ends up in terminals and prompts: nothing in it may move the cursor or hide.
_UNSEEN = r"\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069"
ONE_LINE = rf"^[^{_UNSEEN}]*$"
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=ONE_LINE)]
Text = Annotated[str, Field(min_length=1, max_length=4_000, pattern=rf"^([^{_UNSEEN}]|[\n\t])*$")]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[float, Field(allow_inf_nan=False)]
_KNOB_NAME = r"^[a-z][a-z0-9_]*$"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"


def _foreign(kind: Any) -> BeforeValidator:
    """Return a check of what somebody else wrote, read with a context; what the store holds passed it before."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(strict=True, defer_build=True))

    def check(value: Any, info: ValidationInfo) -> Any:
        if info.context is None:
            return value
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"]) from error

    return BeforeValidator(check)


_Line = Annotated[str, _foreign(Line)]
_Text = Annotated[str, _foreign(Text)]
_Identifier = Annotated[str, _foreign(Annotated[str, Field(pattern=rf"^{_NAME}$")])]
_Dotted = Annotated[str, _foreign(Annotated[str, Field(pattern=rf"^{_NAME}(\.{_NAME})*$")])]
_Place = Annotated[str, _foreign(Annotated[str, Field(pattern=rf"^({_NAME}(\.{_NAME})*)?$")])]  # empty: the module
# Words, each with at most one `\w*` at its end: a pack's pattern must not be able to hold the server
_NamePattern = Annotated[str, _foreign(Annotated[str, Field(max_length=200, pattern=r"^\w+(\\w\*)?(\|\w+(\\w\*)?)*$")])]
_Word = Annotated[str, _foreign(Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)])]
_Remark = Annotated[str, _foreign(Annotated[str, Field(max_length=200, pattern=ONE_LINE)])]
_Codes = Annotated[tuple[_Text, ...], _foreign(Annotated[list[Any], Field(max_length=20)])]
_MANY = _foreign(Annotated[list[Any], Field(max_length=50)])


@dataclass(frozen=True, slots=True)
class Knob:
    """A parameter of a recipe: its default and what it may be."""

    name: str
    default: KnobValue
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[KnobValue, ...] = ()


def _pairs(told: Any) -> Any:
    return tuple(told.items()) if isinstance(told, Mapping) else told


_Setting = tuple[
    Annotated[str, _foreign(Annotated[str, Field(pattern=_KNOB_NAME)])], Annotated[KnobValue, _foreign(Number | Line)]
]


@dataclass(frozen=True, slots=True)
class SetConst:
    """Give the constant `name` a new value: one of the module, else one dataclass field or argparse default."""

    name: _Identifier
    value: _Line
    op: Literal["set_const"] = "set_const"


@dataclass(frozen=True, slots=True)
class SetLocal:
    """Give the local `name`, assigned once in the function `scope`, a new value."""

    scope: _Dotted
    name: _Identifier
    value: _Line
    op: Literal["set_local"] = "set_local"


@dataclass(frozen=True, slots=True)
class SetDefault:
    """Give the parameter `name` of the function `scope` a new default."""

    scope: _Dotted
    name: _Identifier
    value: _Line
    op: Literal["set_default"] = "set_default"


@dataclass(frozen=True, slots=True)
class SetKwarg:
    """Give the keyword `name` of the one call of `call` in the function `scope` a new value."""

    scope: _Place
    call: _Identifier
    name: _Identifier
    value: _Line
    op: Literal["set_kwarg"] = "set_kwarg"


@dataclass(frozen=True, slots=True)
class ReplaceStmt:
    """Put `new` in place of the one statement in `scope` whose syntax tree equals `old`'s."""

    scope: _Place
    old: _Text
    new: _Text
    op: Literal["replace_stmt"] = "replace_stmt"


@dataclass(frozen=True, slots=True)
class InsertAfter:
    """Put `code` behind the one statement in `scope` whose syntax tree equals `anchor`'s."""

    scope: _Place
    anchor: _Text
    code: _Text
    op: Literal["insert_after"] = "insert_after"


@dataclass(frozen=True, slots=True)
class AddMethod:
    """Put the function `code` at the end of the class `scope`."""

    scope: _Dotted
    code: _Text
    op: Literal["add_method"] = "add_method"


@dataclass(frozen=True, slots=True)
class ByRole:
    """Make the edit `edit` where the parts of the program with a role are; it takes the method's knobs and `values`."""

    edit: _Identifier
    values: Annotated[tuple[_Setting, ...], BeforeValidator(_pairs)] = ()
    op: Literal["by_role"] = "by_role"


RecipeOp = SetConst | SetLocal | SetDefault | SetKwarg | ReplaceStmt | InsertAfter | AddMethod | ByRole


def _written_now(told: Any) -> Any:
    """Return an op as it is written today: stores before wrote `SetConst`; a scope may be left out."""
    if not isinstance(told, dict) or not isinstance(told.get("op"), str):
        return told
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", told["op"]).lower()
    return {**({"scope": ""} if kind in {"set_kwarg", "replace_stmt", "insert_after"} else {}), **told, "op": kind}


_Op = Annotated[Annotated[RecipeOp, Field(discriminator="op")], BeforeValidator(_written_now)]
_Ops = Annotated[tuple[_Op, ...], _MANY]


@dataclass(frozen=True, slots=True)
class Mark:
    """A condition on a file: code that a scope contains, and code that it does not; without a scope, anywhere.

    `named` are patterns of names: one that the file both gives a value and uses matches; an import does not.
    """

    has: _Codes = ()
    lacks: _Codes = ()
    scope: _Place = ""
    why: _Remark = ""
    named: tuple[_NamePattern, ...] = ()


def _sign(told: Any) -> Any:
    """Return a sign with its mark apart: a pack's file writes both in one table."""
    if not isinstance(told, dict) or "mark" in told:
        return told
    return {"state": told.get("state", "present"), "mark": {key: told[key] for key in told if key != "state"}}


@dataclass(frozen=True, slots=True)
class Sign:
    """A mark of a method in another form (`present`), or of what is in its way (`conflicting`).

    `other_form` counts only where the recipe itself does not fit: it cannot change the form that the file has.
    """

    state: Literal["present", "conflicting", "other_form"]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make a part of an edit, for files that meet its needs; the first of a part that fits is taken."""

    ops: _Ops = ()
    needs: tuple[Mark, ...] = ()
    part: _Remark = ""


@dataclass(frozen=True, slots=True)
class Companion:
    """A change that goes well with a method: its own ops, or another method's with some knob values."""

    name: _Word
    why: _Line
    required: Annotated[bool, _foreign(bool)] = False
    ops: _Ops = ()
    needs: tuple[Mark, ...] = ()
    method: str = ""
    knobs: Annotated[tuple[_Setting, ...], BeforeValidator(_pairs)] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a method becomes an edit: ops that each match exactly once, in a dotted scope such as `GPT.forward`.

    `{knob}` in an op's code is the knob's value; `{current}` in a value is the present expression; `{_x}` is
    a variable and `{__x}` an expression that the pattern finds. docs/method-packs.md describes each field. This
    is its one schema: packs, calls and the store are read through it.
    """

    # A list becomes a tuple, also within the tables of a pack, which are strict; the parts check their own types.
    __pydantic_config__: ClassVar = ConfigDict(strict=False)
    ops: _Ops = ()
    conflicts: tuple[str, ...] = ()
    needs: tuple[Mark, ...] = ()
    detect: tuple[Annotated[Sign, BeforeValidator(_sign)], ...] = ()
    variants: Annotated[tuple[Variant, ...], _MANY] = ()
    companions: Annotated[tuple[Companion, ...], _MANY] = ()


def all_ops(recipe: Recipe) -> list[RecipeOp]:
    """Return every op of a recipe, those of all its variants and companions included."""
    found = [recipe.ops, *(each.ops for each in recipe.variants), *(each.ops for each in recipe.companions)]
    return [op for each in found for op in each]


@dataclass(frozen=True, slots=True)
class Move:
    """One knob moved.

    Args:
        knob: A name of `knobs.FAMILIES`, or `other`.
        direction: 1 up or added, -1 down or removed, 0 where the words do not say.
        value: Where it was moved to, as far as that is a number.
        old: Where it was moved from, likewise.
        word: What a knob without numbers was set to, such as `gelu`.
    """

    knob: str
    direction: int = 0
    value: float | None = None
    old: float | None = None
    word: str = ""

    def __str__(self) -> str:
        """Return the move in a few words."""
        target = self.word or ("" if self.value is None else f"{self.value:g}")
        way = {1: "up", -1: "down", 0: ""}[self.direction]
        return " ".join(part for part in (self.knob, way, target and f"to {target}") if part)


@dataclass(frozen=True, slots=True)
class Method:
    """An idea that can be tried: what it is, who reported what of it, and, if known, how to make the edit.

    `moves` is what it does with its knobs at their defaults, read from `change`, or from its name where that is empty.
    """

    id: str
    name: str
    family: str
    summary: str
    description: str
    aliases: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    published: tuple[PublishedResult, ...] = ()
    knobs: tuple[Knob, ...] = ()
    recipe: Recipe | None = None
    moves: tuple[Move, ...] = ()
    outcomes: tuple[SharedOutcome, ...] = ()
    change: str = ""

    @property
    def has_edit(self) -> bool:
        """Whether its recipe can make an edit, and not only tell where the method is."""
        return self.recipe is not None and bool(all_ops(self.recipe))


@dataclass(frozen=True, slots=True)
class Pack:
    """A versioned folder of methods; `content_hash` shows whether it changed."""

    name: str
    version: str
    content_hash: str
    methods: tuple[Method, ...]


# ---------------------------------------------------------------------------------------------- edits


@dataclass(frozen=True, slots=True)
class Applied:
    """A recipe that fits: the whole new text, and for each op what it changed."""

    text: str
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Present:
    """The text already is what the recipe would make of it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A recipe that does not fit: what was looked for, why it failed, the nearest lines (`"12: code"`)."""

    looked_for: str
    reason: str
    nearest: tuple[str, ...] = ()


EditResult = Applied | Present | Refused


class Presence(StrEnum):
    """How far a text already holds a method, or whether something there is in its way."""

    ABSENT = "absent"
    PRESENT = "present"
    PARTIAL = "partial"
    CONFLICTING = "conflicting"


KnobValues = Mapping[str, KnobValue]


# ---------------------------------------------------------------------------------------- experiments


class OutcomeKind(StrEnum):
    """How an experiment ended; only `finished` has a metric."""

    FINISHED = "finished"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    TIMED_OUT = "timed_out"
    SILENT = "silent"
    NO_METRIC = "no_metric"
    VOID = "void"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def says_something(self) -> bool:
        """Whether it says anything of the idea: neither a failure of the surroundings nor a missing metric does."""
        return self not in {OutcomeKind.CANCELLED, OutcomeKind.INTERRUPTED, OutcomeKind.NO_METRIC}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one experiment.

    Args:
        kind: How it ended.
        metric_value: The metric, where it finished.
        reason: One sentence: what happened.
        summary: The numbers of the summary block by name.
        log_tail: The last lines of its log: untrusted text.
    """

    kind: OutcomeKind
    metric_value: float | None
    reason: str
    summary: Mapping[str, float]
    log_tail: str = ""


class Origin(StrEnum):
    """Who says what an outcome was.

    `measured`: LoopGraph ran it, or wrapped the function that did. `logged`: an agent's report that came with its log.
    `trusted`: a bare number in a workspace that trusts reports. `reported`: a bare number. `imported`: a history's row.
    """

    MEASURED = "measured"
    LOGGED = "logged"
    TRUSTED = "trusted"
    REPORTED = "reported"
    IMPORTED = "imported"

    @property
    def is_evidence(self) -> bool:
        """Whether it can make a verdict, a standing or an incumbent where it was made."""
        return self in {Origin.MEASURED, Origin.LOGGED, Origin.TRUSTED}

    @property
    def is_report(self) -> bool:
        """Whether an agent reported it of a run that LoopGraph did not make."""
        return self in {Origin.LOGGED, Origin.TRUSTED, Origin.REPORTED}


@dataclass(frozen=True, slots=True)
class WhatRan:
    """What identifies a program with all else that its run could see.

    Args:
        run_key: Equal where everything that the run could see is equal, up to the layout of Python.
        group_key: Equal where that is so up to constants that are seeds: such runs are replicates.
    """

    run_key: str
    group_key: str


@dataclass(frozen=True, slots=True)
class Context:
    """What makes two outcomes comparable: gains are only taken inside one context.

    Args:
        dataset_hash: Content of the declared data; empty where none is declared.
        harness_hash: Content of the protected files; empty where nothing is protected.
        editable: The file that edits change.
        command: The run command, as JSON.
        reading: How the metric is read from the log, where that is not the default.
        environment: Values of the environment variables that the workspace declares to matter, as JSON.
    """

    workspace_id: str
    device: str
    budget_s: float
    dataset_hash: str
    harness_hash: str
    metric: str
    direction: Direction
    editable: str = ""
    command: str = ""
    reading: str = ""
    environment: str = ""

    def is_same_loop(self, other: "Context") -> bool:
        """Return whether two contexts differ in nothing but the folder, and a harness shows that it is one loop."""
        mine, theirs = replace(self, workspace_id=""), replace(other, workspace_id="")
        return bool(self.harness_hash and self.editable) and mine == theirs

    @property
    def device_class(self) -> str:
        """What kind of device it is, whatever its model: `cuda`, `mps` or `cpu`."""
        return self.device.split(":", 1)[0]


class RunState(StrEnum):
    """The progress of an experiment."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class DocumentState(StrEnum):
    """How far a document could be read; where it could not, its abstract may be all there is."""

    READ = "read"
    SOURCELESS = "sourceless"
    WITHDRAWN = "withdrawn"
    ENCRYPTED = "encrypted"
    SCANNED = "scanned"
    BROKEN = "broken"
    TOO_LARGE = "too_large"


class Decision(StrEnum):
    """Whether a change stays in the workspace's file."""

    KEEP = "keep"
    DISCARD = "discard"


class VerdictKind(StrEnum):
    """What the outcomes say of a change, against the context's noise floor."""

    WIN = "win"
    LOSS = "loss"
    WITHIN_NOISE = "within_noise"
    CRASH = "crash"
    BASELINE = "baseline"
    NO_BASELINE = "no_baseline"


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """How far one run of a program differs from another by chance.

    Args:
        sd: Standard deviation of one run, in metric units, `factor` included.
        replicates: Runs beyond the first of each program that it was measured from; 0: a default.
        factor: By how much it was raised because runs shared their device.
    """

    sd: float
    replicates: int = 0
    factor: float = 1.0


class Advice(StrEnum):
    """What is to be done next, as programs tell it apart; `NextStep.about` holds what it is about."""

    MAKE_EDIT = "make_edit"
    SET_VALUES = "set_values"
    REPLICATE_BEST = "replicate_best"
    OTHER_WORDS = "other_words"
    NO_FILTER = "no_filter"
    ALL_PRESENT = "all_present"
    ALL_FLOPPED = "all_flopped"
    NONE_FITS = "none_fits"
    OTHER_VALUES = "other_values"
    BY_HAND = "by_hand"
    TAKE_PARTS = "take_parts"
    WRITE_IT = "write_it"
    GO_ON = "go_on"
    APPLY_WHOLE = "apply_whole"
    RUN_EDIT = "run_edit"
    READ_EARLIER = "read_earlier"
    RAN_BEFORE = "ran_before"
    WAIT_FOR_OTHER = "wait_for_other"
    POLL = "poll"
    FIX_OR_DISCARD = "fix_or_discard"
    RUN_BASELINE = "run_baseline"
    FIX_PARENT = "fix_parent"
    FIX_BASELINE = "fix_baseline"
    REPLICATE_BASELINE = "replicate_baseline"
    SEARCH = "search"
    BUILD_ON_IT = "build_on_it"
    REVERT = "revert"
    REVERT_UNMEASURABLE = "revert_unmeasurable"
    KEEP_IF_SIMPLER = "keep_if_simpler"
    REPLICATE_CHANGE = "replicate_change"
    REPLICATE_PARENT = "replicate_parent"
    REPLICATE_WHEN_QUIET = "replicate_when_quiet"
    USE_LEARNED = "use_learned"
    NAME_METHOD = "name_method"
    IGNORE_FILES = "ignore_files"
    SEND_LOG = "send_log"
    RUN_AGAIN = "run_again"
    FIX_SURROUNDINGS = "fix_surroundings"
    NOTHING_LEFT_OUT = "nothing_left_out"
    SHOW_MORE = "show_more"
    CHOOSE_SOURCE = "choose_source"
    OTHER_FORM = "other_form"
    REGISTER_METHOD = "register_method"
    FIND_METHODS = "find_methods"
    IMPORT_IT = "import_it"
    COUNTED = "counted"
    BRING_BACK = "bring_back"
    AMEND = "amend"
    CHECK_PACK = "check_pack"
    READ_REASONS = "read_reasons"
    NOTHING = "nothing"
    # what an error says
    MAKE_EDIT_FIRST = "make_edit_first"
    MAKE_EDIT_AGAIN = "make_edit_again"
    MAKE_PATCH_AGAIN = "make_patch_again"
    RUN_FILE = "run_file"
    START_RUN = "start_run"
    LEAVE_OUT = "leave_out"
    WAIT = "wait"
    INGEST = "ingest"
    LINK = "link"


@dataclass(frozen=True)
class NextStep:
    """What to do next. Without slots: the MCP SDK reads a field's default off the class, and finds a slot there.

    Args:
        reason: Why, for programs; renderers word it.
        tool: The tool that does it; empty where none is to be called.
        arguments: Its arguments; `…` stands for what the caller fills in.
        about: What the reason is about: ids, files, counts.
    """

    reason: Advice
    tool: str = ""
    arguments: dict[str, str | int | float | bool] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged change: its mean gain in the metric's unit (positive is better), the noise, and what to do."""

    kind: VerdictKind
    gain: float | None
    noise: NoiseFloor
    p_win: float | None
    decision: Decision
    next_step: NextStep

    @property
    def noise_floor(self) -> float:
        """Standard deviation of one run, in metric units."""
        return self.noise.sd

    @property
    def is_tentative(self) -> bool:
        """Whether the change gained, but not distinguishably from noise."""
        return self.kind is VerdictKind.WITHIN_NOISE and self.decision is Decision.KEEP


class Standing(StrEnum):
    """What is known of a method from its outcomes."""

    UNTRIED = "untried"
    PROVEN = "proven"
    MIXED = "mixed"
    FLOPPED = "flopped"
