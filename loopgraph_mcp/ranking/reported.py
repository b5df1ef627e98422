"""Finds the sentences in which a paper reports a figure, with the setting it was measured in; pure."""

import re
from dataclasses import dataclass

from loopgraph_mcp.text import compile_later

_SENTENCE = compile_later(r"(?<=[.!?])\s+(?=[A-Z0-9(\"“])")
_MEASURED = compile_later(
    r"\b(?:perplexity|ppl|loss(?:es)?|bpb|bits[- ]per[- ](?:byte|character)|accuracy|error|scores?|bleu|throughput|"
    r"speed-?ups?|speed|latency|memory|flops?|(?:training|wall[- ]clock) (?:time|compute|steps)|steps|tokens)\b",
    re.IGNORECASE,
)
_NUMBER = r"-?\d+(?:[.,]\d+)*"
_COMPARED = compile_later(
    rf"\bfrom\s+{_NUMBER}\s?%?\s+to\s+{_NUMBER}|"
    rf"\bby\s+(?:about |roughly |up to |over |~)?{_NUMBER}\s?(?:%|percent|\u00d7|x\b|points?\b|bits?\b|nats?\b)|"
    rf"{_NUMBER}\s?(?:%|percent)?\s+(?:lower|higher|better|worse|less|fewer|more|faster|slower|smaller)\b|"
    rf"{_NUMBER}\s?[x\u00d7]\s+(?:faster|slower|fewer|less|more|speed-?up|lower|higher|smaller)\b|"
    rf"\b(?:improve|reduce|lower|increase|raise|cut|decrease)\w*\b[^.;]{{0,60}}\b(?:by|of)\s+{_NUMBER}",
    re.IGNORECASE,
)
_HEDGED = compile_later(r"\b(?:could|might|may|would|expect|hypothesi[sz]e|future work|assum)\w*", re.IGNORECASE)
_SETTING = compile_later(
    r"\b\d+(?:\.\d+)?\s?[MB](?:illion|illion-parameter)?\b(?:[- ]param\w*)?|\bGPT-\d\w*|\bLLaMA[- ]?\d*\w*|\bC4\b|"
    r"\bOpenWebText\b|\bFineWeb[-\w]*|\bWikiText[-\w]*|\bThe Pile\b|\bSlimPajama\b|\bImageNet\b|\benwik8\b|\bT5[-\w]*|"
    r"\b(?:\d+ )?[HAV]100s?\b|\bTPU[- ]?v?\d*\b",
)
_MAX_CLAIM = 200


@dataclass(frozen=True, slots=True)
class Figure:
    """What a paper reports: the sentence that says so, and what it says of the setting."""

    claim: str
    setting: str


def read_figures(text: str, *, limit: int = 5) -> list[Figure]:
    """Return the sentences of a passage that compare a measured quantity by a number; guesses and plans are none."""
    found = []
    for sentence in _SENTENCE.split(" ".join(text.split())):
        if _MEASURED.search(sentence) and _COMPARED.search(sentence) and not _HEDGED.search(sentence):
            setting = ", ".join(dict.fromkeys(match.group().strip() for match in _SETTING.finditer(sentence)))
            found.append(Figure(sentence[:_MAX_CLAIM], setting))
    return list(dict.fromkeys(found))[:limit]


def numbers(text: str) -> set[float]:
    """Return the numbers that stand in a text, without their signs."""
    return {float(each.replace(",", "")) for each in re.findall(r"\d[\d,]*(?:\.\d+)?|\.\d+", text) if each.strip(",")}
