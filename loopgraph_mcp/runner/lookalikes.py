"""Finds the lines of a log whose names are most similar to a metric's: misspelt, shortened, or longer."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from loopgraph_mcp.text import compile_later, plain_line

_NAME = compile_later(r"[^\W\d_][\w./@%-]{0,60}")
_NUMBER = compile_later(r"[0-9]")
_WORD = compile_later(r"[a-z]+|[0-9]+")
_MAX_LINE = 400  # characters; longer lines are data
_MAX_NAMES = 3_000  # each is compared with the metric's name
_WORTH_SHOWING = 0.65  # likeness; `val_bbp` has 0.81 to `val_bpb`


def quoted(line: str) -> str:
    """Return a line of a log to show in a sentence: short, plain, and between backticks that it cannot close."""
    text = plain_line(line.replace("`", "'"), limit=400)
    return f"`{text[:99]}…`" if len(text) > 100 else f"`{text}`"


def closest_lines(lines: Sequence[str], metric: str, *, limit: int = 3) -> list[str]:
    """Return the last line of each of the names that are most like a metric's, best first.

    >>> closest_lines(["val_bbp: 0.99", "loss: 2"], "val_bpb")
    ['val_bbp: 0.99']
    """
    last: dict[str, str] = {}
    longest = min(4, len(re.split(r"[\s_./-]+", metric)) + 1)
    for line in lines:
        text = line[:_MAX_LINE]
        if metric and metric in text:
            last[metric] = text
        elif not _NUMBER.search(text):
            continue
        for name in _names(text, longest):
            if name in last or len(last) < _MAX_NAMES:
                last[name] = text
    scored = sorted(((likeness(name, metric), name) for name in last), reverse=True)
    found: list[str] = []
    for score, name in scored:
        if score >= _WORTH_SHOWING and last[name] not in found:
            found.append(last[name])
    return found[:limit]


def _names(line: str, longest: int) -> list[str]:
    """Return the runs of up to so many words that a name may consist of."""
    words = list(_NAME.finditer(line))[:40]
    names = []
    for first, word in enumerate(words):
        for last in words[first : first + longest]:
            name = line[word.start() : last.end()]
            if len(name) > 61 * longest or re.search(r"[^\w./@% -]", name):
                break  # two cells
            names.append(name)
    return names


def likeness(name: str, metric: str) -> float:
    """Return how alike two names are, from 0 to 1: letters, shortened words, words in common."""
    ours, theirs = _WORD.findall(metric.lower()), _WORD.findall(name.lower())
    if not ours or not theirs:
        return float(name == metric)
    if "".join(ours) == "".join(theirs):
        return 1.0
    if len(ours) == len(theirs) and all(_shortens(a, b) for a, b in zip(ours, theirs, strict=True)):
        return 0.95
    if set(ours) < set(theirs):
        return 0.85
    matcher = SequenceMatcher(None, "".join(ours), "".join(theirs), autojunk=False)
    if matcher.real_quick_ratio() < _WORTH_SHOWING or matcher.quick_ratio() < _WORTH_SHOWING:
        return 0.0
    return 0.85 * matcher.ratio() + 0.1


def _shortens(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return len(short) > 1 and long.startswith(short)
