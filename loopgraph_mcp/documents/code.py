"""Reads code."""

from loopgraph_mcp.documents.model import Block, Document


def read(text: str, path: str) -> Document:
    """Return its blocks."""
    return Document(path, tuple(Block("text", each) for each in text.split("\n\n")))
