"""Outlines a Python text: knobs, fields, classes, parameter groups, the loop, the metric prints.

Nothing is run. A text with a syntax error is mapped without the smallest definition that holds the error.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePosixPath

from loopgraph_mcp.code import folding, programs, roles
from loopgraph_mcp.code.hashes import number
from loopgraph_mcp.text import compile_later

MAX_CHARS = programs.MAX_CHARS
_MAX_MENDS = 8  # syntax errors; each costs a parse
_MAX_TEXT = 60  # characters of a value, a signature or a name in an entry
_MAX_SIGNATURE = 100
_NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITION = compile_later(r"(?:async\s+def|def|class)\s+(\w+)|@")
_START = compile_later(
    r"(?:async\s+def|def|class|import|from|if|for|while|with|try)\b|@|[A-Za-z_]\w*\s*(?::[^=]*)?=[^=]"
)
_OPENED = compile_later(r"on line (\d+)")
_KEY = compile_later(r"([A-Za-z]\w*):(?:\s|$)")
_PRINTS = compile_later(r"(?i)(print\w*|log|info|debug|write|echo)$")  # print0, logger.info, pbar.write
# `const rate = 0.1;`, `static constexpr int N = 3;`, `#define N 3`, `rate: 0.1`, `"rate": 0.1,`, `let mut n: u32 = 3;`
_SETTING = compile_later(
    r"""\s*(?:\#define\s+|(?:(?:export|public|private|static|const|constexpr|final|let|var|val|mut|pub|readonly|"""
    r"""int|long|float|double|auto|unsigned|size_t|number|string|bool|boolean)\s+)*)"""
    r"""["']?([A-Za-z_][\w.-]{0,60})["']?\s*(?::\s*[\w<>]+\s*)?(?:=|:|\s)\s*"""
    r"""([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fFlLuU]*|"[^"]{0,40}"|'[^']{0,40}'|true|false)"""
    r"""\s*[;,]?\s*(?:(?://|\#).*)?$"""
)
_VALIDATION = compile_later(r"(?i)\b(val\w*(?: \w+)?)\s*[:=]\s*$")
_CONSTANT = compile_later(r"_?[A-Z][A-Z0-9_]*")
_NO_TEXT = compile_later(r"[\0\ud800-\udfff]")
_LINE_END = compile_later(r"\r\n|\r|\n")  # what ends a line for Python; str.splitlines knows more


class Kind(StrEnum):
    """What an entry of a map is."""

    ERROR = "error"
    LOOP = "loop"
    METRIC = "metric"
    KNOB = "knob"
    FIELD = "field"
    FLAG = "flag"
    GROUP = "group"
    LOCAL = "local"
    CLASS = "class"
    FUNCTION = "function"
    IMPORT = "import"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an outline.

    Args:
        name: Its dotted name, such as `GPT.forward` or `MATRIX_LR`.
        line: Its first line, from 1, decorators not counted.
        end_line: Its last line.
        text: Its value, its signature, or what Python says of the error.
        path: The file, where a map covers several.
    """

    kind: Kind
    name: str
    line: int
    end_line: int
    text: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class CodeMap:
    """The outline of one text, in order; lines are those of the text."""

    entries: tuple[Entry, ...]
    lines: tuple[str, ...]

    @property
    def errors(self) -> list[Entry]:
        """What keeps the text from being read whole."""
        return [entry for entry in self.entries if entry.kind is Kind.ERROR]


def map_text(text: str) -> CodeMap:
    """Return the map of a text; of one that does not parse, of what is left without the broken definitions."""
    text = text.removeprefix("\ufeff")
    lines = _LINE_END.split(text[:MAX_CHARS])
    errors = list(_unreadable(lines))
    if len(text) > MAX_CHARS:
        shown = f"{len(text):,} characters, more than a program that people edit: its first {MAX_CHARS:,} are read"
        errors.append(Entry(Kind.ERROR, "size", len(lines), len(lines), shown))
    tree, broken = _parsed(lines)
    entries = [*errors, *broken]
    if tree is not None:
        try:
            entries += _Reader(lines, tree).entries()
        except RecursionError:
            entries.append(Entry(Kind.ERROR, "depth", 1, len(lines), "it is nested too deeply to read"))
    return CodeMap(tuple(sorted(entries, key=lambda each: (each.line, each.end_line, each.kind.value))), tuple(lines))


def map_plain(text: str) -> CodeMap:
    """Return the map of a text that is no Python: lines that give a name a number or a short text are its knobs."""
    lines = _LINE_END.split(text.removeprefix("\ufeff")[:MAX_CHARS])
    entries = []
    for number_, line in enumerate(lines, start=1):
        if match := _SETTING.match(line[:400]):
            entries.append(Entry(Kind.KNOB, _cut(match.group(1)), number_, number_, _cut(match.group(2), 40)))
    return CodeMap(tuple(entries), tuple(lines))


# ------------------------------------------------------------------------------------------------ broken texts


def _unreadable(lines: list[str]) -> Iterator[Entry]:
    """Put question marks in place of characters that no program can hold, and say where they stood."""
    for index, line in enumerate(lines):
        if match := _NO_TEXT.search(line):
            lines[index:] = [_NO_TEXT.sub("?", each) for each in lines[index:]]
            shown = f"line {index + 1}: it holds the character {match.group()!a}"
            yield Entry(Kind.ERROR, "character", index + 1, index + 1, shown)
            return


def _parsed(lines: Sequence[str]) -> tuple[ast.Module | None, list[Entry]]:
    """Return the tree of the lines without what does not parse, and what was wrong there.

    What Python points at is taken out and the rest read again. Where that costs much, as when a quote is missing and
    strings and code have changed places, each top-level statement is read by itself.
    """
    tree, errors, left = _mended(lines, _MAX_MENDS)
    lost = _lost(lines, left)
    if tree is not None and lost <= len(lines) // 5:
        return tree, errors
    pieces, piece_errors = list[str](), list[Entry]()
    starts = sorted({0, *(index for index, line in enumerate(lines) if _START.match(line))})
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        _, wrong, kept = _mended(lines[start:stop], _MAX_MENDS if len(piece_errors) < _MAX_MENDS else 1)
        pieces += kept
        piece_errors += [replace(each, line=each.line + start, end_line=each.end_line + start) for each in wrong]
    if _lost(lines, pieces) < lost or tree is None:
        whole, _ = _tree("\n".join(pieces))
        if whole is not None:
            return whole, piece_errors[:_MAX_MENDS]
    return tree, errors


def _lost(lines: Sequence[str], left: Sequence[str]) -> int:
    return sum(one != other for one, other in zip(lines, left, strict=True))


def _mended(lines: Sequence[str], most: int) -> tuple[ast.Module | None, list[Entry], list[str]]:
    """Return the tree of some lines with the definitions that do not parse blanked out, the errors, and what is left.

    Where more is wrong than `most` places, nothing is left.
    """
    left, errors = list(lines), list[Entry]()
    for _ in range(most + 1):
        tree, error = _tree("\n".join(left))
        if tree is not None or not isinstance(error, SyntaxError):
            return tree, [*errors, *_unparsable(error, len(lines))], left if tree is not None else [""] * len(lines)
        at = min(max(error.lineno or 1, 1), len(left))
        opened = _OPENED.search(error.msg)  # Python stumbles behind the place that it blames
        first, last = _definition_around(left, (min(int(opened.group(1)), at) if opened else at) - 1)
        found = (_DEFINITION.match(line.strip()) for line in left[first : last + 1])
        name = next((match.group(1) for match in found if match and match.group(1)), "statement")
        errors.append(Entry(Kind.ERROR, _cut(name), first + 1, last + 1, _cut(f"line {at}: {error.msg}", 120)))
        _blank(left, first, last)
    return None, errors, [""] * len(lines)


def _tree(text: str) -> tuple[ast.Module | None, Exception | None]:
    try:
        return programs.parse(text), None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return None, error


def _unparsable(error: Exception | None, lines: int) -> list[Entry]:
    if error is None:
        return []
    return [Entry(Kind.ERROR, "text", 1, lines, _cut(str(error) or type(error).__name__, 120))]


def _definition_around(lines: Sequence[str], at: int) -> tuple[int, int]:
    """Return the first and last index of the innermost definition that holds a line, or of the statement there."""
    while at > 0 and not lines[at].strip():
        at -= 1
    depth, first = _depth(lines[at]), at
    for index in range(at, -1, -1):
        line = lines[index]
        if not line.strip() or (index != at and _depth(line) >= max(depth, 1)):
            continue
        if _DEFINITION.match(line.strip()) or _depth(line) == 0:
            first = index
            break
        depth = _depth(line)
    last, own = first, _depth(lines[first])
    for index in range(first + 1, len(lines)):
        closing = lines[index].lstrip()[:1] in {")", "]", "}"}
        if lines[index].strip() and _depth(lines[index]) <= own and not closing and index > at:
            break
        last = index
    while last > max(first, at) and not lines[last].strip():
        last -= 1
    return first, max(last, at)


def _blank(lines: list[str], first: int, last: int) -> None:
    """Take lines, and decorators above, out of a text without moving others; a `pass` keeps the block around whole."""
    while first > 0 and lines[first - 1].lstrip().startswith("@"):
        first -= 1
    indent = lines[first][: _depth(lines[first])]
    again = lines[first].strip() == "pass"
    lines[first : last + 1] = ["" for _ in range(first, last + 1)]
    if not again:
        lines[first] = f"{indent}pass"


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


# ------------------------------------------------------------------------------------------------------- entries


class _Reader:
    """Reads the entries off a tree; text is sliced from the lines, since to unparse would recurse."""

    def __init__(self, lines: Sequence[str], tree: ast.Module) -> None:
        self.lines = [line.encode("utf-8", "surrogatepass") for line in lines]
        self.tree = tree

    def entries(self) -> Iterator[Entry]:
        yield from self._imports()
        yield from self._knobs()
        for dotted, node in self._definitions():
            first, last = node.lineno, node.end_lineno or node.lineno
            if isinstance(node, ast.ClassDef):
                bases = ", ".join(self._slice(base) for base in node.bases)
                yield Entry(Kind.CLASS, dotted, first, last, _cut(bases))
                yield from self._fields(dotted, node)
            else:
                yield Entry(Kind.FUNCTION, dotted, first, last, _cut(self._signature(node), _MAX_SIGNATURE))
                yield from self._locals(dotted, node)
        yield from self._everywhere()

    def _definitions(self) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
        """Yield classes, functions and methods with their dotted names; those inside of functions are their own."""
        pending: list[tuple[str, ast.stmt]] = [("", node) for node in reversed(self.tree.body)]
        while pending:
            prefix, node = pending.pop()
            if isinstance(node, _NAMED):
                dotted = f"{prefix}{_cut(node.name)}"
                yield dotted, node
                if isinstance(node, ast.ClassDef) and dotted.count(".") < 4:
                    pending.extend((f"{dotted}.", inner) for inner in reversed(node.body))
            elif isinstance(node, ast.If | ast.Try | ast.With):
                pending.extend((prefix, inner) for inner in reversed([*node.body, *getattr(node, "orelse", [])]))

    def _imports(self) -> Iterator[Entry]:
        for node in self.tree.body:
            match node:
                case ast.Import(names=names):
                    for alias in names:
                        yield self._entry(Kind.IMPORT, alias.name, node)
                case ast.ImportFrom(module=module, names=names, level=level):
                    shown = ", ".join(alias.name for alias in names)
                    yield Entry(
                        Kind.IMPORT, _cut("." * level + (module or "")), node.lineno, node.lineno, _cut(shown, 400)
                    )

    def _knobs(self) -> Iterator[Entry]:
        """Yield module-level constants: names in capitals, and other names that are given a literal, once."""
        bound = _bound(self.tree)
        for node in self.tree.body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                ):
                    if bound[name] == 1 and (_is_literal(value) or (_CONSTANT.fullmatch(name) and _is_setting(value))):
                        yield self._entry(Kind.KNOB, name, node, _cut(self._slice(value), 40))

    def _fields(self, dotted: str, node: ast.ClassDef) -> Iterator[Entry]:
        for inner in node.body:
            match inner:
                case ast.AnnAssign(target=ast.Name(id=name), value=value):
                    yield self._entry(
                        Kind.FIELD, f"{dotted}.{name}", inner, "" if value is None else self._slice(value)
                    )
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_literal(folding.own_default(value)):
                    yield self._entry(Kind.FIELD, f"{dotted}.{name}", inner, self._slice(folding.own_default(value)))

    def _locals(self, dotted: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Entry]:
        """Yield the numbers that a function gives a name."""
        bound = _bound(node)
        for inner in node.body:
            match inner:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if bound[name] == 1:
                    if number(value) is None:
                        continue
                    yield self._entry(Kind.LOCAL, f"{dotted}.{name}", inner, self._slice(value))

    def _everywhere(self) -> Iterator[Entry]:
        """Yield what may stand at any depth: flags, parameter groups, metric prints, and the training loop."""
        merged = dict[ast.expr, str]()
        for node in ast.walk(self.tree):
            match node:
                case ast.BinOp(left=ast.Name(id=common), op=ast.BitOr(), right=ast.Dict() as added):
                    merged[added] = common
                case ast.Call(func=ast.Attribute(attr="add_argument"), args=[ast.Constant(value=str() as flag), *_]):
                    yield self._entry(Kind.FLAG, flag, node, self._keyword(node, "default"))
                case ast.Call(args=[first, *_]) if key := _key_printed(first, by=roles.called(node)):
                    yield self._entry(Kind.METRIC, key, node)
                case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
                    yield from self._group(node, {each.arg or "": each.value for each in keywords})
                case ast.Dict(keys=keys, values=values):
                    named = zip(keys, values, strict=True)
                    yield from self._group(
                        node,
                        {str(key.value): value for key, value in named if isinstance(key, ast.Constant)},
                        merged.get(node, ""),
                    )
        outer = roles.Roles(self.tree).loop or _first_loop(self.tree)
        if outer is not None:
            yield self._entry(
                Kind.LOOP, "training loop", outer, self.lines[outer.lineno - 1].decode("utf-8", "replace")
            )

    def _group(self, node: ast.expr, items: Mapping[str, ast.expr], common: str = "") -> Iterator[Entry]:
        """Yield a group of parameters: a dictionary with `params`, or one that is added to the `common` one."""
        if "params" in items and (len(items) > 1 or common):
            shown = [common] if common else []
            shown += [self._slice(items["kind"]).strip("'\"")] if "kind" in items else []
            shown += [f"lr={self._slice(items['lr'])}"] if "lr" in items else []
            yield self._entry(Kind.GROUP, self._slice(items["params"]), node, " ".join(shown))

    def _keyword(self, call: ast.Call, name: str) -> str:
        return next((self._slice(each.value) for each in call.keywords if each.arg == name), "")

    def _signature(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
        given = node.args
        positional = [*given.posonlyargs, *given.args]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults))
        defaults += given.defaults
        parts = [self._parameter(arg, value) for arg, value in zip(positional, defaults, strict=True)]
        if given.vararg or given.kwonlyargs:
            parts.append(f"*{given.vararg.arg if given.vararg else ''}")
        parts += [self._parameter(arg, value) for arg, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
        parts += [f"**{given.kwarg.arg}"] if given.kwarg else []
        return ", ".join(parts)

    def _parameter(self, arg: ast.arg, value: ast.expr | None) -> str:
        return arg.arg if value is None else f"{arg.arg}={_cut(self._slice(value), 24)}"

    def _entry(self, kind: Kind, name: str, node: ast.expr | ast.stmt, text: str = "") -> Entry:
        return Entry(kind, _cut(name), node.lineno, node.end_lineno or node.lineno, _cut(text))

    def _slice(self, node: ast.expr) -> str:
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        end = node.end_col_offset or 0
        if first == last:
            return self.lines[first][node.col_offset : end].decode("utf-8", "replace")
        parts = [self.lines[first][node.col_offset :], *self.lines[first + 1 : min(last, first + 9)]]
        return b" ".join(part.strip() for part in [*parts, self.lines[last][:end]]).decode("utf-8", "replace")


def _bound(scope: ast.AST) -> Counter[str]:
    """Return how often each name is given a value in a scope, scopes inside it included."""
    return Counter(
        node.id for node in ast.walk(scope) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )


def _is_literal(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) or number(value) is not None


def _is_setting(value: ast.expr) -> bool:
    """Return whether an expression sets something: it has a value in it, and compares nothing."""
    inside = list(ast.walk(value))
    compares = any(isinstance(each, ast.Compare | ast.BoolOp) for each in inside)
    return not compares and any(isinstance(each, ast.Constant) for each in inside)


def _key_printed(shown: ast.expr, *, by: str) -> str:
    """Return the name that a print begins with, as in `val_bpb: 0.99`, or a validation metric's anywhere in it."""
    if not _PRINTS.match(by) or not isinstance(shown, ast.JoinedStr):
        return ""
    texts = [
        each.value if isinstance(each, ast.Constant) and isinstance(each.value, str) else "" for each in shown.values
    ]
    if texts and (match := _KEY.match(texts[0])):
        return match.group(1)
    named = (_VALIDATION.search(text) for text in texts)
    return next(("_".join(each.group(1).split()) for each in named if each), "")


def _first_loop(tree: ast.Module) -> ast.For | ast.While | None:
    """Return the first outermost loop that computes gradients, where no loop steps an optimizer that is known."""
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While) and _calls(node, "backward")]
    return min(loops, key=lambda each: (each.lineno, -(each.end_lineno or 0)), default=None)


def _calls(node: ast.AST, name: str) -> bool:
    return any(
        isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == name
        for each in ast.walk(node)
    )


def _cut(text: str, limit: int = _MAX_TEXT) -> str:
    """Return a text as one line that can be printed, cut to a length."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text[: 4 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


# ------------------------------------------------------------------------------------------------------- folders


def map_folder(texts: Mapping[str, str]) -> dict[str, CodeMap]:
    """Return the map of each file by its path, its entries bearing that path."""
    maps = {}
    for path, text in texts.items():
        made = map_text(text)
        maps[path] = replace(made, entries=tuple(replace(entry, path=path) for entry in made.entries))
    return maps


def import_graph(maps: Mapping[str, CodeMap], package: str = "") -> dict[str, dict[str, str]]:
    """Return which files import which others of the folder: the names they take, empty for the module itself.

    `package` is the folder's own name, by which its modules may call one another.
    """
    by_module = dict[str, str]()
    for path in maps:
        parts = PurePosixPath(path).with_suffix("").parts
        parts = parts[:-1] if parts[-1:] == ("__init__",) else parts
        for start in range(len(parts)):
            by_module.setdefault(".".join(parts[start:]), path)
    graph: dict[str, dict[str, str]] = {}
    for path, made in maps.items():
        found: dict[str, str] = {}
        for entry in made.entries:
            if entry.kind is Kind.IMPORT:
                module = entry.name.lstrip(".").removeprefix(f"{package}." if package else "")
                module = "" if module == package else module
                names = [f"{module}.{name}".lstrip(".") for name in entry.text.split(", ")] if entry.text else []
                inner = [by_module[name] for name in names if name in by_module]
                target = by_module.get(module)
                for each in inner or ([target] if target else []):
                    found.setdefault(each, "" if inner else entry.text)
        found.pop(path, None)
        if found:
            graph[path] = found
    return graph
