"""Finds places in a Python text by name in its syntax tree, as byte spans; all other bytes stay unchanged."""

import ast
import builtins
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakValueDictionary

from loopgraph_mcp.code import programs

_NEWLINE = re.compile(rb"\r\n|\r|\n")
_BOM = "\ufeff"
_KEPT_CHARS = 2**17  # of recent texts, whose trees have some 15 MB together
Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_BUILTINS = frozenset(dir(builtins))
_SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


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
            self.tree = programs.parse(self.text)
        except SyntaxError as error:
            where = f"line {error.lineno}: " if error.lineno else ""
            raise Unparsable(f"{where}{error.msg}") from error
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

    def start(self, node: ast.stmt) -> int:
        """Return the byte where a statement begins, its decorators included."""
        decorators = getattr(node, "decorator_list", [])
        return self.data.rindex(b"@", 0, self.span(decorators[0]).start) if decorators else self.span(node).start

    def slice(self, span: Span) -> str:
        """Return the text of a span."""
        return self.data[span.start : span.end].decode("utf-8")

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
        """Return the white space before a statement, or None if other code precedes it on its line."""
        start = self.start(node)
        line = max(self.data.rfind(newline, 0, start) for newline in (b"\n", b"\r")) + 1
        before = self.data[line:start].decode("utf-8")
        return before if not before.strip() else None

    def alone_until_line_end(self, node: ast.stmt) -> bool:
        """Return whether nothing but a comment follows a statement on its last line."""
        rest = self.data[self.span(node).end : self.line_end(node.end_lineno or node.lineno)].decode("utf-8").strip()
        return not rest or rest.startswith("#")

    def comments_between(self, one: ast.stmt, other: ast.stmt) -> list[str]:
        """Return the comments that stand between two neighbouring statements."""
        gap = self.data[self.span(one).end : self.start(other)].decode("utf-8")
        return [match.group().rstrip() for match in re.finditer(r"#[^\r\n]*", gap)]

    def indent_unit(self) -> str:
        """Return the white space of one level: that of the first function or class on lines of its own."""
        for node in self.tree.body:
            if isinstance(node, _SCOPES) and (unit := self.indent_of(node.body[0])):
                return unit
        return "    "

    def spliced(self, span: Span, replacement: str) -> str:
        """Return the whole text with a span replaced."""
        data = self.data[: span.start] + replacement.encode("utf-8") + self.data[span.end :]
        return self.bom + data.decode("utf-8")

    def indented(self, code: str, indent: str) -> str:
        """Return code at a depth, in this text's newlines and its own depth of a level.

        Lines that begin inside a string stay as they are: to indent them would change the string.
        """
        inside = {
            line
            for node in ast.walk(programs.parse(code))
            if isinstance(node, ast.Constant | ast.JoinedStr)
            for line in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
        }
        lines, unit = [], "\t" if "\t" in indent else self.indent_unit()
        for number, line in enumerate(re.split(r"\r\n|\r|\n", code), start=1):
            depth = re.match(r" *", line)
            deeper = len(depth.group()) // 4 if depth else 0
            moved = indent + unit * deeper + line[4 * deeper :] if line.strip() else ""
            lines.append(line if number in inside else moved)
        return self.newline.join(lines)

    def becomes(self, other: "Source", swaps: "Swaps") -> bool:
        """Return whether another text is the program that this one is with some nodes swapped, and no other."""
        own = {id(statement) for statement in self.tree.body}
        wanted = [each for item in self.tree.body for each in _swapped(item, swaps)]
        return len(wanted) == len(other.tree.body) and all(
            (id(one) in own and self.text_of(one) == other.text_of(two)) or alike(one, two, swaps=swaps)
            for one, two in zip(wanted, other.tree.body, strict=True)
        )

    def text_of(self, statement: ast.stmt) -> bytes:
        """Return the bytes of a statement, its decorators included."""
        return self.data[self.start(statement) : self.span(statement).end]

    def nearest(self, wanted: str, count: int = 3) -> tuple[str, ...]:
        """Return the lines most like some code, each with its number."""
        first = next((line.strip() for line in wanted.splitlines() if line.strip()), "")
        numbered: dict[str, str] = {}
        for number, line in enumerate(self.lines(), start=1):
            if line.strip() and len(line) < 400:
                numbered.setdefault(line.split("#")[0].strip(), f"{number}: {line.rstrip()}")
        close = difflib.get_close_matches(first, list(numbered), n=count, cutoff=0.5)
        if not close:  # a name: lines with it, or with its longest word
            words = sorted(re.findall(r"\w{3,}", first), key=len, reverse=True)
            close = [line for word in words[:1] for line in numbered if word.lower() in line.lower()][:count]
        return tuple(numbered[line] for line in close)


def read(text: str) -> Source:
    """Parse a text once: a search looks for every method it shows in the same file.

    What parses a large text holds on to its `Source` while it asks again; only small ones are kept here.

    Raises:
        Unparsable: Python cannot parse it.
    """
    return _in_use.get(text) or _recent(text)


_in_use: WeakValueDictionary[str, Source] = WeakValueDictionary()


@programs.remembered(_KEPT_CHARS)
def _recent(text: str) -> Source:
    source = Source(text)
    _in_use[text] = source
    return source


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
    """Return the values that a scope assigns to one plain name by `name = …` or `name: type = …`."""
    found = []
    for statement in statements(scope):
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                found.append(value)
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                found.append(value)
    return sorted(found, key=lambda value: value.lineno)


def bindings(scope: Scope, name: str) -> list[int]:
    """Return the lines in which a scope gives a name a value in any way: `=`, `+=`, `for`, `with`, `import`, `def`."""
    if (bound := _bindings.get(scope)) is None:
        bound = _bindings[scope] = _bound(scope)
    return list(bound.get(name, ()))


_bindings: WeakKeyDictionary[Scope, dict[str, list[int]]] = WeakKeyDictionary()


def _bound(scope: Scope) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for arg in _parameters(scope):
        found.setdefault(arg.arg, []).append(arg.lineno)
    for statement in statements(scope):
        if isinstance(statement, ast.AnnAssign) and statement.value is None:
            continue
        if isinstance(statement, _SCOPES):
            found.setdefault(statement.name, []).append(statement.lineno)
            continue
        for node in _own_nodes(statement):
            if name := _bound_by(node):
                found.setdefault(name, []).append(node.lineno)
    return {name: sorted(lines) for name, lines in found.items()}


def _parameters(scope: Scope) -> list[ast.arg]:
    if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    given = scope.args
    rest = [arg for arg in (given.vararg, given.kwarg) if arg is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *rest]


def _bound_by(node: ast.AST) -> str | None:
    """Return the name that a node gives a value to."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return name
        case ast.alias(name=imported, asname=alias):
            return alias or imported.split(".")[0]
        case ast.ExceptHandler(name=caught):
            return caught
    return None


def _own_nodes(statement: ast.stmt) -> Iterator[ast.expr | ast.alias | ast.ExceptHandler]:
    """Yield the expressions, imports and handlers of one statement, not those of statements inside it."""
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.expr | ast.alias | ast.ExceptHandler):
            yield node
        if not isinstance(node, ast.Lambda):
            pending.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt))


def global_bindings(tree: ast.Module, name: str) -> list[int]:
    """Return the lines in which functions that say `global name` give it a value."""
    lines = []
    for node in nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = list(statements(node))
            if any(isinstance(statement, ast.Global) and name in statement.names for statement in inner):
                lines += bindings(node, name)
    return lines


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
    """Return a scope's own calls of a name, `module.name` included."""
    found = []
    for statement in statements(scope):
        for node in () if isinstance(statement, _SCOPES) else _own_nodes(statement):
            match node:
                case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if called == name:
                    found.append(node)
    return found


def unknown_names(tree: ast.Module, code: Iterable[ast.AST]) -> list[str]:
    """Return the names that some code would read and that stand nowhere in a file: running it would fail."""
    inside = [node for each in code for node in walk(each)]
    read = dict.fromkeys(node.id for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    known = _BUILTINS | {name for node in inside for name in _names_in(node)}
    wanted = [name for name in read if name not in known]
    held = _names_of(tree) if wanted else frozenset[str]()
    return [] if "*" in held else [name for name in wanted if name not in held]


def _names_of(tree: ast.Module) -> frozenset[str]:
    """Return every name that stands in a file, read or given a value; `*` where it imports all that a module has."""
    if (found := _names.get(tree)) is None:
        found = _names[tree] = frozenset(
            name for node in nodes(tree) for name in ((node.id,) if isinstance(node, ast.Name) else _names_in(node))
        )
    return found


_names: WeakKeyDictionary[ast.Module, frozenset[str]] = WeakKeyDictionary()


def nodes(tree: ast.Module) -> Sequence[ast.AST]:
    """Return all that is inside a module; kept as long as the module is, which it must not hold itself."""
    if (inside := _inside.get(tree)) is None:
        inside = _inside[tree] = tuple(walk(tree))[1:]
    return inside


_inside: WeakKeyDictionary[ast.Module, tuple[ast.AST, ...]] = WeakKeyDictionary()


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all inside it, as ast.walk does in twice the time."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        for value in node.__dict__.values():
            if isinstance(value, ast.AST):
                pending.append(value)
            elif isinstance(value, list):
                pending += [item for item in value if isinstance(item, ast.AST)]


def is_builtin(name: str) -> bool:
    """Return whether Python itself gives a name its value."""
    return name in _BUILTINS


def _names_in(node: ast.AST) -> Iterator[str]:
    """Yield the names to which a node gives a value."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.ClassDef(name=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name
        case ast.alias(name=imported, asname=alias):
            yield alias or imported.split(".")[0]


# A pattern's name for "any constant here"; with "_x" behind it, any variable, with "__x" or "current", any expression.
HOLE = "__hole_"
CURRENT = "current"
_LAYOUT = {"ctx", "kind", "type_comment"}  # what a tree says beside its meaning
Swaps = Mapping[int, ast.expr | Sequence[ast.stmt]]


def alike(one: object, other: object, *, swaps: Swaps | None = None, holes: dict[str, ast.expr] | None = None) -> bool:
    """Return whether two trees (or lists of statements) are equal but for layout.

    Args:
        one: The first tree; it may hold names that begin with `HOLE`.
        other: The second.
        swaps: Replacements of some of the first tree's nodes, by id: an expression, or a list of statements.
        holes: Receives, by name, the second tree's nodes where the first tree has a hole.
    """
    swaps = swaps or {}
    pending = [(one, other)]
    while pending:
        a, b = pending.pop()
        if isinstance(a, list) and isinstance(b, list):
            wanted = [each for item in a for each in _swapped(item, swaps)] if swaps else a
            if len(wanted) != len(b):
                return False
            pending.extend(zip(wanted, b, strict=True))
            continue
        a = swaps.get(id(a), a) if isinstance(a, ast.expr) else a
        if holes is not None and isinstance(a, ast.Name) and a.id.startswith(HOLE):
            if not isinstance(b, ast.expr) or not _fills(a.id.removeprefix(HOLE), b, holes):
                return False
        elif type(a) is not type(b):
            return False
        elif isinstance(a, ast.AST):
            pending.extend(
                (getattr(a, name, None), getattr(b, name, None)) for name in a._fields if name not in _LAYOUT
            )
        elif a != b:
            return False
    return True


def _swapped(item: ast.stmt, swaps: Swaps) -> Sequence[ast.stmt]:
    there = swaps.get(id(item))
    return there if isinstance(there, Sequence) else (item,)


def _fills(name: str, node: ast.expr, holes: dict[str, ast.expr]) -> bool:
    plain = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
    if name.startswith("_") and not name.startswith("__"):
        fits = isinstance(node, ast.Name)
    else:
        fits = name == CURRENT or name.startswith("__") or isinstance(plain, ast.Constant)
    return fits and alike(holes.setdefault(name, node), node)


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring statements in one list of statements, and what a pattern's holes matched."""

    body: Sequence[ast.stmt]
    start: int
    stop: int
    holes: Mapping[str, ast.expr] = field(default_factory=dict, compare=False)

    @property
    def statements(self) -> Sequence[ast.stmt]:
        """The statements themselves."""
        return self.body[self.start : self.stop]

    def holds(self, other: "Run") -> bool:
        """Whether another run is part of this one."""
        return self.body is other.body and self.start <= other.start and other.stop <= self.stop

    def is_behind(self, other: "Run") -> bool:
        """Whether this run comes later in the same list."""
        return self.body is other.body and self.start >= other.stop


def runs_of(scope: Scope, wanted: Sequence[ast.stmt]) -> list[Run]:
    """Return where some statements stand one behind the other in a scope; they may have holes."""
    found = []
    for body in bodies(scope):
        for start in range(len(body) - len(wanted) + 1 if wanted else 0):
            holes: dict[str, ast.expr] = {}
            if alike(list(wanted), list(body[start : start + len(wanted)]), holes=holes):
                found.append(Run(body, start, start + len(wanted), holes))
    return sorted(found, key=lambda run: run.statements[0].lineno)


def standing(scope: Scope, wanted: ast.expr) -> list[ast.expr]:
    """Return the expressions of a scope, of those inside it too, that are like a pattern."""
    kind = ast.expr if isinstance(wanted, ast.Name) and wanted.id.startswith(HOLE) else type(wanted)
    return [node for node in walk(scope) if isinstance(node, kind) and alike(wanted, node, holes={})]


def settings(tree: ast.Module, name: str) -> list[ast.expr]:
    """Return the defaults of dataclass fields and argparse flags with a name; case, `-` and `_` do not count."""
    wanted, found = _plain(name), list[ast.expr]()
    for node in nodes(tree):
        if isinstance(node, ast.ClassDef):
            found += [value for target, value in fields(node) if _plain(target) == wanted]
        elif isinstance(node, ast.Call) and any(_plain(flag) == wanted for flag in _flags(node)):
            found += [keyword.value for keyword in node.keywords if keyword.arg == "default"]
    return sorted(found, key=lambda value: value.lineno)


def given_elsewhere(tree: ast.Module, default: ast.expr) -> list[int]:
    """Return the lines whose calls pass another value in place of a dataclass field's default."""
    for node in nodes(tree):
        if isinstance(node, ast.ClassDef):
            for name, value in fields(node):
                if value is default:
                    return [
                        call.lineno
                        for call in nodes(tree)
                        if isinstance(call, ast.Call)
                        and isinstance(call.func, ast.Name)
                        and call.func.id == node.name
                        and any(keyword.arg == name for keyword in call.keywords)
                    ]
    return []


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Yield a class's fields with their defaults, `field(default=…)` included."""
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(func=ast.Name(id="field"), keywords=given)):
                yield from ((name, keyword.value) for keyword in given if keyword.arg == "default")
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value


def _flags(node: ast.Call) -> Iterator[str]:
    match node.func:
        case ast.Attribute(attr="add_argument"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
