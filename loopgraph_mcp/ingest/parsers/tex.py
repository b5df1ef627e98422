"""Turns TeX into tokens with the author's macros expanded, files included and conditionals decided, within a budget."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

# Nothing is lost: the tokens of a text, joined, are the text, which is how listings keep theirs.
_TOKEN = re.compile(
    r"\\(?:[a-zA-Z@]+|.|\Z)|%[^\n]*(?:\n[ \t]*|\Z)|[ \t\n]+|[{}&~#$^_\[\]*]|[^\\% \t\n{}&~#$^_\[\]*]+", re.DOTALL
)
# What TeX macros can write has no bound of its own: this is a book of 800 pages, and a multiple of what a source holds.
_MOST_TOKENS, _SOME_TOKENS, _TOKENS_A_LETTER = 3_000_000, 300_000, 3
_MOST_EXPANSIONS = 300_000
_MOST_TIMES_A_FILE, _MOST_FILES = 50, 2_000
_MOST_OF_AN_OPTION = 2_000
_CONDITIONALS = frozenset({
    r"\if", r"\ifx", r"\ifnum", r"\ifdim", r"\ifcase", r"\ifodd", r"\iftrue", r"\iffalse", r"\ifmmode", r"\ifhmode",
    r"\ifvmode", r"\ifinner", r"\ifdefined", r"\ifcsname", r"\ifcat", r"\ifpdf", r"\ifvoid", r"\ifhbox", r"\ifvbox",
    r"\ifeof", r"\ifPDFTeX", r"\ifxetex", r"\ifluatex",
})  # fmt: skip
_IGNORED = frozenset({
    r"\relax", r"\protect", r"\expandafter", r"\noexpand", r"\global", r"\long", r"\protected", r"\outer",
    r"\xspace",
})  # fmt: skip
_TO_NUMBER = frozenset({r"\ifnum", r"\ifdim", r"\ifodd", r"\ifcase"})


@dataclass(frozen=True, slots=True)
class Macro:
    """A macro of the author's.

    Args:
        parameters: One for each argument: `m` a plain one, `s` a star, `o` an optional one with its default, `d` one
            that ends at the tokens given.
        body: Tokens and, as numbers from 0, the arguments.
        prefix: Tokens that stand between its name and its first argument.
    """

    parameters: tuple[tuple[str, tuple[str, ...]], ...]
    body: tuple[str | int, ...]
    prefix: tuple[str, ...] = ()


@dataclass(slots=True)
class Scope:
    """What all streams of one document share.

    Args:
        find_file: Returns the text of an included file, or None.
        kept: Commands that a document may not redefine, since the reader knows what they mean.
    """

    find_file: Callable[[str], str | None]
    kept: AbstractSet[str]
    macros: dict[str, Macro] = field(default_factory=dict)
    begins: dict[str, Macro] = field(default_factory=dict)
    ends: dict[str, tuple[str, ...]] = field(default_factory=dict)
    theorems: dict[str, str] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    tokens_left: int = _SOME_TOKENS
    expansions_left: int = _MOST_EXPANSIONS


def budget(letters: int) -> int:
    """Return how many tokens a source of some letters may come to."""
    return min(_MOST_TOKENS, _SOME_TOKENS + _TOKENS_A_LETTER * letters)


class Tokens:
    """A stream of tokens."""

    def __init__(self, scope: Scope, source: str | Sequence[str]) -> None:
        self.scope = scope
        self._stack: list[Iterator[str]] = []
        self.push(source)

    def push(self, source: str | Sequence[str]) -> None:
        """Put a text or tokens before what is still to come."""
        self._stack.append(
            (match.group() for match in _TOKEN.finditer(source)) if isinstance(source, str) else iter(source)
        )

    def raw(self) -> str | None:
        """Return the next token as it stands, or None at the end."""
        while self._stack:
            token = next(self._stack[-1], None)
            if token is None:
                self._stack.pop()
                continue
            self.scope.tokens_left -= 1
            if self.scope.tokens_left < 0:
                self._stack.clear()
                return None
            return token
        return None

    def next(self) -> str | None:
        """Return the next token that is neither a comment nor a macro, a definition or a conditional."""
        while (token := self.raw()) is not None:
            if token[0] == "%":
                following = self.raw()
                if following is not None:
                    blank = following.isspace() and "\n" in following
                    self.push(("\n\n" if blank else following,))
            elif token[0] != "\\" or not self._act(token):
                return token
        return None

    def _act(self, token: str) -> bool:
        """Do what a command of TeX itself or of the author's says; return False for any other."""
        if (macro := self.scope.macros.get(token)) is not None:
            self.expand(macro)
        elif token in _CONDITIONALS or token in self.scope.switches:
            if not self._holds(token):
                self._skip_branch()
        elif token == r"\else":
            self._skip_branch(to_else=False)
        elif (
            token.endswith(("true", "false"))
            and (name := r"\if" + token[1:].removesuffix("true").removesuffix("false")) in self.scope.switches
        ):
            self.scope.switches[name] = token.endswith("true")
        elif (action := _ACTIONS.get(token)) is not None:
            action(self)
        elif token not in _IGNORED and token != r"\fi":
            return False
        return True

    # ------------------------------------------------------------------------------------------- arguments

    def skip_space(self) -> None:
        """Pass over white space and comments, but not over the end of a paragraph."""
        while (token := self.raw()) is not None:
            if not (token[0] == "%" or (token.isspace() and token.count("\n") < 2)):
                self.push((token,))
                return

    def argument(self) -> tuple[str, ...]:
        """Return the tokens of a group, or the one token or character that stands for it; as they stand."""
        self.skip_space()
        token = self.raw()
        if token is None or token == "}" or token.isspace():
            self.push((token,) if token else ())
            return ()
        if token == "{":
            return self._until("}")
        if token[0] != "\\" and len(token) > 1:
            self.push((token[1:],))
            return (token[0],)
        return (token,)

    def optional(self) -> tuple[str, ...] | None:
        """Return the tokens between brackets, or None where none stand here."""
        before = list[str]()
        while (token := self.raw()) is not None:
            if token == "[":
                return self._until("]")
            before.append(token)
            if not token.isspace() or token.count("\n") > 1:
                break
        self.push(before)
        return None

    def starred(self) -> bool:
        """Return whether a star comes next, and pass over it."""
        token = self.raw()
        if token is not None and token != "*":
            self.push((token,))
        return token == "*"

    def name(self) -> str:
        """Return an argument as a name: of a file, an environment, a label."""
        return "".join(self.argument()).strip()

    def drop(self, signature: str) -> None:
        """Pass over arguments: `m` a plain one, `o` an optional one, `p` one in round brackets, `*` a star."""
        for each in signature:
            match each:
                case "m":
                    self.argument()
                case "o":
                    self.optional()
                case "*":
                    self.starred()
                case "p":
                    self.skip_space()
                    token = self.raw()
                    if token is None or token[0] != "(" or ")" not in token:
                        self.push((token,) if token else ())
                    else:
                        self.push((rest,) if (rest := token.split(")", 1)[1]) else ())

    def _until(self, end: str) -> tuple[str, ...]:
        """Return the tokens up to the end of a group; where it has none, nothing, and they come again."""
        found, depth = list[str](), 0
        while (token := self.raw()) is not None:
            if token == end and depth == 0:
                return tuple(found)
            depth += {"{": 1, "}": -1}.get(token, 0)
            if depth < 0 or (end == "]" and len(found) > _MOST_OF_AN_OPTION):
                break
            found.append(token)
        self.push(found if token is None else (*found, token))
        return ()

    # ---------------------------------------------------------------------------------------------- macros

    def expand(self, macro: Macro) -> None:
        """Read a macro's arguments and put what it writes before what is still to come."""
        scope = self.scope
        for token in macro.prefix:
            found = self.raw() or ""
            rest = found.removeprefix(token)
            self.push((rest,) if rest else ())
            if rest == found:
                break
        arguments = list[Sequence[str]]()
        for kind, given in macro.parameters:
            match kind:
                case "m":
                    arguments.append(self.argument())
                case "s":
                    arguments.append("*" if self.starred() else "")
                case "o":
                    there = self.optional()
                    arguments.append(given if there is None else there)
                case _:
                    arguments.append(self._up_to(given))
        size = sum(1 if isinstance(each, str) else len(arguments[each]) for each in macro.body)
        scope.expansions_left -= 1
        scope.tokens_left -= size
        if scope.expansions_left >= 0 and scope.tokens_left >= 0:
            self.push(
                [token for each in macro.body for token in ((each,) if isinstance(each, str) else arguments[each])]
            )

    def _up_to(self, delimiter: Sequence[str]) -> tuple[str, ...]:
        """Return the tokens before some others; where these never come, nothing, and the tokens come again."""
        found, depth = list[str](), 0
        wanted = [sign for token in delimiter for sign in _signs(token)]
        while (token := self.raw()) is not None:
            if depth == 0 and len(token) > 1 and token[0] not in "\\%":
                self.push(tuple(token))
                continue
            found.append(token)
            depth += {"{": 1, "}": -1}.get(token, 0)
            if depth == 0 and found[-len(wanted) :] == wanted:
                return tuple(_TOKEN.findall("".join(found[: -len(wanted)])))
            if depth < 0 or len(found) > _MOST_OF_AN_OPTION:
                break
        self.push(found)
        return ()

    def define(self, name: str, macro: Macro) -> None:
        """Keep a macro, unless the reader knows what its name means."""
        if name.startswith("\\") and len(name) > 1 and name not in self.scope.kept:
            self.scope.macros[name] = macro

    # ---------------------------------------------------------------------------------------- conditionals

    def _holds(self, conditional: str) -> bool:
        if conditional in self.scope.switches:
            return self.scope.switches[conditional]
        match conditional:
            case r"\iffalse" | r"\ifmmode" | r"\ifxetex" | r"\ifluatex" | r"\ifvoid" | r"\ifeof":
                return False
            case r"\ifx":
                one, other = self.argument(), self.argument()
                return one == other or self._meaning(one) == self._meaning(other)
            case r"\if" | r"\ifcat":
                return self.argument() == self.argument()
            case r"\ifdefined":
                return "".join(self.argument()) in self.scope.macros
            case r"\ifcsname":
                self._up_to((r"\endcsname",))
                return False
        if conditional in _TO_NUMBER:
            while (token := self.raw()) is not None and not token.isspace() and token != r"\relax":
                continue
        return True

    def _meaning(self, tokens: Sequence[str]) -> object:
        name = "".join(tokens)
        return self.scope.macros.get(name) if name.startswith("\\") and name not in self.scope.kept else name

    def _skip_branch(self, *, to_else: bool = True) -> None:
        """Pass over a branch that is not taken."""
        depth = 0
        while (token := self.raw()) is not None:
            if token in _CONDITIONALS or token in self.scope.switches:
                depth += 1
            elif token == r"\fi":
                depth -= 1
                if depth < 0:
                    return
            elif token == r"\else" and depth == 0 and to_else:
                return

    # ------------------------------------------------------------------------------------------------ files

    def include(self, name: str) -> bool:
        """Read a file in this place; return whether there is one."""
        scope = self.scope
        scope.opened[name] = scope.opened.get(name, 0) + 1
        if scope.opened[name] > _MOST_TIMES_A_FILE or len(scope.opened) > _MOST_FILES:
            return False
        text = scope.find_file(name)
        if text is None:
            scope.missing[name] = None
            return False
        self.push("\n")
        self.push(text)
        return True


def _signs(token: str) -> Sequence[str]:
    return (token,) if token[0] == "\\" else tuple(token)


def compile_body(tokens: Sequence[str]) -> tuple[str | int, ...]:
    """Return a macro's body with its arguments as numbers from 0."""
    body = list[str | int]()
    waiting = iter(tokens)
    for token in waiting:
        following = next(waiting, "") if token == "#" else ""
        if token != "#":
            body.append(token)
        elif following[:1] in set("123456789"):
            body += [int(following[0]) - 1, *([following[1:]] if len(following) > 1 else [])]
        else:
            body.append(following or "#")
    return tuple(body)


def _macro(parameters: Sequence[tuple[str, tuple[str, ...]]], body: Sequence[str], prefix: Sequence[str] = ()) -> Macro:
    count = len(parameters)
    return Macro(
        tuple(parameters),
        tuple(each for each in compile_body(body) if isinstance(each, str) or each < count),
        tuple(prefix),
    )


def _new_command(tokens: Tokens, *, replace: bool = True) -> None:
    tokens.starred()
    name = tokens.name()
    parameters = _counted(tokens)
    body = tokens.argument()
    if replace or name not in tokens.scope.macros:
        tokens.define(name, _macro(parameters, body))


def _counted(tokens: Tokens) -> list[tuple[str, tuple[str, ...]]]:
    """Read `[2][default]` as parameters."""
    given = "".join(tokens.optional() or ()).strip()
    count = min(int(given), 9) if given.isdecimal() else 0
    default = tokens.optional() if count else None
    parameters: list[tuple[str, tuple[str, ...]]] = [("m", ())] * count
    return parameters if default is None else [("o", default), *parameters[1:]]


def _def(tokens: Tokens) -> None:
    name = tokens.name()
    pattern = list[str]()
    while (token := tokens.raw()) is not None and token != "{" and len(pattern) < 100:
        pattern.append(token)
    tokens.push((token,) if token is not None else ())
    prefix, parameters = list[str](), list[tuple[str, tuple[str, ...]]]()
    for each in compile_body(pattern):
        if isinstance(each, int):
            parameters.append(("m", ()))
        elif not parameters:
            prefix.append(each)
        else:
            parameters[-1] = ("d", (*parameters[-1][1], each))
    tokens.define(name, _macro(parameters, tokens.argument(), [each for each in prefix if not each.isspace()]))


def _let(tokens: Tokens) -> None:
    name, meaning = tokens.name(), tokens.argument()
    if meaning in {("=",), ("=", " ")}:
        meaning = tokens.argument()
    held = tokens.scope.macros.get("".join(meaning))
    if (name,) != meaning:
        tokens.define(name, held or Macro((), meaning))


def _document_command(tokens: Tokens) -> None:
    name, given, parameters = tokens.name(), list(tokens.argument()), list[tuple[str, tuple[str, ...]]]()
    letters = Tokens(tokens.scope, given)
    while (token := letters.raw()) is not None:
        for letter in token if token[0] not in "\\{" else "":
            if letter in "mos":
                parameters.append((letter, ()))
            elif letter in "Od":
                parameters.append(("o", letters.argument()))
    tokens.define(name, _macro(parameters[:9], tokens.argument()))


def _new_environment(tokens: Tokens) -> None:
    tokens.starred()
    name = tokens.name()
    parameters = _counted(tokens)
    tokens.scope.begins[name] = _macro(parameters, tokens.argument())
    tokens.scope.ends[name] = tokens.argument()


def _new_theorem(tokens: Tokens) -> None:
    tokens.starred()
    name = tokens.name()
    tokens.optional()
    tokens.scope.theorems[name] = tokens.name()
    tokens.optional()


def _operator(tokens: Tokens) -> None:
    star = "*" if tokens.starred() else ""
    tokens.define(tokens.name(), Macro((), (rf"\operatorname{star}", "{", *tokens.argument(), "}")))


def _new_switch(tokens: Tokens) -> None:
    tokens.scope.switches[tokens.name()] = False


def _input(tokens: Tokens) -> None:
    tokens.skip_space()
    token = tokens.raw()
    tokens.push((token,) if token is not None else ())
    if token == "{":
        tokens.include(tokens.name())
        return
    name = list[str]()
    while (token := tokens.raw()) is not None and not token.isspace() and token[0] not in "\\}%":
        name.append(token)
    tokens.push((token,) if token is not None else ())
    tokens.include("".join(name))


def _import(tokens: Tokens) -> None:
    folder, name = tokens.name(), tokens.name()
    tokens.include(f"{folder.rstrip('/')}/{name}")


def _if_file_exists(tokens: Tokens) -> None:
    found = tokens.scope.find_file(tokens.name()) is not None
    yes, no = tokens.argument(), tokens.argument()
    tokens.push(yes if found else no)


def _input_if_file_exists(tokens: Tokens) -> None:
    found = tokens.include(tokens.name())
    yes, no = tokens.argument(), tokens.argument()
    tokens.push(yes if found else no)


def _if_then_else(tokens: Tokens) -> None:
    tokens.argument()
    yes = tokens.argument()
    tokens.argument()
    tokens.push(yes)


def _csname(tokens: Tokens) -> None:
    tokens.push(("\\" + "".join(tokens._up_to((r"\endcsname",))),))  # noqa: SLF001 - of this module


_ACTIONS: Mapping[str, Callable[[Tokens], None]] = {
    r"\newcommand": _new_command,
    r"\renewcommand": _new_command,
    r"\DeclareRobustCommand": _new_command,
    r"\providecommand": lambda tokens: _new_command(tokens, replace=False),
    r"\NewDocumentCommand": _document_command,
    r"\RenewDocumentCommand": _document_command,
    r"\DeclareMathOperator": _operator,
    r"\def": _def,
    r"\gdef": _def,
    r"\edef": _def,
    r"\xdef": _def,
    r"\let": _let,
    r"\newenvironment": _new_environment,
    r"\renewenvironment": _new_environment,
    r"\newtheorem": _new_theorem,
    r"\newif": _new_switch,
    r"\input": _input,
    r"\include": _input,
    r"\subfile": _input,
    r"\import": _import,
    r"\subimport": _import,
    r"\IfFileExists": _if_file_exists,
    r"\InputIfFileExists": _input_if_file_exists,
    r"\ifthenelse": _if_then_else,
    r"\csname": _csname,
}
