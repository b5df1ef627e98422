"""Decides whether two texts are the same program, and whether two expressions are the same number."""

import ast
import hashlib
import operator
from collections.abc import Callable

from loopgraph_mcp.code import programs, seeds
from loopgraph_mcp.models import WhatRan

_KEY = 20  # characters of a hash in a key: 80 bits
_MAX_EXPONENT = 64  # larger powers are not hyperparameters, and take long
_MAX_BITS = 4_096  # of a number that is worked out
_DECIMAL_BITS = 4_000  # about 1,200 digits
_UNSAID = frozenset({"ctx", "kind", "type_comment"})  # implied by the place, or without effect


@programs.remembered(2**20)
def program_hash(source: str, name: str = "train.py") -> str:
    """Return what identifies a program up to layout: of Python its syntax tree with docstrings, else its bytes.

    A docstring may be the prompt, so it counts; of another language we do not know what is layout.
    """
    return _hash(source, _tree_with_docstrings(source, name))


@programs.remembered(2**20)
def group_hash(source: str, name: str = "train.py") -> str:
    """Return the same for all programs that differ in nothing but the values of seeds."""
    tree = _tree_with_docstrings(source, name)
    if tree is None:
        return _hash(seeds.hide_in_text(source), None)
    seeds.hide_in_tree(tree)
    return _hash(source, tree)


def _tree_with_docstrings(source: str, name: str) -> ast.Module | None:
    if not name.endswith(".py"):
        return None
    try:
        return programs.parse(source.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _hash(source: str, tree: ast.Module | None) -> str:
    try:
        content = source if tree is None else written(tree)
    except RecursionError:
        content = source
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def what_ran(program: str, name: str, inputs: tuple[str, str]) -> WhatRan:
    """Return what identifies a program together with the hashes of all else that its run can see.

    Args:
        program: The editable file's text.
        name: The editable file's name.
        inputs: Hash of the other files, and their hash with the values of seeds left out.
    """
    exact, group = program_hash(program, name), group_hash(program, name)
    return WhatRan(f"{exact[:_KEY]}.{inputs[0]}", f"{group[:_KEY]}.{inputs[1]}")


def is_of_program(group_key: str, program: str, name: str) -> bool:
    """Return whether a group of runs ran a program, whatever else they could see."""
    return group_key.partition(".")[0] == group_hash(program, name)[:_KEY]


def tree_hash(source: bytes) -> str | None:
    """Return the sha256 of a Python file's syntax tree, or None where Python cannot parse it.

    Comments and layout do not count; docstrings do, for a program may read them: `__doc__` can be a prompt.
    """
    try:
        content = written(ast.parse(source))  # bytes: the file's own coding line is kept to
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def parsed(source: str) -> ast.Module | None:
    """Return a text's syntax tree without its docstrings, or None where Python cannot parse it."""
    tree = _tree_with_docstrings(source, "train.py")
    if tree is not None:
        _drop_docstrings(tree)
    return tree


def written(node: object) -> str:
    """Write a tree down alike in every version of Python: `ast.dump` differs in what empty fields it shows."""
    pieces = list[str]()
    _write(node, pieces.append)
    return "".join(pieces)


def _write(node: object, put: Callable[[str], None]) -> None:
    if isinstance(node, ast.AST):
        between = f"{type(node).__name__}("
        for name in node._fields:
            value = getattr(node, name, None)
            if name not in _UNSAID and value is not None and value != []:
                put(f"{between}{name}=")
                _write(value, put)
                between = ", "
        put(")" if between == ", " else f"{between})")
    elif isinstance(node, list):
        between = "["
        for each in node:
            put(between)
            _write(each, put)
            between = ", "
        put("]" if node else "[]")
    else:
        # Python writes no number of thousands of digits in decimals, though code may hold one in another base.
        put(hex(node) if isinstance(node, int) and node.bit_length() > _DECIMAL_BITS else repr(node))


def _drop_docstrings(tree: ast.Module) -> None:
    pending: list[ast.AST] = [tree]
    while pending:  # statements alone: an expression holds no docstring
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
        for value in node.__dict__.values():
            if isinstance(value, list):
                pending += [each for each in value if isinstance(each, ast.stmt | ast.ExceptHandler | ast.match_case)]


def equal_numbers(one: ast.AST, other: ast.AST) -> bool:
    """Return whether two expressions are numbers, or arithmetic on numbers, of equal value: 2**18 and 262144."""
    try:
        left, right = number(one), number(other)
    except RecursionError:  # a sum of thousands
        return False
    return left is not None and left == right


def _within(value: float) -> float | None:
    """Return a number unless it is one of those that take long to work with; no setting is of that size."""
    return None if isinstance(value, int) and value.bit_length() > _MAX_BITS else value


_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def number(node: ast.AST) -> float | None:
    """Return the value of a number or of arithmetic on numbers, without running any code; None for all else."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as value):
            return _within(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = number(operand)
            return None if inner is None else -inner
        case ast.BinOp(left=left, op=op, right=right):
            a, b = number(left), number(right)
            return None if a is None or b is None else _calculated(op, a, b)
    return None


def _calculated(op: ast.operator, a: float, b: float) -> float | None:
    small = 0 <= b <= _MAX_EXPONENT
    try:
        match op:
            case ast.Pow():
                power: complex | None = a**b if small and abs(a) <= _MAX_EXPONENT else None
                return power if isinstance(power, int | float) else None
            case ast.LShift():
                if isinstance(a, int) and isinstance(b, int) and small and abs(a) < 2**_MAX_EXPONENT:
                    return a << b
                return None
            case _:
                return _within(_ARITHMETIC[type(op)](a, b))
    except (KeyError, ArithmeticError):
        return None
