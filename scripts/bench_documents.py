"""Measures the parsers of documents: pages a second on one core, and how much of a two-column PDF is read in order."""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from loopgraph_mcp.ingest.chunk import chunk
from loopgraph_mcp.ingest.parsers import html, latex, pdf
from loopgraph_mcp.ingest.parsers.model import Document

DATA = Path(__file__).parents[1] / "tests" / "data" / "documents"
WORDS_A_PAGE = 550  # of a two-column page, by which a text without pages is measured


def words(text: str) -> list[str]:
    """Return the words of a text, letters and digits only."""
    return re.findall(r"[^\W_]+", text.casefold())


def text_of(document: Document) -> str:
    """Return all of a document."""
    return "\n".join([document.title, *(block.text for block in document.blocks)])


def recall(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Return which share of the runs of five words is found."""
    fives = [Counter(zip(*(each[at:] for at in range(5)), strict=False)) for each in (wanted, found)]
    return sum((fives[0] & fives[1]).values()) / sum(fives[0].values())


def in_order(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Return the longest common subsequence over the words wanted."""
    before = [0] * (len(found) + 1)
    for word in wanted:
        row = [0]
        for at, other in enumerate(found, start=1):
            row.append(before[at - 1] + 1 if word == other else max(before[at], row[-1]))
        before = row
    return before[-1] / len(wanted)


def speed(read: Callable[[], Document], pages: float, seconds: float) -> float:
    """Return the pages read and cut into passages in a second of the processor."""
    read()
    began, count = time.process_time(), 0
    while time.process_time() - began < seconds:
        chunk(read())
        count += 1
    return pages * count / (time.process_time() - began)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="for each parser")
    parser.add_argument("--pdf", type=Path, help="your own PDF for the speed")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    two_column = (DATA / "twocolumn.pdf").read_bytes()
    own = asked.pdf.read_bytes() if asked.pdf else two_column
    told = pdf.read(two_column)
    lines = (DATA / "twocolumn.txt").read_text(encoding="utf-8").splitlines()
    wanted = words(" ".join(re.sub(r"^(?:#+ [\d.]*|! |T |\| |\^ )", "", line) for line in lines))
    tex = {path.name: path.read_bytes() for path in (DATA / "paper").iterdir()}
    prose = {"main.tex": (DATA / "twocolumn.tex").read_bytes()}
    page = (DATA / "latexml.html").read_bytes()
    figures = {
        "pdf_five_word_recall": recall(wanted, words(text_of(told))),
        "pdf_words_in_order": in_order(wanted, words(text_of(told))),
        "pdf_pages_per_s": speed(lambda: pdf.read(own), _pages(pdf.read(own)), asked.seconds),
    }
    for name, read in {
        "latex_prose": lambda: latex.read(prose),
        "latex_dense": lambda: latex.read(tex),
        "html": lambda: html.read(page),
    }.items():
        figures[f"{name}_pages_per_s"] = speed(read, len(words(text_of(read()))) / WORDS_A_PAGE, asked.seconds)
    print(
        json.dumps(figures) if asked.json else "\n".join(f"{name:22} {value:9.3f}" for name, value in figures.items())
    )


def _pages(document: Document) -> int:
    return max((block.page or 0 for block in document.blocks), default=0)


if __name__ == "__main__":
    main()
