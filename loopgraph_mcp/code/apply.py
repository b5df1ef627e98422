"""Applies a method's recipe to one exact text: each op matches exactly once, or the whole edit is refused."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile

from loopgraph_mcp.code import conditions, ops, soundness, syntax
from loopgraph_mcp.code.ops import Mismatch
from loopgraph_mcp.code.syntax import Source, Unparsable
from loopgraph_mcp.models import (
    Applied,
    ByRole,
    Companion,
    EditResult,
    Knob,
    KnobValue,
    KnobValues,
    Mark,
    Method,
    Presence,
    Present,
    Recipe,
    RecipeOp,
    Refused,
    all_ops,
)
from loopgraph_mcp.text import compile_later

ALL = "all"
OTHER_FORM = "other_form"  # of a sign that counts where the recipe itself does not fit
_KINDS: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}
_MAX_NUMBER = 2**63  # what the store can hold
_CONTEXT_LINES = 3
_MOST_COMPARED = 4_000_000  # pairs of lines: a second
_HUNK = compile_later(r"(?<=[ ])([-+])(\d+)")
_MAX_SHOWN = 80  # characters of a value in a sentence, or bits of an integer


@dataclass(frozen=True, slots=True)
class Around:
    """What bears on an edit beside the text.

    Args:
        siblings: The texts of the workspace's other modules, by the name they are imported by.
        library: The methods that a recipe may name, by id.
        companions: The companions asked for, by name; `ALL` for all of them.
    """

    siblings: Mapping[str, str] = field(default_factory=dict)
    library: Mapping[str, Method] = field(default_factory=dict)
    companions: frozenset[str] = frozenset()


NOTHING = Around()


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to make a part of an edit: what it needs, its ops, the knob values they use, and, if need be, why."""

    ops: Sequence[RecipeOp]
    knobs: KnobValues
    needs: Sequence[Mark] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Made:
    source: Source
    changes: tuple[ops.Change, ...] = ()


def apply_method(method: Method, source: str, knobs: KnobValues, around: Around = NOTHING) -> EditResult:
    """Apply a method's recipe with some knob values (the others at their defaults).

    Ops that are satisfied already are passed over, so a half-made change is completed. After every op the text is
    parsed, and its tree must differ from the one before in the op's place only. The result is a value: where anything
    does not fit, nothing has changed.
    """
    if method.recipe is None:
        return _by_hand(method)
    start: Source | None = None
    try:
        values = check_knobs(method.knobs, knobs)
        start = syntax.read(source)
        if (answer := _forestalled(method, start, around, knobs)) is not None:
            return answer
        if not all_ops(method.recipe):
            return _other_form(method, start) or _by_hand(method)
        made = _Made(start)
        for ways in _parts(method.recipe, values, around):
            made = _taken(made, ways)
        ops.check_names(start, made.changes)
        _check_after(method, start, made.source, around)
        if made.source is not start and (wrong := soundness.fault(start, made.source, around.siblings)) is not None:
            return wrong
    except Mismatch as mismatch:
        return _other_form(method, start) or mismatch.refused
    except Unparsable as error:
        return Refused("a text that Python can parse", f"{error}; fix it first")
    except (RecursionError, MemoryError) as error:
        return Refused("a text of sane depth", f"it is nested too deeply to read ({type(error).__name__})")
    if made.source is start:
        where = ops.held(start, all_ops(method.recipe), values)
        return Present(where or f"the file already equals the result of {method.id}")
    return Applied(made.source.bom + made.source.text, tuple(change.summary for change in made.changes))


def detect(method: Method, source: str, knobs: KnobValues | None = None, around: Around = NOTHING) -> Presence:
    """Return how far a text already holds a method: all of its ops, some, none, or in another form.

    Without knob values, code that a recipe puts there counts with any. Where there is none of it, the recipe's signs
    decide: it is present in another form, or conflicts with code already in the file.
    """
    if method.recipe is None:
        return Presence.ABSENT
    try:
        values = check_knobs(method.knobs, knobs or {})
        parsed = syntax.read(source)
        own = _own_presence(method.recipe, parsed, values, around, exact=knobs is not None)
        if own is not Presence.ABSENT:
            return own
        if not knobs and not around.companions and _held(method.recipe, parsed, values, around):
            return Presence.PRESENT
        states = {sign.state for sign in method.recipe.detect if conditions.matches(parsed, sign.mark)}
        if OTHER_FORM in states and isinstance(apply_method(method, source, {}, around), Present):
            return Presence.PRESENT
        states.discard(OTHER_FORM)
    except (Mismatch, Unparsable, RecursionError, MemoryError):
        return Presence.ABSENT
    if Presence.PRESENT.value in states:
        return Presence.PRESENT
    beside = [around.library[each] for each in method.recipe.conflicts if each in around.library]
    if states or any(detect(each, source) is Presence.PRESENT for each in beside):
        return Presence.CONFLICTING
    return Presence.ABSENT


def detect_each(methods: Sequence[Method], source: str) -> list[Presence]:
    """Return how far a text already holds each of some methods; it is parsed once."""
    try:
        held = syntax.read(source)
    except Unparsable:
        held = None
    return [Presence.ABSENT if held is None else detect(each, source) for each in methods]


def offered(method: Method, source: str, knobs: KnobValues, around: Around = NOTHING) -> list[tuple[Companion, str]]:
    """Return the companions that would change a text further, one of each name, each with what it would change."""
    found: dict[str, tuple[Companion, str]] = {}
    recipe = method.recipe or Recipe(())
    for companion in recipe.companions:
        if companion.required or companion.name in found:
            continue
        try:
            way = replace(_way(companion, check_knobs(method.knobs, knobs), around), why="")
            made = _carried_out(_Made(syntax.read(source)), way)
        except (Mismatch, Unparsable, RecursionError, MemoryError):
            continue
        if made.changes:
            found[companion.name] = (companion, "; ".join(change.summary for change in made.changes))
    return list(found.values())


def unified_diff(old: str, new: str, path: str) -> str:
    """Return the unified diff of two texts, with a/ and b/ before the path; as in git, only a newline ends a line."""
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (old, new))
    lines = _unified(before, after, path)
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def _unified(before: list[str], after: list[str], path: str) -> Iterator[str]:
    """Yield a diff's lines; where too much differs to be compared in a moment, all of that is replaced."""
    head = max(0, _alike(before, after) - _CONTEXT_LINES)
    old, new = before[head:], after[head:]
    apart = min(len(old), len(new)) - _CONTEXT_LINES  # a line at the head is none at the tail
    tail = max(0, min(_alike(old[::-1], new[::-1]), apart) - _CONTEXT_LINES)
    old, new = old[: len(old) - tail], new[: len(new) - tail]
    if len(old) * len(new) > _MOST_COMPARED:
        yield from (f"--- a/{path}\n", f"+++ b/{path}\n")
        yield f"@@ -{head + 1},{len(old)} +{head + 1},{len(new)} @@\n"
        yield from (f"-{line}" for line in old)
        yield from (f"+{line}" for line in new)
        return
    for line in difflib.unified_diff(old, new, f"a/{path}", f"b/{path}", n=_CONTEXT_LINES):
        yield _HUNK.sub(lambda found: f"{found[1]}{int(found[2]) + head}", line) if line.startswith("@@ ") else line


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many lines two texts share from the first on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


# ------------------------------------------------------------------------------------------------- parts


def _parts(recipe: Recipe, values: KnobValues, around: Around) -> list[list[_Way]]:
    """Return the parts of an edit in the order they are made, each with the ways to make it."""
    parts = [[_Way(recipe.ops, values)]] if recipe.ops else []
    for part in dict.fromkeys(variant.part for variant in recipe.variants):
        parts += [[_Way(each.ops, values, each.needs) for each in recipe.variants if each.part == part]]
    asked = {each.name for each in recipe.companions if each.required or {each.name, ALL} & around.companions}
    if unknown := sorted(around.companions - {each.name for each in recipe.companions} - {ALL}):
        known = ", ".join(dict.fromkeys(each.name for each in recipe.companions)) or "none"
        raise Mismatch(Refused(f"a companion named {_shown(unknown[0])}", f"this method's companions are: {known}"))
    for name in dict.fromkeys(each.name for each in recipe.companions if each.name in asked):
        parts += [[_way(each, values, around) for each in recipe.companions if each.name == name]]
    return parts


def _way(companion: Companion, values: KnobValues, around: Around) -> _Way:
    """Return how a companion is made: by its own ops, or by those of another method."""
    if not companion.method:
        return _Way(companion.ops, values, companion.needs, companion.why)
    other = around.library.get(companion.method)
    if other is None or other.recipe is None:
        raise Mismatch(Refused(f"the method {companion.method}", f"no pack has a recipe for it; {companion.why}"))
    return _Way(other.recipe.ops, check_knobs(other.knobs, dict(companion.knobs)), companion.needs, companion.why)


def _taken(made: _Made, ways: Sequence[_Way]) -> _Made:
    """Make a part of an edit in the first way that is made already, that is half made, or that fits at all."""
    fitting, missed = list[tuple[bool, _Made]](), list[Mismatch]()
    for way in ways:
        try:
            after = _carried_out(made, way)
            if len(ways) > 1:
                ops.check_names(made.source, after.changes[len(made.changes) :])
        except Mismatch as mismatch:
            missed.append(mismatch)
            continue
        if after.source is made.source:
            if any(not fresh for fresh, _ in fitting):  # the recipe's own code is there, with other values
                continue
            return made
        fresh = len(ways) > 1 and not _satisfied(made.source, way, exact=False)
        fitting.append((fresh, after))
    if fitting:
        return min(fitting, key=lambda pair: pair[0])[1]
    if len(missed) == 1:
        raise missed[0]
    for way, miss in zip(ways, missed, strict=True):
        if any(isinstance(op, ByRole) for op in way.ops):
            raise miss  # which says it of the file, not of the recipe's forms
    misses = [each.refused for each in missed]
    told = "; or ".join(f"{each.looked_for} ({each.reason})" for each in misses[1:])
    raise Mismatch(replace(misses[0], reason=f"{misses[0].reason}; or {told}: none of its {len(misses)} forms fits"))


def _carried_out(made: _Made, way: _Way) -> _Made:
    for mark in way.needs:
        if (miss := conditions.missing(made.source, mark)) is not None:
            raise Mismatch(miss)
    source, changes = made.source, list(made.changes)
    for op in way.ops:
        try:
            change = ops.change_of(source, op, way.knobs)
        except Mismatch as mismatch:
            late = partial(_as_of, made.source, source, op, way.knobs, mismatch)
            raise Mismatch(late) from mismatch
        if change is not None:
            source = ops.carried_out(source, change)
            changes.append(replace(change, summary=f"{change.summary}; {way.why}") if way.why else change)
    return _Made(source, tuple(changes))


def _as_of(start: Source, now: Source, op: RecipeOp, knobs: KnobValues, mismatch: Mismatch) -> Refused:
    """Return a refusal with the line numbers of the text as it was given, before the recipe's other ops."""
    if start is now:
        return mismatch.refused
    try:
        ops.change_of(start, op, knobs)
    except Mismatch as earlier:
        return earlier.refused
    refused = mismatch.refused
    return replace(refused, reason=f"{refused.reason}, after the recipe's other steps", nearest=())


def _satisfied(source: Source, way: _Way, *, exact: bool) -> int:
    """Return how many of a way's ops a text holds already, with any knob values or with these."""
    satisfied = 0
    for op in way.ops:
        try:
            change = ops.change_of(source, op, way.knobs)
        except Mismatch:
            continue
        satisfied += (change is None or (not exact and change.rewrites)) and not ops.is_import(op)
    return satisfied


def _own_presence(recipe: Recipe, source: Source, values: KnobValues, around: Around, *, exact: bool) -> Presence:
    """Return how far a text holds what a recipe's own code would make of it."""
    held, wanted = 0, 0
    for ways in _parts(recipe, values, replace(around, companions=frozenset())):
        able = [way for way in ways if all(conditions.matches(source, mark) for mark in way.needs)] or ways
        counts = [(_satisfied(source, way, exact=exact), sum(not ops.is_import(op) for op in way.ops)) for way in able]
        best = max(counts, key=lambda count: (count[0] == count[1], count[0] / max(1, count[1])))
        held, wanted = held + best[0], wanted + best[1]
    if not held:
        return Presence.ABSENT
    return Presence.PRESENT if held == wanted else Presence.PARTIAL


# ------------------------------------------------------------------------------------------- conditions


def _forestalled(method: Method, source: Source, around: Around, knobs: KnobValues) -> EditResult | None:
    """Return what a file says to a recipe before any of it is made, or None where it may go on."""
    recipe = method.recipe
    if recipe is None:
        return None
    values = check_knobs(method.knobs, knobs)
    if not around.companions and (where := _held(recipe, source, values, around)):
        return Present(where)
    signs = [each for each in recipe.detect if each.state != OTHER_FORM and conditions.matches(source, each.mark)]
    if signs:
        values = check_knobs(method.knobs, {})
        if _own_presence(recipe, source, values, around, exact=False) is Presence.ABSENT:
            sign = min(signs, key=lambda sign: sign.state != "present")
            where = conditions.shown(source, sign.mark)
            if sign.state == "present":
                return Present(f"the file has {method.id} in another form{where}")
            return Refused(
                f"a file without a conflict with {method.id}",
                f"{sign.mark.why or 'conflicts with code already in the file'}{where}",
            )
    for mark in recipe.needs:
        if (miss := conditions.missing(source, mark)) is not None:
            return miss
    return None


def _by_hand(method: Method) -> Refused:
    return Refused(method.id, "it has no recipe; make the change by hand from its description")


def _held(recipe: Recipe, source: Source, values: KnobValues, around: Around) -> str:
    """Return where an edit by role finds the method in another form than the recipe's own code."""
    where = ops.held(source, all_ops(recipe), values)
    if not where:
        return ""
    variants = tuple(each for each in recipe.variants if not any(isinstance(op, ByRole) for op in each.ops))
    written = replace(recipe, variants=variants, companions=())
    if all_ops(written) and any(not isinstance(op, ByRole) for op in all_ops(written)):
        own = _own_presence(written, source, values, around, exact=False)
        if own is Presence.PRESENT:  # with other values it is rewritten
            return where if _own_presence(written, source, values, around, exact=True) is own else ""
        return where if own is Presence.ABSENT else ""
    return where


def _other_form(method: Method, source: Source | None) -> Present | None:
    """Return that a file has a method in a form that its recipe cannot change."""
    recipe = method.recipe or Recipe(())
    for sign in recipe.detect if source is not None else ():
        if sign.state == OTHER_FORM and source is not None and conditions.matches(source, sign.mark):
            return Present(f"the file has {method.id} in a form of its own{conditions.shown(source, sign.mark)}")
    return None


def _check_after(method: Method, before: Source, after: Source, around: Around) -> None:
    """Refuse an edit that would leave two methods in conflict side by side."""
    recipe = method.recipe or Recipe(())
    for each in recipe.conflicts:
        other = around.library.get(each)
        texts = [source.bom + source.text for source in (before, after)]
        if other is not None and all(detect(other, text) is Presence.PRESENT for text in texts):
            reason = f"{method.id} conflicts with it; revert that method first"
            raise Mismatch(Refused(f"a file without {each}", reason))


# ------------------------------------------------------------------------------------------------- knobs


def check_knobs(declared: Sequence[Knob], given: KnobValues) -> dict[str, KnobValue]:
    """Return every knob's value; refuse an unknown name, a wrong type, or a value out of range."""
    by_name = {knob.name: knob for knob in declared}
    for name in given:
        if name not in by_name:
            known = ", ".join(sorted(by_name)) or "none"
            raise Mismatch(Refused(f"a knob named {_shown(name)}", f"this method's knobs are: {known}"))
    return {name: _check_knob(knob, given.get(name, knob.default)) for name, knob in by_name.items()}


def _check_knob(knob: Knob, value: KnobValue) -> KnobValue:
    low, high = knob.low, knob.high
    kind = {int: "a whole number", float: "a number", str: "a text"}[type(knob.default)]
    allowed = f"one of {', '.join(map(repr, knob.choices))}" if knob.choices else kind
    if low is not None or high is not None:
        allowed += f" from {'-inf' if low is None else f'{low:g}'} to {'inf' if high is None else f'{high:g}'}"
    fits = type(value) in _KINDS[type(knob.default)] and (not knob.choices or value in knob.choices)
    if fits and isinstance(value, int | float):
        fits = abs(value) < _MAX_NUMBER and (low is None or value >= low) and (high is None or value <= high)
    if not fits:
        raise Mismatch(Refused(f"knob {knob.name} = {_shown(value)}", f"it takes {allowed}"))
    return value


def _shown(value: object) -> str:
    """Return a value as code, cut to what fits in a sentence; Python refuses to write integers of any length."""
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
