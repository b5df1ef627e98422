"""Reads latex."""

from collections.abc import Mapping

from loopgraph_mcp.documents.model import Block, Document


def read(files: Mapping[str, bytes]) -> Document:
    """Return its blocks."""
    return Document(
        "", tuple(Block("text", each) for each in b"\n\n".join(files.values()).decode("utf-8", "replace").split("\n\n"))
    )
