"""Cuts documents into passages."""

from dataclasses import dataclass

from loopgraph_mcp.documents.model import Document


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a document that makes sense alone.

    Args:
        place: Its section, symbol or page.
        text: What it says.
    """

    place: str
    text: str


def chunk(document: Document) -> list[Passage]:
    """Return the passages of a document, in reading order."""
    return [Passage(block.section, block.text) for block in document.blocks if block.kind != "heading"]
