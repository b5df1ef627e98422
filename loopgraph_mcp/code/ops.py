"""The ops of a recipe: each finds its place in the text exactly once, or reports what it looked for."""

import ast
import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loopgraph_mcp import models
from loopgraph_mcp.code import by_role, folding, hashes, programs, syntax
from loopgraph_mcp.code.syntax import CURRENT, HOLE, Run, Scope, Source, Span, Swaps, Unparsable
from loopgraph_mcp.models import KnobValue, RecipeOp, Refused
from loopgraph_mcp.text import compile_later

PLACEHOLDER = compile_later(r"\{([a-z][a-z0-9_]*)\}")
NAME_HOLE = compile_later(r"\{(_{1,2}[a-z][a-z0-9_]*)\}")
_NUMBER = compile_later(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ANY_BRACES = compile_later(r"\{(_{0,2}[a-z][a-z0-9_]*)\}")


class Mismatch(Exception):  # noqa: N818 - how an op reports to its recipe that it does not fit
    """An op that does not fit a text.

    Its refusal is made only when it is read, because finding the nearest lines takes long.
    """

    def __init__(self, refused: Refused | Callable[[], Refused]) -> None:
        super().__init__()
        self._refused = refused

    @property
    def refused(self) -> Refused:
        """The refusal."""
        return self._refused if isinstance(self._refused, Refused) else self._refused()


@dataclass(frozen=True, slots=True)
class Change:
    """What an op does to a text, and to its tree: `swaps` says by id what takes the place of which node.

    `rewrites` is true where the method was there already, with other knob values.
    """

    span: Span
    text: str
    swaps: Swaps
    summary: str
    rewrites: bool = False


def carried_out(source: Source, change: Change) -> Source:
    """Return the text after a change, parsed: its tree must differ in the change's place and nowhere else.

    Raises:
        Mismatch: It would not parse, or would change more.
    """
    try:
        after = syntax.read(source.spliced(change.span, change.text))
    except Unparsable as error:
        raise Mismatch(Refused(change.summary, f"the text would not parse after it ({error})")) from error
    if not source.becomes(after, change.swaps):
        raise Mismatch(Refused(change.summary, "it would change more of the program than the intended place"))
    return after


# -------------------------------------------------------------------------------------------------- ops


def check_names(before: Source, changes: Sequence[Change]) -> None:
    """Refuse changes that together read a name which neither they nor the file holds.

    Raises:
        Mismatch: They do.
    """
    code = [
        node
        for change in changes
        for new in change.swaps.values()
        for node in (new if isinstance(new, Sequence) else [new])
        if id(node) not in change.swaps
    ]
    if unknown := syntax.unknown_names(before.tree, code):
        asking = next((each.summary for each in changes if unknown[0] in each.text), "the recipe's code")
        reason = f"it needs `{unknown[0]}`, which is not in the file"
        raise Mismatch(lambda: Refused(asking, reason, before.nearest(unknown[0])))


def change_of(source: Source, op: RecipeOp, knobs: Mapping[str, KnobValue]) -> Change | None:
    """Return what an op changes, or None where it is satisfied already."""
    match op:
        case models.SetConst(name=name, value=value):
            change = _set_value(source, _constant(source, name), f"{name} = ", value, knobs)
            if change is not None:
                _check_order(source, name, change)
            return change
        case models.SetLocal(scope=scope, name=name, value=value):
            return _set_value(source, _one_assignment(source, scope, name), f"{scope}: {name} = ", value, knobs)
        case models.SetDefault(scope=scope, name=name, value=value):
            return _set_value(source, _default(source, scope, name), f"{scope}: default {name}=", value, knobs)
        case models.SetKwarg(scope=scope, call=call, name=name, value=value):
            place = _keyword(source, scope, call, name)
            return _set_value(source, place, f"{_named(scope)}: {call} {name}=", value, knobs)
        case models.ReplaceStmt(scope=scope, old=old, new=new):
            return _replace(source, scope, _Code(old, knobs), _Code(new, knobs))
        case models.InsertAfter(scope=scope, anchor=anchor, code=code):
            return _insert(source, scope, _Code(anchor, knobs), _Code(code, knobs))
        case models.AddMethod(scope=scope, code=code):
            return _add_method(source, scope, _Code(code, knobs))
        case models.ByRole():
            return _by_role(source, op, knobs)


def _by_role(source: Source, op: models.ByRole, knobs: Mapping[str, KnobValue]) -> Change | None:
    made = _answer(source, op, knobs)
    if isinstance(made, by_role.Held) or made.is_empty:
        return None
    span, text, swaps = made.merged()
    return Change(span, text, swaps, "; ".join(made.summaries), made.resets)


def _answer(source: Source, op: models.ByRole, knobs: Mapping[str, KnobValue]) -> by_role.Answer:
    try:
        return by_role.make(op.edit, source, {**knobs, **dict(op.values)})
    except by_role.Misfit as misfit:
        raise Mismatch(misfit.refused) from misfit
    except KeyError as error:
        raise Mismatch(Refused(f"an edit by role `{op.edit}`", f"{error} is neither a knob nor an edit")) from error


def held(source: Source, ops: Iterable[RecipeOp], knobs: Mapping[str, KnobValue]) -> str:
    """Return where a program has a method already, as far as an edit by role says so."""
    for op in ops:
        if isinstance(op, models.ByRole):
            with contextlib.suppress(Mismatch):
                made = _answer(source, op, knobs)
                if isinstance(made, by_role.Held):
                    return made.reason
    return ""


def is_import(op: RecipeOp) -> bool:
    """Return whether an op only adds an import, which is no sign of a method: it has other uses."""
    lines = op.code.strip().splitlines() if isinstance(op, models.InsertAfter) else []
    return bool(lines) and all(line.startswith(("import ", "from ")) for line in lines)


class _Code:
    """A template's text with the knob values in it, its statements, and its pattern for any knob values.

    `bound` maps the names that people choose, such as `{_x}`; without it they are holes.
    """

    def __init__(self, template: str, knobs: Mapping[str, KnobValue], bound: Mapping[str, str] | None = None) -> None:
        self._template, self._knobs = template, knobs
        holes = {name: HOLE + name for name in NAME_HOLE.findall(template)} if bound is None else bound
        self.text = filled(template, {name: literal(value) for name, value in knobs.items()} | dict(holes)).strip("\n")
        self.body = _statements(self.text)
        self.pattern = _statements(filled(template, {name: HOLE + name for name in knobs} | dict(holes)))
        shown = {name: literal(value) for name, value in knobs.items()} | dict(bound or {})
        self.head = _first_line(filled(template, shown))

    def bound(self, source: Source, holes: Mapping[str, ast.expr]) -> "_Code":
        """Return the code with what a pattern found for the names that people choose."""
        if not NAME_HOLE.search(self._template):
            return self
        texts = {name: _operand(source, node, alone=False) for name, node in holes.items() if name.startswith("_")}
        return _Code(self._template, self._knobs, texts)


def _set_value(
    source: Source, place: ast.expr, label: str, template: str, knobs: Mapping[str, KnobValue]
) -> Change | None:
    """Put a value in an expression's place; a relative one (`{current} // {factor}`) builds on what stood there.

    Where the place reads an environment variable, its default is set: the override stays.
    """
    place = folding.own_default(place)
    base, values = place, {name: literal(value) for name, value in knobs.items()}
    if "{current}" in template:
        pattern = _expression(filled(template, {name: HOLE + name for name in [*knobs, CURRENT]}))
        holes: dict[str, ast.expr] = {}
        if syntax.alike(pattern, place, holes=holes):
            base = holes[CURRENT]
        _check_number(source, base, label)
        values[CURRENT] = _operand(source, base, alone=template.strip() == "{current}")
    value = filled(template, values)
    if was_text := _number_as_text(place):
        values[CURRENT] = was_text
        value = _as_text(source, filled(template, values), label)
    tree = _expression(value)
    if syntax.alike(tree, place) or hashes.equal_numbers(tree, place):
        return None
    was = " ".join(source.slice(source.span(place)).split())
    summary = f"{label}{' '.join(value.split())} (was {was})"
    return Change(source.span(place), value, {id(place): tree}, summary, base is not place)


def _number_as_text(place: ast.expr) -> str:
    """Return the number that a text holds: environment variables have texts for defaults."""
    if isinstance(place, ast.Constant) and isinstance(place.value, str) and _NUMBER.fullmatch(place.value.strip()):
        return place.value.strip()
    return ""


def _as_text(source: Source, value: str, label: str) -> str:
    """Return a value as the text of its number."""
    try:
        number = folding.Constants(source.tree).value(_expression(value))
    except folding.Unknown as error:
        raise Mismatch(Refused(f"{label}{value}", "the default is a text, and the new value is no constant")) from error
    return f'"{number}"'


def _check_number(source: Source, base: ast.expr, label: str) -> None:
    """Refuse to calculate with what is no size: None, a text, or a number such as -1 that says "choose for me"."""
    try:
        value = folding.Constants(source.tree).value(base)
    except folding.Unknown:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        reason = (
            "the program takes that for no number of its own, and works one out: there is nothing to calculate with"
        )
        shown = " ".join(source.slice(source.span(base)).split())
        raise Mismatch(Refused(f"{label}a number above 0", f"it is {shown}; {reason}"))


def _check_order(source: Source, name: str, change: Change) -> None:
    """Refuse a module's constant that reads what the module sets only below it: that would fail when it is run."""
    for place in syntax.assignments(source.tree, name):
        new = change.swaps.get(id(place))
        nodes = [node for node in ast.walk(new) if isinstance(node, ast.Name)] if isinstance(new, ast.expr) else []
        own = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
        for read in dict.fromkeys(node.id for node in nodes if node.id not in own):
            lines = syntax.bindings(source.tree, read)
            if lines and lines[0] > place.lineno and not syntax.is_builtin(read):
                raise _mismatch(source, change.summary, f"it reads `{read}`; line {lines[0]} sets it only below", read)


def _operand(source: Source, node: ast.expr, *, alone: bool) -> str:
    """Return an expression's text as it can stand in a larger one."""
    text = source.slice(source.span(node))
    power = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
    if alone or power or isinstance(node, ast.Constant | ast.Name | ast.Call | ast.Attribute | ast.Subscript):
        with contextlib.suppress(Mismatch):  # brackets around it may be all that lets it span lines
            _expression(text)
            return text
    return f"({text})"


def _replace(source: Source, dotted: str, old: _Code, new: _Code) -> Change | None:
    scope = _one_scope(source, dotted)
    there = syntax.runs_of(scope, new.body)
    found = [run for run in syntax.runs_of(scope, old.body) if not any(made.holds(run) for made in there)]
    if there and not found:
        return None
    if not found and len(others := syntax.runs_of(scope, new.pattern)) == 1:
        return _put(source, dotted, others[0], new.bound(source, others[0].holes), rewrites=True)
    run = _only(source, dotted, found, old)
    return _put(source, dotted, run, new.bound(source, run.holes))


def _insert(source: Source, dotted: str, anchor: _Code, code: _Code) -> Change | None:
    scope = _one_scope(source, dotted)
    anchors = syntax.runs_of(scope, anchor.body)
    forms: list[tuple[Run | None, _Code]] = [(run, code.bound(source, run.holes)) for run in anchors]
    forms = forms or [(None, code)]
    for run, form in forms:
        if any(run is None or made.is_behind(run) for made in syntax.runs_of(scope, form.body)):
            return None
    others = [
        (made, form)
        for run, form in forms
        for made in syntax.runs_of(scope, form.pattern)
        if run is None or made.is_behind(run)
    ]
    if len(others) == 1:
        made, form = others[0]
        return _put(source, dotted, made, form.bound(source, made.holes), rewrites=True)
    there = _only(source, dotted, anchors, anchor)
    form, where = code.bound(source, there.holes), f"`{anchor.head}` in {_named(dotted)}"
    return _behind(source, there.statements[-1], form, source.newline, where, f"{_named(dotted)}: + {form.head}")


def _add_method(source: Source, dotted: str, code: _Code) -> Change | None:
    scope = _one_scope(source, dotted)
    made = code.body[0]
    name = made.name if isinstance(made, ast.FunctionDef | ast.AsyncFunctionDef) else ""
    if not name or len(code.body) != 1:
        raise Mismatch(Refused("one function to add", f"the recipe's code is `{code.head}`"))
    if syntax.runs_of(scope, code.body):
        return None
    if len(others := syntax.runs_of(scope, code.pattern)) == 1:
        return _put(source, dotted, others[0], code, rewrites=True)
    if syntax.scopes(source.tree, f"{dotted}.{name}"):
        raise _mismatch(source, f"a class {dotted} without {name}", "it has another one", f"def {name}(self):")
    where = f"the end of {dotted}"
    return _behind(source, scope.body[-1], code, source.newline * 2, where, f"{dotted}: + {code.head}")


def _put(source: Source, dotted: str, run: Run, new: _Code, *, rewrites: bool = False) -> Change:
    """Put code in place of some statements; comments between them go above it."""
    old = run.statements
    span = Span(source.start(old[0]), source.span(old[-1]).end)
    was = _first_line(source.slice(span))
    indent = _own_indent(source, old[0], old[-1], f"`{was}` in {_named(dotted)}")
    comments = [each for one, other in pairwise(old) for each in source.comments_between(one, other)]
    text = source.newline.join([*(indent + comment for comment in comments), source.indented(new.text, indent)])
    swaps: Swaps = {id(old[0]): new.body, **{id(statement): () for statement in old[1:]}}
    return Change(span, text.removeprefix(indent), swaps, f"{_named(dotted)}: {was} -> {new.head}", rewrites)


def _behind(source: Source, last: ast.stmt, code: _Code, gap: str, where: str, summary: str) -> Change:
    """Put code on lines of its own behind a statement."""
    indent = _own_indent(source, last, last, where)
    end = source.line_end(last.end_lineno or last.lineno)
    swaps = {id(last): (last, *code.body)}
    return Change(Span(end, end), gap + source.indented(code.text, indent), swaps, summary)


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


def _constant(source: Source, name: str) -> ast.expr:
    """Return a constant's value: the module's own, else the one field's or flag's that has the name."""
    places = [] if _module_binds(source, name) else syntax.settings(source.tree, name)
    passed = [lines for place in places if (lines := syntax.given_elsewhere(source.tree, place))]
    if places and len(passed) == len(places):
        reason = f"line {passed[0][0]} passes another value than the default, which counts for nothing"
        raise _mismatch(source, f"`{name} = …` at module level", reason, f"{name} = ")
    places = [place for place in places if not syntax.given_elsewhere(source.tree, place)]
    if not places:
        return _one_assignment(source, "", name)
    if len(places) > 1:
        reason = _times("is a default", [place.lineno for place in places])
        raise _mismatch(source, f"one field or flag `{name}`", reason, f"{name} = ")
    return places[0]


def _module_binds(source: Source, name: str) -> bool:
    return bool(syntax.bindings(source.tree, name) or syntax.global_bindings(source.tree, name))


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
        raise _mismatch(source, f"one call of `{call}` in `{_named(dotted)}`", reason, f"{call}(")
    for keyword in found[0].keywords:
        if keyword.arg == name:
            return keyword.value
    reason = f"the call in line {found[0].lineno} has no such keyword"
    raise _mismatch(source, f"`{name}=` in the call of `{call}`", reason, f"{name}=")


def _only(source: Source, dotted: str, found: Sequence[Run], code: _Code) -> Run:
    if len(found) == 1:
        return found[0]
    lines = [run.statements[0].lineno for run in found]
    reason = _times("is there", lines) if found else "no statement there equals it"
    raise _mismatch(source, f"`{code.head}` in {_named(dotted)}", reason, code.head)


def _named(dotted: str) -> str:
    return dotted or "the module"


def _times(verb: str, lines: Sequence[int]) -> str:
    return f"it {verb} {len(lines)} times (lines {', '.join(map(str, lines))})"


def _mismatch(source: Source, looked_for: str, reason: str, like: str) -> Mismatch:
    return Mismatch(lambda: Refused(looked_for, reason, source.nearest(like)))


# ------------------------------------------------------------------------------------------------- code


def filled(template: str, texts: Mapping[str, str]) -> str:
    """Put texts into `{name}` places, all at once; other braces are the code's own."""

    def text(match: re.Match[str]) -> str:
        if match.group(1) not in texts:
            return match.group()
        filling = texts[match.group(1)]
        binds_tighter = re.match(r" *(\*\*|[.\[(])", template[match.end() :])
        alone = filling.isidentifier() or (filling.isdigit() and "**" in (binds_tighter or [""])[0])
        return f"({filling})" if binds_tighter and not alone else filling

    return _ANY_BRACES.sub(text, template)


def literal(value: KnobValue) -> str:
    """Return a knob value as code, a text in double quotes where it can be."""
    text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and not {'"', "\\"} & set(text) else text


@programs.remembered(2**17)
def _statements(code: str) -> list[ast.stmt]:
    try:
        body = programs.parse(code).body
    except (SyntaxError, ValueError) as error:
        raise Mismatch(Refused(f"code: `{_first_line(code)}`", f"it does not parse ({error})")) from error
    if not body:
        raise Mismatch(Refused("code in the recipe", "it holds no statement"))
    return body


@programs.remembered(2**17)
def _expression(code: str) -> ast.expr:
    try:
        return programs.parse(code, "eval").body
    except (SyntaxError, ValueError) as error:
        raise Mismatch(Refused(f"a value: `{_first_line(code)}`", f"it is not an expression ({error})")) from error


def _first_line(code: str) -> str:
    return next((line.strip() for line in code.splitlines() if line.strip()), "")
