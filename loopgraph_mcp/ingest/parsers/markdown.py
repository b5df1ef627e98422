"""Reads Markdown, and plain or reStructured text as far as it looks like it."""

import re
import textwrap
from collections.abc import Callable, Iterator

from loopgraph_mcp.ingest.parsers.model import Block, Document, Kind

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S")
_TABLE = re.compile(r"[ \t]*\|.*\||[ \t]*\|?[ \t]*:?-{3,}:?[ \t]*\|")
_RULE = re.compile(r"[ \t|:+-]*-[ \t|:+-]*$")
_UNDERLINE = re.compile(r"(=+|-{2,}|~{3,}|\^{3,}|\*{3,}|\"{3,})[ \t]*$")
_LEVELS = {"=": 1, "-": 2, "~": 3, "^": 4, "*": 2, '"': 4}
_DIRECTIVE = re.compile(r"\.\. (code-block|code|math|image|figure|note|warning|toctree|autoclass|contents)::")
_MATH = re.compile(r"[ \t]*(?:\$\$|\\\[)")
_INLINE = [
    (re.compile(r"!\[([^\]\n]{0,500})\]\([^)\n]{0,2000}\)"), r"\1"),
    (re.compile(r"\[([^\]\n]{1,500})\]\((?:[^()\n]|\([^()\n]{0,500}\)){0,2000}\)"), r"\1"),
    (re.compile(r"\[([^\]\n]{1,500})\]\[[^\]\n]{0,200}\]"), r"\1"),
    (re.compile(r"(?<![\w*])\*\*([^*\n]{1,1000})\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\n]{1,1000})\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w_])__([^_\n]{1,1000})__(?![\w_])"), r"\1"),
    (
        re.compile(
            r"</?(?:a|b|i|em|strong|br|p|div|img|sub|sup|details|summary|center|h[1-6]|span|kbd|picture|source)\b[^<>]{0,2000}>"
        ),
        "",
    ),
]


def read(text: str) -> Document:
    """Return its blocks: headings, paragraphs, lists, tables, fenced and indented code, display math."""
    lines = _clean(text).split("\n")
    reader = _Reader(lines)
    reader.run()
    return Document(reader.title, tuple(reader.blocks))


def _clean(text: str) -> str:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    kept = list[str]()
    for at, part in enumerate(text.split("<!--")):
        _, end, after = part.partition("-->")
        kept.append(part if at == 0 else (after if end else f"<!--{part}"))
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "", "".join(kept))


class _Reader:
    """Reads lines, a block at a time."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.at = 0
        self.title = ""
        self.blocks: list[Block] = []
        self.sections: list[tuple[int, str]] = []

    def run(self) -> None:
        """Read everything."""
        if self.lines[0].strip() == "---" and "---" in (rest := [line.strip() for line in self.lines[1:200]]):
            front = self.lines[1 : rest.index("---") + 1]
            self.at = len(front) + 2
            titles = [line.partition(":")[2].strip().strip("\"'") for line in front if line.startswith("title:")]
            self.title = titles[0] if titles else ""
        while self.at < len(self.lines):
            self.block()

    def block(self) -> None:  # noqa: C901 - one case a kind of block
        """Read one block."""
        line = self.lines[self.at]
        following = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
        if not line.strip():
            self.at += 1
        elif (heading := _HEADING.match(line)) is not None:
            self.at += 1
            self.heading(len(heading[1]), heading[2])
        elif (fence := _FENCE.match(line)) is not None:
            self.fenced(fence[1])
        elif _MATH.match(line):
            self.math()
        elif (directive := _DIRECTIVE.match(line)) is not None:
            self.directive(directive[1])
        elif line.startswith("    ") and not _ITEM.match(line):
            self.add("code", _dedented(self.take(lambda each: each.startswith("    ") or not each.strip())))
        elif _TABLE.match(line) or ("|" in line and _TABLE.match(following) and _RULE.match(following)):
            rows = self.take(lambda each: "|" in each)
            self.add("table", "\n".join(_row(row) for row in rows if not _RULE.match(row)) or "\n".join(rows))
        elif _ITEM.match(line):
            self.add("list", "\n".join(_plain(each).rstrip() for each in self.items()))
        elif (underline := _UNDERLINE.match(following)) is not None and len(line) < 300:
            self.at += 2
            self.heading(_LEVELS[underline[1][0]], line)
        elif _UNDERLINE.match(line) and len(line.strip()) > 2:
            self.at += 1  # a rule, or the line over an rst title
        else:
            self.paragraph()

    def paragraph(self) -> None:
        """Read lines up to what begins another block."""
        lines = [self.lines[self.at]]
        self.at += 1
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not line.strip() or _HEADING.match(line) or _FENCE.match(line) or _ITEM.match(line) or _MATH.match(line):
                break
            lines.append(line)
            self.at += 1
        quoted = [re.sub(r"^[ \t]*(?:>[ \t]?)+", "", line).strip() for line in lines]
        self.add("text", _plain(" ".join(quoted)))

    def items(self) -> Iterator[str]:
        """Yield the lines of a list, those within its items among them."""
        while self.at < len(self.lines):
            line = self.lines[self.at]
            following = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
            goes_on = _ITEM.match(following) or following.startswith("  ")
            if (not line.strip() and not goes_on) or _HEADING.match(line) or (_FENCE.match(line) and line[0] != " "):
                return
            self.at += 1
            if line.strip():
                yield line

    def fenced(self, fence: str) -> None:
        """Read a listing up to its closing fence."""
        self.at += 1
        start = self.at
        while self.at < len(self.lines) and not self.lines[self.at].strip().startswith(fence):
            self.at += 1
        kind: Kind = "equation" if self.lines[start - 1].strip(" `~") == "math" else "code"
        self.add(kind, "\n".join(self.lines[start : self.at]))
        self.at += 1

    def math(self) -> None:
        """Read a display formula."""
        text = self.lines[self.at].strip()
        end = r"\]" if text.startswith(r"\[") else "$$"
        found, text = list[str](), text[2:]
        while end not in text and self.at + 1 < len(self.lines) and len(found) < 200:
            found.append(text)
            self.at += 1
            text = self.lines[self.at]
        formula, _, after = text.partition(end)
        self.at += 1
        self.add("equation", " ".join([*found, formula]))
        if after.strip(" .,"):
            self.add("text", _plain(after.strip()))

    def directive(self, name: str) -> None:
        """Read a reStructured directive with what is indented under it."""
        self.at += 1
        body = self.take(lambda each: not each.strip() or each.startswith("  "))
        text = _dedented([line for line in body if not re.match(r"\s+:[\w-]+:", line)])
        if name in {"code-block", "code"}:
            self.add("code", text)
        elif name == "math":
            self.add("equation", " ".join(text.split()))
        elif name in {"note", "warning", "figure"}:
            self.add("text", " ".join(text.split()))

    def take(self, belongs: Callable[[str], bool]) -> list[str]:
        """Return the lines from here that belong together."""
        start = self.at
        while self.at < len(self.lines) and belongs(self.lines[self.at]):
            self.at += 1
        return self.lines[start : self.at]

    def heading(self, level: int, text: str) -> None:
        """Begin a section."""
        text = _plain(text).strip()
        if not text:
            return
        if not self.title and level == 1:
            self.title = text
        self.sections = [*(each for each in self.sections if each[0] < level), (level, text)]
        self.add("heading", text)

    def add(self, kind: Kind, text: str) -> None:
        """Add a block, unless it is empty."""
        if text.strip():
            place = " > ".join(name for level, name in self.sections)
            self.blocks.append(Block(kind, text.strip("\n") if kind == "code" else text.strip(), place))


def _row(line: str) -> str:
    return " | ".join(_plain(cell).strip() for cell in line.strip().strip("|").split("|"))


def _plain(text: str) -> str:
    for pattern, meant in _INLINE:
        text = pattern.sub(meant, text)
    return text


def _dedented(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip("\n")
