"""Turns any string into safe and fast full-text queries: its names, and which of its words to search for."""

import itertools
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_WORDS = 12  # each word costs a scan of its rows; longer questions repeat themselves
MAX_OTHER_NAMES = 6  # of the methods that a query names; more would drown its own words
_MAX_CHARS = 2_000  # of a query; a pasted page would be thousands of words
_NAMED_IN = 30  # words of a query in which names are looked for
_NAME_WORDS = 5  # words of a method's name
# fmt: off
# Words that say nothing of a method; dropped unless they are all there is.
_STOP_WORDS = frozenset({
    "a", "also", "an", "and", "any", "are", "as", "at", "be", "better", "by", "can", "could", "did", "do", "does",
    "for", "from", "get", "has", "have", "help", "helps", "how", "i", "if", "improve", "in", "into", "is", "it",
    "its", "just", "make", "me", "my", "need", "needs", "no", "not", "of", "on", "only", "or", "our", "should", "so",
    "some", "than", "that", "the", "then", "there", "these", "this", "to", "too", "try", "use", "using", "very",
    "want", "was", "way", "we", "what", "when", "where", "which", "while", "why", "will", "with", "without", "would",
    "you",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing that a query asks for: its words, and other names of the same."""

    words: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a search may cost.

    Args:
        common_share: A word in more of an index's rows than this share is common: costly, and says little.
        common_rows: In so few rows no word is.
        words: The rarest words of which any is enough.
        rows: Rows that they may stand in together; the rarest word is kept whatever it costs.
        seconds: After which the search answers with what it has.
    """

    common_share: float = 1 / 100
    common_rows: int = 200
    words: int = 6
    rows: int = 300
    seconds: float = 0.25

    def common(self, size: int) -> int:
        """Return how many rows of an index a word may stand in and not be common."""
        return int(max(size * self.common_share, self.common_rows))


@dataclass(frozen=True, slots=True)
class Match:
    """What to ask one index for, as FTS5 expressions; empty where there is nothing to ask.

    Args:
        every: Rows with every concept, where it does not ask for too many.
        some: Rows with some of them, where that is more.
        common: Rows with every word, where all words are common.
        best: The score of a row that said each thing asked for and little else: the sum of the words' weights, those
            that no row holds included.
    """

    every: str = ""
    some: str = ""
    common: str = ""
    best: float = 1.0


def read_words(query: str) -> list[str]:
    """Return the words of any string, in order, each once, that are safe to quote for FTS5.

    What cannot be encoded is dropped, look-alikes are folded (NFKC), and nothing but letters, digits and underscores
    is left, so a word holds neither a quote nor a NUL.
    """
    text = query[:_MAX_CHARS].encode("utf-8", "ignore").decode("utf-8")
    return list(dict.fromkeys(re.findall(r"[^\W]+", unicodedata.normalize("NFKC", text).casefold())))


def spans(words: Sequence[str]) -> list[str]:
    """Return what in a query may be a name: up to five words in a row, the longest first."""
    said = words[:_NAMED_IN]
    return [
        " ".join(said[start : start + length])
        for length in range(_NAME_WORDS, 0, -1)
        for start in range(len(said) - length + 1)
    ]


def read_concepts(words: Sequence[str], names: Mapping[str, Sequence[str]]) -> list[Concept]:
    """Return what a query asks for: a name that it says, with its other names, or else a word, twelve words at most.

    Args:
        words: The query's words.
        names: Other names for each span of words that is one.
    """
    kept = [word for word in words if word not in _STOP_WORDS] or list(words)
    left = set(kept[:MAX_WORDS])
    room = MAX_OTHER_NAMES
    concepts = []
    for span in spans(words):
        here = [word for word in span.split() if word in left]
        if span in names and here and len(here) == sum(word not in _STOP_WORDS for word in span.split()):
            others = [other for each in names[span] if (other := " ".join(read_words(each))) and other != span]
            concepts.append(Concept(tuple(here), tuple(dict.fromkeys(others))[:room]))
            room -= len(concepts[-1].names)
            left.difference_update(here)
    singles = [Concept((word,)) for word in kept[:MAX_WORDS] if word in left]
    return concepts + singles


def plan(concepts: Sequence[Concept], counts: Mapping[str, int], size: int, limits: Limits) -> Match:
    """Choose what to look for in an index of some size, given how many rows hold each word.

    A name counts as its rarest word. Words that no row holds are not looked for: they would leave nothing to find.
    """
    common = limits.common(size)
    said = sorted({word for concept in concepts for word in concept.words if counts[word]})
    rarest = sorted((word for word in said if counts[word] <= common), key=lambda word: counts[word])
    rows = itertools.accumulate(counts[word] for word in rarest)
    rare = {word for word, so_far in zip(rarest[: limits.words], rows, strict=False) if so_far <= limits.rows}
    rare.update(rarest[:1])
    groups, alone, best = list[str](), list[str](), 0.0
    for concept in concepts:
        words = [word for word in concept.words if 0 < counts[word] <= common]
        counted = {name: min(counts[word] for word in name.split()) for name in concept.names}
        names = {name: count for name, count in counted.items() if 0 < count <= common}
        quoted = [_quote(name) for name in names]
        alone += [*(_quote(word) for word in words if word in rare), *quoted]
        if words:
            quoted.insert(0, "(" + " AND ".join(_quote(word) for word in words) + ")")
        if quoted:
            groups.append("(" + " OR ".join(quoted) + ")")
        lacking = [word for word in concept.words if not counts[word] and not names]
        best += sum(_weight(counts[word], size) for word in [*words, *lacking])
        if names and not words:
            best += max(_weight(count, size) for count in names.values())
    every = " AND ".join(groups)
    if len(groups) > limits.words:  # no row is likely to hold them all, and looking for it costs
        every = ""
    some = " OR ".join(dict.fromkeys(alone)) if len(groups) > 1 or len(rarest) > 1 else ""
    return Match(every, some, "" if groups else " AND ".join(_quote(word) for word in said), best or 1.0)


def _weight(rows: int, size: int) -> float:
    """Return the most that a word adds to bm25: FTS5's inverse document frequency, times its 1 + k1."""
    return 2.2 * max(math.log((size - rows + 0.5) / (rows + 0.5)), 0.1) if size > rows else 0.22


def words_of(concepts: Sequence[Concept]) -> list[str]:
    """Return every word of some concepts and their other names, each once."""
    each = (word for concept in concepts for part in (*concept.words, *concept.names) for word in part.split())
    return list(dict.fromkeys(each))


def _quote(words: str) -> str:
    return f'"{words}"'
