"""Tells which known methods a description tries, or a passage describes, where its words leave no doubt."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from loopgraph_mcp.models import Method, Move, SetConst, SetDefault, SetKwarg, SetLocal, all_ops
from loopgraph_mcp.ranking.descriptions import read_moves, stripped
from loopgraph_mcp.text import compile_later


@dataclass(frozen=True, slots=True)
class Tried:
    """The methods that a description tries, or why none is told."""

    method_ids: tuple[str, ...] = ()
    doubt: str = ""


def methods_tried(description: str, methods: Sequence[Method], *, moves: Sequence[Move] | None = None) -> Tried:
    """Return the methods that a description tries: each of its moves is one method's, and nothing else is changed.

    A method's move has the method's knob and goes its way; where several methods make it, the one that is named is
    meant. A description of no move that we know tries the one method that it names.

    Args:
        description: What was done, in words.
        methods: The methods that are known.
        moves: What is known to be changed, where that is more than the description says.
    """
    moves = read_moves(description) if moves is None else moves
    named = _named(stripped(description), methods)
    if [move.knob for move in moves] == ["other"]:
        return _only(named, "names")
    whole = [each.id for each in methods if len(each.moves) > 1 and _knobs(each.moves) == _knobs(moves)]
    if whole:
        return _only(whole, "may be")
    if "batch_size" in _knobs(moves):  # how a batch is split among steps of accumulation changes no result
        moves = [move for move in moves if move.knob != "device_batch"]
    claims = [_claim(move, named, methods) for move in moves]
    claimed = tuple(dict.fromkeys(each for claim in claims for each in claim.method_ids))
    if not claimed:
        return Tried(doubt=next((claim.doubt for claim in claims if claim.doubt), ""))
    beside = [str(move) for move, claim in zip(moves, claims, strict=True) if not claim.method_ids]
    if beside:
        return Tried(doubt=f"also changes {', '.join(beside)}: not counted for {', '.join(claimed)}")
    return Tried(claimed)


def _claim(move: Move, named: Sequence[str], methods: Sequence[Method]) -> Tried:
    fits, unsure = list[str](), list[str]()
    for method in methods:
        made = method.moves
        if len(made) != 1 or (made[0].knob, made[0].word) != (move.knob, move.word) or move.knob == "other":
            continue
        if not made[0].direction and not move.word:  # no way to turn a knob: tried only where it is named
            fits += [method.id] if method.id in named and move.direction >= 0 else []
        elif move.direction in {made[0].direction, 0}:
            clear = move.direction == made[0].direction or (made[0].value is None and method.id in named)
            (fits if clear else unsure).append(method.id)
    if len(fits) > 1 and (meant := [each for each in fits if each in named]):
        fits = meant
    if not fits and unsure:
        return Tried(doubt=f"does not say which way: not counted for {' or '.join(unsure)}")
    return _only(fits, "may be")


def _knobs(moves: Sequence[Move]) -> set[str]:
    return {move.knob for move in moves}


def _only(method_ids: Sequence[str], word: str) -> Tried:
    if len(method_ids) > 1:
        return Tried(doubt=f"{word} {' or '.join(method_ids)}: counted for none")
    return Tried(tuple(method_ids))


def _named(text: str, methods: Sequence[Method]) -> list[str]:
    """Return the methods whose name, alias or identifier a text holds; of names inside one another, the longest."""
    spans = [(*match.span(), method.id) for method in methods for match in _pattern(method).finditer(text)]
    kept = [
        each
        for start, end, each in spans
        if not any(left <= start and end <= right and right - left > end - start for left, right, _ in spans)
    ]
    return list(dict.fromkeys(kept))


@lru_cache(maxsize=1024)
def _pattern(method: Method) -> re.Pattern[str]:
    ops = [] if method.recipe is None else all_ops(method.recipe)
    set_here = [op.name for op in ops if isinstance(op, SetConst | SetLocal | SetDefault | SetKwarg)]
    words = [method.name, method.id, *method.aliases, *(name for name in set_here if "_" in name)]
    phrases = {" ".join(re.split(r"[\W_]+", word.casefold())).strip() for word in words}
    longest = sorted((phrase for phrase in phrases if phrase), key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(re.escape(each).replace(r"\ ", r"[\W_]+") for each in longest) + r")s?\b")


# ------------------------------------------------------------------------------------------------ passages

_BESIDE = compile_later(r"related work|\breferences?\b|bibliograph|acknowledg|table of contents", re.IGNORECASE)
_SET_AGAINST = compile_later(
    r"\b(?:unlike|instead of|rather than|in contrast (?:to|with)|as opposed to|in place of|not|no|nor|neither|without|"
    r"except|replac\w+|such as|e\.g\.|including|for example|see|cf\.)\b[^.;:]{0,40}$",
    re.IGNORECASE,
)
_LOOK_BACK = 60
_SHORT = 6  # letters of an acronym at most, and of a word that is a name only beside others of its method
_WORD = compile_later(r"[a-z]{5,}")
_PLAIN_WORD = compile_later(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Named:
    """A method with what finds its names, made once for many passages.

    Args:
        firsts: The words that its names begin with: a passage that has none of them is not searched.
        pattern: What finds a name.
    """

    method: Method
    firsts: frozenset[str]
    pattern: re.Pattern[str]


def with_names(methods: Iterable[Method]) -> list[Named]:
    """Return methods with what finds their names."""
    return [Named(each, _firsts(each), _name_pattern(each)) for each in methods]


def _firsts(method: Method) -> frozenset[str]:
    words = [_PLAIN_WORD.search(name.casefold()) for name in (method.name, method.id, *method.aliases)]
    return frozenset(each for word in words if word for each in (word.group(), f"{word.group()}s"))


def methods_described(text: str, methods: Sequence[Named], *, place: str = "") -> dict[str, str]:
    """Return the methods that a passage tells of, each with the words that name it.

    Of names inside one another the longest counts. Acronyms are read in capitals alone; a short everyday word is a name
    only beside another word of its method's summary. What is only set against something else, listed or cited is not
    told of.
    """
    if _BESIDE.search(place):
        return {}
    folded = text.casefold()
    seen, words_in_it = set(_WORD.findall(folded)), set(_PLAIN_WORD.findall(folded))
    spans = [
        (*match.span(), each.method, match.group())
        for each in methods
        if not words_in_it.isdisjoint(each.firsts)
        for match in each.pattern.finditer(text)
        if _is_sure(match.group(), each.method, seen)
    ]
    told: dict[str, str] = {}
    for start, end, method, words in sorted(spans, key=lambda span: span[:2]):
        within = any(left <= start and end <= right and right - left > end - start for left, right, _, _ in spans)
        if not within and not _SET_AGAINST.search(text[max(0, start - _LOOK_BACK) : start]):
            told.setdefault(method.id, words)
    return told


def _is_sure(name: str, method: Method, seen: set[str]) -> bool:
    if not name.isalpha() or not name.islower() or len(name) > _SHORT + 1:
        return True
    hints = set(_WORD.findall(f"{method.name} {method.summary} {method.family}".casefold()))
    return bool(hints & seen - {name})


@lru_cache(maxsize=1024)
def _name_pattern(method: Method) -> re.Pattern[str]:
    """Return what finds a method's names in running text: acronyms and identifiers as they are, words in any case."""
    as_told, any_case = list[str](), list[str]()
    for name in dict.fromkeys([method.name, method.id, *method.aliases]):
        words = [re.escape(part) for part in re.split(r"[^\w+]+|_+", name) if part]
        if len(words) == 1 and (name.isupper() or "_" in name) and len(name) <= _SHORT:
            as_told.append(words[0])
        elif words and not (len(words) == 1 and len(name) < 3):
            any_case.append(r"[\W_]{1,2}".join(words))
    longest = [sorted(set(each), key=lambda word: (-len(word), word)) for each in (as_told, any_case)]
    parts = [part for part in ("|".join(longest[0]), f"(?i:{'|'.join(longest[1])})" if longest[1] else "") if part]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})s?(?![\w+])") if parts else re.compile(r"(?!)")
