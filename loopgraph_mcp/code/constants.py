"""The named constants of a program, which can be changed without writing code."""

import ast
import hashlib
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loopgraph_mcp.code.apply import apply_method
from loopgraph_mcp.models import EditResult, Method, Recipe, SetConst
from loopgraph_mcp.text import compile_later

Value = int | float | str | bool | tuple[float, ...]

# What changes no idea, or the measure itself; rows at once on a device cost speed, and are a knob.
_HANDS_OFF = compile_later(r"SEED|EVAL|UNTIMED|DEVICE(?!_BATCH)|PROFILE|COMPILE")
_NAME = compile_later(r"[A-Z][A-Z0-9_]*")
_LINE = compile_later(r"(?P<name>[A-Z][A-Z0-9_]*)\s*=\s*(?P<value>[^=\s].{0,200})$")
_LARGEST = 2**63  # a larger number is not a knob
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


@dataclass(frozen=True, slots=True)
class Written:
    """A program as its numbers and all else.

    Args:
        numbers: The numeric constants that can be ideas to change.
        rest: A hash of the program without their values: programs of one hash differ in numbers alone.
    """

    numbers: Mapping[str, float]
    rest: str


def read(source: str, profile: str) -> Written:
    """Return a program's numeric constants, each on a line of its own, without parsing all of it.

    Hundreds of programs are read after each run, and a whole syntax tree of each takes a hundred times as long.
    """
    found, rest = dict[str, float](), list[str]()
    for line in source.splitlines():
        match = _LINE.match(line)
        value = _of_line(match["value"], profile) if match and tunable(match["name"]) else None
        if match is None or value is None:
            rest.append(line)
        else:
            found[match["name"]] = value
            rest.append(match["name"])
    return Written(found, hashlib.sha256("\n".join(rest).encode("utf-8", "surrogateescape")).hexdigest())


def _of_line(value: str, profile: str) -> float | None:
    try:
        found = _value(ast.parse(value.strip(), mode="eval").body, profile)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        return None
    return found if abs(found) < _LARGEST else None


def numbers(source: str, profile: str) -> dict[str, float]:
    """Return the constants that are numbers."""
    return {
        name: value
        for name, value in constants(source, profile).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def tunable(name: str) -> bool:
    """Return whether a constant is an idea to change, and not the measure itself or what it runs on."""
    return not _HANDS_OFF.search(name)


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


def set_constants(source: str, values: Mapping[str, str]) -> EditResult:
    """Return a program with constants changed to expressions, or why that cannot be."""
    ops = tuple(SetConst(name, value) for name, value in values.items())
    return apply_method(Method("set-values", "values", "other", "", "", recipe=Recipe(ops)), source, {})
