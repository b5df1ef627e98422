"""Puts the runs of a PDF's pages into reading order: columns, lines, paragraphs, headings; without running heads."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loopgraph_mcp.ingest.parsers.glyphs import Page, Run
from loopgraph_mcp.ingest.parsers.model import Block, Kind

_NUMBERED = re.compile(r"(?:(\d{1,2}(?:\.\d{1,2}){0,3})\.?|[A-Z](?:\.\d{1,2})*\.?|[IVX]{1,5}\.)\s+(?=[A-Z\d“\"'(])")
_NAMED = re.compile(
    r"(?:(?:\d|[IVX]+)?\.?\s*)(?:abstract|introduction|related work|background|methods?|experiments?|results|"
    r"discussion|limitations|conclusions?|references|bibliography|acknowledge?ments?|appendix|appendices)\W*$",
    re.IGNORECASE,
)
_CAPTION = re.compile(r"(?:Figure|Fig\.|Table|Algorithm|Listing)\s*\d+\s*[:.|]\s")
_PAGE_NUMBER = re.compile(r"\W*(?:page\s+)?(?:\d{1,4}|[ivxl]{1,6})(?:\s*(?:of|/)\s*\d{1,4})?\W*$", re.IGNORECASE)
_STAMP = re.compile(r"arXiv:\d{4}\.\d{4,5}")
_ENDS = re.compile(r"[.!?:;…][\])”\"'’]*$")
_HYPHENS = "-\u2010\u00ad"
_MARGIN = 0.12  # the share of a page's height in which running heads and page numbers stand


@dataclass(slots=True)
class Line:
    """One line of a column.

    Args:
        left: Where its column begins.
        right: Where its column ends.
        cells: How many runs with gaps between them it was made of.
    """

    page: int
    column: int
    x0: float
    x1: float
    y: float
    size: float
    text: str
    bold: float
    math: float
    left: float
    right: float
    cells: int


def lines_of(page: Page) -> list[Line]:
    """Return a page's lines in reading order."""
    runs = [run for run in page.runs if run.text]
    gutter = _gutter(runs)
    if gutter is None:
        return _column(runs, page.number, 0)
    left, right, full = list[Run](), list[Run](), list[Run]()
    for run in runs:
        if run.x0 < gutter[0] - 8 and run.x1 > gutter[1] + 8:
            full.append(run)
        else:
            (left if (run.x0 + run.x1) / 2 < (gutter[0] + gutter[1]) / 2 else right).append(run)
    lines, column = list[Line](), 0
    bounds = [*sorted((run.y + 0.5 * run.size for run in full), reverse=True), float("-inf")]
    above = float("inf")
    across = sorted(full, key=lambda run: -run.y)
    for index, bound in enumerate(bounds):
        for part in (left, right):
            lines += _column([run for run in part if bound <= run.y < above], page.number, column + 1)
            column += 1
        if index < len(across):
            lines += _column([across[index]], page.number, 0)
        above = bound
    return lines


def _gutter(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Return where the gap between a page's two columns begins and ends, or None where it has one column."""
    letters = sum(len(run.text) for run in runs)
    if letters < 200:
        return None
    begin, end = min(run.x0 for run in runs), max(run.x1 for run in runs)
    starts = Counter[int]()
    for run in runs:
        if begin + 0.35 * (end - begin) < run.x0 < begin + 0.65 * (end - begin):
            starts[round(run.x0)] += len(run.text)
    for start, _ in starts.most_common(5):
        right = [run for run in runs if run.x0 >= start - 2]
        before = [run for run in runs if run.x1 <= start + 1 and run.x0 < start - 2]
        widths = (start - begin, end - start)
        sides = [
            sum(len(run.text) for run in side if run.x1 - run.x0 > 0.5 * width)
            for side, width in zip((before, right), widths, strict=True)
        ]
        if min(sides) > 0.15 * letters or (sum(sides) > 0.7 * letters and min(sides) > 0.05 * letters):
            ends = sorted(run.x1 for run in before if run.x1 - run.x0 > 0.5 * widths[0])
            return ends[int(0.9 * (len(ends) - 1))], start
    return None


def _column(runs: Sequence[Run], page: int, column: int) -> list[Line]:
    """Return the lines of a column from its top."""
    rows = list[list[Run]]()
    for run in sorted(runs, key=lambda run: (-run.y, run.x0)):
        row = next((row for row in rows[-3:] if _on_one_line(row[0], run)), None)
        if row is None:
            rows.append([run])
        else:
            row.append(run)
            if run.size > row[0].size:
                row.insert(0, row.pop())
    wide = sorted((run.x0, run.x1) for run in runs if len(run.text) > 20)
    left = wide[0][0] if wide else min((run.x0 for run in runs), default=0.0)
    right = max((x1 for _, x1 in wide), default=max((run.x1 for run in runs), default=0.0))
    lines = list[Line]()
    for row in rows:
        base = max(row, key=lambda run: (len(run.text), run.size))
        parts = sorted(row, key=lambda run: run.x0)
        text, cells = parts[0].text, 1
        for one, other in itertools.pairwise(parts):
            gap = other.x0 - one.x1
            cells += gap > 1.2 * base.size
            text += other.text if gap < 0.12 * base.size and one.size != other.size else f" {other.text}"
        count = sum(len(run.text) for run in row)
        lines.append(
            Line(
                page,
                column,
                parts[0].x0,
                max(run.x1 for run in row),
                base.y,
                base.size,
                text,
                sum(run.bold * len(run.text) for run in row) / count,
                sum(run.math * len(run.text) for run in row) / count,
                left,
                right,
                cells,
            )
        )
    return lines


def _on_one_line(one: Run, other: Run) -> bool:
    """Return whether two runs stand on one line, one perhaps raised or lowered as an index is."""
    return abs(one.y - other.y) < 0.45 * max(one.size, other.size) and (
        other.x0 > one.x1 - 0.3 * one.size or other.x1 < one.x0 + 0.3 * one.size
    )


def without_running_heads(lines: Sequence[Line], pages: Sequence[Page]) -> list[Line]:
    """Return the lines that are no running head, no page number and no stamp."""
    heights = {page.number: page.height for page in pages}

    def in_margin(line: Line) -> bool:
        return not _MARGIN < line.y / max(1.0, heights[line.page]) < 1 - _MARGIN

    seen = defaultdict[tuple[str, int], set[int]](set)
    for line in lines:
        if in_margin(line):
            seen[_shape(line)].add(line.page)
    enough = 2 if len(pages) < 6 else 3
    of_page = defaultdict[int, list[float]](list)
    for line in lines:
        of_page[line.page].append(line.y)
    ends = {page: (min(ys), max(ys)) for page, ys in of_page.items()}

    def is_told(line: Line) -> bool:
        if _STAMP.match(line.text):
            return False
        if not in_margin(line):
            return True
        low, high = ends[line.page]
        outermost = line.y < low + 2 or line.y > high - 2
        return not (outermost and _PAGE_NUMBER.match(line.text)) and len(seen[_shape(line)]) < enough

    return [line for line in lines if is_told(line)]


def _shape(line: Line) -> tuple[str, int]:
    return re.sub(r"\d+", "#", line.text).casefold(), round(line.y / 4)


def body_size(lines: Iterable[Line]) -> float:
    """Return the size, to half a point, in which most letters are set."""
    sizes = Counter[float]()
    for line in lines:
        sizes[round(2 * line.size) / 2] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 10.0


def blocks_of(lines: Sequence[Line]) -> tuple[str, list[Block]]:
    """Return the title and the blocks that lines in reading order make up."""
    size = body_size(lines)
    title, lines = _title(lines, size)
    groups = list[tuple[Kind, list[Line]]]()
    begun = next((at for at, line in enumerate(lines) if line.page > 1 or _NAMED.fullmatch(line.text)), 0)
    for at, line in enumerate(lines):
        kind = "text" if at < begun and _kind(line, size) == "heading" else _kind(line, size)
        if groups and _continues(groups[-1][0], groups[-1][1], line, kind):
            groups[-1][1].append(line)
        else:
            groups.append((kind, [line]))
    groups = _whole(groups, size)
    known = {word.casefold() for line in lines for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", line.text)}
    blocks, sections = list[Block](), list[tuple[int, str]]()
    for kind, group in groups:
        text = "\n".join(line.text for line in group) if kind == "table" else _joined(group, known)
        if kind == "heading":
            level, text = _level(text)
            sections = [*(each for each in sections if each[0] < level), (level, text)]
        blocks.append(Block(kind, text, " > ".join(name for _, name in sections), group[0].page))
    return title, blocks


def _title(lines: Sequence[Line], size: float) -> tuple[str, list[Line]]:
    """Take a title off the lines: the largest on the first page."""
    first = [line for line in lines if line.page == 1][:12]
    largest = max((line.size for line in first if len(line.text) > 3), default=0.0)
    if largest < size + 1.5:
        return "", list(lines)
    from_it = itertools.dropwhile(lambda line: line.size < largest - 0.5, first)
    title = list(itertools.takewhile(lambda line: line.size > largest - 0.5 and not _NAMED.match(line.text), from_it))
    return " ".join(line.text for line in title), [line for line in lines if line not in title]


def _kind(line: Line, size: float) -> Kind:
    words = line.text.split()
    stands_out = line.bold > 0.8 or line.size > size + 0.8 or line.text.isupper()
    short = len(words) <= 14 and line.cells <= 2 and line.math < 0.3
    if short and stands_out and (_NUMBERED.match(line.text) or _NAMED.match(line.text)) and len(line.text) > 3:
        return "heading"
    if short and line.size > size + 0.8 and len(words) > 1:
        return "heading"
    if _CAPTION.match(line.text):
        return "caption"
    if line.cells >= 3 and line.math < 0.5:
        return "table"
    if line.math > 0.45 or (line.math > 0.25 and line.x0 > line.left + 2 * line.size and len(words) < 8):
        return "equation"
    return "text"


def _continues(kind: Kind, group: Sequence[Line], line: Line, new: Kind) -> bool:
    """Return whether a line belongs to the block before it."""
    last = group[-1]
    if last.page != line.page or last.column != line.column:
        return False
    gap, size = last.y - line.y, max(last.size, line.size)
    if kind == "heading":
        return (
            new == "heading"
            and not _NUMBERED.match(line.text)
            and gap < 1.7 * size
            and abs(last.size - line.size) < 0.3
        )
    if kind == "caption":
        return new in {"text", "equation"} and gap < 1.5 * size and abs(last.size - line.size) < 0.6
    if new != kind:
        return False
    if kind != "text":
        return gap < 2.5 * size
    if gap > 1.65 * size or abs(last.size - line.size) > 0.6:
        return False
    indented = line.left + 0.8 * size < line.x0 < line.left + 4 * size and last.x0 < line.x0 - 0.6 * size
    ended_early = last.x1 < last.right - 2 * size and bool(_ENDS.search(last.text))
    return not (indented and (ended_early or _ENDS.search(last.text))) and not (
        ended_early and line.x0 < line.left + 4 * size and line.text[:1].isupper() and last.x1 < last.right - 6 * size
    )


def _whole(groups: list[tuple[Kind, list[Line]]], size: float) -> list[tuple[Kind, list[Line]]]:
    """Join paragraphs that go on in the next column or on the next page, over what stands between."""
    whole = list[tuple[Kind, list[Line]]]()
    open_text: list[Line] | None = None
    for kind, group in groups:
        first = group[0]
        is_body = kind == "text" and abs(first.size - size) < 0.6
        if is_body and open_text is not None:
            last = open_text[-1]
            elsewhere = (last.page, last.column) != (first.page, first.column)
            if elsewhere and not _ENDS.search(last.text) and (first.text[:1].islower() or last.text[-1:] in _HYPHENS):
                open_text += group
                continue
        whole.append((kind, group))
        if is_body:
            open_text = group
        elif kind == "heading":
            open_text = None
    return whole


def _joined(lines: Sequence[Line], known: set[str]) -> str:
    """Return lines as one text, words that a line's end divided made whole.

    A hyphen stays where the document writes the word with it in the middle of a line, as it does `low-rank`.
    """
    text = ""
    for line in lines:
        if text[-1:] and text[-1] in _HYPHENS and text[-2:-1].isalpha() and line.text[:1].isalpha():
            before = re.search(r"[^\W\d_]+(?:-[^\W\d_]+)*$", text[:-1])
            after = re.match(r"[^\W\d_]+", line.text)
            head, tail = (before.group() if before else ""), (after.group() if after else "")
            keeps = f"{head}-{tail}".casefold() in known and (head + tail).casefold() not in known
            keeps = keeps or not line.text[:1].islower() or line.text[len(tail) : len(tail) + 1] == "-"
            text = f"{text[:-1]}-{line.text}" if keeps else text[:-1] + line.text
        else:
            text += f" {line.text}" if text else line.text
    return text


def _level(heading: str) -> tuple[int, str]:
    """Return how deep a heading stands, and its words without their number."""
    numbered = _NUMBERED.match(heading)
    if numbered is None:
        return 1, heading
    number = numbered.group().strip().strip(".")
    return 1 + number.count("."), heading[numbered.end() :]
