"""Tells whether two texts are the same program, and whether two expressions are the same number."""

import ast
import hashlib
import operator
from collections.abc import Callable
from functools import lru_cache

_MAX_EXPONENT = 64
_DECIMAL_BITS = 4_000
_UNSAID = frozenset({"ctx", "kind", "type_comment"})  # told by the place, or without effect


@lru_cache(maxsize=32)
def program_hash(source: str) -> str:
    """Return the sha256 of a text's syntax tree: comments, layout and docstrings do not count.

    A text that does not parse is known by its words.
    """
    tree = parsed(source)
    try:
        content = " ".join(source.split()) if tree is None else written(tree)
    except RecursionError:
        content = " ".join(source.split())
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


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
    try:
        tree = ast.parse(source.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
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
            return value
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
                return _ARITHMETIC[type(op)](a, b)
    except (KeyError, ArithmeticError):
        return None
