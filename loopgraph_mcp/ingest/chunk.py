"""Cuts documents into passages that make sense alone: within one section, boxes whole, each with what leads to it."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loopgraph_mcp.ingest.parsers.model import Block, Document, Kind

LEAST_WORDS = 80
ENOUGH_WORDS = 160  # a passage that has these ends with its paragraph
MOST_WORDS = 250
_MOST_WORDS_OF_A_BOX = 800  # a table longer than that is cut between rows
_CHARS_OF_A_WORD = 40  # a longer one counts as several: what holds no spaces is cut as well
_LONGEST_WORD = 1_000
_WHOLE = frozenset({"equation", "table", "algorithm", "caption", "code", "list"})
_LED_TO = frozenset({"equation", "list", "code"})  # the sentence before one of these leads to it
_BOXES = frozenset({"table", "algorithm", "caption", "code"})
_SENTENCE_END = re.compile(r"(?<=[.!?])[\])”\"’']*\s+(?=[\"“‘'(\[]*[A-Z0-9$\\])")
_NO_END = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|al|Fig|Figs|Eq|Eqs|Sec|Tab|Alg|App|Dr|Prof|resp|approx|w\.r\.t|No)|\b[A-Z])\.$"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document that makes sense alone.

    Args:
        place: Its section, symbol or page.
        text: What it says.
    """

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is never cut: a sentence, or a box with its lead."""

    text: str
    page: int | None
    ends_paragraph: bool = False
    before: str = "\n\n"

    @property
    def words(self) -> int:
        return _words(self.text)


def _words(text: str) -> int:
    """Return how long a text is, in words; what has few spaces counts by its characters."""
    return max(len(text.split()), len(text) // _CHARS_OF_A_WORD)


def chunk(document: Document) -> list[Passage]:
    """Return the passages of a document, in reading order.

    A section is cut without regard to the others, so that an edit in one leaves the passages of the rest as they are.
    A passage has 80 to 250 words, fewer where its section has fewer, more where a box has more. None has more than
    some 40,000 characters, whatever the document is.
    """
    found = list[Passage]()
    for section, blocks in itertools.groupby(document.blocks, key=lambda block: block.section):
        told = [block for block in blocks if block.kind != "heading"]
        for pieces in _packed(_pieces(told)):
            found.append(Passage(_place(section, pieces[0].page), _text(pieces)))
    return found


def _place(section: str, page: int | None) -> str:
    if page is None:
        return section
    return f"{section}, page {page}" if section else f"page {page}"


def _text(pieces: Sequence[_Piece]) -> str:
    return "".join([pieces[0].text, *(piece.before + piece.text for piece in pieces[1:])])


def _pieces(blocks: Sequence[Block]) -> Iterator[_Piece]:
    """Yield what stays whole: sentences; equations between the sentences around them; a caption with its box."""
    pieces = list[_Piece]()
    joins_next = False  # the last piece ends in an equation or a caption, to which what follows may belong
    last = "text"
    for block in blocks:
        if block.kind in _WHOLE:
            for part in _parts(block.text):
                beside = pieces and (
                    (block.kind in _LED_TO and last in {"text", block.kind})
                    or (block.kind in _BOXES and last == "caption")
                    or (block.kind == "caption" and last in _BOXES)
                    or (block.kind in _BOXES and last == "text" and pieces[-1].text.endswith(":"))
                )
                if beside and pieces[-1].words + _words(part) <= _most(block.kind):
                    pieces[-1] = _Piece(
                        f"{pieces[-1].text}\n\n{part}", pieces[-1].page, ends_paragraph=True, before=pieces[-1].before
                    )
                else:
                    pieces.append(_Piece(part, block.page, ends_paragraph=True))
                last = block.kind
            joins_next = block.kind == "equation"
            continue
        sentences = list(_sentences(block.text))
        for at, sentence in enumerate(sentences):
            ends = at == len(sentences) - 1
            if at == 0 and joins_next and re.match(r"[a-z(]", sentence) and pieces[-1].words < MOST_WORDS:
                joined = f"{pieces[-1].text}\n\n{sentence}"
                pieces[-1] = _Piece(joined, pieces[-1].page, ends, pieces[-1].before)
            else:
                pieces.append(_Piece(sentence, block.page, ends, " " if at else "\n\n"))
        joins_next, last = False, "text"
    yield from pieces


def _most(kind: Kind) -> int:
    """Return how many words a piece may have that boxes are joined to; references need not stand together."""
    return MOST_WORDS if kind == "list" else _MOST_WORDS_OF_A_BOX


def _parts(text: str) -> Iterator[str]:
    """Yield a box whole, or cut between its lines where it is longer than any reader wants."""
    if _words(text) <= _MOST_WORDS_OF_A_BOX:
        yield text
        return
    part, count = list[str](), 0
    for line in text.split("\n"):
        words = _words(line)
        if part and count + words > MOST_WORDS:
            yield "\n".join(part)
            part, count = [], 0
        if words > _MOST_WORDS_OF_A_BOX:
            yield from _cut(line)
            continue
        part.append(line)
        count += max(words, 1)  # a passage of nothing but empty lines ends as well
    if part:
        yield "\n".join(part)


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a paragraph; one longer than a passage is cut between words."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if not _NO_END.search(text, max(0, end.start() - 12), end.start()):
            yield from _cut(text[start : end.start()])
            start = end.end()
    yield from _cut(text[start:])


def _cut(sentence: str) -> Iterator[str]:
    stripped = sentence.strip()
    if _words(stripped) <= MOST_WORDS:
        if stripped:
            yield stripped
        return
    part, chars = list[str](), 0
    cut = (word[at : at + _LONGEST_WORD] for word in stripped.split() for at in range(0, len(word), _LONGEST_WORD))
    for word in cut:
        if part and (len(part) == MOST_WORDS or chars + len(word) > MOST_WORDS * _CHARS_OF_A_WORD):
            yield " ".join(part)
            part, chars = [], 0
        part.append(word)
        chars += len(word) + 1
    yield " ".join(part)


def _packed(pieces: Iterable[_Piece]) -> list[list[_Piece]]:
    """Return pieces in passages, from the first on, so that an edit changes no passage before it."""
    packed, current, count = list[list[_Piece]](), list[_Piece](), 0
    for piece in pieces:
        if current and count + piece.words > MOST_WORDS and (count >= LEAST_WORDS or piece.words > MOST_WORDS):
            packed.append(current)
            current, count = [], 0
        current.append(piece)
        count += piece.words
        if piece.ends_paragraph and count >= ENOUGH_WORDS:
            packed.append(current)
            current, count = [], 0
    if current and packed and count < LEAST_WORDS:
        if count + sum(piece.words for piece in packed[-1]) <= MOST_WORDS:
            packed[-1] += current
            return packed
        _even(packed[-1], current)
    return [*packed, current] if current else packed


def _even(before: list[_Piece], last: list[_Piece]) -> None:
    """Move pieces to a last passage that is too short."""
    while len(before) > 1 and sum(piece.words for piece in last) < LEAST_WORDS:
        if sum(piece.words for piece in before[:-1]) < LEAST_WORDS:
            return
        last.insert(0, before.pop())
