"""Reads PDF: pages in reading order as blocks, or the reason why there is no text."""

import io
import logging
import warnings

from pdfminer.pdfdocument import PDFDocument, PDFEncryptionError
from pdfminer.pdfinterp import PDFPageInterpreter, PDFResourceManager
from pdfminer.pdfpage import PDFPage
from pdfminer.pdfparser import PDFParser

from loopgraph_mcp.ingest.parsers import layout
from loopgraph_mcp.ingest.parsers.glyphs import Letters, Page, letters_of
from loopgraph_mcp.ingest.parsers.model import Document, State

MOST_BYTES = 100 * 2**20
MOST_PAGES = 500
_LEAST_LETTERS_A_PAGE = 20

_SAID: dict[State, str] = {
    "encrypted": "it asks for a password; save a copy without one",
    "scanned": "its pages are pictures and hold no text; run OCR over it (ocrmypdf) and give the result",
    "too_large": f"it is larger than {MOST_BYTES // 2**20} MiB; give the part that matters",
    "broken": "it cannot be read as a PDF; fetch it again or save it anew from a viewer",
}


def read(data: bytes) -> Document:
    """Return a PDF's blocks; one that is encrypted, scanned, broken or too large has that state and none."""
    if len(data) > MOST_BYTES:
        return _unread("too_large")
    logging.getLogger("pdfminer").setLevel(logging.CRITICAL)  # it logs every oddity of a file, by the thousand
    pages, notes = list[Page](), list[str]()
    try:
        with warnings.catch_warnings(action="ignore"):
            notes = _take(data, pages)
    except MemoryError:
        raise
    except PDFEncryptionError:
        return _unread("encrypted")
    except Exception as error:  # noqa: BLE001 - pdfminer raises whatever a malformed file leads it to
        return _unread("broken", f"{type(error).__name__}: {str(error)[:100]}")
    if not pages:
        return _unread("broken", *notes)
    letters = sum(len(run.text) for page in pages for run in page.runs)
    if letters < _LEAST_LETTERS_A_PAGE * len(pages):
        return _unread("scanned")
    if unknown := sum(page.unknown for page in pages):
        notes.append(f"{unknown} of {letters + unknown} letters have no known meaning and were left out")
    lines = [line for page in pages for line in layout.lines_of(page)]
    title, blocks = layout.blocks_of(layout.without_running_heads(lines, pages))
    return Document(title, tuple(blocks), tuple(notes))


def _take(data: bytes, pages: list[Page]) -> list[str]:
    """Take the letters of all pages; return what could not be read."""
    document = PDFDocument(PDFParser(io.BytesIO(data)))
    manager = PDFResourceManager()
    device = Letters(manager)
    interpreter = PDFPageInterpreter(manager, device)
    broken = list[str]()
    for number, page in enumerate(PDFPage.create_pages(document), start=1):
        if number > MOST_PAGES:
            return [*broken, f"only the first {MOST_PAGES} pages were read"]
        try:
            pages.append(letters_of(page, number, device, interpreter))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - pdfminer raises whatever a malformed page leads it to
            broken.append(f"page {number} is broken ({type(error).__name__}) and was left out")
    return broken


def _unread(state: State, *notes: str) -> Document:
    return Document("", (), (_SAID[state], *notes), state)
