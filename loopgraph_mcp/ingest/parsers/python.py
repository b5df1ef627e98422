"""Reads Python source as its symbols: the module's docstring, functions, classes and methods, with their lines."""

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePosixPath

from loopgraph_mcp.code import programs
from loopgraph_mcp.ingest.parsers.model import Block, Document

_SYMBOL = re.compile(r"([ \t]*)(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)")
_DECORATOR = re.compile(r"[ \t]*@")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_SHORT_LINES = 25  # a class that is no longer stays one block
_MOST_LEVELS = 3


def read(text: str, path: str) -> Document:
    """Return one block for each symbol; its section is the dotted name, its page nothing, its lines where it stands.

    Args:
        text: The source; where it has a syntax error, symbols are found by their indentation.
        path: Where it stands in its project: `model/attention.py` makes the symbols `model.attention.…`.
    """
    text = text.removeprefix("\ufeff").replace("\x0c", "\n" if "\n\x0c" not in text else " ")
    lines = _NEWLINE.split(text)
    module = _module(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = programs.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)[:100]
        blocks = tuple(_by_indent(lines, module))
        return Document(module, blocks, (f"not valid Python ({where}); its symbols were found by their indentation",))
    found = list[tuple[str, int, int]]()
    _collect(tree.body, module, found, 0)
    return Document(module, tuple(_blocks(lines, module, found)))


def _module(path: str) -> str:
    parts = [part for part in PurePosixPath(re.sub(r"\.\w*$", "", path)).parts if part not in {"/", ".", "..", "src"}]
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _collect(body: Sequence[ast.stmt], prefix: str, found: list[tuple[str, int, int]], level: int) -> None:
    """Take the symbols of a body with their first and last lines; of a long class its head and its methods."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            inner = [*node.body, *node.orelse, *getattr(node, "handlers", []), *getattr(node, "finalbody", [])]
            _collect([each for each in inner if isinstance(each, ast.stmt)], prefix, found, level)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        last = node.end_lineno or node.lineno
        name = f"{prefix}.{node.name}" if prefix else node.name
        symbols = [
            each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        if isinstance(node, ast.ClassDef) and symbols and last - first >= _SHORT_LINES and level < _MOST_LEVELS:
            begin = min([symbols[0].lineno, *(each.lineno for each in symbols[0].decorator_list)])
            found.append((name, first, max(first, begin - 1)))
            _collect(node.body, name, found, level + 1)
        else:
            found.append((name, first, last))


def _blocks(lines: Sequence[str], module: str, found: Sequence[tuple[str, int, int]]) -> Iterator[Block]:
    """Yield blocks in the order of their lines; what stands between symbols belongs to the module."""
    at = 1
    for name, first, last in sorted(found, key=lambda each: each[1]):
        if first > at:
            yield from _block(lines, module, at, first - 1)
        yield from _block(lines, name, max(first, at), last)
        at = max(at, last + 1)
    yield from _block(lines, module, at, len(lines))


def _block(lines: Sequence[str], name: str, first: int, last: int) -> Iterator[Block]:
    while first <= last and not lines[first - 1].strip():
        first += 1
    while last >= first and not lines[last - 1].strip():
        last -= 1
    if first <= last:
        yield Block("code", "\n".join(lines[first - 1 : last]), name, lines=(first, last))


def _by_indent(lines: Sequence[str], module: str) -> Iterator[Block]:
    """Yield the nearest useful answer where the source does not parse: what begins with `def` or `class`."""
    starts, names = list[tuple[str, int]](), list[tuple[int, str]]()
    for number, line in enumerate(lines, start=1):
        if (symbol := _SYMBOL.match(line)) is None:
            continue
        indent = len(symbol[1].expandtabs(4))
        names = [*(each for each in names if each[0] < indent), (indent, symbol[2])]
        if len(names) > 1 + ("class" in line or indent <= 4):
            continue
        first = number
        while first > 1 and _DECORATOR.match(lines[first - 2]):
            first -= 1
        starts.append((".".join([*([module] if module else []), *(name for _, name in names)]), first))
    yield from _block(lines, module, 1, (starts[0][1] - 1) if starts else len(lines))
    for (name, first), (_, following) in pairwise([*starts, ("", len(lines) + 1)]):
        yield from _block(lines, name, first, following - 1)
