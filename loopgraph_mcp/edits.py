"""Applies a method's recipe to one exact text: each op matches exactly once, or the whole edit is refused."""

import ast
import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from loopgraph_mcp import duplicates, models, syntax
from loopgraph_mcp.models import Applied, Knob, KnobValue, KnobValues, Method, Presence, Present, RecipeOp, Refused
from loopgraph_mcp.syntax import CURRENT, HOLE, Run, Scope, Source, Span, Swaps, Unparsable

_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_KINDS: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}
_MAX_NUMBER = 2**63
_MAX_SHOWN = 80  # characters of a value in a sentence, or bits of an integer


class _Mismatch(Exception):  # noqa: N818 - how an op tells its recipe that it does not fit
    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class _Change:
    """What an op does to a text, and to its tree: `swaps` says by id what takes the place of which node.

    `rewrites` is true where the method was there already, with other knob values.
    """

    span: Span
    text: str
    swaps: Swaps
    summary: str
    rewrites: bool = False


def apply_method(method: Method, source: str, knobs: KnobValues) -> models.EditResult:
    """Apply a method's recipe with some knob values (the others at their defaults).

    Ops that are satisfied already are passed over, so a half-made change is completed. After every op the text is
    parsed, and its tree must differ from the one before in the op's place only. The result is a value: where anything
    does not fit, nothing has changed.
    """
    if method.recipe is None:
        return Refused(method.id, "it has no recipe: make the change by hand from its description")
    try:
        values = check_knobs(method.knobs, knobs)
        text, changes = source, list[str]()
        for op in method.recipe.ops:
            try:
                change = _change(_parsed(text), op, values)
            except _Mismatch as mismatch:
                return _as_of(source, op, values, mismatch.refused)
            if change is not None:
                _check_names(_parsed(text), change)
                text = _carried_out(_parsed(text), change)
                changes.append(change.summary)
    except _Mismatch as mismatch:
        return mismatch.refused
    except Unparsable as error:
        return Refused("a text that Python can parse", f"{error}; mend it first")
    except (RecursionError, MemoryError) as error:
        return Refused("a text of sane depth", f"its nesting is too deep to read ({type(error).__name__})")
    if text == source:
        return Present(f"the file already is what {method.id} would make of it")
    return Applied(text, tuple(changes))


def _as_of(source: str, op: RecipeOp, knobs: Mapping[str, KnobValue], refused: Refused) -> Refused:
    """Return a refusal with the line numbers of the text as it was given, before the recipe's other ops."""
    try:
        _change(_parsed(source), op, knobs)
    except _Mismatch as mismatch:
        return mismatch.refused
    return replace(refused, reason=f"{refused.reason}, once the recipe's other steps are made", nearest=())


def _check_names(source: Source, change: _Change) -> None:
    there = change.swaps.values()
    code = [
        node for new in there for node in (new if isinstance(new, Sequence) else [new]) if id(node) not in change.swaps
    ]
    if unknown := syntax.unknown_names(source.tree, code):
        reason = f"it needs `{unknown[0]}`, which stands nowhere in the file"
        raise _Mismatch(Refused(change.summary, reason, source.nearest(unknown[0])))


def _carried_out(source: Source, change: _Change) -> str:
    text = source.spliced(change.span, change.text)
    try:
        fits = source.becomes(_parsed(text), change.swaps)
    except Unparsable as error:
        raise _Mismatch(Refused(change.summary, f"the text would not parse after it ({error})")) from error
    if not fits:
        raise _Mismatch(Refused(change.summary, "it would change more of the program than its place"))
    return text


def detect(method: Method, source: str, knobs: KnobValues | None = None) -> Presence:
    """Return how far a text already holds a method: all of its ops, some, or none.

    Without knob values, code that a recipe puts there counts with any.
    """
    if method.recipe is None:
        return Presence.ABSENT
    satisfied = 0
    try:
        values = check_knobs(method.knobs, knobs or {})
        parsed = _parsed(source)
        for op in method.recipe.ops:
            try:
                change = _change(parsed, op, values)
            except _Mismatch:
                continue
            satisfied += change is None or (knobs is None and change.rewrites)
    except (_Mismatch, Unparsable, RecursionError, MemoryError):
        return Presence.ABSENT
    if satisfied == len(method.recipe.ops):
        return Presence.PRESENT
    return Presence.PARTIAL if satisfied else Presence.ABSENT


def unified_diff(old: str, new: str, path: str) -> str:
    """Return the unified diff of two texts, with a/ and b/ before the path; as in git, only a newline ends a line."""
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (old, new))
    lines = difflib.unified_diff(before, after, f"a/{path}", f"b/{path}", n=3)
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def check_knobs(declared: Sequence[Knob], given: KnobValues) -> dict[str, KnobValue]:
    """Return every knob's value; refuse an unknown name, a wrong type, or a value out of range."""
    by_name = {knob.name: knob for knob in declared}
    for name in given:
        if name not in by_name:
            known = ", ".join(sorted(by_name)) or "none"
            raise _Mismatch(Refused(f"a knob named {_shown(name)}", f"this method's knobs are: {known}"))
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
        raise _Mismatch(Refused(f"knob {knob.name} = {_shown(value)}", f"it takes {allowed}"))
    return value


def _shown(value: object) -> str:
    """Return a value as code, cut to what fits in a sentence; Python refuses to write integers of any length."""
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


@lru_cache(maxsize=8)
def _parsed(text: str) -> Source:
    """Parse a text once: a search looks for every method it shows in the same file."""
    return Source(text)


# -------------------------------------------------------------------------------------------------- ops


def _change(source: Source, op: RecipeOp, knobs: Mapping[str, KnobValue]) -> _Change | None:
    """Return what an op changes, or None where it is satisfied already."""
    match op:
        case models.SetConst(name=name, value=value):
            return _set_value(source, _one_assignment(source, "", name), f"{name} = ", value, knobs)
        case models.SetLocal(scope=scope, name=name, value=value):
            return _set_value(source, _one_assignment(source, scope, name), f"{scope}: {name} = ", value, knobs)
        case models.SetDefault(scope=scope, name=name, value=value):
            return _set_value(source, _default(source, scope, name), f"{scope}: default {name}=", value, knobs)
        case models.SetKwarg(scope=scope, call=call, name=name, value=value):
            place = _keyword(source, scope, call, name)
            return _set_value(source, place, f"{scope}: {call} {name}=", value, knobs)
        case models.ReplaceStmt(scope=scope, old=old, new=new):
            return _replace(source, scope, _Code(old, knobs), _Code(new, knobs))
        case models.InsertAfter(scope=scope, anchor=anchor, code=code):
            return _insert(source, scope, _Code(anchor, knobs), _Code(code, knobs))
        case models.AddMethod(scope=scope, code=code):
            return _add_method(source, scope, _Code(code, knobs))


class _Code:
    """A template's text with the knob values in it, its statements, and its pattern for any knob values."""

    def __init__(self, template: str, knobs: Mapping[str, KnobValue]) -> None:
        self.text = _filled(template, {name: _literal(value) for name, value in knobs.items()}).strip("\n")
        self.body = _statements(self.text)
        self.pattern = _statements(_filled(template, {name: HOLE + name for name in knobs}))
        self.head = _first_line(self.text)


def _set_value(
    source: Source, place: ast.expr, label: str, template: str, knobs: Mapping[str, KnobValue]
) -> _Change | None:
    """Put a value in an expression's place; a relative one (`{current} // {factor}`) builds on what stood there."""
    base, values = place, {name: _literal(value) for name, value in knobs.items()}
    if "{current}" in template:
        pattern = _expression(_filled(template, {name: HOLE + name for name in [*knobs, CURRENT]}))
        holes: dict[str, ast.expr] = {}
        if syntax.alike(pattern, place, holes=holes):
            base = holes[CURRENT]
        values[CURRENT] = _operand(source, base, alone=template.strip() == "{current}")
    value = _filled(template, values)
    tree = _expression(value)
    if syntax.alike(tree, place) or duplicates.equal_numbers(tree, place):
        return None
    was = " ".join(source.slice(source.span(place)).split())
    summary = f"{label}{' '.join(value.split())} (was {was})"
    return _Change(source.span(place), value, {id(place): tree}, summary, base is not place)


def _operand(source: Source, node: ast.expr, *, alone: bool) -> str:
    """Return an expression's text as it can stand in a larger one."""
    text = source.slice(source.span(node))
    power = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
    if alone or power or isinstance(node, ast.Constant | ast.Name | ast.Call | ast.Attribute | ast.Subscript):
        with contextlib.suppress(_Mismatch):  # brackets around it may be all that lets it span lines
            _expression(text)
            return text
    return f"({text})"


def _replace(source: Source, dotted: str, old: _Code, new: _Code) -> _Change | None:
    scope = _one_scope(source, dotted)
    there = syntax.runs_of(scope, new.body)
    found = [run for run in syntax.runs_of(scope, old.body) if not any(made.holds(run) for made in there)]
    if there and not found:
        return None
    if not found and len(others := syntax.runs_of(scope, new.pattern)) == 1:
        return _put(source, dotted, others[0], new, rewrites=True)
    return _put(source, dotted, _only(source, dotted, found, old), new)


def _insert(source: Source, dotted: str, anchor: _Code, code: _Code) -> _Change | None:
    scope = _one_scope(source, dotted)
    anchors = syntax.runs_of(scope, anchor.body)

    def placed(wanted: Sequence[ast.stmt]) -> list[Run]:
        runs = syntax.runs_of(scope, wanted)
        return [run for run in runs if not anchors or any(run.is_behind(found) for found in anchors)]

    if placed(code.body):
        return None
    if len(others := placed(code.pattern)) == 1:
        return _put(source, dotted, others[0], code, rewrites=True)
    last = _only(source, dotted, anchors, anchor).statements[-1]
    return _behind(source, last, code, source.newline, f"`{anchor.head}` in {dotted}", f"{dotted}: + {code.head}")


def _add_method(source: Source, dotted: str, code: _Code) -> _Change | None:
    scope = _one_scope(source, dotted)
    made = code.body[0]
    name = made.name if isinstance(made, ast.FunctionDef | ast.AsyncFunctionDef) else ""
    if not name or len(code.body) != 1:
        raise _Mismatch(Refused("one function to add", f"the recipe's code is `{code.head}`"))
    if syntax.runs_of(scope, code.body):
        return None
    if len(others := syntax.runs_of(scope, code.pattern)) == 1:
        return _put(source, dotted, others[0], code, rewrites=True)
    if syntax.scopes(source.tree, f"{dotted}.{name}"):
        raise _mismatch(source, f"a class {dotted} without {name}", "it has another one", f"def {name}(self):")
    where = f"the end of {dotted}"
    return _behind(source, scope.body[-1], code, source.newline * 2, where, f"{dotted}: + {code.head}")


def _put(source: Source, dotted: str, run: Run, new: _Code, *, rewrites: bool = False) -> _Change:
    """Put code in the place of some statements; comments between them go above it."""
    old = run.statements
    span = Span(source.start(old[0]), source.span(old[-1]).end)
    was = _first_line(source.slice(span))
    indent = _own_indent(source, old[0], old[-1], f"`{was}` in {dotted}")
    comments = [each for one, other in pairwise(old) for each in source.comments_between(one, other)]
    text = source.newline.join([*(indent + comment for comment in comments), source.indented(new.text, indent)])
    swaps: Swaps = {id(old[0]): new.body, **{id(statement): () for statement in old[1:]}}
    return _Change(span, text.removeprefix(indent), swaps, f"{dotted}: {was} -> {new.head}", rewrites)


def _behind(source: Source, last: ast.stmt, code: _Code, gap: str, where: str, summary: str) -> _Change:
    """Put code on lines of its own behind a statement."""
    indent = _own_indent(source, last, last, where)
    end = source.line_end(last.end_lineno or last.lineno)
    swaps = {id(last): (last, *code.body)}
    return _Change(Span(end, end), gap + source.indented(code.text, indent), swaps, summary)


def _own_indent(source: Source, first: ast.stmt, last: ast.stmt, where: str) -> str:
    indent = source.indent_of(first)
    if indent is None or not source.alone_until_line_end(last):
        raise _mismatch(source, where, "it shares its line with other code", source.slice(source.span(first)))
    return indent


# ----------------------------------------------------------------------------------------------- places


def _one_scope(source: Source, dotted: str) -> Scope:
    found = syntax.scopes(source.tree, dotted)
    if len(found) == 1:
        return found[0]
    last = dotted.rsplit(".", 1)[-1]
    lines = [node.lineno for node in found if not isinstance(node, ast.Module)]
    reason = _times("is defined", lines) if found else "nothing has this name"
    raise _mismatch(source, f"`{dotted}`", reason, f"class {last}" if last[:1].isupper() else f"def {last}(")


def _one_assignment(source: Source, dotted: str, name: str) -> ast.expr:
    scope = _one_scope(source, dotted)
    found, lines = syntax.assignments(scope, name), syntax.bindings(scope, name)
    if not dotted and b"global" in source.data:
        lines = sorted([*lines, *syntax.global_bindings(source.tree, name)])
    if len(found) == len(lines) == 1:
        return found[0]
    place = f"in {dotted}" if dotted else "at module level"
    form = _times("is bound", lines) if len(lines) > 1 else f"line {lines[0]} is no such form" if lines else ""
    reason = form or f"nothing assigns it {place}"
    raise _mismatch(source, f"`{name} = …` {place}", reason, f"{name} = ")


def _default(source: Source, dotted: str, name: str) -> ast.expr:
    found = syntax.default_of(_one_scope(source, dotted), name)
    if found is None:
        last = dotted.rsplit(".", 1)[-1]
        raise _mismatch(source, f"a default of `{name}` in `{dotted}`", "it has none", f"def {last}({name}=")
    return found


def _keyword(source: Source, dotted: str, call: str, name: str) -> ast.expr:
    found = syntax.calls(_one_scope(source, dotted), call)
    if len(found) != 1:
        reason = _times("is called", [node.lineno for node in found]) if found else "nothing calls it"
        raise _mismatch(source, f"one call of `{call}` in `{dotted}`", reason, f"{call}(")
    for keyword in found[0].keywords:
        if keyword.arg == name:
            return keyword.value
    reason = f"the call in line {found[0].lineno} has no such keyword"
    raise _mismatch(source, f"`{name}=` in the call of `{call}`", reason, f"{name}=")


def _only(source: Source, dotted: str, found: Sequence[Run], code: _Code) -> Run:
    if len(found) == 1:
        return found[0]
    lines = [run.statements[0].lineno for run in found]
    reason = _times("stands there", lines) if found else "no statement there equals it"
    raise _mismatch(source, f"`{code.head}` in {dotted}", reason, code.text)


def _times(verb: str, lines: Sequence[int]) -> str:
    return f"it {verb} {len(lines)} times (lines {', '.join(map(str, lines))})"


def _mismatch(source: Source, looked_for: str, reason: str, like: str) -> _Mismatch:
    return _Mismatch(Refused(looked_for, reason, source.nearest(like)))


# ------------------------------------------------------------------------------------------------- code


def _filled(template: str, texts: Mapping[str, str]) -> str:
    """Put texts into `{name}` places, all at once; other braces are the code's own."""

    def text(match: re.Match[str]) -> str:
        filling = texts.get(match.group(1), match.group())
        binds_tighter = re.match(r" *(\*\*|[.\[(])", template[match.end() :])
        return f"({filling})" if binds_tighter and not filling.isidentifier() else filling

    return _PLACEHOLDER.sub(text, template)


def _literal(value: KnobValue) -> str:
    """Return a knob value as code, a text in double quotes where it can be."""
    text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and not {'"', "\\"} & set(text) else text


def _statements(code: str) -> list[ast.stmt]:
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError) as error:
        raise _Mismatch(Refused(f"code: `{_first_line(code)}`", f"it does not parse ({error})")) from error
    if not body:
        raise _Mismatch(Refused("code in the recipe", "it holds no statement"))
    return body


def _expression(code: str) -> ast.expr:
    try:
        return ast.parse(code, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _Mismatch(Refused(f"a value: `{_first_line(code)}`", f"it is no expression ({error})")) from error


def _first_line(code: str) -> str:
    return next((line.strip() for line in code.splitlines() if line.strip()), "")
