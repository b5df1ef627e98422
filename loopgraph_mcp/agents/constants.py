"""The named constants of a program, which can be changed without writing code."""

import ast
import operator
import re
from collections.abc import Callable, Mapping

from loopgraph_mcp.code.apply import apply_method
from loopgraph_mcp.models import EditResult, Method, Recipe, SetConst

Value = int | float | str | bool | tuple[float, ...]

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_MAX_POWER = 64  # an exponent in a program's constants; larger ones would compute for long
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow,
}  # fmt: skip


def constants(source: str, profile: str) -> dict[str, Value]:
    """Return the module-level constants of a program by name, in the order of the file.

    Args:
        source: The program.
        profile: Where a value depends on the device, as in `on(cuda=8, cpu=4)`: the one that counts.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, Value] = {}
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _NAME.fullmatch(name):
                known = _value(value, profile)
                if known is not None:
                    found[name] = known
    return found


def numbers(source: str, profile: str) -> dict[str, float]:
    """Return the constants that are numbers."""
    return {
        name: value
        for name, value in constants(source, profile).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def set_constant(source: str, name: str, value: str) -> EditResult:
    """Return a program with one constant changed to an expression, or why that cannot be."""
    recipe = Recipe((SetConst(name, value),))
    return apply_method(Method("set-value", name, "other", "", "", recipe=recipe), source, {})


def written(value: float, *, whole: bool) -> str:
    """Return a number as code: whole where it was whole, with four digits at most."""
    return str(max(round(value), 1) if value > 0 else round(value)) if whole else f"{value:.4g}"


def _value(node: ast.expr, profile: str) -> Value | None:
    match node:
        case ast.Constant(value=int() | float() | str() | bool() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            negated = _value(inner, profile)
            return -negated if isinstance(negated, int | float) else None
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _computed(_value(left, profile), type(op), _value(right, profile))
        case ast.Tuple(elts=elements):
            values = [_value(each, profile) for each in elements]
            return tuple(float(each) for each in values if isinstance(each, int | float)) or None
        case ast.Call(func=ast.Name(id="on"), keywords=keywords):
            return next((_value(each.value, profile) for each in keywords if each.arg == profile), None)
    return None


def _computed(left: Value | None, op: type[ast.operator], right: Value | None) -> float | None:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None
    if op is ast.Pow and abs(right) > _MAX_POWER:
        return None
    try:
        return _OPERATORS[op](left, right)
    except (ZeroDivisionError, OverflowError):
        return None
