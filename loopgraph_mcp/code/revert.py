"""Removes an edit from a text that has changed since, to the byte, or says what prevents it."""

import ast
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from loopgraph_mcp.code import syntax
from loopgraph_mcp.code.syntax import Scope, Source, Unparsable
from loopgraph_mcp.models import Applied, EditResult, Present, Refused

_CONTEXTS = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 3), (6, 6)]


@dataclass(frozen=True, slots=True)
class _Hunk:
    """Neighbouring lines of an edit's new text, what stood there before, and the scope they stand in."""

    start: int
    stop: int
    old: Sequence[str]
    scope: str


def undo(base: str, new: str, present: str) -> EditResult:
    """Return the present text without what the edit from `base` to `new` did to it.

    Each place is found again by its scope's name and its own lines, which must be as the edit left them; the rest of
    the file may have changed. To make the same edit in the result gives the present text again, or it is refused.
    """
    if present == new:
        return Applied(base, ("the text is the one before the edit",))
    try:
        result = _swapped_back(base, new, present)
        if isinstance(result, Refused):
            return result
        if result == present:
            return Present("the file has no part of it")
        again = _swapped_back(new, base, result)
    except Unparsable as error:
        return Refused("a text that Python can parse", f"{error}; fix it first")
    except (RecursionError, MemoryError) as error:
        return Refused("a text of sane depth", f"it is nested too deeply to read ({type(error).__name__})")
    if again != present:
        return Refused("a place that only the edit changed", "the same lines occur elsewhere too; remove them by hand")
    return Applied(result, ("the edit's lines are as they were before it; all else stays",))


def _swapped_back(base: str, new: str, present: str) -> str | Refused:
    """Return the present text with each of the edit's hunks as it was before, from the last one on."""
    source, there = syntax.read(present), syntax.read(new)
    lines, old_lines, new_lines = (_lines(text) for text in (present, base, new))
    places = []
    for hunk in _hunks(old_lines, new_lines, there):
        place = _find(hunk, new_lines, lines, _span(source, hunk.scope))
        if isinstance(place, Refused):
            return place
        places.append((place, hunk))
    places.sort(key=lambda pair: pair[0])
    ends = [place + hunk.stop - hunk.start for place, hunk in places]
    if any(end > place for end, (place, _) in zip(ends, places[1:], strict=False)):
        return Refused("the edit's places", "they have been merged since")
    for place, hunk in reversed(places):
        lines[place : place + hunk.stop - hunk.start] = hunk.old
    return "".join(lines)


def _hunks(old: Sequence[str], new: Sequence[str], there: Source) -> list[_Hunk]:
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    return [
        _Hunk(start, stop, old[i1:i2], _scope_at(there.tree, start + 1, max(stop, start + 1)))
        for tag, i1, i2, start, stop in matcher.get_opcodes()
        if tag != "equal"
    ]


def _lines(text: str) -> list[str]:
    """Return the lines with their ends, as Python counts them: a form feed ends none."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)


def _scope_at(tree: Scope, first: int, last: int) -> str:
    """Return the dotted name of the innermost function or class that holds some lines, wholly."""
    for node in syntax.statements(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if start < first and last <= (node.end_lineno or node.lineno):
                inner = _scope_at(node, first, last)
                return f"{node.name}.{inner}" if inner else node.name
    return ""


def _span(source: Source, dotted: str) -> tuple[int, int]:
    """Return the lines of a scope, from zero; of the nearest one around it where it is gone or no longer one."""
    found = syntax.scopes(source.tree, dotted)
    if len(found) != 1:
        return _span(source, dotted.rpartition(".")[0])
    scope = found[0]
    if isinstance(scope, ast.Module):
        return 0, len(source.lines()) + 1
    return scope.lineno - 1, (scope.end_lineno or scope.lineno) + 1


def _find(hunk: _Hunk, new: Sequence[str], lines: Sequence[str], within: tuple[int, int]) -> int | Refused:
    """Return the line at which a hunk's own lines stand, once; where they stand more often, with lines around them."""
    places: list[int] = []
    for before, after in _CONTEXTS:
        start, stop = max(0, hunk.start - before), min(len(new), hunk.stop + after)
        wanted = list(new[start:stop])
        if not wanted or (hunk.start == hunk.stop and stop - start < 2):  # a line alone does not show a gap
            continue
        found = [
            place
            for place in range(within[0], min(within[1], len(lines)) - len(wanted) + 1)
            if lines[place] == wanted[0] and list(lines[place : place + len(wanted)]) == wanted
        ]
        if len(found) == 1:
            return found[0] + hunk.start - start
        places = places or found
    shown = next((line.strip() for line in [*new[hunk.start : hunk.stop], *hunk.old] if line.strip()), "an empty line")
    where = f"`{shown}`{f' in {hunk.scope}' if hunk.scope else ''}, as the edit left it"
    if places:
        numbers = ", ".join(str(place + 1) for place in places[:5])
        return Refused(where, f"it occurs {len(places)} times (lines {numbers}); remove it by hand")
    return Refused(where, "it was changed since; undo the later change first, or remove it by hand")
