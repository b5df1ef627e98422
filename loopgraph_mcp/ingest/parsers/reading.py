"""Reads a document in any of the formats."""

from collections.abc import Mapping

from loopgraph_mcp.ingest.parsers import html, latex, markdown, python
from loopgraph_mcp.ingest.parsers.model import Document, Format


def read(form: Format, data: bytes | Mapping[str, bytes], *, path: str = "") -> Document:
    """Return a document's blocks.

    Args:
        form: How it is written.
        data: Its bytes; LaTeX may be several files by their path.
        path: Where it stands, which names the symbols of code.
    """
    files = {path or "main.tex": data} if isinstance(data, bytes) else data
    only = data if isinstance(data, bytes) else b"\n".join(data.values())
    match form:
        case "latex":
            return latex.read(files)
        case "html":
            return html.read(only)
        case "pdf":
            from loopgraph_mcp.ingest.parsers import pdf  # noqa: PLC0415 - pdfminer.six takes a quarter of a second

            return pdf.read(only)
        case "markdown":
            return markdown.read(only.decode("utf-8", "replace"))
        case "code":
            return python.read(only.decode("utf-8", "replace"), path)
