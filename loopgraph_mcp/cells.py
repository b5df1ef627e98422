"""Takes text apart: tables into cells, JSON into values; cells into numbers, commits and plain words."""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

MAX_TEXT = 2_000


def split_rows(text: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield each line's number and cells; None for what separates tables: blank lines, comments, prose, rules."""
    lines = text.splitlines()
    if (separator := _separator(lines)) is not None:
        yield from _csv_cells(text, separator)
        return
    for line, content in enumerate(lines, start=1):
        bare = content.strip()
        if not bare or bare.startswith("#") or re.fullmatch(r"[-=|:+\s]+", bare):
            if not bare.startswith("|"):  # the rule below a Markdown table's header separates nothing
                yield line, None
        elif bare.startswith("|"):
            yield line, [cell.strip().strip("`*") for cell in bare.strip("|").split("|")]
        elif "\t" in content:
            yield line, content.rstrip("\r\n").split("\t")
        elif len(spaced := re.split(r" {2,}", bare)) > 2:  # tabs that became spaces
            yield line, spaced
        else:
            yield line, [bare]


def _separator(lines: Sequence[str]) -> str | None:
    """Return what separates cells in CSV (where commas are decimal, semicolons do), or None where it is none."""
    head = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    if "\t" in head or head.startswith("|"):
        return None
    return next((mark for mark in (",", ";") if head.count(mark) >= 2), None)


def _csv_cells(text: str, separator: str) -> Iterator[tuple[int, list[str] | None]]:
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    csv.field_size_limit(2**20)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield reader.line_num, None
            continue
        blank = not any(cell.strip() for cell in cells) or cells[0].startswith("#")
        yield reader.line_num, None if blank else cells


def read_entries(text: str) -> Iterator[tuple[int, Any]]:
    """Yield JSON values with their lines: of one document that is a list, or of one line each."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        yield from enumerate(whole, start=1)
        return
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            try:
                yield line, json.loads(content)
            except (ValueError, RecursionError):
                yield line, content[:80]


def flatten(entry: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield an entry's values, those of inner objects under `outer.inner` as tracker exports name their columns."""
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", each) for inner, each in value.items())
        else:
            yield str(key), value


def as_text(value: object) -> str:
    """Return a JSON value as the cell it would be in a table."""
    return "" if value is None else str(value)


def column_name(cell: str) -> str:
    """Return a column's name as it is compared: `Val BPB` and `val_bpb` are one."""
    return re.sub(r"[\s-]+", "_", cell.strip().strip("`*\"'").casefold())


_THOUSANDS = re.compile(r"^[-+]?\d{1,3}(?:,\d{3}){2,}(?![\d,])|^[-+]?[1-9]\d{0,2}(?:,\d{3})+(?=\.\d)")
_NUMBER = re.compile(r"^[~≈<>=]*\s*([-+]?(?:\d+(?:[.,]\d+)?|\.\d+)(?:e[-+]?\d+)?)(?![\w.])", re.IGNORECASE)


def read_number(cell: str) -> float | None:
    """Return the number that a cell begins with; a decimal comma is one, a note behind it is left."""
    text = unicodedata.normalize("NFKC", cell[:100]).replace("\u2212", "-").strip().strip("*`")
    match = _NUMBER.match(_THOUSANDS.sub(lambda found: found[0].replace(",", ""), text))
    if match is None:
        return None
    value = float(match[1].replace(",", "."))
    return value if math.isfinite(value) else None


def read_commit(cell: str) -> str:
    """Return the commit that a cell begins with, or nothing."""
    found = re.match(r"[0-9a-fA-F]{5,40}\b", cell.strip().strip("`"))
    return found[0].lower() if found else ""


def clean(text: str) -> str:
    """Return a description as one line without what moves a cursor or hides."""
    hidden = {"Cc", "Cf", "Cs"}
    kept = "".join(char for char in text[:MAX_TEXT] if char == "\t" or unicodedata.category(char) not in hidden)
    return " ".join(kept.split())


def shorten(cells: Sequence[str]) -> str:
    """Return the first words of a line, to show which is meant."""
    return clean(" ".join(cells))[:80]
