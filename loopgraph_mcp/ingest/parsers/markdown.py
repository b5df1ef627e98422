"""Reads Markdown, and plain or reStructured text as far as it looks like it."""

import re
import textwrap
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token

from loopgraph_mcp.ingest.parsers.model import Block, Document, Kind

_UNDERLINE = re.compile(r"(?:~{3,}|\^{3,}|\*{3,}|\"{3,})$")
_LEVELS = {"~": "h3", "^": "h4", "*": "h2", '"': "h4"}
_DIRECTIVE = re.compile(r"\.\. (code-block|code|math|image|figure|note|warning|toctree|autoclass|contents)::")
_MOST_OF_A_HEADING = 300  # a longer one is a paragraph over a rule
_MOST_MATH_LINES = 200  # a formula that does not end sooner is a stray mark
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
    title = ""
    if lines[0].strip() == "---" and "---" in (rest := [line.strip() for line in lines[1:200]]):
        front, lines = lines[1 : rest.index("---") + 1], lines[rest.index("---") + 2 :]
        titles = [line.partition(":")[2].strip().strip("\"'") for line in front if line.startswith("title:")]
        title = titles[0] if titles else ""
    reader = _Reader(title, lines)
    reader.run(_PARSER.parse("\n".join(lines)))
    return Document(reader.title, tuple(reader.blocks))


def _clean(text: str) -> str:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    kept = list[str]()
    for at, part in enumerate(text.split("<!--")):
        _, end, after = part.partition("-->")
        kept.append(part if at == 0 else (after if end else f"<!--{part}"))
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "", "".join(kept))


def _math(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001 - markdown-it's signature
    """Read a display formula, whose lines may look like a list."""
    text = state.getLines(start, start + 1, 0, keepLastLF=False).strip()
    if not text.startswith(("$$", r"\[")) or state.is_code_block(start):
        return False
    close, found, line = (r"\]" if text.startswith(r"\[") else "$$"), list[str](), start
    text = text[2:]
    while close not in text and line + 1 < end and line - start < _MOST_MATH_LINES:
        found.append(text)
        line += 1
        text = state.getLines(line, line + 1, 0, keepLastLF=False)
    if not silent:
        formula, _, after = text.partition(close)
        state.push("math_block", "", 0).content = " ".join([*found, formula])
        if after.strip(" .,"):
            state.push("inline", "", 0).content = after.strip()
        state.line = line + 1
    return True


def _underlined(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001 - as above
    """Read a heading that reStructuredText underlines with what Markdown gives another meaning."""
    if start + 1 >= end or state.is_code_block(start):
        return False
    title, line = (state.getLines(at, at + 1, 0, keepLastLF=False).strip() for at in (start, start + 1))
    if not title or len(line) < len(title) or not _UNDERLINE.match(line) or _UNDERLINE.match(title):
        return False
    if not silent:
        state.push("heading_open", _LEVELS[line[0]], 0)
        state.push("inline", "", 0).content = title
        state.line = start + 2
    return True


def _directive(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001 - as above
    """Read a reStructured directive with what is indented under it."""
    line, directive = start + 1, _DIRECTIVE.match(state.getLines(start, start + 1, 0, keepLastLF=False))
    if directive is None:
        return False
    while line < end and (state.isEmpty(line) or state.sCount[line] >= 2):
        line += 1
    if not silent:
        body = state.getLines(start + 1, line, 0, keepLastLF=False).split("\n")
        text = textwrap.dedent("\n".join(each for each in body if not re.match(r"\s+:[\w-]+:", each))).strip("\n")
        kinds = {"code": "fence", "code-block": "fence", "math": "math_block"}
        shown = directive[1] in kinds or directive[1] in {"note", "warning", "figure"}
        state.push(kinds.get(directive[1], "inline"), "", 0).content = text if shown else ""
        state.line = line
    return True


def _parser() -> MarkdownIt:
    """Return a parser of blocks; their text stays as it is written, so that formulas in it do."""
    parser = MarkdownIt("commonmark").enable("table").disable(["reference", "html_block"])
    parser.core.ruler.enableOnly(["normalize", "block"])
    for name, rule in (("math", _math), ("underlined", _underlined), ("directive", _directive)):
        parser.block.ruler.before("fence", name, rule, {"alt": ["paragraph"] if name == "math" else []})
    return parser


_PARSER = _parser()


class _Reader:
    """Turns tokens into blocks."""

    def __init__(self, title: str, lines: Sequence[str]) -> None:
        self.title = title
        self.lines = lines
        self.blocks: list[Block] = []
        self.sections: list[tuple[int, str]] = []

    def run(self, tokens: Sequence[Token]) -> None:  # noqa: C901, PLR0912 - one case a kind of token
        """Read everything."""
        list_end, depth, level, rows = 0, 0, 0, list[list[str]]()
        for token in tokens:
            match token.type:
                case "bullet_list_open" | "ordered_list_open":
                    if depth == 0 and token.map is not None:
                        self.items(*token.map, goes_on=token.map[0] == list_end)
                        list_end = token.map[1]
                    depth += 1
                case "bullet_list_close" | "ordered_list_close":
                    depth -= 1
                case _ if depth:
                    continue
                case "heading_open":
                    level = int(token.tag[1:])
                case "tr_open":
                    rows.append([])
                case "inline" if rows:
                    rows[-1].append(_plain(token.content).strip())
                case "table_close":
                    self.add("table", "\n".join(" | ".join(row) for row in rows))
                    rows = []
                case "inline" if level:
                    self.heading(level, token.content)
                    level = 0
                case "inline":
                    self.add("text", _plain(" ".join(token.content.split())))
                case "math_block":
                    self.add("equation", " ".join(token.content.split()))
                case "fence" if token.info.strip() == "math":
                    self.add("equation", token.content)
                case "fence" | "code_block":
                    self.add("code", token.content)

    def items(self, start: int, end: int, *, goes_on: bool) -> None:
        """Add a list's lines as they are written, to the list before it where nothing stands between them."""
        lines = [re.sub(r"^ *(?:> ?)+", "", line) for line in self.lines[start:end] if line.strip()]
        text = "\n".join(_plain(line).rstrip() for line in lines)
        if goes_on and self.blocks and self.blocks[-1].kind == "list":
            text = f"{self.blocks.pop().text}\n{text}"
        self.add("list", text)

    def heading(self, level: int, text: str) -> None:
        """Begin a section."""
        text = _plain(" ".join(text.strip("=- \n").split()))
        if len(text) > _MOST_OF_A_HEADING:
            self.add("text", text)
            return
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


def _plain(text: str) -> str:
    for pattern, meant in _INLINE:
        text = pattern.sub(meant, text)
    return text
