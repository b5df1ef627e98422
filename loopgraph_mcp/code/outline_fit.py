"""Selects the entries of an outline within a token budget: those that match the query, else the most useful."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.code.outline import CodeMap, Entry, Kind
from loopgraph_mcp.text import compile_later, estimate_tokens

MIN_BUDGET = 150
_RESERVE = 60  # tokens for the first line, and for what is said of the rest
_PART = compile_later(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NAME_WEIGHT, _TEXT_WEIGHT, _FULL_BODY = 4.0, 2.0, 3  # a name says more than a value; a third mention says no more
_NO_WORDS = frozenset(["and", "for", "from", "how", "in", "is", "of", "on", "or", "the", "this", "to", "what", "with"])

_SHORT = {
    "lr": ("learning", "rate"),
    "wd": ("weight", "decay"),
    "rope": ("rotary",),
    "init": ("initialize",),
}

# The most useful first; of definitions, the longest.
_ORDER = (
    Kind.ERROR,
    Kind.LOOP,
    Kind.KNOB,
    Kind.CLASS,
    Kind.GROUP,
    Kind.FIELD,
    Kind.FLAG,
    Kind.METRIC,
    Kind.FUNCTION,
    Kind.LOCAL,
    Kind.IMPORT,
)
_DEFINED = {Kind.CLASS, Kind.FUNCTION}
_HEADS = {
    Kind.ERROR: "does not parse",
    Kind.LOOP: "loop",
    Kind.METRIC: "prints",
    Kind.KNOB: "knobs, =value:line",
    Kind.FIELD: "fields of ",
    Kind.FLAG: "flags",
    Kind.GROUP: "parameter groups",
    Kind.LOCAL: "numbers in functions",
    Kind.CLASS: "definitions",
    Kind.FUNCTION: "definitions",
    Kind.IMPORT: "imports",
}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A map as it is shown.

    Args:
        shown: The entries that fit, in the order of the files.
        text: Them as text.
        left_out: How many entries of each kind are not shown.
    """

    shown: tuple[Entry, ...]
    text: str
    left_out: Mapping[Kind, int]


def fit(maps: Sequence[CodeMap], query: str, budget_tokens: int, notes: Sequence[str] = ()) -> Fitted:
    """Return what of some maps fits a budget of tokens, the notes first; a question puts what it touches first."""
    entries = [entry for made in maps for entry in made.entries]
    places = {id(entry): place for place, entry in enumerate(relevant(maps, query))}
    left = max(budget_tokens, MIN_BUDGET) - _RESERVE
    lines, enough = list[str](), left // 2
    for note in notes:
        if left - (cost := estimate_tokens(note)) >= enough:
            lines.append(note)
            left -= cost
    shown, heads = set[int](), set[tuple[str, str]]()
    for entry in sorted(entries, key=lambda each: (places.get(id(each), len(places)), *_usefulness(each))):
        head = (entry.path, _head(entry))
        cost = estimate_tokens(_piece(entry)) + 1 + (0 if head in heads else estimate_tokens(": ".join(head)) + 2)
        if cost <= left:
            shown.add(id(entry))
            heads.add(head)
            left -= cost
    kept = tuple(entry for entry in entries if id(entry) in shown)
    left_out = Counter(entry.kind for entry in entries if id(entry) not in shown)
    return Fitted(kept, "\n".join([*lines, *_lines(kept)]), {kind: left_out[kind] for kind in _ORDER if left_out[kind]})


def _usefulness(entry: Entry) -> tuple[int, int]:
    length = entry.end_line - entry.line if entry.kind in {Kind.CLASS, Kind.FUNCTION} else 0
    return _ORDER.index(entry.kind), -length


def _head(entry: Entry) -> str:
    return _HEADS[entry.kind] + (entry.name.rpartition(".")[0] if entry.kind is Kind.FIELD else "")


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield the text of a map, group by group; a method comes after its class."""
    groups: dict[tuple[str, str], list[str]] = {}
    standing = dict[tuple[str, str], int]()
    for entry in sorted(
        entries, key=lambda each: (each.path, _ORDER.index(each.kind) if each.kind not in _DEFINED else 3)
    ):
        pieces = groups.setdefault((entry.path, _head(entry)), [])
        owner = (entry.path, entry.name.rpartition(".")[0])
        if entry.kind is Kind.FUNCTION and owner in standing:
            pieces[standing[owner]] += f"; {_piece(entry).removeprefix(owner[1])}"
        else:
            pieces.append(_piece(entry))
        if entry.kind is Kind.CLASS:
            standing[entry.path, entry.name] = len(pieces) - 1
    path = ""
    for (where, head), pieces in groups.items():
        if where != path:
            yield f"{where}:"
            path = where
        yield from (
            [f"{head}:", *(f"  {piece}" for piece in pieces)]
            if head == "definitions"
            else [f"{head}: {'; '.join(pieces)}"]
        )


def _piece(entry: Entry) -> str:
    """Return an entry in a few words, its lines at the end."""
    where = f"{entry.line}-{entry.end_line}" if entry.end_line > entry.line else f"{entry.line}"
    name = entry.name.rpartition(".")[2] if entry.kind is Kind.FIELD else entry.name
    match entry.kind:
        case Kind.CLASS:
            return f"class {name}({entry.text}) {where}" if entry.text else f"class {name} {where}"
        case Kind.FUNCTION:
            return f"{name}({entry.text.removeprefix('self').removeprefix(', ')}) {where}"
        case Kind.GROUP | Kind.LOOP | Kind.IMPORT | Kind.ERROR:
            return f"{name}: {entry.text} :{where}" if entry.text else f"{name}:{where}"
    return f"{name}={entry.text}:{where}" if entry.text else f"{name}:{where}"


# ----------------------------------------------------------------------------------------------------- relevance


def relevant(maps: Sequence[CodeMap], query: str) -> list[Entry]:
    """Return the entries that a question touches, the closest first.

    A word counts by how few entries have it; in a name most, then in a value or a signature, then in a body.
    """
    wanted = Counter(words(query))
    if not wanted:
        return []
    scored = []
    bags = [
        (made, entry, *_bags(made, entry)) for made in maps for entry in made.entries if entry.kind is not Kind.IMPORT
    ]
    having = Counter(word for _, _, *bag in bags for word in set().union(*bag) if word in wanted)
    for place, (_, entry, name, text, body) in enumerate(bags):
        score = 0.0
        for word in wanted:
            if having[word]:
                rarity = math.log(1 + len(bags) / having[word])
                in_body = min(body[word], _FULL_BODY) / _FULL_BODY
                score += rarity * (_NAME_WEIGHT * bool(name[word]) + _TEXT_WEIGHT * bool(text[word]) + in_body)
        if score:
            scored.append((-score, place, entry))
    return [entry for _, _, entry in sorted(scored, key=lambda each: each[:2])]


def _bags(made: CodeMap, entry: Entry) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return the words of an entry's name, of its value or signature, and of its lines; a class's are its methods'."""
    body = made.lines[entry.line - 1 : entry.end_line] if entry.kind in {Kind.FUNCTION, Kind.KNOB, Kind.LOOP} else ()
    return Counter(words(entry.name)), Counter(words(entry.text)), Counter(words("\n".join(body)))


def words(text: str) -> list[str]:
    """Return the words of a text or of names of code: `val_bpb` is val and bpb, `GPTConfig` is gpt and config."""
    parts = (full for part in _PART.findall(text) for full in _SHORT.get(part.casefold(), (part.casefold(),)))
    return [_singular(part) for part in parts if len(part) > 1 and part not in _NO_WORDS]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
