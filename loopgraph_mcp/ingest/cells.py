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
MAX_CELLS = 4_096  # of one line
MAX_CELL = 2**20
_HEAD = 40  # lines among which a table begins
_COMMAS = 2  # that make a line one of CSV
_MAX_COMMENTS = 2_000
_MAX_DEPTH = 6
_MAX_NAME = 200
_RUNS = ("runs", "trials", "experiments", "results", "rows", "history", "iterations", "entries")


def split_rows(text: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield each line's number and cells; None for what separates tables: blank lines, comments, prose, rules.

    Of a line that has far more cells than a table of experiments, the rest is one cell.
    """
    lines = text.splitlines()
    if (separator := _separator(lines)) is not None:
        yield from _csv_cells(text, separator)
        return
    for line, content in enumerate(lines, start=1):
        bare = content.strip()
        if not bare or bare.startswith("#") or (bare[0] in "-=|:+" and re.fullmatch(r"[-=|:+\s]+", bare)):
            if not bare.startswith("|"):  # the rule below a Markdown table's header separates nothing
                yield line, None
        elif bare.startswith("|"):
            yield line, [cell.strip().strip("`*") for cell in bare.strip("|").split("|", MAX_CELLS)]
        elif "\t" in content:
            yield line, content.rstrip("\r\n").split("\t", MAX_CELLS)
        elif len(spaced := re.split(r" {2,}", bare, maxsplit=MAX_CELLS)) > 2:  # tabs that became spaces
            yield line, spaced
        else:
            yield line, [bare]


def comments(text: str) -> list[str]:
    """Return the lines marked as comments, and those above the first table: settings, front matter, prose."""
    found = list[str]()
    above = True
    for content in text.splitlines():
        bare = content[:MAX_TEXT].strip()
        above = above and "\t" not in bare and not bare.startswith("|") and bare.count(",") < _COMMAS
        if bare and (above or bare[0] in "#/;%<>"):
            found.append(bare.strip("#/;%<>!- "))
            if len(found) >= _MAX_COMMENTS:
                break
    return found


def _separator(lines: Sequence[str]) -> str | None:
    """Return what separates cells in CSV (where commas are decimal, semicolons do), or None where it is none."""
    heads = [line[:MAX_TEXT] for line in lines[:_HEAD] if line.strip() and not line.startswith(("#", "---"))]
    if not heads or any("\t" in head or head.startswith("|") for head in heads[:1]):
        return None
    first = next((mark for mark in (",", ";") if heads[0].count(mark) >= 2), None)
    if first is not None or any("\t" in head or head.lstrip().startswith("|") for head in heads):
        return first
    # Settings or prose may be above the table.
    for head in heads:
        for mark in (",", ";"):
            if head.count(mark) >= 2 and all(re.fullmatch(r"[\w./@ \"()-]{0,60}", cell) for cell in head.split(mark)):
                return mark
    return None


def _csv_cells(text: str, separator: str) -> Iterator[tuple[int, list[str] | None]]:
    too_many = f"a line of more than {MAX_CELLS} cells\n"
    lines = (line if line.count(separator) <= MAX_CELLS else too_many for line in io.StringIO(text))
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(lines, delimiter=separator)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, [f"unreadable: {error}"]
            continue
        blank = not any(cell.strip() for cell in cells) or cells[0].startswith("#")
        yield reader.line_num, None if blank else cells


def read_entries(text: str) -> Iterator[tuple[int, Any]]:
    """Yield JSON values with their lines: of one document that is a list or holds one of runs, or of one line each."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict):
        runs = next((key for key in _RUNS if isinstance(whole.get(key), list)), None)
        if runs is not None:
            yield 1, {"type": "config", **{key: value for key, value in whole.items() if key != runs}}
            whole = whole[runs]
        else:
            yield 1, whole
            return
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
    """Yield an entry's values, those of inner objects under `outer.inner` as tracker exports name their columns.

    A list of keys with values, as MLflow's service writes metrics and parameters, counts as an object.
    """
    return _flatten("", entry, _MAX_DEPTH)


def _flatten(prefix: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and value and all(isinstance(each, dict) and "key" in each for each in value):
        value = {str(each["key"]): each.get("value") for each in value}
    if isinstance(value, dict) and (depth > 0 or not prefix):
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), inner, depth - 1)
    else:
        yield prefix, value


def as_text(value: object) -> str:
    """Return a JSON value as the cell it would be in a table."""
    return "" if value is None else str(value)


def column_name(cell: str) -> str:
    """Return a column's name as it is compared: `Val BPB` and `val_bpb` are one."""
    return re.sub(r"[\s-]+", "_", cell[:_MAX_NAME].strip().strip("`*\"'").casefold())


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
