"""Applies a method's recipe to one exact text: each op matches exactly once, or the whole edit is refused."""

import ast
import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache

from loopgraph_mcp import syntax
from loopgraph_mcp.models import (
    AddMethod,
    Applied,
    EditResult,
    InsertAfter,
    Knob,
    KnobValue,
    KnobValues,
    Method,
    Presence,
    Present,
    RecipeOp,
    Refused,
    ReplaceStmt,
    SetConst,
    SetDefault,
    SetKwarg,
    SetLocal,
)
from loopgraph_mcp.syntax import Scope, Source, Span, Unparsable

_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_CURRENT = "current"


class _Mismatch(Exception):  # noqa: N818 - how an op tells its recipe that it does not fit
    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused


def apply_method(method: Method, source: str, knobs: KnobValues) -> EditResult:
    """Apply a method's recipe with some knob values (the others at their defaults).

    Ops that are satisfied already are passed over, so a half-made change is completed. The text is parsed after every
    op, and the result is a value: where anything does not fit, nothing has changed.
    """
    if method.recipe is None:
        return Refused(method.id, "it has no recipe: make the change by hand from its description")
    try:
        values = check_knobs(method.knobs, knobs)
        text, changes = source, list[str]()
        for op in method.recipe.ops:
            made = _apply(_parsed(text), op, values)
            if made is not None:
                text, change = made
                changes.append(change)
        _parsed(text)
    except _Mismatch as mismatch:
        return mismatch.refused
    except Unparsable as error:
        return Refused("a text that Python can parse", f"{error}; mend it first")
    except (RecursionError, MemoryError) as error:
        return Refused("a text of sane depth", f"its nesting is too deep to read ({type(error).__name__})")
    if text == source:
        return Present(f"the file already is what {method.id} would make of it")
    return Applied(text, tuple(changes))


def detect(method: Method, source: str, knobs: KnobValues | None = None) -> Presence:
    """Return how far a text already holds a method: all of its ops, some, or none."""
    if method.recipe is None:
        return Presence.ABSENT
    satisfied = 0
    try:
        values = check_knobs(method.knobs, knobs or {})
        parsed = _parsed(source)
        for op in method.recipe.ops:
            try:
                satisfied += _apply(parsed, op, values) is None
            except _Mismatch:
                continue
    except (_Mismatch, Unparsable, RecursionError, MemoryError):
        return Presence.ABSENT
    if satisfied == len(method.recipe.ops):
        return Presence.PRESENT
    return Presence.PARTIAL if satisfied else Presence.ABSENT


def unified_diff(old: str, new: str, path: str) -> str:
    """Return the unified diff of two texts, with git's a/ and b/ before the path."""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{path}", f"b/{path}", n=3
    )
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def check_knobs(declared: Sequence[Knob], given: KnobValues) -> dict[str, KnobValue]:
    """Return every knob's value; refuse an unknown name, a wrong type, or a value out of range."""
    by_name = {knob.name: knob for knob in declared}
    for name in given:
        if name not in by_name:
            known = ", ".join(sorted(by_name)) or "none"
            raise _Mismatch(Refused(f"a knob named {name!r}", f"this method's knobs are: {known}"))
    return {name: _check_knob(knob, given.get(name, knob.default)) for name, knob in by_name.items()}


def _check_knob(knob: Knob, value: KnobValue) -> KnobValue:
    kinds = (int, float) if isinstance(knob.default, float) else (type(knob.default),)
    low, high = knob.low, knob.high
    allowed = f"one of {', '.join(map(repr, knob.choices))}" if knob.choices else f"a {kinds[-1].__name__}"
    if low is not None or high is not None:
        allowed += f" from {'-inf' if low is None else f'{low:g}'} to {'inf' if high is None else f'{high:g}'}"
    fits = isinstance(value, kinds) and not isinstance(value, bool) and (not knob.choices or value in knob.choices)
    if fits and isinstance(value, int | float):
        fits = (low is None or value >= low) and (high is None or value <= high)
    if not fits:
        raise _Mismatch(Refused(f"knob {knob.name} = {value!r}", f"it takes {allowed}"))
    return value


@lru_cache(maxsize=8)
def _parsed(text: str) -> Source:
    """Parse a text once: a search looks for every method it shows in the same file."""
    return Source(text)


# -------------------------------------------------------------------------------------------------- ops


def _apply(source: Source, op: RecipeOp, knobs: Mapping[str, KnobValue]) -> tuple[str, str] | None:
    """Return the new text and what changed, or None where the op is satisfied already."""
    match op:
        case SetConst(name=name, value=value):
            return _set_value(source, _one_assignment(source, "", name), f"{name} = ", value, knobs)
        case SetLocal(scope=scope, name=name, value=value):
            return _set_value(source, _one_assignment(source, scope, name), f"{scope}: {name} = ", value, knobs)
        case SetDefault(scope=scope, name=name, value=value):
            return _set_value(source, _default(source, scope, name), f"{scope}: default {name}=", value, knobs)
        case SetKwarg(scope=scope, call=call, name=name, value=value):
            place = _keyword(source, scope, call, name)
            return _set_value(source, place, f"{scope}: {call} {name}=", value, knobs)
        case ReplaceStmt(scope=scope, old=old, new=new):
            return _replace(source, scope, _filled(old, knobs), _filled(new, knobs))
        case InsertAfter(scope=scope, anchor=anchor, code=code):
            return _insert(source, scope, _filled(anchor, knobs), _filled(code, knobs))
        case AddMethod(scope=scope, code=code):
            return _add_method(source, scope, _filled(code, knobs))


def _set_value(
    source: Source, place: ast.expr, label: str, template: str, knobs: Mapping[str, KnobValue]
) -> tuple[str, str] | None:
    """Put a value in an expression's place; a relative one (`{current} // {factor}`) builds on what stood there."""
    base = place
    if "{current}" in template:
        pattern = ast.parse(_filled(template, {name: f"__{name}__" for name in [*knobs, _CURRENT]}, quote=False))
        bound = _bind(pattern.body[0].value, place) if isinstance(pattern.body[0], ast.Expr) else None
        base = bound if bound is not None else place
    current = source.slice(source.span(base))
    if template.strip() != "{current}" and not isinstance(
        base, ast.Constant | ast.Name | ast.Call | ast.Attribute | ast.Subscript
    ):
        is_power = isinstance(base, ast.BinOp) and isinstance(base.op, ast.Pow)
        current = current if is_power else f"({current})"
    value = _filled(template, knobs).replace("{current}", current)
    if syntax.same(ast.parse(value, mode="eval").body, place):
        return None
    old = source.slice(source.span(place))
    return source.spliced(source.span(place), value), f"{label}{' '.join(value.split())} (was {' '.join(old.split())})"


def _bind(pattern: ast.expr, node: ast.expr) -> ast.expr | None:
    """Return what `{current}` stands for if an expression has a template's form, its knobs being any constants."""
    match pattern, node:
        case ast.Name(id="__current__"), _:
            return node
        case ast.BinOp(left=p_left, op=p_op, right=p_right), ast.BinOp(left=left, op=op, right=right):
            if type(p_op) is not type(op):
                return None
            in_left, in_right = _mentions_current(p_left), _mentions_current(p_right)
            if in_left and (_is_knob(p_right) and isinstance(right, ast.Constant)):
                return _bind(p_left, left)
            if in_right and (_is_knob(p_left) and isinstance(left, ast.Constant)):
                return _bind(p_right, right)
    return None


def _mentions_current(pattern: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "__current__" for node in ast.walk(pattern))


def _is_knob(pattern: ast.expr) -> bool:
    return isinstance(pattern, ast.Name) and pattern.id.startswith("__")


def _replace(source: Source, dotted: str, old: str, new: str) -> tuple[str, str] | None:
    scope = _one_scope(source, dotted)
    wanted, replacement = ast.parse(old).body, ast.parse(new).body
    if syntax.runs_of(scope, replacement) and not syntax.runs_of(scope, wanted):
        return None
    found = _one_run(source, dotted, scope, wanted, old)
    first, last = found[0], found[-1]
    indent = source.indent_of(first)
    if indent is None or not source.alone_until_line_end(last):
        raise _mismatch(source, f"`{_first_line(old)}` in {dotted}", "it shares its line with other code", old)
    span = Span(source.span(first).start, source.span(last).end)
    lines = _indented(new, indent, source)
    return source.spliced(span, lines.removeprefix(indent)), f"{dotted}: {_first_line(old)} -> {_first_line(new)}"


def _insert(source: Source, dotted: str, anchor: str, code: str) -> tuple[str, str] | None:
    scope = _one_scope(source, dotted)
    if syntax.runs_of(scope, ast.parse(code).body):
        return None
    found = _one_run(source, dotted, scope, ast.parse(anchor).body, anchor)[-1]
    indent = source.indent_of(found)
    if indent is None or not source.alone_until_line_end(found):
        raise _mismatch(source, f"`{_first_line(anchor)}` in {dotted}", "it shares its line with other code", anchor)
    end = source.line_end(found.end_lineno or found.lineno)
    text = source.newline + _indented(code, indent, source)
    return source.spliced(Span(end, end), text), f"{dotted}: + {_first_line(code)}"


def _add_method(source: Source, dotted: str, code: str) -> tuple[str, str] | None:
    scope = _one_scope(source, dotted)
    made = ast.parse(code).body[0]
    name = made.name if isinstance(made, ast.FunctionDef | ast.AsyncFunctionDef) else ""
    for known in syntax.scopes(source.tree, f"{dotted}.{name}"):
        if ast.dump(known) == ast.dump(made):
            return None
        raise _mismatch(source, f"a class {dotted} without {name}", "it has another one", f"def {name}(self):")
    last = scope.body[-1]
    indent = source.indent_of(last)
    if indent is None or not source.alone_until_line_end(last):
        raise _mismatch(source, f"the end of {dotted}", "it shares its line with other code", f"class {dotted}:")
    end = source.line_end(last.end_lineno or last.lineno)
    text = source.newline * 2 + _indented(code, indent, source)
    return source.spliced(Span(end, end), text), f"{dotted}: + {_first_line(code)}"


# ----------------------------------------------------------------------------------------------- places


def _one_scope(source: Source, dotted: str) -> Scope:
    found = syntax.scopes(source.tree, dotted)
    if len(found) == 1:
        return found[0]
    last = dotted.rsplit(".", 1)[-1]
    where = ", ".join(str(node.lineno) for node in found if not isinstance(node, ast.Module))
    reason = f"it is defined {len(found)} times (lines {where})" if found else "nothing has this name"
    raise _mismatch(source, f"`{dotted}`", reason, f"class {last}" if last[:1].isupper() else f"def {last}(")


def _one_assignment(source: Source, dotted: str, name: str) -> ast.expr:
    found = syntax.assignments(_one_scope(source, dotted), name)
    if len(found) == 1:
        return found[0]
    place = f"in {dotted}" if dotted else "at module level"
    where = ", ".join(str(node.lineno) for node in found)
    reason = f"it is assigned {len(found)} times (lines {where})" if found else f"nothing assigns it {place}"
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
        where = ", ".join(str(node.lineno) for node in found)
        reason = f"it is called {len(found)} times (lines {where})" if found else "nothing calls it"
        raise _mismatch(source, f"one call of `{call}` in `{dotted}`", reason, f"{call}(")
    for keyword in found[0].keywords:
        if keyword.arg == name:
            return keyword.value
    reason = f"the call in line {found[0].lineno} has no such keyword"
    raise _mismatch(source, f"`{name}=` in the call of `{call}`", reason, f"{name}=")


def _one_run(source: Source, dotted: str, scope: Scope, wanted: Sequence[ast.stmt], code: str) -> Sequence[ast.stmt]:
    found = syntax.runs_of(scope, wanted)
    if len(found) == 1:
        return found[0]
    where = ", ".join(str(run[0].lineno) for run in found)
    reason = f"it stands there {len(found)} times (lines {where})" if found else "no statement there equals it"
    raise _mismatch(source, f"`{_first_line(code)}` in {dotted or 'the module'}", reason, code)


def _mismatch(source: Source, looked_for: str, reason: str, like: str) -> _Mismatch:
    return _Mismatch(Refused(looked_for, reason, source.nearest(like)))


# ------------------------------------------------------------------------------------------------- code


def _filled(template: str, values: Mapping[str, KnobValue], *, quote: bool = True) -> str:
    """Put knob values into `{name}` places as literals; other braces are the code's own."""

    def literal(match: re.Match[str]) -> str:
        if match.group(1) not in values:
            return match.group()
        value = values[match.group(1)]
        return repr(value) if quote else str(value)

    return _PLACEHOLDER.sub(literal, template)


def _indented(code: str, indent: str, source: Source) -> str:
    """Return code at a depth, in the text's newlines, and in tabs where the place is indented with tabs."""
    lines = textwrap.dedent(code).strip("\n").splitlines()
    if "\t" in indent:
        lines = [re.sub(r"^( {4})+", lambda match: "\t" * (len(match.group()) // 4), line) for line in lines]
    return source.newline.join(indent + line if line.strip() else "" for line in lines)


def _first_line(code: str) -> str:
    return next((line.strip() for line in code.splitlines() if line.strip()), "")
