"""Stand-in until the parsers come: the same names, the simplest reading."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    kind: str
    text: str
    section: str = ""
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    place: str
    text: str


def chunk(document: Document) -> list[Passage]:
    return [Passage(block.section, block.text) for block in document.blocks]


def read(kind: str, data: bytes | Mapping[str, bytes]) -> Document:
    text = "\n\n".join(
        each.decode("utf-8", "replace") for each in ([data] if isinstance(data, bytes) else data.values())
    )
    section, blocks = "", list[Block]()
    for part in re.split(r"\n\s*\n", re.sub(r"<(h\d)>(.*?)</\1>", r"\n\n# \2\n\n", text)):
        if (heading := re.match(r"\s*(?:#+ (.+)|\\section\{(.+?)\})", part)) is not None:
            section = heading[1] or heading[2]
        if plain := re.sub(r"<[^>]*>|\\\w+|[{}]", " ", part).strip():
            blocks.append(Block("paragraph", plain, section))
    return Document(blocks[0].text.split("\n")[0][:80] if blocks else "", tuple(blocks))
