"""Applies or reverts a unified diff; line numbers are only hints, lines must match."""

from collections.abc import Sequence
from dataclasses import dataclass

from loopgraph_mcp.models import Applied, EditResult, Present, Refused
from loopgraph_mcp.text import compile_later

_HUNK = compile_later(r"^@@(?: -(\d{1,9})(?:,\d+)? \+(\d{1,9})(?:,\d+)? @@| @@|\s*$)")
_MAX_PATCH_CHARS = 400_000  # more than a diff that replaces the largest program


@dataclass(frozen=True, slots=True)
class _Hunk:
    start: int  # 1-based line of the old text where it says it belongs; 0 where it does not say
    old: tuple[str, ...]
    new: tuple[str, ...]
    new_start: int = 0  # likewise of the new text

    def reversed(self) -> "_Hunk":
        """Return the hunk that undoes this one."""
        return _Hunk(self.new_start, self.new, self.old, self.start)


def apply_patch(source: str, patch: str) -> EditResult:
    """Return the patched text, or why the patch does not fit: every hunk's old lines must stand in one place."""
    hunks = _read(patch)
    return hunks if isinstance(hunks, Refused) else _apply(source, hunks)


def take_out(source: str, patch: str) -> EditResult:
    """Return the text that a patch was applied to, or why the text does not hold what the patch makes.

    A hunk that leaves no line behind cannot be looked for: what it deleted without context may have been anywhere.
    """
    hunks = _read(patch)
    if isinstance(hunks, Refused):
        return hunks
    if not all(hunk.new for hunk in hunks):
        return Refused("the lines around a deletion", "the patch has no context to find them by")
    return _apply(source, [hunk.reversed() for hunk in hunks])


def adds_lines(patch: str) -> bool:
    """Return whether every hunk of a patch leaves lines behind that it can be known by."""
    hunks = _read(patch)
    return not isinstance(hunks, Refused) and all(hunk.new for hunk in hunks)


def _apply(source: str, hunks: Sequence[_Hunk]) -> EditResult:
    newline = "\r\n" if "\r\n" in source else "\n"
    lines = source.replace("\r\n", "\n").split("\n")
    shift, changes = 0, []
    for number, hunk in enumerate(hunks, start=1):
        place = _find(lines, hunk, hunk.start - 1 + shift)
        if isinstance(place, Refused):
            return Refused(f"hunk {number}: {place.looked_for}", place.reason, place.nearest)
        lines[place : place + len(hunk.old)] = hunk.new
        shift += len(hunk.new) - len(hunk.old)
        changes.append(f"hunk {number} at line {place + 1}")
    text = newline.join(lines)
    if text == source:
        return Present("the patch changes nothing")
    return Applied(text, tuple(changes))


def _read(patch: str) -> list[_Hunk] | Refused:
    if len(patch) > _MAX_PATCH_CHARS:
        return Refused("a unified diff", f"the patch has {len(patch):,} characters; at most {_MAX_PATCH_CHARS:,}")
    return _parse(patch) or Refused(
        "a unified diff", "the patch has no hunk; send the output of `diff -u`, with lines `@@ … @@`"
    )


def _parse(patch: str) -> list[_Hunk]:
    hunks: list[_Hunk] = []
    start, new_start, old, new = 0, 0, list[str](), list[str]()
    inside = False

    def close() -> None:
        if inside and (old or new):
            hunks.append(_Hunk(start, tuple(old), tuple(new), new_start))

    for line in patch.replace("\r\n", "\n").rstrip("\n").split("\n"):
        if match := _HUNK.match(line):
            close()
            start, new_start = int(match.group(1) or 0), int(match.group(2) or 0)
            old, new, inside = [], [], True
        elif inside and line.startswith(("--- ", "+++ ", "diff --git ")):
            close()
            inside = False
        elif inside and line.startswith("-"):
            old.append(line[1:])
        elif inside and line.startswith("+"):
            new.append(line[1:])
        elif inside and not line.startswith("\\"):
            old.append(line[1:])
            new.append(line[1:])
    close()
    return hunks


def _find(lines: list[str], hunk: _Hunk, expected: int) -> int | Refused:
    """Return the index where the hunk's old lines stand: the one place, or the one nearest to where it says."""
    if not hunk.old:
        return min(max(expected + 1, 0), len(lines))
    wanted = [line.rstrip() for line in hunk.old]
    stripped = [line.rstrip() for line in lines]
    places = [
        index
        for index in range(len(lines) - len(wanted) + 1)
        if stripped[index] == wanted[0] and stripped[index : index + len(wanted)] == wanted
    ]
    if len(places) == 1:
        return places[0]
    if not places:
        longest = max(wanted, key=len)
        near = [f"{i}: {line}" for i, line in enumerate(stripped, start=1) if line.strip() == longest.strip()]
        return Refused(repr(longest.strip()), "the file does not have its lines in this order", tuple(near[:3]))
    if hunk.start and expected in places:
        return expected
    numbers = ", ".join(str(place + 1) for place in places[:5])
    return Refused(
        repr(wanted[0].strip()),
        f"its lines match {len(places)} places (lines {numbers}); add lines of context",
    )
