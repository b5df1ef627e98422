"""Looks for code in a scope of a text, whatever its variables are called."""

import ast
import re
from collections.abc import Sequence

from loopgraph_mcp.code import ops, programs, syntax
from loopgraph_mcp.code.syntax import HOLE, Scope, Source
from loopgraph_mcp.models import Mark, Refused


def matches(source: Source, mark: Mark) -> bool:
    """Return whether a mark is there."""
    return _against(source, mark) is None


def missing(source: Source, mark: Mark) -> Refused | None:
    """Return what a text lacks of a mark, or has against it; None where the mark is there."""
    against = _against(source, mark)
    if against is None:
        return None
    looked_for, reason, like = against
    return Refused(looked_for, reason, source.nearest(like) if like else ())


def _against(source: Source, mark: Mark) -> tuple[str, str, str] | None:  # noqa: C901 - each part of a mark
    """Return what was looked for, why it is not there, and what lines to show would be like."""
    if mark.named:
        if not _named(source, mark.named):
            return f"a name like `{mark.named[0]}`", "the file uses none", ""
        if not (mark.has or mark.lacks or mark.scope):
            return None
    found = syntax.scopes(source.tree, mark.scope)
    where = f" in {mark.scope}" if mark.scope else ""
    because = f": {mark.why}" if mark.why else ""
    if len(found) != 1:
        if not (mark.has or mark.lacks):
            return f"`{mark.scope}`", f"the file has {len(found)} of that name{because}", _like(mark.scope)
        if mark.has:
            return f"`{mark.has[0]}`{where}", f"the file has {len(found)} scopes of that name{because}", ""
        return None
    for code in mark.has:
        if not _lines(found[0], code):
            return f"`{code}`{where}", f"the code is not there{because}", code
    for code in mark.lacks:
        if lines := _lines(found[0], code):
            return f"no `{code}`{where}", f"the code is in line {lines[0]}{because}", ""
    return None


def shown(source: Source, mark: Mark) -> str:
    """Return where a mark matches, as the end of a sentence."""
    if mark.named and (named := _named(source, mark.named)):
        return f" (line {named}: `{source.lines()[named - 1].strip()}`)"
    found = syntax.scopes(source.tree, mark.scope)
    lines = [line for code in mark.has for line in _lines(found[0], code)[:1]] if len(found) == 1 else []
    return f" (line {lines[0]}: `{source.lines()[lines[0] - 1].strip()}`)" if lines else ""


def _lines(scope: Scope, code: str) -> list[int]:
    """Return the lines where code occurs: an expression anywhere, statements among statements."""
    pattern = ops.filled(code, {name: HOLE + name for name in ops.NAME_HOLE.findall(code)})
    try:
        return [node.lineno for node in syntax.standing(scope, programs.parse(pattern.strip(), "eval").body)]
    except SyntaxError:
        pass
    try:
        wanted = programs.parse(pattern).body
    except SyntaxError:
        return []
    inner = [node for node in ast.walk(scope) if isinstance(node, Scope)]
    return [run.statements[0].lineno for each in inner for run in syntax.runs_of(each, wanted)]


def _named(source: Source, patterns: Sequence[str]) -> int:
    """Return the line in which a name like one of some patterns gets a value that the file uses; 0 for none."""
    stored, used = dict[str, int](), set[str]()
    for node in syntax.nodes(source.tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                stored.setdefault(name, node.lineno)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                stored.setdefault(name, node.lineno)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                used.add(name)
    hits = [name for name in stored if name in used and any(re.fullmatch(each, name) for each in patterns)]
    return min((stored[name] for name in hits), default=0)


def _like(dotted: str) -> str:
    last = dotted.rsplit(".", 1)[-1]
    return f"class {last}" if last[:1].isupper() else f"def {last}("
