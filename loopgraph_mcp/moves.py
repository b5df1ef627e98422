"""Reads what a change moves out of its one-line description: which knob, which way, to what value.

People and agents describe a change in many forms ("embedding LR 0.6->0.8", "halve the batch", "Reduce ADAM_BETAS
beta2 from 0.95 to 0.9 for ..."). What a description says of the outcome ("worse", "NEW BEST") is left out first.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache

from loopgraph_mcp.knobs import ANY, PATTERNS
from loopgraph_mcp.models import Move

_MAX_CHARS = 400


@cache
def _any_knob() -> re.Pattern[str]:
    """Return what finds any knob; compiled at the first description, for a start should not wait for it."""
    return re.compile(ANY)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return what finds each knob."""
    return tuple((knob, re.compile(pattern)) for knob, pattern in PATTERNS.items())


_HALVING = re.compile(r"\bhalv(?:e|ing)\b")
_FILLERS = frozenset({"a", "an", "and", "by", "change", "for", "from", "in", "of", "set", "the", "to", "try", "with"})

_NUMBER = r"(?:2 ?(?:\^|\*\*) ?\d+|\d+/\d+|\d[\d,]*\d{3}(?![\d.])|\d*\.?\d+(?:e[-+]?\d+)?)(?: ?(?:%|k\b|m\b|x\b))?"
_FROM_TO = re.compile(rf"(?:from )?~?({_NUMBER})(?: \w+)? ?(?:->|to|down to|up to|=>) ?~?({_NUMBER})")
_TO = re.compile(rf"^[^,;+]{{0,40}}?(?:to|=|->|:|of|at|with|p=|is)(?: about| around)? ?~?({_NUMBER})")
_NEXT = re.compile(rf"^[\s(=:~]*({_NUMBER})")
_BEFORE = re.compile(rf"({_NUMBER})[ -]?(?:\w+ )?$")
_PAIR = re.compile(rf"\(? ?({_NUMBER}) ?, ?({_NUMBER}) ?\)?")

_UP = re.compile(
    r"\b(?:increas\w+|rais\w+|higher|larger|bigger|doubl\w+|longer|wider|deeper|more|add(?:s|ed|ing)?|enabl\w+|introduc\w+"
    r"|extend\w*|stronger|grow\w*|up|expand\w*|quadrupl\w+|triple|boost\w*)\b"
)
_DOWN = re.compile(
    r"\b(?:decreas\w+|reduc\w+|lower\w*|smaller|halv\w+|half|shorter|narrower|shallower|fewer|less|remov\w+|disabl\w+|drop(?!out|path)\w*"
    r"|without|no|zero|cut|shrink\w*|weaker|thinner|delet\w+|down|lessen\w*|turn off|eliminat\w+|skip|quarter)\b"
)
# Where a description turns to why, to what was left alone, or to what came of it.
_VERBS = (
    r"accelerat|achiev|add\b|alter|avoid|balanc|better|bias|boost|bring|build\b|captur|check|"
    r"combin|compensat|complement|confirm|continu|control|counter|creat|determin|enabl|encourag|"
    r"ensur|explor|extend|find\b|fine|fit\b|free|further|gain|get\b|giv|have|help|improv|"
    r"increas|keep|learn|lessen|leverag|lower|maintain|mak|match|maximi|minimi|optimi|"
    r"potential|preserv|prevent|process|provid|push|reduc|refin|remov|restor|retain|save\b|"
    r"search|see\b|sharpen|shift|simplif|slight|smooth|soften|speed|spend|stabili|strength|"
    r"test|try|use\b|verif"
)
_KEPT = (
    r"all|already|best|better|both|current|established|even|exp|fast|faster|finer|fully|"
    r"gentle|high|improved|long|longer|low|more|new|now|optimised|optimized|our|previous|"
    r"proven|same|slower|smooth|stable|this|winning"
)
_ASIDE = re.compile(
    rf" (?:to|in order to) (?:more )?(?:{_VERBS}).*"
    r"|,? (?:while|given|because|since|based on|keeping|combined with the|following|after|which|that|as|where) .*"
    rf"|,? (?:with|using|on|for|at|in|under|of|from) (?:the )?(?:{_KEPT})\b.*"
    r"|(?<!gelu)(?<!relu)(?<!silu)(?<!\^2)(?<!mlp)(?<!activation) with the .*"
    r"|;.*"
    r"| (?:worse|regress\w*|improve[ds]?|better|best|no help|hurts?|marginal\w*|neutral|failed|slower|faster)\b.*"
)
_DASH = re.compile(" (?:\u2014|\u2013|-{1,2}|=>) |\u2014 ?|\\(exp ?[0-9]+\\)")
_OUTCOME_NOTE = re.compile(
    r"\([^()]*\b(?:worse|better|best|slower|faster|oom|improv\w*|regress\w*|too|steps?|noise|crash\w*|fail\w*|nan)\b"
    r"[^()]*\)"
)
_PREFIX = re.compile(
    r"^\s*(?:(?:agent|gpu|h|exp|experiment|idea|trial|run) ?#?\d+|combo|retry|retest|re-?run|new best|discard|keep)"
    r"\s*[:.)]\s*"
)


def is_baseline(description: str) -> bool:
    """Return whether a description names an unchanged program."""
    text = _PREFIX.sub("", _plain(description))
    return bool(re.match(r"^\W*(?:\w+ )?baseline\b", text)) or text in {"", "initial", "no change", "no modifications"}


def is_rerun(description: str) -> bool:
    """Return whether a description names a repeated run of the same program, or one with another seed alone."""
    text = _plain(description)
    return bool(
        re.match(r"^(?:\w+ ){0,2}(?:re-?run|re-?test|repeat|replicate|reproduc\w*|verify|confirm)\b", text)
    ) or bool(re.match(r"^(?:change |new |different |another |random )*seed\b", text))


@lru_cache(maxsize=32_768)
def stripped(description: str) -> str:
    """Return what a description says was done, without what it says of the outcome or of the reason."""
    text = _PREFIX.sub("", _plain(description))
    text = _OUTCOME_NOTE.sub(" ", text)
    head = _DASH.split(text, maxsplit=1)[0]
    text = head if _any_knob().search(head) else text
    shorter = _ASIDE.sub("", text)
    return " ".join((shorter if _any_knob().search(shorter) else text).split())


@lru_cache(maxsize=32_768)
def read_moves(description: str) -> tuple[Move, ...]:
    """Return the moves that a description tells of, in its order; one `other` where it tells of none we know."""
    text = stripped(description)
    spans = _spans(text)
    found: dict[str, Move] = {}
    for index, (start, end, knob) in enumerate(spans):
        before = text[spans[index - 1][1] if index else 0 : start]
        after = text[end : spans[index + 1][0] if index + 1 < len(spans) else len(text)]
        for move in _moves(knob, before, text[start:end], after, text):
            known = found.get(move.knob)
            if known is None or (known.value is None and move.value is not None):
                found[move.knob] = move if known is None else _merged(known, move)
    return tuple(_tidied(found)) or (Move("other"),)


def content(description: str) -> str:
    """Return the words that say what was done, in the order of the alphabet, numbers as numbers."""
    words = re.findall(r"[a-z]+|\d+(?:\.\d+)?", _HALVING.sub("reduce half", stripped(description)))
    return " ".join(sorted({f"{float(word):g}" if word[0].isdigit() else word for word in words} - _FILLERS))


def repeats(one: str, other: str) -> bool:
    """Return whether two descriptions tell of the very same change, whatever words they use for it."""
    first, second = read_moves(one), read_moves(other)
    if all(move.value is not None or move.word for move in (*first, *second)):
        if {(move.knob, move.value, move.word) for move in first} != {
            (move.knob, move.value, move.word) for move in second
        }:
            return False
        known = {number for move in (*first, *second) for number in (move.old, move.value)}
        return _numbers(one) - known == _numbers(other) - known  # what no move accounts for is said alike
    return content(one) == content(other)


def _numbers(description: str) -> set[float | None]:
    return {_number(found, "") for found in re.findall(_NUMBER, stripped(description))}


def _plain(description: str) -> str:
    text = unicodedata.normalize("NFKC", description[:_MAX_CHARS].encode("utf-8", "ignore").decode("utf-8")).casefold()
    for arrow in ("→", "⟶", "⇒", "➜", "➔", "->", "=>"):
        text = text.replace(arrow, " -> ")
    return " ".join(text.replace("_", " ").replace("\u00d7", "x").replace("\u2212", "-").split())


def _spans(text: str) -> list[tuple[int, int, str]]:
    """Return where knobs are named, in order; a place belongs to the first knob of the table that names it."""
    taken: list[tuple[int, int, str]] = []
    if _any_knob().search(text) is None:  # most texts that are no description of a change
        return taken
    for knob, pattern in _patterns():
        for match in pattern.finditer(text):
            if all(match.end() <= start or match.start() >= end for start, end, _ in taken):
                taken.append((match.start(), match.end(), knob))
    return sorted(taken)


def _moves(knob: str, before: str, name: str, after: str, text: str) -> Iterator[Move]:
    if knob == "activation":
        yield Move(knob, 0, word=_activation(text))
    elif knob == "window":
        yield _window(text)
    elif knob == "adam_betas":
        yield from _betas(before, after)
    else:
        old, value = _values(knob, before, after)
        yield Move(knob, _direction(before, name, after, old, value), value, old)


def _values(knob: str, before: str, after: str) -> tuple[float | None, float | None]:
    """Return the value before and after, from the words after a knob's name or else right before it."""
    if (both := _FROM_TO.search(after)) is not None:
        return _number(both[1], knob), _number(both[2], knob)
    for pattern in (_NEXT, _TO):
        if (one := pattern.search(after)) is not None:
            return None, _number(one[1], knob)
    if (both := _FROM_TO.search(before)) is not None and both.end() > len(before) - 12:
        return _number(both[1], knob), _number(both[2], knob)
    if (one := _BEFORE.search(before)) is not None and not re.search(r"\d\s*,\s*$", before):
        return None, _number(one[1], knob)
    return None, None


def _number(written: str, knob: str) -> float | None:
    text = written.replace(",", "").replace(" ", "")
    scale = 1.0
    if text[-1] in "%kmx":
        thousand = 1024.0 if knob in {"batch_size", "seq_len"} else 1000.0
        scale = {"%": 0.01, "k": thousand, "m": thousand**2}.get(text[-1], 1.0)
        text = text[:-1]
    if "^" in text or "**" in text:
        return scale * 2.0 ** min(int(re.split(r"\^|\*\*", text)[1]), 60)
    if "/" in text:
        above, below = text.split("/")
        return scale * float(above) / float(below) if float(below) else None
    return scale * float(text)


def _direction(before: str, name: str, after: str, old: float | None, value: float | None) -> int:
    if old is not None and value is not None and old != value:
        return 1 if value > old else -1
    clause = re.split(r"[,;+&]| and ", before)[-1] + " " + name
    ups, downs = [m.start() for m in _UP.finditer(clause)], [m.start() for m in _DOWN.finditer(clause)]
    if ups or downs:
        return 1 if (ups or [-1])[-1] > (downs or [-1])[-1] else -1
    tail = re.split(r"[,;+&(]", after)[0]
    ups, downs = [m.start() for m in _UP.finditer(tail)], [m.start() for m in _DOWN.finditer(tail)]
    if ups or downs:
        return 1 if (ups or [999])[0] < (downs or [999])[0] else -1
    return 0


_ACTIVATION = re.compile(
    r"swiglu|geglu|reglu|leaky relu(?: ?(?:\^ ?2|squared|sq|2\b))?|relu ?(?:\^ ?2|squared|sq|2\b)|squared[ -]?relu"
    r"|gelu|silu|swish|mish|relu|gated mlp|glu\b"
)
_LEFT_BEHIND = re.compile(r"(?:instead of|replac\w+|rather than|over|from) [^,;]*?(?:with|by|to|->|$)")
_SQUARED_RELU = re.compile(r"relu ?(?:\^ ?2|squared|sq|2\b)|squared[ -]?relu")


def _activation(text: str) -> str:
    """Return the activation that a description moves to."""
    names = _ACTIVATION.findall(_LEFT_BEHIND.sub(" ", text)) or _ACTIVATION.findall(text)
    if not names:
        return ""
    name = _SQUARED_RELU.sub("relu2", names[-1])
    return {"swish": "silu", "gated mlp": "glu"}.get(name, name)


_PATTERN = re.compile(r"(?<![a-z])[sl]{1,12}(?![a-z])")


def _window(text: str) -> Move:
    """Return a window pattern as its share of long windows."""
    shares = [found.count("l") / len(found) for found in _PATTERN.findall(text)]
    old = shares[0] if len(shares) > 1 else None
    if not shares:
        if re.search(r"full|all[ -](?:long|global)|global", text):
            shares = [1.0]
        elif re.search(r"all[ -](?:short|local)", text):
            shares = [0.0]
    value = shares[-1] if shares else None
    if old is not None and value is not None:
        direction = (value > old) - (value < old)
    else:
        direction = 0 if value is None else (1 if value > 0.25 else -1)
    patterns = _PATTERN.findall(text)
    return Move("window", direction, value, old, patterns[-1] if patterns else "")


def _betas(before: str, after: str) -> Iterator[Move]:
    pairs = [(float(m[1]), float(m[2])) for m in _PAIR.finditer(after) if _is_float(m[1]) and _is_float(m[2])]
    if not pairs:
        old, value = _values("adam_betas", before, after)
        knob = "adam_beta1" if value is not None and value < 0.9 else "adam_beta2"
        yield Move(knob, _direction(before, "", after, old, value), value, old)
        return
    first, last = pairs[0], pairs[-1]
    for knob, old, value in zip(("adam_beta1", "adam_beta2"), first, last, strict=True):
        if len(pairs) == 1:
            yield Move(knob, _direction(before, "", after, None, value), value)
        elif old != value:
            yield Move(knob, 1 if value > old else -1, value, old)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _merged(one: Move, other: Move) -> Move:
    return Move(one.knob, other.direction or one.direction, other.value, other.old, one.word or other.word)


def _tidied(found: Mapping[str, Move]) -> Sequence[Move]:
    """Drop what was named only in passing: the optimizer a rate belongs to, a rate where a certain one is told."""
    moves = list(found.values())
    certain = [move for move in moves if move.knob not in {"lr_general", "optimizer", "systems", "head_dim"}]
    passing = {"lr_general", "optimizer"} if certain else set()
    return [move for move in moves if move.knob not in passing]
