"""Reads html."""

from loopgraph_mcp.documents.model import Block, Document


def read(data: bytes) -> Document:
    """Return its blocks."""
    return Document("", tuple(Block("text", each) for each in data.decode("utf-8", "replace").split("\n\n")))
