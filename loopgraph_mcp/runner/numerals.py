"""Numbers as people print them: thousands separators, decimal commas, units; ambiguous ones are refused."""

import re
from enum import Enum

from loopgraph_mcp.text import compile_later

# A raw number, not yet understood. Spaces and apostrophes belong to it where they group three digits each: `1 234` may
# be one number or two, so it is refused; `1 234,5` is one.
RAW = (
    r"[-+\u2212]?(?:nan|inf(?:inity)?|(?:"
    r"[0-9]{1,3}(?:['\u2019\u00a0\u2009\u202f][0-9]{3})+(?:[.,][0-9]+)?"
    r"|[0-9]{1,3}(?: [0-9]{3})+(?:[.,][0-9]+)?(?![0-9])"
    r"|[0-9](?:[0-9.,_]{0,50}[0-9])?\.?"
    r"|\.[0-9]+"
    r")(?:[eE][-+]?[0-9]+)?)"
)
UNIT = (
    r"(?:%|[nuµμm]?s|secs?|seconds?|mins?|minutes?|h|hrs?|hours?|[kKMGT]i?[Bb]|bytes?|bpb|bits?|nats?|dB|px|pp|pts?"
    r"|points?|tok(?:en)?s?|it|steps?|x|°C|W|J)"
)

_GROUPED = compile_later(r"[0-9]{1,3}(?:([,_'\u2019\u00a0\u2009\u202f])[0-9]{3})(?:\1[0-9]{3})*(\.[0-9]*)?")
_POINTS_GROUP = compile_later(r"([0-9]{1,3}(?:[. '\u2019\u00a0\u2009\u202f][0-9]{3})+),([0-9]+)")
_ONE_COMMA = compile_later(r"[0-9]+,[0-9]+")
_LIKE_THOUSANDS = compile_later(r"[1-9][0-9]{0,2},[0-9]{3}")
_NOT_DIGITS = compile_later(r"[^0-9]")
_VALUE = compile_later(
    r"(?<![\w.,])(?<![0-9][:/-])[0-9][0-9.,]*+(?!:)"
)  # no time of day, as logging prints: 12:00:01,123
_POINT = compile_later(r"[0-9]+\.[0-9]+")
_SURELY_GROUPED = compile_later(r"[0-9]{1,3}(?:,[0-9]{3}){2,}(?:\.[0-9]+)?|[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]+")


class Comma(Enum):
    """What one comma between digits means in a log."""

    UNKNOWN = "unknown"
    DECIMAL = "decimal"
    THOUSANDS = "thousands"


def read_number(raw: str, comma: Comma = Comma.UNKNOWN) -> float | None:
    """Return the number that was printed, or None where it may mean two things.

    >>> read_number("12,345.6"), read_number("1.234,5"), read_number("9,311")
    (12345.6, 1234.5, None)
    """
    if "," not in raw:
        try:
            return float(raw)  # by far the most: Python prints what Python reads
        except ValueError:
            pass
    raw = raw.replace("\u2212", "-").removesuffix(".")  # the end of a sentence
    sign = raw[:1] if raw[:1] in "+-" else ""
    mantissa, e, exponent = raw[len(sign) :].partition("e" if "e" in raw else "E")
    plain = _plain(mantissa, comma)
    try:
        return None if plain is None else float(f"{sign}{plain}{e}{exponent}")
    except ValueError:
        return None


def _plain(mantissa: str, comma: Comma) -> str | None:
    """Return digits with at most a point, as Python reads them."""
    if _ONE_COMMA.fullmatch(mantissa):
        if comma is Comma.DECIMAL:
            return mantissa.replace(",", ".")
        return mantissa.replace(",", "") if comma is Comma.THOUSANDS and _LIKE_THOUSANDS.fullmatch(mantissa) else None
    if grouped := _GROUPED.fullmatch(mantissa):
        fraction = grouped.group(2) or ""
        return _NOT_DIGITS.sub("", mantissa.removesuffix(fraction)) + fraction
    if european := _POINTS_GROUP.fullmatch(mantissa):
        return f"{_NOT_DIGITS.sub('', european.group(1))}.{european.group(2)}"
    return mantissa if re.fullmatch(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)", mantissa) or mantissa.isalpha() else None


def comma_in(log: str, raw: str) -> Comma:
    """Return what the comma in a number means, as the other numbers of its log show.

    A decimal comma: others have one, and none has a decimal point. Thousands: others group their digits in threes with
    commas more than once or before a point, and none has a decimal comma.
    """
    points = commas = grouped = 0
    for each in _VALUE.finditer(log):
        text = each.group().rstrip(".,")
        if "," not in text:
            points += bool(_POINT.fullmatch(text))
        elif _SURELY_GROUPED.fullmatch(text):
            grouped += 1
        elif log[each.start() - 1 : each.start()] in ("(", "[") or log[each.end() : each.end() + 1] in (")", "]"):
            continue  # a shape or a list: (3,3)
        elif _POINTS_GROUP.fullmatch(text) or (_ONE_COMMA.fullmatch(text) and not _LIKE_THOUSANDS.fullmatch(text)):
            commas += 1
    digits = raw.lstrip("+-\u2212")
    alike = bool(_LIKE_THOUSANDS.fullmatch(digits))
    if not points and not grouped and commas > (0 if alike else 1):  # one that is no thousands counts itself
        return Comma.DECIMAL
    return Comma.THOUSANDS if alike and grouped and not commas else Comma.UNKNOWN
