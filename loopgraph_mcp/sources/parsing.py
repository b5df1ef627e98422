"""Reads documents in a process of their own."""

import asyncio
from collections.abc import Mapping

from loopgraph_mcp.documents.model import Document, Format
from loopgraph_mcp.documents.reading import read


async def parse(form: Format, data: bytes | Mapping[str, bytes], *, path: str = "", timeout_s: float = 60) -> Document:
    """Return a document's blocks; encrypted, scanned, broken and too large ones have that state and no blocks.

    Args:
        form: How it is written.
        data: Its bytes; LaTeX may be several files by their path.
        path: Where it stands, which names the symbols of code.
        timeout_s: How long reading may take.

    Raises:
        SourceError: Reading it took too much time or memory, or failed.
    """
    async with asyncio.timeout(timeout_s):
        return await asyncio.to_thread(read, form, data, path=path)
