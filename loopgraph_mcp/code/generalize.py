"""Turns a change that an agent wrote into a recipe: ops by name where it allows, else statements with an anchor.

The recipe is made step by step: each op takes the parent nearer to the child, is applied as any recipe's, and is kept
only if it fits. What comes out makes the child of the parent, or nothing is learned. No code is run.
"""

import ast
import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loopgraph_mcp.code import apply, programs, syntax
from loopgraph_mcp.code.hashes import number, parsed, written
from loopgraph_mcp.code.syntax import Scope
from loopgraph_mcp.models import (
    AddMethod,
    Applied,
    InsertAfter,
    Knob,
    Method,
    Present,
    Recipe,
    RecipeOp,
    ReplaceStmt,
    SetConst,
    SetDefault,
    SetKwarg,
    SetLocal,
)
from loopgraph_mcp.text import compile_later

_MAX_OPS = 50  # a change of more places is a rewrite, not a recipe
_MAX_ATTEMPTS = 200  # each applies an op to the whole program while a server waits
_MAX_CODE = 4_000
_MAX_VALUE = 200
_MAX_CONTEXT = 4  # neighbours that make an ambiguous statement unique
_BRACES = compile_later(r"\{([a-z][a-z0-9_]*)\}")
_HOLE = "LOOPGRAPH_KNOB_"
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = (ast.If, ast.For, ast.While, ast.With)


@dataclass(frozen=True, slots=True)
class Learned:
    """A recipe that makes the child of the parent, with the numbers that it sets as knobs."""

    recipe: Recipe
    knobs: tuple[Knob, ...]


@dataclass(frozen=True, slots=True)
class NotLearned:
    """Why a change gives no recipe."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fits:
    """On how many programs a recipe was tried, and how it went."""

    applied: int = 0
    present: int = 0
    refused: int = 0


def generalise(parent: str, child: str) -> Learned | NotLearned:
    """Return the recipe that turns one program into another, checked by applying it."""
    if parsed(child) is None or parsed(parent) is None:
        return NotLearned("one of the two programs does not parse")
    try:
        return _generalised(parent, programs.parse(child.removeprefix("\ufeff")))
    except RecursionError:
        return NotLearned("the programs are nested too deeply")


def fits(learned: Learned, programs: Sequence[str]) -> Fits:
    """Return on how many programs a recipe applies, is there already, or is refused."""
    made = [apply.apply_method(_method(learned.recipe.ops, learned.knobs), text, {}) for text in programs]
    applied, present = (sum(isinstance(each, kind) for each in made) for kind in (Applied, Present))
    return Fits(applied, present, len(made) - applied - present)


def _generalised(parent: str, target: ast.Module) -> Learned | NotLearned:
    text, ops, knobs, attempts = parent, list[RecipeOp](), list[Knob](), 0
    wanted = _shape(target)
    while _shape(tree := programs.parse(text.removeprefix("\ufeff"))) != wanted:
        for op, new_knobs in _Difference(tree, target, knobs).steps():
            attempts += 1
            made = apply.apply_method(_method((op,), new_knobs), text, {})
            if isinstance(made, Applied) or attempts > _MAX_ATTEMPTS:
                break
        else:
            return NotLearned(f"{len(ops)} ops were found, and none for the rest")
        if attempts > _MAX_ATTEMPTS or len(ops) == _MAX_OPS:
            return NotLearned(f"the change is too large: {len(ops)} ops are not all of it")
        assert isinstance(made, Applied)  # noqa: S101 - the loop ended at one that fits
        text = made.text
        ops.append(op)
        knobs += new_knobs
    if not ops:
        return NotLearned("the two are one program")
    recipe = _method(tuple(ops), knobs)
    made = apply.apply_method(recipe, parent, {})
    if not isinstance(made, Applied) or _shape(programs.parse(made.text.removeprefix("\ufeff"))) != wanted:
        return NotLearned("the ops do not make the same program together")
    if not isinstance(apply.apply_method(recipe, made.text, {}), Present):
        return NotLearned("asked for again, the recipe would change it again")
    return Learned(Recipe(tuple(ops)), tuple(knobs))


def _method(ops: Sequence[RecipeOp], knobs: Sequence[Knob]) -> Method:
    return Method("learned", "learned", "", "", "", knobs=tuple(knobs), recipe=Recipe(tuple(ops)))


def _shape(tree: ast.Module) -> str:
    """Write a tree down without docstrings, and with functions that may stand anywhere ordered by name."""
    copied = parsed(ast.unparse(tree))
    assert copied is not None  # noqa: S101 - what Python writes, it can parse
    for node in ast.walk(copied):
        if isinstance(node, ast.ClassDef | ast.Module):
            movable = [each for each in node.body if _is_movable(each)]
            rest = [each for each in node.body if not _is_movable(each)]
            node.body = [*rest, *sorted(movable, key=_name)]
    return written(copied)


def _is_movable(node: ast.stmt) -> bool:
    """Return whether it makes no difference where in its class or module a function is, if not too late."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.decorator_list:
        return False
    return all(isinstance(each, ast.Constant) for each in [*node.args.defaults, *node.args.kw_defaults] if each)


Step = tuple[RecipeOp, list[Knob]]


class _Difference:
    """The differences between the current program and the one wanted, as ops that would each end one of them."""

    def __init__(self, tree: ast.Module, target: ast.Module, knobs: Sequence[Knob]) -> None:
        self.tree = tree
        self.target = target
        self.taken = {knob.name for knob in knobs} | {"current"}

    def steps(self) -> Iterator[Step]:
        """Yield ops, the most specific form of each difference first."""
        yield from self._bodies("", self.tree, self.target)

    def _bodies(self, dotted: str, one: Scope, other: Scope) -> Iterator[Step]:
        """Yield the ops for two versions of a scope's own body: new functions first, which others may call."""
        before, after = _without_docstring(one.body), _without_docstring(other.body)
        if isinstance(one, ast.ClassDef | ast.Module):
            there = {_name(each) for each in before if isinstance(each, _DEFINITIONS)}
            for place, each in enumerate(after):
                if _is_movable(each) and _name(each) not in there:
                    yield from self._function(dotted, one, after[:place], each)
            before, after = _in_one_order(before, after)
        yield from self._block(dotted, one, before, after)

    def _function(self, dotted: str, scope: Scope, above: Sequence[ast.stmt], new: ast.stmt) -> Iterator[Step]:
        """Yield the op that adds a function: to its class, or behind the last plain statement above it."""
        if isinstance(scope, ast.ClassDef):
            yield from self._checked(AddMethod(dotted, _code([new])), [])
            return
        for each in reversed(above):
            if not isinstance(each, _DEFINITIONS + _BLOCKS):
                yield from self._unambiguous(scope, [each], InsertAfter(dotted, _code([each]), _code([new])), [])

    def _block(
        self, dotted: str, scope: Scope, before: Sequence[ast.stmt], after: Sequence[ast.stmt]
    ) -> Iterator[Step]:
        """Yield the ops for two versions of one list of statements; statements of one name are looked into."""
        old, new = [written(each) for each in before], [written(each) for each in after]
        for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if kind == "equal":
                continue
            removed, added = before[i1:i2], after[j1:j2]
            for one, other in _pairs(removed, added):
                yield from self._inside(dotted, scope, one, other)
            if len(removed) == len(added) > 1 and [*map(_name, removed)] == [*map(_name, added)]:
                for place, other in enumerate(added):
                    yield from self._statements(dotted, scope, before, i1 + place, i1 + place + 1, [other])
            yield from self._statements(dotted, scope, before, i1, i2, added)

    def _inside(self, dotted: str, scope: Scope, one: ast.stmt, other: ast.stmt) -> Iterator[Step]:
        """Yield the ops for two versions of one statement."""
        if isinstance(one, _DEFINITIONS) and isinstance(other, _DEFINITIONS):
            path = f"{dotted}.{one.name}".removeprefix(".")
            if isinstance(one, ast.FunctionDef) and isinstance(other, ast.FunctionDef):
                yield from self._defaults(path, one, other)
            if _head(one) == _head(other):
                yield from self._bodies(path, one, other)
        elif isinstance(one, _BLOCKS) and type(one) is type(other) and _head(one) == _head(other):
            for name in ("body", "orelse"):
                yield from self._block(dotted, scope, getattr(one, name, []), getattr(other, name, []))
        else:
            yield from self._keywords(dotted, scope, one, other)
            yield from self._assigned(dotted, scope, one, other)

    def _assigned(self, dotted: str, scope: Scope, one: ast.stmt, other: ast.stmt) -> Iterator[Step]:
        match one, other:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=old),
                ast.Assign(targets=[ast.Name(id=also)], value=new),
            ) if name == also and len(syntax.assignments(scope, name)) == 1:
                value, knobs = self._value(old, new, name)
                yield from self._checked(SetLocal(dotted, name, value) if dotted else SetConst(name, value), knobs)

    def _defaults(self, path: str, one: ast.FunctionDef, other: ast.FunctionDef) -> Iterator[Step]:
        for arg in [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs]:
            old, new = syntax.default_of(one, arg.arg), syntax.default_of(other, arg.arg)
            if old is not None and new is not None and written(old) != written(new):
                value, knobs = self._value(old, new, arg.arg)
                yield from self._checked(SetDefault(path, arg.arg, value), knobs)

    def _keywords(self, dotted: str, scope: Scope, one: ast.stmt, other: ast.stmt) -> Iterator[Step]:
        """Yield the ops for keywords of calls whose name is called once in the scope."""
        for left, right in _calls_of(one, other):
            name = left.func.id if isinstance(left.func, ast.Name) else getattr(left.func, "attr", "")
            if not name or len(syntax.calls(scope, name)) != 1:
                continue
            new_values = {keyword.arg: keyword.value for keyword in right.keywords}
            for keyword in left.keywords:
                new = new_values.get(keyword.arg)
                if keyword.arg and new is not None and written(new) != written(keyword.value):
                    value, knobs = self._value(keyword.value, new, keyword.arg)
                    yield from self._checked(SetKwarg(dotted, name, keyword.arg, value), knobs)

    def _statements(
        self, dotted: str, scope: Scope, block: Sequence[ast.stmt], start: int, stop: int, added: Sequence[ast.stmt]
    ) -> Iterator[Step]:
        """Yield anchored ops that replace a part of a block, with as few neighbours as make the place unique.

        Inserted code is anchored to the statement before it, or at a block's beginning to the one after it.
        """
        removed = list(block[start:stop])
        for context in range(_MAX_CONTEXT + 1):
            before, behind = list(block[max(start - context, 0) : start]), list(block[stop : stop + context])
            forms = [
                ([*before, *removed], [*before, *added]),
                ([*removed, *behind], [*added, *behind]),
                ([*before, *removed, *behind], [*before, *added, *behind]),
            ]
            for old, new in sorted(forms if context else forms[:1], key=lambda form: len(_code(form[0]))):
                if old == before and old:
                    yield from self._unambiguous(scope, old, InsertAfter(dotted, _code(old), _code(added)), [])
                elif old and new:
                    code, knobs = self._numbers(old, new)
                    yield from self._unambiguous(scope, old, ReplaceStmt(dotted, _code(old), code), knobs)

    def _unambiguous(self, scope: Scope, anchor: list[ast.stmt], op: RecipeOp, knobs: list[Knob]) -> Iterator[Step]:
        if len(syntax.runs_of(scope, anchor)) == 1:
            yield from self._checked(op, knobs)

    def _checked(self, op: RecipeOp, knobs: list[Knob]) -> Iterator[Step]:
        """Yield an op that a pack can hold."""
        match op:
            case SetConst(value=value) | SetLocal(value=value) | SetDefault(value=value) | SetKwarg(value=value):
                fits_in = len(value) <= _MAX_VALUE and "\n" not in value
            case ReplaceStmt(old=one, new=other) | InsertAfter(anchor=one, code=other):
                fits_in = len(one) <= _MAX_CODE and len(other) <= _MAX_CODE
            case AddMethod(code=code):
                fits_in = len(code) <= _MAX_CODE
        if fits_in:
            yield op, knobs

    # -------------------------------------------------------------------------------------------------- knobs

    def _value(self, old: ast.expr, new: ast.expr, name: str) -> tuple[str, list[Knob]]:
        """Return a new value as a template: a number is a knob, and so are numbers that alone differ in it."""
        if _is_number(new):
            return self._template(new, [new], [old], name)
        swapped = _numbers_changed(old, new)
        return self._template(new, [each for _, each in swapped], [each for each, _ in swapped], name)

    def _numbers(self, old: Sequence[ast.stmt], new: Sequence[ast.stmt]) -> tuple[str, list[Knob]]:
        swapped = _numbers_changed(list(old), list(new))
        names = [name for each in new if (name := _target(each))]
        code, knobs = self._template(
            ast.Module(list(new), []),
            [each for _, each in swapped],
            [each for each, _ in swapped],
            names[0] if names else "value",
        )
        return code, knobs

    def _template(
        self, code: ast.AST, numbers: Sequence[ast.expr], were: Sequence[ast.expr], name: str
    ) -> tuple[str, list[Knob]]:
        """Return code with knobs in place of some of its numbers; equal numbers that were equal share a knob."""
        knobs, holes, known = list[Knob](), dict[int, str](), dict[tuple[str, str], str]()
        for node, was in zip(numbers, were, strict=True):
            key = (written(was), written(node))
            if key not in known:
                known[key] = self._knob_name(name, [knob.name for knob in knobs])
                before = " ".join(ast.unparse(was).split())[:80]
                knobs.append(Knob(known[key], _number(node), f"Learned: {ast.unparse(node)} in place of {before}."))
            holes[id(node)] = known[key]
        if not knobs:
            return _escaped(ast.unparse(code)), []
        swapped = ast.unparse(ast.fix_missing_locations(_Holes(holes).visit(_copied(code, holes))))
        return re.sub(rf"{_HOLE}([a-z0-9_]+)_END", r"{\1}", _escaped(swapped)), knobs

    def _knob_name(self, name: str, also: Sequence[str]) -> str:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        stem = plain[:40] if plain[:1].isalpha() else "value"
        taken = self.taken | set(also)
        return next(each for each in [stem, *(f"{stem}_{n}" for n in range(2, 1000))] if each not in taken)


class _Holes(ast.NodeTransformer):
    """Replaces marked numbers by a name that represents a knob."""

    def __init__(self, holes: dict[int, str]) -> None:
        self.holes = holes

    def visit(self, node: ast.AST) -> ast.AST:
        name = getattr(node, "loopgraph_hole", None)
        return ast.Name(f"{_HOLE}{name}_END", ast.Load()) if name else super().visit(node)


def _copied(node: ast.AST, holes: dict[int, str]) -> ast.AST:
    """Copy a tree, marking the copies of some nodes."""

    def copy(each: object) -> object:
        if isinstance(each, list):
            return [copy(item) for item in each]
        if not isinstance(each, ast.AST):
            return each
        made = type(each)(**{name: copy(value) for name, value in ast.iter_fields(each)})
        if id(each) in holes:
            made.loopgraph_hole = holes[id(each)]  # type: ignore[attr-defined]  # nodes take any attribute
        return made

    copied = copy(node)
    assert isinstance(copied, ast.AST)  # noqa: S101 - a node was given
    return copied


def _is_number(node: ast.expr) -> bool:
    plain = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
    value = number(node) if isinstance(plain, ast.Constant) else None
    return value is not None and math.isfinite(value) and abs(value) < 2**63


def _number(node: ast.expr) -> int | float:
    value = number(node)
    assert value is not None  # noqa: S101 - only numbers become knobs
    return value


def _numbers_changed(old: object, new: object) -> list[tuple[ast.expr, ast.expr]]:
    """Return the numbers in which two trees differ, or nothing where they differ in anything else."""
    found, pending = list[tuple[ast.expr, ast.expr]](), [(old, new)]
    while pending:
        one, other = pending.pop()
        if isinstance(one, ast.expr) and isinstance(other, ast.expr) and _is_number(one) and _is_number(other):
            if written(one) != written(other):
                found.append((one, other))
        elif isinstance(one, ast.AST) and type(one) is type(other):
            pending += [(getattr(one, name, None), getattr(other, name, None)) for name in one._fields]
        elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            pending += zip(one, other, strict=True)
        elif written(one) != written(other):
            return []
    return found[::-1]


# --------------------------------------------------------------------------------------------------- statements


def _pairs(removed: Sequence[ast.stmt], added: Sequence[ast.stmt]) -> list[tuple[ast.stmt, ast.stmt]]:
    """Return statements that are versions of one another: of one name, or alone in their place."""
    if len(removed) == len(added) == 1:
        return [(removed[0], added[0])]
    left = list(added)
    found = []
    for one in removed:
        other = next((each for each in left if _name(each) and _name(each) == _name(one)), None)
        if other is not None:
            left.remove(other)
            found.append((one, other))
    return found


def _in_one_order(before: Sequence[ast.stmt], after: Sequence[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Return two versions of a body, functions that may stand anywhere in the first one's order, new ones left out."""
    movable = {_name(each): each for each in after if _is_movable(each)}
    kept = [each for each in before if _is_movable(each) and _name(each) in movable]
    first = [each for each in before if each not in kept]
    second = [each for each in after if not _is_movable(each)]
    return [*first, *kept], [*second, *(movable[_name(each)] for each in kept)]


def _without_docstring(body: Sequence[ast.stmt]) -> Sequence[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


def _name(statement: ast.stmt) -> str:
    """Return what a statement defines or gives a value, as far as that names it."""
    return statement.name if isinstance(statement, _DEFINITIONS) else _target(statement)


def _target(statement: ast.stmt) -> str:
    match statement:
        case ast.Assign(targets=[target]) | ast.AnnAssign(target=target) | ast.AugAssign(target=target):
            return ast.unparse(target)
    return ""


def _head(statement: ast.stmt) -> str:
    """Write down all of a compound statement but its blocks."""
    fields = ast.iter_fields(statement)
    return ",".join(written(value) for field, value in fields if field not in {"body", "orelse"})


def _calls_of(one: ast.AST, other: ast.AST) -> Iterator[tuple[ast.Call, ast.Call]]:
    """Yield the calls that stand in the same places of two trees."""
    if isinstance(one, ast.Call) and isinstance(other, ast.Call) and written(one.func) == written(other.func):
        yield one, other
    if type(one) is type(other):
        for left, right in zip(ast.iter_child_nodes(one), ast.iter_child_nodes(other), strict=False):
            yield from _calls_of(left, right)


def _code(statements: Sequence[ast.stmt]) -> str:
    return _escaped("\n".join(ast.unparse(each) for each in statements))


def _escaped(code: str) -> str:
    """Return code in which no braces are taken for a knob's: `{x}` means the same as `{(x)}` in an f-string."""
    return _BRACES.sub(r"{(\1)}", code)
