"""Constant folding: the value of an expression where the file's own constants decide it; nothing is run."""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loopgraph_mcp.code import programs, syntax

Value = int | float | bool | str | tuple["Value", ...] | None
MAX_NUMBER = 2.0**63  # beyond what a hyperparameter is; keeps arithmetic on hostile files cheap
_MAX_EXPONENT = 64
_MAX_STEPS = 2_000
_MAX_DEPTH = 40
_MAX_TEXT = 10_000
_CONVERSIONS = frozenset(["int", "float", "str", "bool"])

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[object, object], object]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,  # type: ignore[dict-item]  # unequal types raise TypeError, which is Unknown
    ast.LtE: operator.le,  # type: ignore[dict-item]
    ast.Gt: operator.gt,  # type: ignore[dict-item]
    ast.GtE: operator.ge,  # type: ignore[dict-item]
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_FUNCTIONS: dict[str, Callable[..., object]] = {
    "abs": abs,
    "bool": bool,
    "ceil": math.ceil,
    "float": float,
    "floor": math.floor,
    "int": int,
    "len": len,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
    "str": str,
    "tuple": tuple,
}


class Unknown(ValueError):  # noqa: N818 - a state of the file
    """An expression whose value the file's constants do not decide."""


@dataclass(slots=True)
class _Budget:
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Constants:
    """The constants of a file, and of the modules beside it by the name they are imported by."""

    tree: ast.Module
    siblings: Mapping[str, ast.Module] = field(default_factory=dict)

    def value(self, expression: ast.expr, *, owner: ast.ClassDef | None = None) -> Value:
        """Return the value of an expression at module level, or in the body of the class `owner`.

        Raises:
            Unknown: The file's constants do not decide it.
        """
        try:
            return _Folder(self, owner, _Budget()).fold(expression, 0)
        except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
            raise error if isinstance(error, Unknown) else Unknown(str(error)) from error

    def get(self, expression: ast.expr, *, owner: ast.ClassDef | None = None) -> Value | ast.expr:
        """Return the value of an expression, or the expression itself where its value is unknown."""
        try:
            return self.value(expression, owner=owner)
        except Unknown:
            return expression

    def number(self, expression: ast.expr) -> float | None:
        """Return the value of an expression where it is a number."""
        found = self.get(expression)
        return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def parsed(texts: Mapping[str, str]) -> dict[str, ast.Module]:
    """Return the trees of modules by name; one that does not parse is left out."""
    found = {}
    for name, text in texts.items():
        try:
            found[name] = programs.parse(text.removeprefix("\ufeff"))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return found


@dataclass(frozen=True, slots=True)
class _Folder:
    constants: Constants
    owner: ast.ClassDef | None
    budget: _Budget

    def fold(self, node: ast.expr, depth: int) -> Value:
        self.budget.steps += 1
        if depth > _MAX_DEPTH or self.budget.steps > _MAX_STEPS:
            raise Unknown("it takes too long to work out")
        found = self._fold(node, depth + 1)
        if isinstance(found, int | float) and not abs(found) <= MAX_NUMBER:
            raise Unknown("a number out of range")
        if isinstance(found, str) and len(found) > _MAX_TEXT:
            raise Unknown("a text too long")
        return found

    def _fold(self, node: ast.expr, depth: int) -> Value:  # noqa: C901, PLR0912 - a case for each kind of node
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(self.fold(item, depth) for item in items)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._number(operand, depth)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.fold(operand, depth)
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                base, exponent = self._number(left, depth), self._number(right, depth)
                if abs(exponent) > _MAX_EXPONENT:
                    raise Unknown("a power out of range")
                return _real(base**exponent)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return _ARITHMETIC[type(op)](self._number(left, depth), self._number(right, depth))
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                return self._compared([left, *others], ops, depth)
            case ast.BoolOp(op=op, values=values):
                return self._either(isinstance(op, ast.Or), values, depth)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.fold(body if self.fold(test, depth) else orelse, depth)
            case ast.Subscript(value=value, slice=ast.Constant(value=int() as index)):
                held = self.fold(value, depth)
                if isinstance(held, tuple | str) and -len(held) <= index < len(held):
                    return held[index]
            case ast.Name(id=name):
                return self._name(name, depth)
            case ast.Attribute(value=ast.Name(id=holder), attr=name):
                return self._attribute(holder, name, depth)
            case ast.Call():
                return self._call(node, depth)
        raise Unknown("it is not constant")

    def _number(self, node: ast.expr, depth: int) -> float:
        found = self.fold(node, depth)
        if not isinstance(found, int | float):
            raise Unknown("it is no number")
        return found

    def _compared(self, operands: Sequence[ast.expr], ops: Sequence[ast.cmpop], depth: int) -> bool:
        values = [self.fold(each, depth) for each in operands]
        return all(_COMPARISONS[type(op)](values[at], values[at + 1]) for at, op in enumerate(ops))

    def _either(self, wanted: bool, values: Sequence[ast.expr], depth: int) -> Value:  # noqa: FBT001 - `or`, else `and`
        found: Value = None
        for each in values:
            found = self.fold(each, depth)
            if bool(found) is wanted:
                return found
        return found

    def _name(self, name: str, depth: int) -> Value:  # noqa: C901 - a name has its value in one of four forms
        if self.owner is not None:
            for field_name, value in syntax.fields(self.owner):
                if field_name == name:
                    return self.fold(value, depth)
        tree = self.constants.tree
        found = syntax.assignments(tree, name)
        if len(found) == len(syntax.bindings(tree, name)) == 1 and not syntax.global_bindings(tree, name):
            return _Folder(self.constants, None, self.budget).fold(found[0], depth)
        for statement in tree.body:
            match statement:
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                    for target, value in zip(names, values, strict=False):
                        if isinstance(target, ast.Name) and target.id == name and len(syntax.bindings(tree, name)) == 1:
                            return _Folder(self.constants, None, self.budget).fold(value, depth)
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if (alias.asname or alias.name) == name:
                        return self._beside(statement.module or "", alias.name, depth)
        raise Unknown(f"{name} is not one constant")

    def _beside(self, module: str, name: str, depth: int) -> Value:
        siblings = self.constants.siblings
        tree = siblings.get(module) or siblings.get(module.rpartition(".")[2])
        if tree is None:
            raise Unknown(f"{name} is imported")
        beside = _Folder(Constants(tree, {}), None, self.budget)
        return beside.fold(ast.Name(name, ast.Load()), depth)

    def _attribute(self, holder: str, name: str, depth: int) -> Value:  # noqa: C901 - of a module, object, or flags
        tree = self.constants.tree
        if holder == "math" and name in {"pi", "e", "inf"}:
            return math.inf if name == "inf" else float(getattr(math, name))
        for statement in tree.body:
            if isinstance(statement, ast.Import) and any((a.asname or a.name) == holder for a in statement.names):
                return self._beside(holder, name, depth)
        found = holder_class(tree, holder)
        if found is not None:
            owner, call = found
            for keyword in () if call is None else call.keywords:
                if keyword.arg == name:
                    return self.fold(keyword.value, depth)
            if call is not None and (call.args or any(each.arg is None for each in call.keywords)):
                raise Unknown(f"{owner.name} is built with other values")
            for target, value in syntax.fields(owner):
                if target == name:
                    return _Folder(self.constants, owner, self.budget).fold(value, depth)
        if is_parsed_arguments(tree, holder):
            for call in flags(tree):
                if name == destination(call):
                    return self._flag(call, depth)
        raise Unknown(f"{holder}.{name} is not constant")

    def _flag(self, call: ast.Call, depth: int) -> Value:
        given = {each.arg: each.value for each in call.keywords}
        if isinstance(action := given.get("action"), ast.Constant) and "default" not in given:
            if action.value in {"store_true", "store_false"}:
                return action.value == "store_false"
            raise Unknown("an action")
        if "default" not in given:
            raise Unknown("a flag without a default")
        return self.fold(given["default"], depth)

    def _call(self, call: ast.Call, depth: int) -> Value:
        if (default := environment_default(call)) is not None:
            return self.fold(default, depth)
        match call.func:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="math"), attr=name) if name in _FUNCTIONS:
                if call.keywords or any(isinstance(each, ast.Starred) for each in call.args):
                    raise Unknown("a call with other arguments")
                made = _FUNCTIONS[name](*[self.fold(each, depth) for each in call.args])
                if isinstance(made, int | float | str | tuple):
                    return made
        raise Unknown("a call")


def _real(number: object) -> float:
    if not isinstance(number, int | float):
        raise Unknown("a complex number")
    return number


def environment_default(call: ast.expr) -> ast.expr | None:
    """Return the default of `os.environ.get(name, default)` or `os.getenv(name, default)`."""
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="environ"), attr="get"), args=[_, default]):
            return default
        case ast.Call(func=ast.Attribute(value=ast.Name(id="environ"), attr="get"), args=[_, default]):
            return default
        case ast.Call(func=ast.Attribute(attr="getenv") | ast.Name(id="getenv"), args=[_, default]):
            return default
    return None


def own_default(place: ast.expr) -> ast.expr:
    """Return the default in `float(os.environ.get("RATE", 0.04))`, or the whole expression where it is no such read."""
    inner = place
    if isinstance(place, ast.Call) and isinstance(place.func, ast.Name) and place.func.id in _CONVERSIONS:
        inner = place.args[0] if len(place.args) == 1 else place
    if isinstance(inner, ast.BoolOp) and isinstance(inner.op, ast.Or) and len(inner.values) == 2:
        first, last = inner.values
        return last if isinstance(first, ast.Call) and "environ" in ast.unparse(first.func) else place
    default = environment_default(inner)
    return place if default is None else default


def holder_class(tree: ast.Module, holder: str) -> tuple[ast.ClassDef, ast.Call | None] | None:
    """Return the class whose fields `holder.x` reads, and the call that makes the instance, if it is one."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if holder in classes:
        return classes[holder], None
    made = [value for scope in _functions(tree) for value in syntax.assignments(scope, holder)]
    match made:
        case [ast.Call(func=ast.Name(id=name)) as call] if name in classes:
            return classes[name], call
        case [ast.Name(id=name)] if name in classes:
            return classes[name], None
    return None


def is_parsed_arguments(tree: ast.Module, holder: str) -> bool:
    """Return whether a name holds what argparse read."""
    made = [value for scope in _functions(tree) for value in syntax.assignments(scope, holder)]
    return bool(made) and all(
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr in {"parse_args", "parse_known_args"}
        for value in made
    )


def _functions(tree: ast.Module) -> Iterator[syntax.Scope]:
    yield tree
    yield from (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def flags(tree: ast.Module) -> Iterator[ast.Call]:
    """Yield the calls that declare a flag."""
    for node in syntax.nodes(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            yield node


def destination(call: ast.Call) -> str:
    """Return the attribute under which argparse stores a flag."""
    for keyword in call.keywords:
        if keyword.arg == "dest" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    names = [str(each.value) for each in call.args if isinstance(each, ast.Constant)]
    long = [name for name in names if name.startswith("--")]
    return (long or names or [""])[0].lstrip("-").replace("-", "_")
