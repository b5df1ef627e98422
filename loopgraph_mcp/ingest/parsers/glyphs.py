"""Takes the letters of a PDF's pages, each with its place, through pdfminer.six."""

import re
from dataclasses import dataclass, field
from typing import Any

from pdfminer.pdfdevice import PDFTextDevice
from pdfminer.pdffont import PDFFont, PDFUnicodeNotDefined
from pdfminer.pdfinterp import PDFPageInterpreter, PDFResourceManager
from pdfminer.pdfpage import PDFPage

_BOLD = re.compile(r"bold|cmbx|black|heavy|-medi|demi|sfbx|\.b\b|nimbusromno9l-medi", re.IGNORECASE)
_MATH = re.compile(r"cmmi|cmsy|cmex|msam|msbm|lmmath|symbol|eufm|rsfs|math|bbold|dsrom|wasy|stmary", re.IGNORECASE)
# Where TeX's old text fonts keep their ligatures and dashes; a PDF that lost its encoding still shows these numbers.
_OF_TEX = {
    11: "ff",
    12: "fi",
    13: "fl",
    14: "ffi",
    15: "ffl",
    27: "ff",
    28: "fi",
    29: "fl",
    30: "ffi",
    31: "ffl",
    123: "–",
    124: "—",
}
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st", "\xa0": " "})
_MOST_LETTERS_A_PAGE = 100_000


@dataclass(slots=True)
class Run:
    """Letters that stand side by side on one line.

    Args:
        x0: Where it begins, in points from the left.
        x1: Where it ends.
        y: Its baseline, in points from the bottom.
        size: Of most of its letters, in points.
    """

    x0: float
    x1: float
    y: float
    size: float
    text: str
    bold: float = 0.0
    math: float = 0.0


@dataclass(slots=True)
class Page:
    """What stands on a page.

    Args:
        number: From 1.
        runs: In the order in which they are drawn.
        unknown: How many letters have no known meaning.
        images: How many images are drawn.
    """

    number: int
    width: float
    height: float
    runs: list[Run]
    unknown: int = 0
    images: int = 0


@dataclass(slots=True)
class _Growing:
    x0: float
    x1: float
    y: float
    size: float
    letters: list[str] = field(default_factory=list)
    bold: int = 0
    math: int = 0
    in_math: bool = False

    def run(self) -> Run:
        text = "".join(self.letters).strip()
        count = max(1, len(text.replace(" ", "")))
        return Run(self.x0, self.x1, self.y, self.size, text, self.bold / count, self.math / count)


class Letters(PDFTextDevice):
    """Takes letters as pdfminer's interpreter draws them; drawings are passed over."""

    def __init__(self, manager: PDFResourceManager) -> None:
        super().__init__(manager)
        self.kinds: dict[PDFFont, tuple[bool, bool]] = {}
        self.start()

    def start(self) -> None:
        """Begin a page."""
        self.runs: tuple[list[_Growing], list[_Growing]] = ([], [])  # of the page itself, of its figures
        self.depth = 0
        self.count = self.unknown = self.images = 0
        self.last: tuple[str, int, int] = ("", 0, 0)

    def begin_figure(self, name: str, bbox: Any, matrix: Any) -> None:
        """Note that what follows belongs to a figure."""
        self.depth += 1

    def end_figure(self, name: str) -> None:
        """Note a figure's end."""
        self.depth -= 1

    def render_image(self, name: str, stream: Any) -> None:
        """Count an image."""
        self.images += 1

    def render_char(
        self,
        matrix: Any,
        font: PDFFont,
        fontsize: float,
        scaling: float,
        rise: float,
        cid: int,
        ncs: Any,
        graphicstate: Any,
    ) -> float:
        """Take a letter; return by how much the pen moves on."""
        advance = font.char_width(cid) * fontsize * scaling
        a, b, _, d, x, y = matrix
        size = abs(fontsize * d)
        if abs(b) > 0.1 * abs(a) or a <= 0 or size < 1 or self.count > _MOST_LETTERS_A_PAGE:
            return advance  # turned text is no part of what is read: axis labels, arXiv's stamp
        try:
            text = font.to_unichr(cid).translate(_LIGATURES)
        except PDFUnicodeNotDefined:
            text = _OF_TEX.get(cid, "")
            self.unknown += not text
        if not text.isprintable():
            self.unknown += 1
            text = ""
        if text and not text.isspace():
            self.take(text, x, x + advance * a, y + rise * d, size, font)
        return advance

    def take(self, text: str, x0: float, x1: float, y: float, size: float, font: PDFFont) -> None:
        """Join a letter to the run that it continues, or begin one."""
        self.count += 1
        if self.last == (text, round(x0), round(y)) and size > 3:  # drawn twice to look bold
            return
        self.last = (text, round(x0), round(y))
        kind = self.kinds.get(font)
        if kind is None:
            name = str(getattr(font, "basefont", "") or getattr(font, "fontname", ""))
            kind = self.kinds[font] = (bool(_BOLD.search(name)), bool(_MATH.search(name)))
        runs = self.runs[self.depth > 0]
        run = runs[-1] if runs else None
        larger = max(size, run.size) if run is not None else size
        if run is None or abs(y - run.y) > 0.45 * larger or not -0.6 * larger < x0 - run.x1 < 1.2 * larger:
            run = _Growing(x0, x1, y, size)
            runs.append(run)
        elif x0 - run.x1 > 0.16 * larger or _is_note(run, y, size, in_math=kind[1]):
            run.letters.append(" ")
        run.letters.append(text)
        run.x1 = max(run.x1, x1)
        run.in_math = kind[1]
        run.bold += kind[0] * len(text)
        run.math += kind[1] * len(text)
        if size > run.size * 1.05:  # a run that began with a raised number stands on the line of its larger letters
            run.size, run.y = size, y

    def page(self, number: int, page: PDFPage) -> Page:
        """Return what was taken; text in figures only where there is little else, since some tools wrap whole pages."""
        own, within = self.runs
        count = [sum(len(run.letters) for run in runs) for runs in (own, within)]
        runs = own if count[0] > count[1] else [*own, *within]
        x0, y0, x1, y1 = page.mediabox
        width, height = (abs(x1 - x0), abs(y1 - y0)) if page.rotate % 180 == 0 else (abs(y1 - y0), abs(x1 - x0))
        return Page(number, width, height, [run.run() for run in runs], self.unknown, self.images)


def _is_note(run: _Growing, y: float, size: float, *, in_math: bool) -> bool:
    """Return whether a footnote's number begins or ends behind a word; an index of a formula is none."""
    if run.in_math or in_math:
        return False
    return (y > run.y + 0.2 * size and size < 0.85 * run.size) or (y < run.y - 0.2 * size and run.size < 0.85 * size)


def letters_of(page: PDFPage, number: int, device: Letters, interpreter: PDFPageInterpreter) -> Page:
    """Return what stands on a page. Raises whatever pdfminer does where the page is broken."""
    device.start()
    interpreter.process_page(page)
    return device.page(number, page)
