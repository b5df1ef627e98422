"""Text: other people's words made plain at every edge, and what a text costs a model that reads it, in tokens.

Plain words move no cursor, hide nothing, and look like no line of ours.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

_T = TypeVar("_T")


# Regular expressions are compiled when they are first used: all of them together take a tenth of a start.
_PATTERN_METHODS = ("search", "match", "fullmatch", "finditer", "findall", "split", "sub", "subn")


class _Expression:
    """Stands for a compiled expression until one of its methods is asked for."""

    __slots__ = ("_flags", "_text", *_PATTERN_METHODS)

    def __init__(self, text: str, flags: int) -> None:
        self._text = text
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        """Compile it; after that its methods are attributes, and this is not called again for them."""
        if name not in _PATTERN_METHODS:
            raise AttributeError(name)
        compiled = re.compile(self._text, self._flags)
        for each in _PATTERN_METHODS:
            setattr(self, each, getattr(compiled, each))
        return getattr(compiled, name)


def compile_later(text: str, flags: int = 0) -> re.Pattern[str]:
    """Return an expression whose methods work as those of `re.compile(text, flags)`, and that costs nothing unused."""
    return cast("re.Pattern[str]", _Expression(text, flags))


# A terminal's commands with what belongs to them: colours and cursor (CSI), titles, links and clipboards (OSC and its
# like). Each part is bounded: an unclosed one costs its first 4,000 characters, and the rest is words.
_COMMANDS = compile_later(
    "(?:\x1b\\[|\x9b)[0-?]{0,99}[ -/]{0,9}[@-~]?"
    "|(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n\r]{0,4000}(?:\x07|\x1b\\\\|\x9c)?"
    "|\x1b[ -/]{0,9}[0-~]?"
)
_BREAKS = compile_later("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")  # all that str.splitlines takes for a new line
# Controls but tab and newline; what has no width, turns the writing direction or spells hidden text: soft hyphen,
# joiners, marks, bidi, the byte-order mark, fillers, variation selectors, tags.
_UNSEEN = compile_later(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_SURROGATES = compile_later("[\ud800-\udfff]")
# How a line of ours begins: a word or a few, a bracket perhaps, a colon.
OUR_LINES = compile_later(
    r"\s*(?:next|verdict|decision|note|notes|before|now|undone|recipe|prior|plateau|best|best known here|source|"
    r"mend|passage|passages|methods|reported|measured|guidance|left out|led to it|came of it|goes well with it|"
    r"also misfits|also known as|nearest recipe|papers report|end of its log|where it may belong in the file|goal|"
    r"loopgraph)"
    r"(?: \([^)\n]{0,80}\))?\s?:",
    re.IGNORECASE,
)
EXACT = frozenset({"diff"})  # fields that programs apply as they are; they are made plain where they are shown
_MANY_LINES = frozenset({"log_tail", "text"})


def visible(text: str) -> str:
    """Return a text without what cannot be seen; its lines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    text = _BREAKS.sub("\n", _COMMANDS.sub("", text))
    return _UNSEEN.sub("", _SURROGATES.sub("\ufffd", text))


def plain_text(text: str) -> str:
    """Return a source's words without what cannot be seen; lone surrogates are replaced."""
    return visible(text).strip()


def plain_line(text: str, *, limit: int = 300) -> str:
    """Return a source's words as one line."""
    return " ".join(visible(text).split())[:limit].rstrip()


def quoted(text: str, mark: str = "| ") -> list[str]:
    """Return the lines of other people's words, each marked as theirs; empty ones are left out."""
    return [f"{mark}{line.expandtabs(4)}" for line in visible(text).split("\n") if line.strip()]


def marked(line: str) -> str:
    """Return a line that other people's words begin: marked as theirs where it would look like one of ours."""
    return f"| {line}" if OUR_LINES.match(line) else line


def diff_lines(diff: str) -> list[str]:
    """Return a diff's lines; what is none, or looks like a line of ours, is marked."""
    return [
        line if line.startswith(("+", "-", "@", " ", "\\")) and not OUR_LINES.match(line) else f"| {line}"
        for line in visible(diff).rstrip().split("\n")
    ]


def said(text: str) -> str:
    """Return the words of a refusal, which hold what was asked: its first line, and the others marked as quoted."""
    first, *rest = visible(text).replace("\t", " ").strip("\n").split("\n")
    return "\n".join([marked(first), *(line for each in rest for line in quoted(each))])


def plain(value: _T) -> _T:
    """Return an answer in which all text is plain: one line, or where a field has many lines those lines."""
    made: Any = _plain(value, "")
    return made  # type: ignore[no-any-return]  # the same type as it was


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return _field(value, name) if type(value) is str else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for each in dataclasses.fields(value):
            before = getattr(value, each.name)
            after = _plain(before, each.name)
            if after is not before:
                changed[each.name] = after
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, Mapping):
        return _whole({_plain(key, ""): _plain(each, "") for key, each in value.items()}, value)
    if isinstance(value, list | tuple):
        return _whole(type(value)(_plain(each, name) for each in value), value)
    return value


def _whole(made: Any, value: Any) -> Any:
    """Return what was there where nothing of it changed."""
    return value if made == value else made


def _field(text: str, name: str) -> str:
    if name in EXACT or (text.isascii() and text.isprintable()):
        return text
    shown = visible(text)
    return shown if name in _MANY_LINES else shown.replace("\n", " ").replace("\t", " ")


# A word is about one token per six letters, a number one per three digits, a sign one: within 15 % of common
# tokenizers on code and English, and free of any vocabulary file.
_PIECES = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")


def estimate_tokens(text: str) -> int:
    """Return the estimated number of tokens of a text."""
    total = 0
    for piece in _PIECES.finditer(text):
        length, first = len(piece.group()), piece.group()[0]
        if first.isalpha():
            total += -(-length // 6)
        elif first.isdigit():
            total += -(-length // 3)
        else:
            total += 1
    return total
