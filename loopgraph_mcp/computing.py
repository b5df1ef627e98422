"""Works out numbers from a file's own constants, fields and locals: expressions are evaluated, never run."""

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loopgraph_mcp import ops, syntax
from loopgraph_mcp.models import Computed, KnobValue, KnobValues, RecipeOp, Refused
from loopgraph_mcp.syntax import Scope, Source

Number = int | float
_MAX_NUMBER = 2.0**53
_MAX_EXPONENT = 64
_MAX_STEPS = 2_000
_MAX_DEPTH = 60


class Unknown(ValueError):  # noqa: N818 - a state of the file
    """A number that cannot be told from the file, and why."""


class _ManyValued(Exception):  # noqa: N818 - it depends on the profile
    def __init__(self, profiles: Iterable[str]) -> None:
        super().__init__()
        self.profiles = tuple(profiles)


def _largest_divisor(number: Number, at_most: Number) -> int:
    if not 0 < number <= 1_000_000 or number != int(number):
        raise Unknown(f"{number:g} has no divisors to choose from")
    highest = max(1, min(int(number), int(at_most)))
    return next(each for each in range(highest, 0, -1) if int(number) % each == 0)


_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs,
    "ceil": math.ceil,
    "float": float,
    "floor": math.floor,
    "int": int,
    "largest_divisor": _largest_divisor,
    "max": max,
    "min": min,
    "round": round,
    "round_down": lambda number, multiple: int(number // multiple * multiple),
    "round_up": lambda number, multiple: int(-(-number // multiple) * multiple),
    "sqrt": math.sqrt,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Number, Number], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}


@dataclass(slots=True)
class _Spent:
    steps: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an expression is read: a file, a scope of it, and the profile that is assumed."""

    source: Source
    siblings: Mapping[str, Source]
    scope: Scope
    profile: str | None = None
    depth: int = 0
    spent: _Spent = field(default_factory=_Spent)
    seen: dict[str, Number] = field(default_factory=dict)

    def inside(self, scope: Scope) -> "_Place":
        return replace(self, scope=scope, depth=self.depth + 1)


def values_of(
    expression: str, knobs: KnobValues, source: Source, siblings: Mapping[str, Source]
) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return what an expression is worth, by profile (one without a name where it is the same for all), and of what.

    Raises:
        Unknown: It cannot be told from the file.
    """
    try:
        text = ops.filled(expression, {name: ops.literal(value) for name, value in knobs.items()})
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Unknown(f"`{expression}` is no expression") from error
    place = _Place(source, siblings, source.tree)
    try:
        try:
            return {"": _value(tree, place)}, place.seen
        except _ManyValued as many:
            profiles = many.profiles
        found = {}
        for profile in profiles:
            place = replace(place, profile=profile, spent=_Spent(), seen={})
            found[profile] = _value(tree, place)
    except (ArithmeticError, ValueError, TypeError, RecursionError, KeyError) as error:
        raise error if isinstance(error, Unknown) else Unknown(f"`{expression}`: {error}") from error
    return found, place.seen


def broken(rule: str, knobs: KnobValues, source: Source, siblings: Mapping[str, Source]) -> str | None:
    """Return how a rule does not hold in a file, with its numbers; None where it holds or cannot be told."""
    try:
        values, seen = values_of(rule, knobs, source, siblings)
    except Unknown:
        return None
    for profile, value in values.items():
        if not value:
            numbers = ", ".join(f"{name} is {number:g}" for name, number in seen.items())
            return f"it does not{f' for {profile}' if profile else f': {numbers}'}"
    return None


def with_computed(
    op: RecipeOp, computed: Sequence[Computed], knobs: KnobValues, source: Source, siblings: Mapping[str, Source]
) -> tuple[RecipeOp, dict[str, KnobValue]]:
    """Return an op and the values for its placeholders, those worked out from the present text included.

    Raises:
        Mismatch: A value cannot be told, and nothing is said to be written otherwise.
    """
    values = dict(knobs)
    for each in computed:
        used = [key for key in ("value", "old", "new", "anchor", "code") if f"{{{each.name}}}" in getattr(op, key, "")]
        if not used:
            continue
        try:
            found = set(values_of(each.value, knobs, source, siblings)[0].values())
            if len(found) > 1:
                raise Unknown(f"`{each.value}` differs by profile")  # noqa: TRY301 - as good as unknown
            values[each.name] = found.pop()
        except Unknown as unknown:
            if not each.otherwise:
                raise ops.Mismatch(Refused(f"the value of `{each.value}`", str(unknown))) from unknown
            texts = {key: ops.filled(getattr(op, key), {each.name: each.otherwise}) for key in used}
            op = replace(op, **texts)  # type: ignore[arg-type]  # the keys are the op's own
    return op, values


def _value(node: ast.expr, place: _Place) -> Number:
    place.spent.steps += 1
    if place.spent.steps > _MAX_STEPS or place.depth > _MAX_DEPTH:
        raise Unknown("it is too long to work out")
    value = _plain_value(node, place)
    if isinstance(value, complex) or not abs(value) <= _MAX_NUMBER:
        raise Unknown("a number is out of range")
    return value


def _plain_value(node: ast.expr, place: _Place) -> Number:
    match node:
        case ast.Constant(value=bool() | int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, place)
        case ast.BinOp(left=left, op=op, right=right):
            return _calculated(op, _value(left, place), _value(right, place))
        case ast.Call(keywords=given):
            return _called(node, given, place)
        case ast.Name(id=name):
            place.seen[name] = _named(name, place)
            return place.seen[name]
        case ast.Attribute():
            return _dotted(ast.unparse(node), place)
    return _truth(node, place)


def _truth(node: ast.expr, place: _Place) -> bool:
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, place)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(each, place) for each in values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(_value(each, place) for each in values)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            return _COMPARISONS[type(op)](_value(left, place), _value(right, place))
    raise Unknown(f"`{ast.unparse(node)[:60]}` is no number")


def _calculated(op: ast.operator, left: Number, right: Number) -> Number:
    if isinstance(op, ast.Pow):
        if abs(right) > _MAX_EXPONENT:
            raise Unknown("a power is out of range")
        return left**right
    if type(op) not in _ARITHMETIC:
        raise Unknown(f"{type(op).__name__} is no arithmetic that is worked out")
    return _ARITHMETIC[type(op)](left, right)


def _called(node: ast.Call, given: Sequence[ast.keyword], place: _Place) -> Number:
    match node.func:
        case ast.Name(id="on") if not node.args:  # the bundled trainer's switch between profiles: on(cuda=8, cpu=4)
            return _chosen({each.arg: each.value for each in given if each.arg}, place)
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="math"), attr=name) if name in _FUNCTIONS:
            if not given:
                return _FUNCTIONS[name](*(_value(each, place) for each in node.args))
    raise Unknown(f"`{ast.unparse(node)[:60]}` is not worked out")


def _chosen(by_profile: Mapping[str, ast.expr], place: _Place) -> Number:
    if place.profile is None:
        raise _ManyValued(by_profile)
    if place.profile not in by_profile:
        raise Unknown(f"no value for {place.profile}")
    return _value(by_profile[place.profile], place)


def _named(name: str, place: _Place) -> Number:
    """Return the value of a name where it is read: a local, a parameter, a constant, a field or flag, an import."""
    tree = place.source.tree
    if place.scope is not tree and (syntax.bindings(place.scope, name)):
        return _local(name, place)
    module = place.inside(tree)
    found, bound = syntax.assignments(tree, name), syntax.bindings(tree, name)
    if len(found) == len(bound) == 1:
        return _value(found[0], module)
    if not bound:
        settings = [each for each in syntax.settings(tree, name) if not syntax.given_elsewhere(tree, each)]
        if len(settings) == 1:
            return _value(settings[0], module)
    for statement in syntax.statements(tree):
        match statement:
            case ast.ImportFrom(module=str(origin), names=names, level=0) if origin in place.siblings:
                for alias in names:
                    if (alias.asname or alias.name) == name and len(bound) == 1:
                        other = place.siblings[origin]
                        return _named(alias.name, replace(module, source=other, scope=other.tree))
    raise Unknown(f"`{name}` is {'bound more than once' if len(bound) > 1 else 'no number that the file tells'}")


def _local(name: str, place: _Place) -> Number:
    """Return what a function assigns to a name once, or what its one call passes for a parameter."""
    found, bound = syntax.assignments(place.scope, name), syntax.bindings(place.scope, name)
    if len(bound) != 1:
        raise Unknown(f"`{name}` is bound {len(bound)} times")
    if found:
        return _value(found[0], place.inside(place.scope))
    scope = place.scope
    if not isinstance(scope, ast.FunctionDef):
        raise Unknown(f"`{name}` is no plain value")
    passed = _passed(scope, name, place)
    if len(passed) == 1:
        return _value(passed[0][1], place.inside(passed[0][0]))
    default = syntax.default_of(scope, name)
    if default is None or passed:
        raise Unknown(f"`{name}` is passed by {len(passed)} calls of {scope.name}")
    return _value(default, place.inside(place.source.tree))


def _passed(function: ast.FunctionDef, name: str, place: _Place) -> list[tuple[Scope, ast.expr]]:
    """Return what the calls of a function pass for one of its parameters, each with the scope of the call."""
    names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
    found: list[tuple[Scope, ast.expr]] = []
    for scope, call in _calls(function.name, place):
        given = {keyword.arg: keyword.value for keyword in call.keywords} | dict(zip(names, call.args, strict=False))
        if name in given:
            found.append((scope, given[name]))
    return found


def _calls(name: str, place: _Place) -> list[tuple[Scope, ast.Call]]:
    scopes = [node for node in ast.walk(place.source.tree) if isinstance(node, Scope)]
    return [(scope, call) for scope in scopes for call in syntax.calls(scope, name)]


def _dotted(dotted: str, place: _Place) -> Number:
    """Return the value of `function.local` or `Class.field`; of a field, what the one call of the class passes."""
    outer, _, name = dotted.rpartition(".")
    scopes = syntax.scopes(place.source.tree, outer)
    if len(scopes) != 1:
        raise Unknown(f"`{dotted}` names no local or field")
    scope = scopes[0]
    if isinstance(scope, ast.ClassDef):
        passed = [
            (caller, keyword.value)
            for caller, call in _calls(scope.name, place)
            for keyword in call.keywords
            if keyword.arg == name
        ]
        if len(passed) == 1:
            place.seen[dotted] = _value(passed[0][1], place.inside(passed[0][0]))
            return place.seen[dotted]
        if passed:
            raise Unknown(f"`{dotted}` is passed by {len(passed)} calls")
    place.seen[dotted] = _local(name, place.inside(scope))
    return place.seen[dotted]
