"""Chooses the few passages of a document that tell most: of what is asked, or else of its method."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+")
_TELLING = re.compile(
    r"\babstract\b|contribution|\bmethod|\bapproach\b|\balgorithm|\barchitecture|\bproposed\b|\bour\b", re.IGNORECASE
)
_SETTING_OUT = re.compile(
    r"\bintroduction\b|\bmodel\b|\bconclusion|\bsummary\b|\busage\b|\breadme\b|\bdesign\b", re.IGNORECASE
)
_BESIDE = re.compile(
    r"related work|\breferences?\b|bibliograph|acknowledg|appendix|supplement|ethic|broader impact|licen[cs]e|"
    r"changelog",
    re.IGNORECASE,
)
_CLAIM = re.compile(
    r"\b(?:we|this (?:paper|work)) (?:propose|introduce|present|show|describe|find|replace|suggest|use)|"
    r"\bour (?:method|approach|key|main|model|contribution)|\bis defined as\b|\bclass \w+|\bdef \w+",
    re.IGNORECASE,
)
_MOST_OF_A_PLACE = 2


@dataclass(frozen=True, slots=True)
class Told:
    """A passage with its id and place."""

    id: str
    place: str
    text: str


def choose(passages: Sequence[Told], query: str = "", *, limit: int = 5, words: int = 80) -> list[Told]:
    """Return the passages that tell most, best first, each cut to the words around what it tells.

    Args:
        passages: All of them, in reading order.
        query: What is asked; empty for what the document does.
        limit: How many to return, at most two of one place.
        words: The most words of one passage.
    """
    asked = {word.casefold() for word in _WORD.findall(query)}
    rarity = _rarity(asked, passages)
    scored = [(_relevance(each, rarity) if asked else _telling(each), -place) for place, each in enumerate(passages)]
    chosen, of_place = list[Told](), Counter[str]()
    for score, place in sorted(scored, reverse=True):
        each = passages[-place]
        if score <= 0 or len(chosen) == limit:
            break
        if of_place[each.place] < _MOST_OF_A_PLACE:
            of_place[each.place] += 1
            chosen.append(Told(each.id, each.place, cut(each.text, asked, words)))
    return chosen


def cut(text: str, asked: Iterable[str], words: int) -> str:
    """Return the stretch of a text that has most of the words asked for, or else begins where something is claimed."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if len(spans) <= words:
        return text.strip()
    wanted = set(asked)
    hits = [bool(wanted.intersection(_WORD.findall(text[start:end].casefold()))) for start, end in spans]
    first = 0
    if any(hits):
        begins = range(0, len(spans) - words + 1, max(1, words // 8))
        first = max(begins, key=lambda begin: (sum(hits[begin : begin + words]), -begin))
    elif (claim := _CLAIM.search(text)) is not None:
        first = min(sum(end <= claim.start() for _, end in spans), len(spans) - words)
    last = first + words
    shown = text[spans[first][0] : spans[last - 1][1]]
    return f"{'… ' if first else ''}{shown}{' …' if last < len(spans) else ''}"


def _rarity(asked: set[str], passages: Sequence[Told]) -> dict[str, float]:
    """Return what each word asked for weighs: more where fewer passages have it."""
    seen = Counter(word for each in passages for word in asked.intersection(_words(each)))
    return {word: math.log(1 + len(passages) / count) for word, count in seen.items()}


def _words(passage: Told) -> set[str]:
    return {word.casefold() for word in _WORD.findall(f"{passage.place} {passage.text}")}


def _relevance(passage: Told, rarity: dict[str, float]) -> float:
    words = _words(passage)
    found = sum(weight for word, weight in rarity.items() if word in words)
    return found * (0.5 if _BESIDE.search(passage.place) else 1.0)


def _telling(passage: Told) -> float:
    if _BESIDE.search(passage.place):
        return 0.0
    of_place = 2.0 if _TELLING.search(passage.place) else 1.0 if _SETTING_OUT.search(passage.place) else 0.2
    return of_place + min(2, len(_CLAIM.findall(passage.text))) + min(len(passage.text), 400) / 1_000
