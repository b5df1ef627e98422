"""Reads lists of references that no LaTeX typesets: BibTeX's database and biblatex's own file."""

import re
from collections.abc import Iterator, Mapping

_ENTRY = re.compile(r"^[ \t]*@(\w+)[ \t]*[{(][ \t]*([^\s,{}()]+)[ \t]*,", re.MULTILINE)
_FIELD = re.compile(r"[\s,](author|title|year|date|journal|booktitle|eprint)\s*=\s*", re.IGNORECASE)
_MOST_OF_A_FIELD = 2_000
_MOST_OF_AN_ENTRY = 20_000


def from_bibtex(text: str, cited: Mapping[str, None]) -> dict[str, str]:
    """Return the entries cited, or all of them where that is not known, as `Authors. Title. Where, year.` in LaTeX."""
    starts = list(_ENTRY.finditer(text))
    found = dict[str, str]()
    ends = [*(each.start() for each in starts[1:]), len(text)]
    for start, end in zip(starts, ends, strict=False):  # no start, one end: a list without entries
        if start[1].lower() not in {"string", "comment", "preamble"} and (not cited or start[2] in cited):
            found[start[2]] = _one_line(
                dict(_fields(text[start.end() - 1 : min(end, start.end() + _MOST_OF_AN_ENTRY)]))
            )
    return found


def _fields(entry: str) -> Iterator[tuple[str, str]]:
    for field in _FIELD.finditer(entry):
        rest = entry[field.end() : field.end() + _MOST_OF_A_FIELD]
        if rest[:1] == "{":
            value = rest[1 : _closing(rest)]
        elif rest[:1] == '"':
            value = rest[1:].split('"', 1)[0]
        else:
            value = re.split(r"[,}\s]", rest, maxsplit=1)[0]
        yield field[1].lower(), value


def _closing(text: str) -> int:
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0 and match.group() == "}":
            return match.start()
    return len(text)


def _one_line(fields: Mapping[str, str]) -> str:
    authors = re.sub(r"\s+and\s+", "; ", fields.get("author", ""))
    where = fields.get("journal") or fields.get("booktitle") or fields.get("eprint") or ""
    when = fields.get("year") or fields.get("date") or ""
    return ". ".join(
        part for part in (authors, fields.get("title", ""), ", ".join(filter(None, (where, when)))) if part
    )


def from_biblatex(text: str) -> dict[str, str]:
    r"""Return the entries of the `\entry{key}…\endentry` that biblatex writes; none where BibTeX wrote the file."""
    found = dict[str, str]()
    for entry in text.split(r"\entry{")[1:]:
        key = entry.split("}", 1)[0]
        body = entry.split(r"\endentry", 1)[0]
        families = re.findall(r"\bfamily=\{([^{}]*)\}", body)
        given = dict(re.findall(r"\\(?:field|list)\{(\w+)\}\{(?:\d+\}\{%?\s*\{?)?([^{}]*)\}", body))
        found[key] = _one_line({**given, "author": "; ".join(families), "journal": given.get("journaltitle", "")})
    return found
