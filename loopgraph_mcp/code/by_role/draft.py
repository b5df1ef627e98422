"""Changes of a program that are made together, and what edits by role share."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loopgraph_mcp.code import programs, syntax
from loopgraph_mcp.code.roles import Roles
from loopgraph_mcp.code.syntax import Source, Span
from loopgraph_mcp.models import KnobValue, Refused

Values = Mapping[str, KnobValue]


@dataclass(frozen=True, slots=True)
class Held:
    """The program has the method already, in whatever form."""

    reason: str


@dataclass(slots=True)
class Draft:
    """Changes of one program that are made together."""

    source: Source
    summaries: list[str] = field(default_factory=list)
    resets: bool = False
    _texts: list[tuple[Span, str]] = field(default_factory=list)
    _swaps: dict[int, ast.expr | list[ast.stmt]] = field(default_factory=dict)

    def put(self, node: ast.expr, text: str) -> None:
        """Put an expression in the place of another."""
        was = " ".join(self.source.slice(self.source.span(node)).split())
        if syntax.alike(tree := parsed_expression(text), node):
            return
        self._texts.append((self.source.span(node), text))
        self._swaps[id(node)] = tree
        self.summaries.append(f"line {node.lineno}: {was} -> {text}")

    def before(self, statement: ast.stmt, code: str) -> None:
        """Put statements above one."""
        indent = self._indent(statement)
        start = self.source.start(statement)
        made = self.source.indented(code, indent).removeprefix(indent) + self.source.newline + indent
        self._texts.append((Span(start, start), made))
        self._around(statement)[:0] = programs.parse(code).body
        self.summaries.append(f"line {statement.lineno}: + {code.splitlines()[0]}")

    def after(self, statement: ast.stmt, code: str) -> None:
        """Put statements below one."""
        indent = self._indent(statement)
        end = self.source.line_end(statement.end_lineno or statement.lineno)
        self._texts.append((Span(end, end), self.source.newline + self.source.indented(code, indent)))
        self._around(statement).extend(programs.parse(code).body)
        self.summaries.append(f"line {statement.lineno}: + {code.splitlines()[0]}")

    def instead(self, statement: ast.stmt, code: str) -> None:
        """Put statements in the place of one."""
        indent = self._indent(statement)
        span = Span(self.source.start(statement), self.source.span(statement).end)
        was = " ".join(self.source.slice(span).split())
        self._texts.append((span, self.source.indented(code, indent).removeprefix(indent)))
        self._swaps[id(statement)] = list(programs.parse(code).body)
        self.summaries.append(f"line {statement.lineno}: {was[:80]} -> {' '.join(code.split())[:80]}")

    def gone(self, statement: ast.stmt) -> None:
        """Take a statement with a line of its own out."""
        self._indent(statement)
        start = self.source.start(statement)
        line = max(self.source.data.rfind(end, 0, start) for end in (b"\n", b"\r")) + 1
        end = self.source.line_end(statement.end_lineno or statement.lineno)
        end += len(self.source.newline) if end < len(self.source.data) else 0
        self._texts.append((Span(line, end), ""))
        self._swaps[id(statement)] = []

    def _around(self, statement: ast.stmt) -> list[ast.stmt]:
        found = self._swaps.setdefault(id(statement), [statement])
        assert isinstance(found, list)  # noqa: S101 - an expression is no statement
        return found

    def _indent(self, statement: ast.stmt) -> str:
        indent = self.source.indent_of(statement)
        if indent is None or not self.source.alone_until_line_end(statement):
            raise Misfit("a statement on a line of its own", f"line {statement.lineno} holds more")
        return indent

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self._texts

    def merged(self) -> tuple[Span, str, dict[int, ast.expr | list[ast.stmt]]]:
        """Return all changes as one span with its new text, and what takes the place of which node."""
        ordered = sorted(self._texts, key=lambda each: (each[0].start, each[0].end))
        whole = Span(ordered[0][0].start, max(span.end for span, _ in ordered))
        text, at = "", whole.start
        for span, new in ordered:
            text += self.source.slice(Span(at, max(at, span.start))) + new
            at = max(at, span.end)
        return whole, text + self.source.slice(Span(at, whole.end)), self._swaps


class Misfit(Exception):  # noqa: N818 - how an edit says that it does not fit
    """A program that an edit does not fit, in the program's own terms."""

    def __init__(self, looked_for: str, reason: str) -> None:
        super().__init__(reason)
        self.refused = Refused(looked_for, reason)


Answer = Draft | Held


EDITS: dict[str, Callable[[Source, Roles, Values], Answer]] = {}


def edit(function: Callable[[Source, Roles, Values], Answer]) -> Callable[[Source, Roles, Values], Answer]:
    """Register an edit under its own name."""
    EDITS[function.__name__] = function
    return function


def in_loop(found: Roles, node: ast.AST) -> bool:
    """Return whether a place is in the training loop."""
    return any(each is found.loop for each in found.around(node))


def names_stored(statement: ast.Assign) -> set[str]:
    """Return the variables that an assignment sets."""
    return {node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def bracketed(source: Source, node: ast.expr) -> str:
    """Return an expression as it can stand in a larger one."""
    text = source.slice(source.span(node))
    alone = isinstance(node, ast.Name | ast.Call | ast.Attribute | ast.Subscript | ast.Constant) or (
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
    )
    return text if alone else f"({text})"


def count_of(several: Sequence[object], found: Roles) -> str:
    """Return how many of a thing a file has, as the reason of a refusal."""
    return f"this file has {len(several)}" if several else f"this file has none of that form{elsewhere(found)}"


def reset(source: Source, found: Roles, there: ast.expr, wanted: KnobValue, reason: str) -> Answer:
    """Set the number that this kind of edit put there; where another form is there, say so."""
    place = there.body if isinstance(there, ast.IfExp) else there
    number = found.constants.number(place)
    if not isinstance(place, ast.Constant) or number is None or number == float(wanted):
        return Held(reason)
    draft = Draft(source, resets=True)
    draft.put(place, written(wanted))
    return draft


def written(value: KnobValue) -> str:
    """Return a knob value as code."""
    return repr(value)


def parsed_expression(text: str) -> ast.expr:
    """Return the tree of an expression."""
    return programs.parse(text, "eval").body


def line_of(node: ast.AST) -> int:
    """Return the line of a node."""
    return getattr(node, "lineno", 0)


def attributes_in(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield the attribute reads and writes in some code."""
    return (node for node in syntax.walk(tree) if isinstance(node, ast.Attribute))


def mentions(source: Source, word: str) -> bool:
    """Return whether a name or text of the program holds a word; comments and docstrings do not count."""
    for node in syntax.nodes(source.tree):
        match node:
            case ast.Name(id=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Attribute(attr=name):
                if word in name.lower():
                    return True
            case ast.alias(name=name) if word in name.lower():
                return True
            case ast.Constant(value=str() as text) if text.lower() == word:
                return True
    return False


def imports_module(source: Source, module: str) -> bool:
    """Return whether a file imports a module by a name."""
    return any(
        isinstance(node, ast.Import)
        and any((alias.asname or alias.name.split(".")[0]) == module for alias in node.names)
        for node in syntax.nodes(source.tree)
    )


def module_alias(source: Source, module: str) -> str:
    """Return the name by which the file calls a module."""
    parent, _, last = module.rpartition(".")
    for node in source.tree.body:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name == module:
                        return alias.asname or module
            case ast.ImportFrom(module=found, names=names) if found == parent:
                for alias in names:
                    if alias.name == last:
                        return alias.asname or last
    return ""


def functional_alias(source: Source) -> str:
    """Return the name by which the file calls torch.nn.functional."""
    found = module_alias(source, "torch.nn.functional")
    return found or ("torch.nn.functional" if imports_module(source, "torch") else "")


def elsewhere(found: Roles) -> str:
    """Return where the parts of a program that a file lacks are likely to be."""
    for node in found.tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names if re.search(r"GPT|Transformer|Model|Attention", alias.name)]
            if names:
                return f"; it imports {names[0]} from {node.module.replace('.', '/')}.py"
    return ""
