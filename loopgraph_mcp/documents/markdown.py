"""Reads markdown."""

from loopgraph_mcp.documents.model import Block, Document


def read(text: str) -> Document:
    """Return its blocks."""
    return Document("", tuple(Block("text", each) for each in text.split("\n\n")))
