"""Finds a metric in a log as people print it: in a summary, a sentence, a dict, a table. The log is untrusted text.

A wrong number is worse than none: where two readings are possible, the answer says so and quotes the lines.
"""

import io
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from loopgraph_mcp.models import Direction
from loopgraph_mcp.runner.lookalikes import closest_lines, quoted
from loopgraph_mcp.runner.numerals import RAW, UNIT, Comma, comma_in, read_number
from loopgraph_mcp.runner.trainlog import lines_of, plain
from loopgraph_mcp.text import compile_later

_PIECE_BYTES = 2**20  # a log is read piece by piece, as it may have gigabytes
_BLOCK_BYTES = 2**16  # more than any summary
_SAMPLE_BYTES = 2 * 2**20  # of the log's other numbers
_NEAR_BYTES = 2**20  # in which lines like the metric are looked for
_MAX_PATTERN = 1_000  # characters of a regular expression; none that a person wrote is longer
_PATTERN_LINE = 2_000  # characters of a line: a pattern's time may grow with their square
_HEAD = 160  # characters before a name that may say which metric it is
_MAX_OWNERS = 50  # names and units that one log may print a metric under
_MAX_SHAPES = 10_000  # shapes of lines remembered; bounds the memory
_MAX_SUMMARY = 200  # numbers of a summary that are stored
_SPLITS = "train|training|val|valid|validation|eval|evaluation|test|testing|dev|holdout|held-out"
# The part of the data comes before: `train: loss 1`, `[train] loss 1`, `{"split": "train", "loss": 1}`
_SECTION = compile_later(
    rf"(?:^|[^\w./-])({_SPLITS})[\"'\])}}]*[ \t]*[:|,;>{{(\])}}\u2502\u2503-]",
    re.IGNORECASE,
)
_SPLIT = compile_later(_SPLITS, re.IGNORECASE)
_GIVEN_PART = compile_later(rf"[=:\"']({_SPLITS})[\"']?[ \t]+$", re.IGNORECASE)
# Words before a name that are no part of it: what kind of line it is, or when.
_TAGS = compile_later(
    r"metric|results?|scores?|final|summary|info|debug|warn|warning|step|epoch|iter|iteration|the|at|and|with|has|got|of"
    r"|current|now|overall",
    re.IGNORECASE,
)
_DIGITS = str.maketrans("123456789", "000000000")
_BRACKETS = ("(", "[")
_LINE_ENDS = frozenset(["", "\n", " "])
_PLAIN_ENDS = frozenset(["", "\n", ",", ";", ")", "]", "}"])
_QUOTES = "\"'`*"
_NO_NAME_BEFORE = frozenset("_/.@-#$\\&+")
_RULE = compile_later(r"\s*-{3,}\s*")
_NO_VALUE = compile_later(  # what follows a number that is no value
    r"[-:][0-9A-Za-z]|/[0-9]{1,2}/[0-9]"  # a time, a range, a date
    r"| ?(?:->|=>|\u2192)"  # the value before a change
    r"| ?[\u00d7x*] ?10\b| (?:folds?|times|more|less|fewer)\b|\w"  # 1.5 x 10^-3, 5 folds, 0x1f
)
_MORE_TIME = compile_later(r" ?[0-9]{1,2} ?(?:m|s|min|sec)\b")  # 1 h 5 m
_MORE_OF_LIST = compile_later(r",|[ \t]+[-+]?\.?[0-9]")  # [0.5, 0.6]; [0.5 0.6] of numpy; [1.2 ms 1.3 ms 1.4 ms]
_UNIT_NEXT = compile_later(rf" ?({UNIT})(?![\w.])")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The metric to find: its name, or a regular expression with it; which of several values; which way is better.

    Args:
        name: As it is printed; it may hold spaces.
        direction: Which way it improves.
        pattern: A regular expression over one line; the group `value`, or else the first, is the number.
        take: Which value counts where the log holds several.
    """

    name: str
    direction: Direction = Direction.LOWER
    pattern: str | None = None
    take: Literal["last", "best", "first"] = "last"


@dataclass(frozen=True, slots=True)
class Found:
    """The metric, the other numbers of its summary by name, and how it was read where that is not plain."""

    value: float
    summary: Mapping[str, float]
    how: str = ""


@dataclass(frozen=True, slots=True)
class NotFound:
    """Why there is no metric, with the lines that come closest and what to do."""

    reason: str


@dataclass(slots=True)
class _Values:
    """What one name's values in the log come to, without keeping them all."""

    worse: Callable[[float, float], bool]
    line: str
    count: int = 0
    first: str = ""
    last: str = ""
    best: float = math.nan
    unclear: str = ""  # a value that may mean two things
    units: set[str] = field(default_factory=set)

    def add(self, raw: str, unit: str, comma: Comma) -> None:
        value = read_number(raw, comma)
        self.count += 1
        self.first = self.first or raw
        self.last = raw
        if value is None:
            self.unclear = self.unclear or raw
        elif math.isfinite(value) and not self.worse(value, self.best):  # any number is better than nan
            self.best = value
        if unit not in self.units and len(self.units) < _MAX_OWNERS:
            self.units.add(unit)


_Owner = tuple[
    str, str
]  # what the text before a name makes of it: nothing, another word of its name, a part of the data
_PLAIN: _Owner = ("", "")


def check_pattern(pattern: str) -> str:
    """Return what is wrong with a regular expression for a metric, or nothing.

    It comes with a repository that somebody else may have written. How long a search takes cannot be read off an
    expression, so whoever searches with it must be able to end the search: `runner.metric_log` does so in a process.
    """
    if len(pattern) > _MAX_PATTERN:
        return f"has {len(pattern)} characters; use at most {_MAX_PATTERN}"
    try:
        groups = _compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        return f"{pattern!r} is not a valid regular expression ({error}); correct it, or remove it and set `metric`"
    return "" if groups else f"{pattern!r} has no group; put the number in parentheses, as in 'acc=([0-9.]+)'"


def _compile(pattern: str) -> re.Pattern[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a later Python will not take
        return re.compile(pattern)


def read_text(log: str, wanted: Wanted) -> Found | NotFound:
    """Read a metric from a log that is at hand as text; see `read_log`."""
    return read_log(io.BytesIO(log.encode("utf-8", "replace")), wanted)


def read_log(log: BinaryIO, wanted: Wanted) -> Found | NotFound:
    """Read a metric from a whole log, a piece at a time.

    A search with a pattern may take for ever: `runner.metric_log` ends it.

    >>> read_text("step 250: train loss 1.5000, val loss 1.6000", Wanted("val loss")).value
    1.6
    """
    scan = _scan_pattern if wanted.pattern else _scan_name
    found = scan(log, wanted, Comma.UNKNOWN)
    chosen = _choose(found, wanted)
    comma = Comma.UNKNOWN
    if isinstance(chosen, _Values) and (raw := _unclear(chosen, wanted)):
        comma = comma_in(_ends(log, _SAMPLE_BYTES), raw)
        if comma is Comma.UNKNOWN:
            return NotFound(_unclear_reason(raw, chosen, wanted))
        chosen = _choose(scan(log, wanted, comma), wanted)
    if isinstance(chosen, NotFound):
        return chosen
    if chosen is None:
        return NotFound(_not_found_reason(log, wanted, found))
    if wanted.take == "best" and len(chosen.units) > 1:
        units = " and ".join(sorted(f"`{unit}`" if unit else "without one" for unit in chosen.units))
        return NotFound(
            f"the values of `{wanted.name}` have different units ({units}), so none is the best; print one unit"
        )
    return _found(log, wanted, chosen, found, comma)


@dataclass(slots=True)
class _Scan:
    """What one pass over the log found."""

    worse: Callable[[float, float], bool]
    values: dict[_Owner, _Values] = field(default_factory=dict)
    lines: int = 0
    last_summary_at: int | None = None  # where the piece begins that holds the last line of a name and its value
    no_number: str = ""  # what the pattern's group held instead

    def values_of(self, owner: _Owner, text: str, at: int) -> _Values:
        """Return the values that so named ones come to; the line at hand is the example of a new one."""
        if owner not in self.values and owner != _PLAIN and len(self.values) >= _MAX_OWNERS:
            owner = ("word", "")
        return self.values.get(owner) or self.values.setdefault(owner, _Values(self.worse, _line_at(text, at)))


def _pieces(log: BinaryIO, scan: _Scan) -> Iterator[tuple[int, str]]:
    """Yield a log in pieces of whole lines, each with where it begins, as a terminal would show it."""
    log.seek(0)
    at, rest = 0, b""
    while data := log.read(_PIECE_BYTES):
        data = rest + data
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut and len(data) < 2 * _PIECE_BYTES:
            rest = data
            continue
        cut = cut or max(data.rfind(b","), data.rfind(b" ")) + 1 or len(data)  # one endless line: not within a number
        text = plain(data[:cut].decode("utf-8", "replace"))
        scan.lines += text.count("\n")
        yield at, text
        at, rest = at + cut, data[cut:]
    if rest:
        scan.lines += 1
        yield at, plain(rest.decode("utf-8", "replace"))


def _scan_name(log: BinaryIO, wanted: Wanted, comma: Comma) -> _Scan:
    scan = _Scan(operator.ge if wanted.direction is Direction.LOWER else operator.le)
    value_of = _value_of(wanted.name)
    says_part = bool(re.search(rf"(?<![a-z])(?:{_SPLITS})(?![a-z])", wanted.name, re.IGNORECASE))
    owners: dict[tuple[str, bool], _Owner | None] = {}
    for at, text in _pieces(log, scan):
        for match in value_of.finditer(text):
            (start, name_end), (begin, end) = match.span("name"), match.span("raw")
            floor = max(0, start - _HEAD)
            before = text[max(text.rfind("\n", floor, start) + 1, floor) : start]
            tight = begin - name_end == 1
            shape = (before.translate(_DIGITS), tight)
            if shape not in owners and len(owners) < _MAX_SHAPES:
                owners[shape] = _owner(before, tight=tight, says_part=says_part)
            owner = owners[shape] if shape in owners else _owner(before, tight=tight, says_part=says_part)
            if owner is None:
                continue
            unit, after = "", match.end()
            if text[after : after + 1] not in _PLAIN_ENDS:
                if next_unit := _UNIT_NEXT.match(text, after):
                    unit, after = next_unit.group(1), next_unit.end()
                if _NO_VALUE.match(text, after) or (unit and _MORE_TIME.match(text, after)):
                    continue
            if match.group("open")[-1:] in _BRACKETS and _MORE_OF_LIST.match(text, after if unit else end):
                continue  # the first of a list
            values = scan.values_of(owner, text, start)
            values.add(match.group("raw"), unit, comma)
            if text[after : after + 1] in _LINE_ENDS and not before.strip():
                scan.last_summary_at = at
    return scan


def _line_at(text: str, at: int) -> str:
    begin = text.rfind("\n", max(0, at - _PATTERN_LINE), at) + 1 or max(0, at - _PATTERN_LINE)
    end = text.find("\n", at, at + _PATTERN_LINE)
    return text[begin : end if end >= 0 else at + _PATTERN_LINE]


def _value_of(name: str) -> re.Pattern[str]:
    """Return what finds a name and the number that belongs to it; the name comes first, so that the search is fast."""
    words = r"[ \t\u00a0]+".join(re.escape(word) for word in name.split())
    wrapper = r"(?:tensor|[Aa]rray|float|Decimal|tf\.Tensor|(?:np|numpy)\.\w{1,20})\([\"'\[]?"
    return re.compile(
        rf"(?P<name>{words})[\"'`*)\]>]{{0,4}}(?:[ \t]*[(\[]{UNIT}[)\]])?"
        r"(?:[ \t\u00a0]*(?:[:\uff1a]=?|=(?!=)|[-=]{1,5}>|\u2192|[|\u2502\u2503\u2551]|\.{2,80} ?[:=]?|is\b"
        r"|[-\u2013\u2014](?= ))[ \t\u00a0]*|[ \t\u00a0]+)"
        rf"(?P<open>[\"'`*$\u20ac\u00a3(\[]{{0,4}})(?:{wrapper})?(?P<raw>(?i:{RAW}))(?![0-9])[\"'`*]{{0,4}}"
    )


def _owner(before: str, *, tight: bool, says_part: bool) -> _Owner | None:
    """Return what the text before a name makes of it, or None where it is the end of another name.

    `train loss 1.5` is no `loss`. `aux loss: 0.1` is one only where nothing else is. In `final val_loss:2.07` the word
    before `name:value` without a space is no part of the name.
    """
    bare = before.rstrip(_QUOTES)
    previous = bare[-1:]
    if previous in _BRACKETS and bare[-2:-1].isalnum():
        return None  # max(acc): 0.9
    if previous.isalnum() or (previous in _NO_NAME_BEFORE and not bare.endswith("..")):
        return None
    section = ""
    if not says_part:
        parts = [each.group(1).lower() for each in _SECTION.finditer(before)]
        parts += [each.group(1).lower() for each in _GIVEN_PART.finditer(before)]
        section = parts[-1] if parts else ""
    if previous in (" ", "\t") and not bare.endswith(("  ", "\t")):
        word = bare.split()[-1] if bare.strip() else ""
        if _SPLIT.fullmatch(word):
            return None
        is_word = word.replace("-", "").replace("_", "").isalnum() and word[:1].isalpha()
        if is_word and not tight and not word.isupper() and not _TAGS.fullmatch(word):
            return ("word", word)
    return ("part", section) if section else _PLAIN


def _scan_pattern(log: BinaryIO, wanted: Wanted, comma: Comma) -> _Scan:
    scan = _Scan(operator.ge if wanted.direction is Direction.LOWER else operator.le)
    pattern = _compile(wanted.pattern or "")
    group: str | int = "value" if "value" in pattern.groupindex else 1
    number = re.compile(rf"\s*(?P<raw>(?i:{RAW}))\s?(?P<unit>{UNIT})?\s*")
    for _, text in _pieces(log, scan):
        for line in text.split("\n"):
            for match in pattern.finditer(line[:_PATTERN_LINE]):
                inside = match.group(group)
                printed = number.fullmatch(inside or "")
                if printed is None:
                    scan.no_number = scan.no_number or inside or ""
                    continue
                scan.values_of(_PLAIN, line, 0).add(printed.group("raw"), printed.group("unit") or "", comma)
    return scan


def _choose(scan: _Scan, wanted: Wanted) -> "_Values | NotFound | None":
    """Return the values of the name alone; if there are none, those of the one longer name that ends in it."""
    values = scan.values
    if not values:
        return None
    if _PLAIN in values:
        return values[_PLAIN]
    if len(values) == 1:
        return next(iter(values.values()))
    shown = ", ".join(quoted(each.line) for each in list(values.values())[:3])
    return NotFound(
        f"several metrics are called `{wanted.name}`: {shown}; "
        "set `metric` to the whole name of one of them, or `pattern`, in loopgraph.toml"
    )


def _unclear(values: _Values, wanted: Wanted) -> str:
    """Return the value on which the choice depends and which may mean two things, if there is one."""
    if wanted.take == "best":
        return values.unclear
    raw = values.last if wanted.take == "last" else values.first
    return raw if read_number(raw) is None else ""


def _unclear_reason(raw: str, values: _Values, wanted: Wanted) -> str:
    why = "no other number in the log shows which is the decimal and which the thousands separator"
    return (
        f"`{wanted.name}` was not read: {quoted(values.line)} may mean two numbers, as {why}"
        if "," in raw or " " in raw
        else f"`{wanted.name}` was not read: `{raw[:40]}` is not a number"
    ) + "; print it with a decimal point and no thousands separators"


def _found(log: BinaryIO, wanted: Wanted, values: _Values, scan: _Scan, comma: Comma) -> Found | NotFound:
    summary, ruled = _summary_around(log, wanted, scan, comma)
    notes = []
    if wanted.take == "last":
        value = read_number(values.last, comma)
        if ruled and wanted.name in summary:
            value = summary[wanted.name]
    elif wanted.take == "first":
        value = read_number(values.first, comma)
    else:
        value = values.best if math.isfinite(values.best) else read_number(values.last, comma)
    if value is None:
        return NotFound(_unclear_reason(values.last, values, wanted))
    if wanted.take != "last":
        notes.append(f"the {wanted.take} of {values.count} printed" if values.count > 1 else "the only one printed")
    if comma is not Comma.UNKNOWN:
        notes.append(f"its comma read as {'a decimal comma' if comma is Comma.DECIMAL else 'a thousands separator'}")
    return Found(value, {**summary, wanted.name: value}, "; ".join(notes))


def _ends(log: BinaryIO, limit: int) -> str:
    """Return the first and the last of a log, half of the limit each."""
    log.seek(0)
    start = log.read(limit // 2)
    log.seek(max(len(start), log.seek(0, io.SEEK_END) - limit // 2))
    return plain((start + log.read()).decode("utf-8", "replace"))


def _not_found_reason(log: BinaryIO, wanted: Wanted, scan: _Scan) -> str:
    scan.lines = scan.lines or 1
    read = f"{scan.lines:,} line{'' if scan.lines == 1 else 's'} read"
    lines = _ends(log, _NEAR_BYTES).split("\n")
    close = ", ".join(quoted(line) for line in closest_lines(lines, wanted.name))
    if scan.no_number:
        what = f"`pattern` matched, but its group held {quoted(scan.no_number)} and not a number ({read})"
    elif wanted.pattern:
        what = f"`pattern` matched no line ({read})"
    else:
        what = f"no line gives a number for `{wanted.name}` ({read})"
    near = f"; closest: {close}" if close else ""
    return f'{what}{near}; set `metric = "..."` or `pattern = "..."` in loopgraph.toml to what the program prints'


# ----------------------------------------------------------------------------------------- summary


def _summary_line(metric: str) -> re.Pattern[str]:
    """Return what matches a line that holds a name and its number alone."""
    name = "|".join([re.escape(metric), r"[A-Za-z_][\w./-]*"]) if metric else r"[A-Za-z_][\w./-]*"
    return re.compile(rf"\s*({name})\s*[:=]\s*((?i:{RAW}))\s?(?:{UNIT})?\s*")


def parse_summary(log: str, metric: str) -> Mapping[str, float]:
    """Return the numbers by name of the last block of `name: value` lines that holds the metric.

    The block may follow a line `---`, as autoresearch prints it, or stand alone. Empty where there is no such block.
    """
    return _last_block(log, metric, Comma.UNKNOWN)[0]


def _last_block(log: str, metric: str, comma: Comma) -> tuple[dict[str, float], bool]:
    """Return the last block's numbers, and whether a line `---` leads it; a number that may mean two is left out."""
    strict = _summary_line(metric)
    block: dict[str, float] = {}
    best: dict[str, float] = {}
    ruled = best_ruled = False
    for line in lines_of(log):
        if match := strict.fullmatch(line):
            value = read_number(match.group(2), comma)
            if value is not None and len(block) < _MAX_SUMMARY:
                block[match.group(1)] = value
            if match.group(1) == metric:
                best, best_ruled = (block, ruled) if value is not None else ({}, False)
        elif line.strip():
            block, ruled = {}, bool(_RULE.fullmatch(line))
    return dict(best), best_ruled


def _summary_around(log: BinaryIO, wanted: Wanted, scan: _Scan, comma: Comma) -> tuple[dict[str, float], bool]:
    """Return the numbers printed with the metric, and whether a line `---` leads them: its block, or the log's end."""
    if scan.last_summary_at is not None:
        log.seek(max(0, scan.last_summary_at - _BLOCK_BYTES))
        whole_line = log.tell() == 0
        window = plain(log.read(2 * _PIECE_BYTES + 2 * _BLOCK_BYTES).decode("utf-8", "replace"))
        block, ruled = _last_block(window if whole_line else window.partition("\n")[2], wanted.name, comma)
        if block:
            return block, ruled
    log.seek(max(0, log.seek(0, io.SEEK_END) - _BLOCK_BYTES))
    numbers: dict[str, float] = {}
    strict = _summary_line("")
    for line in lines_of(log.read().decode("utf-8", "replace")):
        match = strict.fullmatch(line)
        value = read_number(match.group(2)) if match else None
        if match and value is not None and len(numbers) < _MAX_SUMMARY:
            numbers[match.group(1)] = value
    return numbers, False
