"""Finds places in a Python text by name in its syntax tree, as byte spans: the rest of it stays as it is."""

import ast
import difflib
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_NEWLINE = re.compile(rb"\r\n|\r|\n")
_BOM = "\ufeff"
Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_MAX_EXPONENT = 64


class Unparsable(ValueError):  # noqa: N818 - a state of the text
    """A text that Python cannot parse, with the line and what Python says of it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of bytes."""

    start: int
    end: int


class Source:
    """A parsed Python text and its bytes; a byte order mark is put aside and given back."""

    def __init__(self, text: str) -> None:
        """Parse a text.

        Raises:
            Unparsable: Python cannot parse it.
        """
        self.bom = _BOM if text.startswith(_BOM) else ""
        self.text = text.removeprefix(_BOM)
        try:
            self.data = self.text.encode("utf-8")
            self.tree = ast.parse(self.text)
        except SyntaxError as error:
            raise Unparsable(f"line {error.lineno}: {error.msg}") from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise Unparsable(str(error) or type(error).__name__) from error
        self._starts = [0, *(match.end() for match in _NEWLINE.finditer(self.data))]
        newline = _NEWLINE.search(self.data)
        self.newline = newline.group().decode() if newline else "\n"

    def span(self, node: ast.expr | ast.stmt) -> Span:
        """Return the bytes of a node, decorators and trailing comments not included."""
        assert node.end_lineno is not None  # noqa: S101 - a parsed node has its end
        assert node.end_col_offset is not None  # noqa: S101
        return Span(
            self._starts[node.lineno - 1] + node.col_offset, self._starts[node.end_lineno - 1] + node.end_col_offset
        )

    def slice(self, span: Span) -> str:
        """Return the text of a span."""
        return self.data[span.start : span.end].decode("utf-8")

    def line_start(self, lineno: int) -> int:
        """Return where a line begins (1-based)."""
        return self._starts[lineno - 1]

    def line_end(self, lineno: int) -> int:
        """Return where a line ends, its newline not included."""
        if lineno >= len(self._starts):
            return len(self.data)
        end = self._starts[lineno]
        return end - (2 if self.data[end - 2 : end] == b"\r\n" else 1)

    def lines(self) -> list[str]:
        """Return the lines without their newlines."""
        return [line.decode("utf-8") for line in _NEWLINE.split(self.data)]

    def indent_of(self, node: ast.stmt) -> str | None:
        """Return the white space before a statement, or None where something else stands before it on its line."""
        start = self.line_start(node.lineno)
        before = self.data[start : start + node.col_offset].decode("utf-8")
        return before if not before.strip() else None

    def alone_until_line_end(self, node: ast.stmt) -> bool:
        """Return whether nothing but a comment follows a statement on its last line."""
        rest = self.data[self.span(node).end : self.line_end(node.end_lineno or node.lineno)].decode("utf-8").strip()
        return not rest or rest.startswith("#")

    def spliced(self, span: Span, replacement: str) -> str:
        """Return the whole text with a span replaced."""
        data = self.data[: span.start] + replacement.encode("utf-8") + self.data[span.end :]
        return self.bom + data.decode("utf-8")

    def nearest(self, wanted: str, count: int = 3) -> tuple[str, ...]:
        """Return the lines most like some code, each with its number."""
        first = next((line.strip() for line in wanted.splitlines() if line.strip()), "")
        numbered: dict[str, str] = {}
        for number, line in enumerate(self.lines(), start=1):
            if line.strip() and len(line) < 400:
                numbered.setdefault(line.split("#")[0].strip(), f"{number}: {line.rstrip()}")
        close = difflib.get_close_matches(first, list(numbered), n=count, cutoff=0.5)
        if not close:  # a name: lines in which it, or its longest word, stands
            words = sorted(re.findall(r"\w{3,}", first), key=len, reverse=True)
            close = [line for word in words[:1] for line in numbered if word.lower() in line.lower()][:count]
        return tuple(numbered[line] for line in close)


def scopes(tree: ast.Module, dotted: str) -> list[Scope]:
    """Return the classes or functions with a dotted name such as `GPT.forward`; the module for an empty one."""
    found: list[Scope] = [tree]
    for name in dotted.split(".") if dotted else []:
        found = [
            inner for outer in found for inner in statements(outer) if isinstance(inner, _SCOPES) and inner.name == name
        ]
    return found


def statements(scope: Scope) -> Iterator[ast.stmt]:
    """Yield the statements of a scope, those in its loops, ifs and withs too, not those of scopes inside it."""
    for body in bodies(scope):
        yield from body


def bodies(scope: Scope) -> Iterator[Sequence[ast.stmt]]:
    """Yield every list of statements of a scope, nested blocks included, inner scopes not."""
    pending: list[Sequence[ast.stmt]] = [scope.body]
    while pending:
        body = pending.pop()
        yield body
        for statement in body:
            if not isinstance(statement, _SCOPES):
                pending.extend(_blocks(statement))


def _blocks(statement: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        if block := getattr(statement, name, None):
            yield block
    for part in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
        yield part.body


def assignments(scope: Scope, name: str) -> list[ast.expr]:
    """Return the values that a scope assigns to one plain name."""
    found = []
    for statement in statements(scope):
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                found.append(value)
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                found.append(value)
    return sorted(found, key=lambda value: value.lineno)


def default_of(function: Scope, name: str) -> ast.expr | None:
    """Return the default of a parameter, or None where there is no such parameter or it has none."""
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    positional = [*function.args.posonlyargs, *function.args.args]
    given = dict(zip((arg.arg for arg in reversed(positional)), reversed(function.args.defaults), strict=False))
    given |= {
        arg.arg: value
        for arg, value in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        if value is not None
    }
    return given.get(name)


def calls(scope: Scope, name: str) -> list[ast.Call]:
    """Return a scope's calls of a name, `module.name` included."""
    found = []
    for statement in statements(scope):
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                match node.func:
                    case ast.Name(id=called) | ast.Attribute(attr=called) if called == name:
                        found.append(node)
    return list({id(node): node for node in found}.values())  # a call in a nested block is met once for each block


def same(one: ast.AST, other: ast.AST) -> bool:
    """Return whether two trees mean the same: equal but for layout, or numbers of equal value (2**18, 262144)."""
    if ast.dump(one) == ast.dump(other):
        return True
    left, right = number(one), number(other)
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
            if a is None or b is None:
                return None
            if isinstance(op, ast.Pow):
                return a**b if abs(a) <= _MAX_EXPONENT and 0 <= b <= _MAX_EXPONENT else None
            try:
                return _ARITHMETIC[type(op)](a, b)
            except (KeyError, ArithmeticError):
                return None
    return None


def runs_of(scope: Scope, wanted: Sequence[ast.stmt]) -> list[Sequence[ast.stmt]]:
    """Return where some statements stand one behind the other in a scope."""
    dumps = [ast.dump(statement) for statement in wanted]
    return [
        body[start : start + len(wanted)]
        for body in bodies(scope)
        for start in range(len(body) - len(wanted) + 1)
        if [ast.dump(statement) for statement in body[start : start + len(wanted)]] == dumps
    ]
