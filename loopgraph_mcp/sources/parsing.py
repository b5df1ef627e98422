"""Stand-in until the parsers come."""

from collections.abc import Mapping

from loopgraph_mcp.documents import Document, read


async def parse(kind: str, data: bytes | Mapping[str, bytes]) -> Document:
    return read(kind, data)
