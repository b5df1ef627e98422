"""What a document holds once it is read: its blocks in reading order, what was lost, and why if nothing was read."""

from dataclasses import dataclass
from typing import Literal

Format = Literal["latex", "html", "pdf", "markdown", "code"]
Kind = Literal["text", "heading", "equation", "table", "algorithm", "caption", "code", "list"]
State = Literal["read", "encrypted", "scanned", "broken", "too_large"]


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, heading, equation (LaTeX where the source has it), table, algorithm box, caption, listing or list.

    Args:
        kind: What it is.
        text: Its text; lines are kept in tables, algorithms, code and lists.
        section: The headings above it, joined by ` > `, without their numbers; of code the dotted symbol.
        page: Its page, from 1, in a format that has pages.
        lines: Of code the first and last line, from 1.
    """

    kind: Kind
    text: str
    section: str = ""
    page: int | None = None
    lines: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read.

    Args:
        title: Its title; empty where it says none.
        blocks: All of it in reading order.
        warnings: What could not be read or was left out, each a sentence.
        state: `read`, or why there are no blocks; the first warning then says what to do.
    """

    title: str
    blocks: tuple[Block, ...]
    warnings: tuple[str, ...] = ()
    state: State = "read"
