"""Writes tables and algorithm boxes of LaTeX as lines."""

from collections.abc import Callable, Sequence

from loopgraph_mcp.ingest.parsers.tex import Scope, Tokens

Inline = Callable[[list[str]], str]
_BLOCKS = {  # what opens a block in algorithmic and algorithm2e, and the word for it
    "For": "for", "ForAll": "for all", "ForEach": "for each", "While": "while", "If": "if", "uIf": "if", "lIf": "if",
    "lFor": "for", "lForEach": "for each", "Procedure": "procedure", "Function": "function", "Fn": "function",
    "ForPar": "for",
}  # fmt: skip
_ELSE = {"Else": "else", "uElse": "else", "lElse": "else"}
_ELSE_IF = {"ElsIf": "else if", "ElseIf": "else if", "uElseIf": "else if", "lElseIf": "else if"}
_LINES = {
    "Statex": "", "Require": "Require: ", "REQUIRE": "Require: ", "Ensure": "Ensure: ", "ENSURE": "Ensure: ",
    "Input": "Input: ", "Output": "Output: ", "INPUT": "Input: ", "OUTPUT": "Output: ", "KwIn": "Input: ",
    "KwOut": "Output: ",
    "KwData": "Data: ", "KwResult": "Result: ", "KwInput": "Input: ", "KwOutput": "Output: ", "KwRet": "return ",
}  # fmt: skip
_COMMENTS = frozenset({"Comment", "COMMENT", "tcp", "tcc", "tcp*", "LComment"})
_DEEPEST = 8


def table(tokens: Sequence[str], inline: Inline) -> str:
    """Return a table's rows as lines, its cells between bars."""
    rows, cells, cell, depth = list[list[str]](), list[str](), list[str](), 0

    def end_row() -> None:
        cells.append(inline(cell))
        rows.append([*cells])
        cell.clear()
        cells.clear()

    for token in tokens:
        depth += {"{": 1, "}": -1, r"\begin": 1, r"\end": -1}.get(token, 0)
        if token == "&" and depth <= 0:
            cells.append(inline(cell))
            cell.clear()
        elif token in {r"\\", r"\tabularnewline", r"\cr"} and depth <= 0:
            end_row()
        elif token not in {r"\hline", r"\Xhline", r"\hdashline"}:
            cell.append(token)
    end_row()
    return "\n".join(" | ".join(row) for row in rows if any(row))


def algorithm(tokens: Sequence[str], inline: Inline) -> tuple[str, list[str]]:
    """Return an algorithm box's caption and its lines, indented by their depth."""
    box = _Box(inline)
    box.read(Tokens(Scope(lambda _: None, frozenset()), tokens), 0)
    box.end_line()
    return box.caption, box.lines


class _Box:
    """Reads an algorithm box, in the commands of algorithmic or of algorithm2e."""

    def __init__(self, inline: Inline) -> None:
        self.inline = inline
        self.caption = ""
        self.lines: list[str] = []
        self.depth = 0
        self._line: list[str] = []
        self._braces = False

    def end_line(self) -> None:
        """Keep the line that was read."""
        text, self._line = self.inline(self._line), []
        if text:
            self.lines.append("  " * min(self.depth, 20) + text)

    def read(self, tokens: Tokens, level: int) -> None:  # noqa: C901, PLR0912 - one case a command
        """Read lines until the tokens end."""
        while (token := tokens.raw()) is not None:
            name = token[1:] if token[0] == "\\" else ""
            title = name.capitalize() if name.isupper() and len(name) > 1 else name
            if token in {r"\begin", r"\end"}:
                tokens.argument()
                tokens.optional()
            elif token == r"\caption":
                tokens.optional()
                self.caption = self.inline(list(tokens.argument()))
            elif token in {r"\\", r"\;", r"\State", r"\STATE", r"\par"} or (token.isspace() and token.count("\n") > 1):
                self.end_line()
            elif name in _LINES:
                self.end_line()
                self._line.append(_LINES[name])
            elif name in {"Return", "RETURN"}:
                self.end_line()
                self._line.append("return ")
            elif title in {"Forall"} | _BLOCKS.keys():
                self.block(
                    tokens,
                    _BLOCKS.get(title, "for all"),
                    level,
                    conditions=2 if title in {"Procedure", "Function"} else 1,
                )
            elif title in _ELSE_IF or title == "Elsif":
                self.depth = max(0, self.depth - (not self._braces))
                self.block(tokens, "else if", level)
            elif title in _ELSE:
                self.depth = max(0, self.depth - (not self._braces))
                self.block(tokens, "else", level, conditions=0)
            elif name == "eIf":
                self.block(tokens, "if", level)
                self.block(tokens, "else", level, conditions=0)
            elif title in {"Repeat", "Loop"}:
                self.block(tokens, title.lower(), level, conditions=0)
            elif title == "Until":
                self.depth = max(0, self.depth - 1)
                self.end_line()
                self._line += ["until ", *tokens.argument()]
            elif title.startswith("End") and title[3:4].isalpha():
                self.end_line()
                self.depth = max(0, self.depth - 1)
            elif name in _COMMENTS:
                tokens.starred()
                self._line += ["  # ", *tokens.argument()]
            else:
                self._line.append(token)

    def block(self, tokens: Tokens, word: str, level: int, *, conditions: int = 1) -> None:
        """Read a block's head; in algorithm2e its body is a group, which is read as well."""
        self.end_line()
        self._line.append(word + " ")
        for _ in range(conditions):
            self._line += [*tokens.argument(), " "]
        self.end_line()
        self.depth += 1
        tokens.skip_space()
        token = tokens.raw()
        tokens.push((token,) if token is not None else ())
        self._braces = token == "{"
        if self._braces:
            body = tokens.argument()
            if level < _DEEPEST:
                self.read(Tokens(tokens.scope, body), level + 1)
            else:
                self._line += body
            self.end_line()
            self.depth -= 1
            self._braces = True  # of this block, not of one inside it
