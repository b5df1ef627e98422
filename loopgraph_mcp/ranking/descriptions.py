"""Reads what a change moves out of its one-line description: which knob, which way, to what value.

People and agents describe a change in many forms ("embedding LR 0.6->0.8", "halve the batch", "Reduce ADAM_BETAS
beta2 from 0.95 to 0.9 for ..."). What a description says of the outcome ("worse", "NEW BEST") is left out first.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.knobs import ANY, PATTERNS
from loopgraph_mcp.text import compile_later

_MAX_CHARS = 400


@cache
def _any_knob() -> re.Pattern[str]:
    """Return what finds any knob; compiled at the first description, for a start should not wait for it."""
    return re.compile(ANY)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return what finds each knob."""
    return tuple((knob, re.compile(pattern)) for knob, pattern in PATTERNS.items())


_PERCENT = compile_later(r" ?\bper ?cent\b")
_GREEK = compile_later("[\u03b2\u03b5\u03bb]")  # the names of beta, epsilon and lambda, as knobs are written
_HALVING = compile_later(r"\bhalv(?:e|ing)\b")
_FILLERS = frozenset({"a", "an", "and", "by", "change", "for", "from", "in", "of", "set", "the", "to", "try", "with"})

_NUMBER = (
    r"(?:2 ?(?:\^|\*\*) ?\d+|\d+/\d+|\d[\d,]*\d{3}(?![\d.])|\d*\.?\d+(?:e[-+]?\d+)?)(?: ?(?:%|k\b|m\b|x\b(?! ?\d)))?"
)
# What follows a number that is no value: the rest of a longer number, a time, a size, a share of something, a metric.
_UNLIKE_VALUE = (
    r"(?!x\d)[\w^*%]|\.\d|,\d{3}\b|/\d| ?[*^]| ?x\b(?! ?\d)| ?%"
    r"|[ -]?(?:min(?:ute)?s?|ms|s(?:ec(?:ond)?s?)?|h(?:(?:ou)?rs?)?|[gm]i?b|param(?:eter)?s?|gpus?|seeds?|tok\w*/s)\b"
    r"| ?(?:(?:val|train|test|eval)[ -/])?(?:bpb|loss|ppl|perplexity|acc(?:uracy)?|nats)\b(?![ :=]*[\d.])"
    r"|(?<=x) of\b| of (?:its|their|what|(?:the )?(?:default|current|original|previous))\b"
    r"|(?<=[%x]) (?:more|less|fewer|higher|lower|larger|smaller|longer|shorter|bigger|wider|deeper)\b"
)
_VALUE = rf"~?({_NUMBER})(?!{_UNLIKE_VALUE})"
_ARROW = r" ?(?:->|=>|to|down to|up to) ?"
# Words between a knob's name and its values; behind any of the others the values are of something else.
_ELSE = (
    r"with|by|and|plus|but|or|vs|instead|than|while|via|using|after|at|val|train|test|eval|bpb|loss|ppl|perplexity|acc\w*|"
    r"score|error|metric|result\w*|improv\w*|regress\w*|worse\w*|better|best|baseline|delta|gain\w*"
)
_WORD = rf"(?: (?!(?:{_ELSE})\b)[a-z][a-z'-]*)"
_OF_KNOB = (
    r"(?: (?:rate|ratio|value|scale|factor|multiplier|frac(?:tion)?|coeff?(?:icient)?|strength|size|p|p max|prob\w*|"
    r"groups|kv|slightly|further|again|back|even|down|up|set|changed?|increased|reduced|raised|lowered))"
)
# As in `from 0.1 to 0.2`, `(0.1 -> 0.2`; `from default (0.1) to 0.2`; `= 0.2`; ` to 0.2`, `(p=0.2`.
_FROM_TO = compile_later(rf"^{_WORD}{{0,3}}[\s(:=]*(?:from )?~?({_NUMBER})(?: [a-z]+)?{_ARROW}{_VALUE}")
_FROM_WORDS = compile_later(
    rf"^{_WORD}? from [a-z][a-z' -]{{0,40}}(?:\(~?({_NUMBER}|[a-z ]{{1,20}})\) ?(?:value )?)?to {_VALUE}"
)
_NEXT = compile_later(rf"^{_OF_KNOB}{{0,2}}[\s(=:~]*{_VALUE}(?!, ?[-+~]\d)")
_TO = compile_later(rf"^{_OF_KNOB}{{0,2}}(?: ?\(?(?:p|p max|kv))? ?(?:to|=|->|:|of|at|is)(?: about| around)? ?{_VALUE}")
_OLD = compile_later(rf"^,? \(?(?:from|instead of|rather than|was) ~?({_NUMBER})(?!{_UNLIKE_VALUE})")
_FROM_TO_BEFORE = compile_later(rf"(?<![\w.+-])({_NUMBER}){_ARROW}{_VALUE}[ -]$")
_BEFORE = compile_later(
    rf"(?<![\w.,+^*-])(?:\d+x)?({_NUMBER})[ -]?(?:(?:attention|kv|query|linear|transformer|total) )?$"
)
_PAIR = rf"\(? ?({_NUMBER}) ?, ?({_NUMBER}) ?\)?"
_PAIRS = compile_later(rf"^{_WORD}{{0,2}}[\s(:=]*(?:from |to )?{_PAIR}(?:{_ARROW}{_PAIR})?")
# Knobs that are counted: a fraction behind one is no value of it but a result.
_COUNTED_NOUN = compile_later(
    r"layers?|(?:kv |attention )?heads?|mlp|(?:routed |shared )?experts?"
)  # its number is in front
_PASSING = compile_later(r"(?:\(with|decay) $")  # `weight decay 0.1 to 0.2 (with LR 0.9)`, `decay LR to 0`
_PARTS: Mapping[str, float] = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "eighth": 1 / 8, "sixteenth": 1 / 16}
_PART = compile_later(r"\b(?:" + "|".join(_PARTS) + r")\b")  # of the context
_FACTORS = frozenset({"branch_scale", "init_scale", "mlp_ratio", "resid_lambda", "value_embed"})  # counted in `x`
_LEAST_BETA2 = 0.9
_DECIMALS_OF_RESULTS = 4
_LEAST_RESULT = 0.3
_WHOLE = frozenset(
    {"batch_size", "depth", "device_batch", "experts", "gqa", "head_dim", "muon_ns", "seq_len", "width", "window_size"}
)

_UP = compile_later(
    r"\b(?:increas\w+|rais\w+|higher|larger|bigger|doubl\w+|longer|wider|deeper|more|add(?:s|ed|ing)?|enabl\w+|introduc\w+"
    r"|extend\w*|stronger|grow\w*|up|expand\w*|quadrupl\w+|triple|boost\w*)\b"
)
_DOWN = compile_later(
    r"\b(?:decreas\w+|reduc\w+|lower\w*|smaller|halv\w+|half|shorter|narrower|shallower|fewer|less|remov\w+|disabl\w+"
    r"|drop(?!out|[ -]?path)\w*|without|no|zero|cut|shrink\w*|weaker|thinner|delet\w+|down|lessen\w*|turn off"
    r"|eliminat\w+|skip|quarter)\b"
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
    r"a (?:better|less|middle|more)|all|already|best|better|both|current|established|even|exp|fast|faster|finer|fully|"
    r"gentle|high|improved|less|long|longer|low|more|new|now|optimised|optimized|our|previous|"
    r"proven|same|slower|smooth|stable|this|winning"
)
_ASIDE = compile_later(
    rf" at \d+[ -]?(?:d|dim|layers?|heads)\b"
    rf"| (?:to|in order to) (?:more )?(?:{_VERBS}).*"
    r"|,? (?:while|given|because|since|based on|keeping|combined with the|following"
    r"|after(?! (?:the |each |every )?(?:attn|attention|mlp|ffn|embed))|which|that|as|where) .*"
    rf"|,? (?:with|using|on|for|at|in|under|of|from) (?:the )?(?:{_KEPT})\b.*"
    r"|(?<!gelu)(?<!relu)(?<!silu)(?<!\^2)(?<!mlp)(?<!activation) with the .*"
    r"|;.*"
    r"| [-+~]?[\d.]+ ?[%x] (?:worse|better|faster|slower)\b.*"
    r"| [-+~]?[\d.]+ ?(?:(?:val )?bpb|nats|points?) (?:worse|better|lower|higher)\b.*"
    r"| (?:worse|regress\w*|improve[ds]?|better|best|no help|hurts?|marginal\w*|neutral|failed|slower|faster)\b.*"
)
_DASH = compile_later(" (?:\u2014|\u2013|-{1,2}|=>) |\u2014 ?|\\(exp ?[0-9]+\\)")
_OUTCOME_NOTE = compile_later(
    r"\([^()]*\b(?:worse|better|best|slower|faster|oom|improv\w*|regress\w*|too|steps?|noise|crash\w*|fail\w*|nan|"
    r"preserved|unchanged|constant)\b"
    r"[^()]*\)"
)
_PREFIX = compile_later(
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
    return _RERUN.match(text) is not None


_RERUN = compile_later(
    r"(?:\w+ ){0,2}(?:re-?(?:run|test|verif\w*|check)|repeat|replicat\w+|reproduc\w*|verif\w+|confirm(?:ation)?)\b"
    r"|(?:[\w-]+ ){0,4}(?:verification|confirmation|replication|reproduction|validation|repeat)[ -]"
    r"(?:runs?|trial|check)\b"
    r"|(?:noise|variance|sanity|seed)[ -](?:check|test|run)\b"
    r"|(?:same|identical) (?:config|program|code|settings)\w*(?: again)?$"
    r"|(?:change |new |different |another |random )*seed\b"
)


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
    free = 0  # where the words begin that no earlier knob has taken its value from
    for index, (start, end, knob) in enumerate(spans):
        before = text[free:start]
        ahead = spans[index + 1][0] if index + 1 < len(spans) else len(text)
        moves, taken = _moves(knob, before, text[start:end], text[end:ahead], text)
        free = end + taken
        for move in moves:
            known = found.get(move.knob)
            if known is None or (known.value is None and move.value is not None):
                found[move.knob] = move if known is None else _merged(known, move)
    return tuple(_tidied(found)) or (Move("other"),)


def content(description: str) -> str:
    """Return the words that say what was done, in the order of the alphabet, numbers as numbers."""
    words = re.findall(r"[a-z]+|\d+(?:\.\d+)?", _HALVING.sub("reduce half", stripped(description)))
    return " ".join(sorted({f"{float(word):g}" if word[0].isdigit() else word for word in words} - _FILLERS))


def _plain(description: str) -> str:
    text = unicodedata.normalize("NFKC", description[:_MAX_CHARS].encode("utf-8", "ignore").decode("utf-8")).casefold()
    for arrow in ("→", "⟶", "⇒", "➜", "➔", "->", "=>"):
        text = text.replace(arrow, " -> ")
    text = _GREEK.sub(lambda found: f" {unicodedata.name(found[0]).rsplit(' ', 1)[-1].casefold()}", text)
    return " ".join(_PERCENT.sub("%", text).replace("_", " ").replace("\u00d7", "x").replace("\u2212", "-").split())


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


def _moves(knob: str, before: str, name: str, after: str, text: str) -> tuple[Sequence[Move], int]:
    """Return what is said of a knob, and how many of the letters after its name say it."""
    if knob == "activation":
        return [Move(knob, 0, word=_activation(text))], 0
    if knob == "window":
        return [_window(text)], 0
    if knob in {"adam_betas", "group_betas"}:
        return _betas(knob.removesuffix("s"), before, name, after)
    said = _values(knob, before, name, after)
    if knob == "window_size" and said.value is None and (part := _PART.search(name + after)) is not None:
        said = replace(said, value=_PARTS[part[0]])
    way = said.way or _direction(before, name, after, said.old, said.value)
    if knob == "lr_general" and _PASSING.search(before):
        said = replace(said, old=None, value=None)
    if knob == "head_dim" and "head" in name and "dim" not in name:  # so many heads are no width of one
        said = replace(said, old=None, value=None)
    return [Move(knob, way, said.value, said.old)], said.taken


@dataclass(frozen=True, slots=True)
class _Said:
    """The values that a text gives a knob.

    Args:
        way: Which way a factor moves it.
        taken: How many letters behind its name that takes.
    """

    old: float | None = None
    value: float | None = None
    way: int = 0
    taken: int = 0


def _values(knob: str, before: str, name: str, after: str) -> _Said:
    """Return a knob's values before and after, from the words right behind its name or else right before it."""
    for pattern in (_FROM_TO, _FROM_WORDS):
        both = pattern.search(after)
        if both is not None and _is_step(both[2], knob, both[0]):
            return _Said(_number(both[1] or "", knob), _number(both[2], knob), taken=both.end())
    counted = _BEFORE.search(before) if _COUNTED_NOUN.fullmatch(name) else None
    for pattern in (_NEXT, _TO):
        if (one := pattern.search(after)) is not None and _is_value(one[1], knob):
            if counted is not None and _is_value(counted[1], knob):  # `8 layers -> 10`, `8 layers 512 wide`
                if not re.match(_ARROW, after):
                    break
                return _Said(_number(counted[1], knob), _number(one[1], knob), taken=one.end())
            was = _OLD.search(after, one.end()) or _OLD.search(after[one.end() :])
            end = one.end() + (was.end() if was is not None else 0)
            return replace(_single(one[1], knob, None if was is None else was[1]), taken=end)
    if (both := _FROM_TO_BEFORE.search(before)) is not None and _is_value(both[2], knob):
        return _Said(_number(both[1], knob), _number(both[2], knob))
    if (one := _BEFORE.search(before)) is not None and _is_value(one[1], knob):
        was = _OLD.search(after)
        return replace(_single(one[1], knob, None if was is None else was[1]), taken=0 if was is None else was.end())
    return _Said()


def _single(written: str, knob: str, was: str | None) -> _Said:
    """Return what one number says of a knob: its value, or a factor where it is written as one."""
    value = _number(written, knob)
    if written.endswith("x") and knob not in _FACTORS:
        return _Said() if value is None or value == 1 else _Said(way=1 if value > 1 else -1)
    return _Said(None if was is None else _number(was, knob), value)


def _is_value(written: str, knob: str) -> bool:
    """Return whether a number can be a knob's value: not one with a metric's four decimals, nor part of a count."""
    value = _number(written, knob)
    if value is None or (_decimals(written) >= _DECIMALS_OF_RESULTS and value >= _LEAST_RESULT):
        return False
    if knob == "window_size" and "/" in written:  # of the context
        return True
    return knob not in _WHOLE or value == int(value)


def _is_step(new: str, knob: str, words: str) -> bool:
    """Return whether a knob goes to a number in so many words; an arrow may lead to what came of it: `20 -> 0.9781`."""
    return _is_value(new, knob) or ("->" not in words and _decimals(new) < _DECIMALS_OF_RESULTS)


def _decimals(written: str) -> int:
    return len(written.partition(".")[2]) if "e" not in written else 0


def _number(written: str, knob: str) -> float | None:
    text = written.replace(",", "").replace(" ", "")
    if not text[:1].isdigit() and text[:1] != ".":
        return None
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


_ACTIVATION = compile_later(
    r"swiglu|geglu|reglu|leaky relu(?: ?(?:\^ ?2|squared|sq|2\b))?|relu ?(?:\^ ?2|squared|sq|2\b)|squared[ -]?relu"
    r"|gelu|silu|swish|mish|relu|gated mlp|glu\b|(?:xi|p|c|s)?elu\b"
)
_LEFT_BEHIND = compile_later(
    r"(?:instead of|in place of|replac\w+|rather than|over|from) [^,;]*?(?:with|by|to|->|$)"
    r"|(?:swap|drop|exchang)\w*(?! in\b)(?: out)? [^,;]*?(?:for|with|by|to|->|$)"
)
_SWAPPED_IN = compile_later(r"(swap\w* in [^,;]*?) for .*")
_SQUARED_RELU = compile_later(r"relu ?(?:\^ ?2|squared|sq|2\b)|squared[ -]?relu")


def _activation(text: str) -> str:
    """Return the activation that a description moves to."""
    text = _SWAPPED_IN.sub(r"\1", text)
    names = _ACTIVATION.findall(_LEFT_BEHIND.sub(" ", text)) or _ACTIVATION.findall(text)
    if not names:
        return ""
    name = _SQUARED_RELU.sub("relu2", names[-1])
    return {"swish": "silu", "gated mlp": "glu"}.get(name, name)


_COUNTED = compile_later(r"(?<!\d)(\d{1,3}) ?s ?\+ ?(\d{1,3}) ?l\b")  # so many short and so many long
_PATTERN = compile_later(
    r"(?<![a-z])[sl]{2,12}(?![a-z])|(?:(?<=[=:>])|(?<=[=:>] )|(?<=pattern )|(?<=all-)|(?<=to ))[sl]\b"
)


def _window(text: str) -> Move:
    """Return a window pattern as its share of long windows."""
    counted = [(int(found[1]), int(found[2])) for found in _COUNTED.finditer(text)]
    shares = [long / (short + long) for short, long in counted if short + long]
    shares = shares or [found.count("l") / len(found) for found in _PATTERN.findall(text)]
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


_WHICH_BETA = compile_later(r"[12]$|first|second")


def _betas(group: str, before: str, name: str, after: str) -> tuple[Sequence[Move], int]:
    pairs = _PAIRS.search(after)
    numbers = [] if pairs is None else [_number(each, "") for each in pairs.groups() if each]
    if pairs is None or not all(each is not None and each < 1 for each in numbers):
        said = _values("adam_betas", before, name, after)
        which = _WHICH_BETA.search(name)
        if which is not None:
            is_first = which[0] in {"1", "first"}
        else:
            is_first = said.value is not None and said.value < _LEAST_BETA2
        knob = f"{group}{1 if is_first else 2}"
        return [Move(knob, _direction(before, "", after, said.old, said.value), said.value, said.old)], said.taken
    first, last = numbers[:2], numbers[-2:]
    moves = []
    for knob, old, value in zip((f"{group}1", f"{group}2"), first, last, strict=True):
        if len(numbers) == 2:
            moves.append(Move(knob, _direction(before, "", after, None, value), value))
        elif old != value and old is not None and value is not None:
            moves.append(Move(knob, 1 if value > old else -1, value, old))
    return moves, pairs.end()


def _merged(one: Move, other: Move) -> Move:
    return Move(one.knob, other.direction or one.direction, other.value, other.old, one.word or other.word)


def _tidied(found: Mapping[str, Move]) -> Sequence[Move]:
    """Drop what was named only in passing: the optimizer a rate belongs to, a rate where a certain one is told."""
    moves = list(found.values())
    certain = [move for move in moves if move.knob not in {"lr_general", "optimizer", "systems", "head_dim"}]
    passing = {"lr_general", "optimizer"} if certain else set()
    return [
        each for each in moves if each.knob not in passing or (each.knob == "lr_general" and each.value is not None)
    ]
