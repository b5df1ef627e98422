"""Reads a method pack: a folder with pack.toml and one TOML file for each method."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loopgraph_mcp import by_role, ops, programs
from loopgraph_mcp.errors import PackError
from loopgraph_mcp.models import (
    AddMethod,
    ByRole,
    Companion,
    InsertAfter,
    Knob,
    Mark,
    Method,
    Pack,
    PublishedResult,
    Recipe,
    RecipeOp,
    ReplaceStmt,
    SetConst,
    SetDefault,
    SetKwarg,
    SetLocal,
    SharedOutcome,
    Sign,
    Source,
    Variant,
)
from loopgraph_mcp.moves import read_moves
from loopgraph_mcp.sources.pack_texts import MANIFEST, read_file, read_files

_T = TypeVar("_T", bound=BaseModel)
_MAX_KEY = 100
_OPS = ("set_const", "set_local", "set_default", "set_kwarg", "replace_stmt", "insert_after", "add_method", "by_role")
_BRANCHES = {
    *_OPS,
    "int",
    "float",
    "str",
    "constrained-int",
    "constrained-float",
    "constrained-str",
    "literal['']",
}  # pydantic's words
CURRENT = "current"
FAMILIES = (
    "activation",
    "architecture",
    "attention",
    "batch-size",
    "embedding",
    "initialization",
    "learning-rate",
    "normalization",
    "objective",
    "optimizer",
    "output",
    "position",
    "regularization",
    "schedule",
    "systems",
)

# A pack is somebody else's text that ends up in terminals and prompts: nothing in it may move the cursor or hide.
_UNSEEN = r"\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069"
_ONE_LINE = rf"^[^{_UNSEEN}]*$"
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=_ONE_LINE)]
Text = Annotated[str, Field(min_length=1, max_length=4_000, pattern=rf"^([^{_UNSEEN}]|[\n\t])*$")]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[float, Field(allow_inf_nan=False)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Dotted = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
Place = Dotted | Literal[""]  # the module's own level
# Words, each with at most one `\w*` at its end: a pack's pattern must not be able to hold the server
NamePattern = Annotated[str, Field(max_length=200, pattern=r"^\w+(\\w\*)?(\|\w+(\\w\*)?)*$")]
KnobName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Manifest(_Table):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    version: Line
    license: Line


class _Source(_Table):
    kind: Literal["arxiv", "github", "url"]
    ref: Line
    title: Line


class _Published(_Table):
    claim: Line
    setting: Line
    source: Line
    gain: Annotated[float, Field(allow_inf_nan=False)] | None = None


class _Outcome(_Table):
    context: Line
    metric: Line
    tries: Annotated[int, Field(ge=1, le=1_000_000)]
    wins: Annotated[int, Field(ge=0)]
    crashes: Annotated[int, Field(ge=0)]
    mean_gain: Annotated[float, Field(allow_inf_nan=False)] | None = None
    gain_sigmas: Annotated[float, Field(allow_inf_nan=False)] | None = None
    runs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    device: Line | Literal[""] = ""
    budget_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.wins + self.crashes > self.tries:
            raise ValueError(f"{self.wins} wins and {self.crashes} crashes are more than {self.tries} tries")
        return self


class _Knob(_Table):
    default: Number | Line
    description: Line
    low: Number | None = None
    high: Number | None = None
    choices: list[Number | Line] = Field(default_factory=list, max_length=100)

    def misfit(self) -> str | None:
        """Return what is wrong with the knob as a whole, or None."""
        if isinstance(self.default, str) and not (self.low is None and self.high is None):
            return "low and high are for numbers"
        if any(isinstance(choice, str) is not isinstance(self.default, str) for choice in self.choices):
            return "the default and the choices must be of one kind"
        if isinstance(self.default, int) and any(isinstance(choice, float) for choice in self.choices):
            return "the default and the choices must be of one kind"
        for value in (self.default, *self.choices):
            below = not isinstance(value, str) and self.low is not None and value < self.low
            above = not isinstance(value, str) and self.high is not None and value > self.high
            if below or above:
                return f"{value!r} is out of its range"
        if self.choices and self.default not in self.choices:
            return f"the default {self.default!r} is none of its choices"
        return None


class _SetConst(_Table):
    op: Literal["set_const"]
    name: Identifier
    value: Line

    def made(self) -> RecipeOp:
        return SetConst(self.name, self.value)


class _SetLocal(_Table):
    op: Literal["set_local"]
    scope: Dotted
    name: Identifier
    value: Line

    def made(self) -> RecipeOp:
        return SetLocal(self.scope, self.name, self.value)


class _SetDefault(_Table):
    op: Literal["set_default"]
    scope: Dotted
    name: Identifier
    value: Line

    def made(self) -> RecipeOp:
        return SetDefault(self.scope, self.name, self.value)


class _SetKwarg(_Table):
    op: Literal["set_kwarg"]
    scope: Place = ""
    call: Identifier
    name: Identifier
    value: Line

    def made(self) -> RecipeOp:
        return SetKwarg(self.scope, self.call, self.name, self.value)


class _ReplaceStmt(_Table):
    op: Literal["replace_stmt"]
    scope: Place = ""
    old: Text
    new: Text

    def made(self) -> RecipeOp:
        return ReplaceStmt(self.scope, self.old, self.new)


class _InsertAfter(_Table):
    op: Literal["insert_after"]
    scope: Place = ""
    anchor: Text
    code: Text

    def made(self) -> RecipeOp:
        return InsertAfter(self.scope, self.anchor, self.code)


class _AddMethod(_Table):
    op: Literal["add_method"]
    scope: Dotted
    code: Text

    def made(self) -> RecipeOp:
        return AddMethod(self.scope, self.code)


class _ByRole(_Table):
    op: Literal["by_role"]
    edit: Identifier
    values: dict[KnobName, Number | Line] = Field(default_factory=dict, max_length=20)

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.edit not in by_role.names():
            raise ValueError(f"edit: {self.edit} is none of {', '.join(sorted(by_role.names()))}")
        return self

    def made(self) -> RecipeOp:
        return ByRole(self.edit, tuple(self.values.items()))


_Op = Annotated[
    _SetConst | _SetLocal | _SetDefault | _SetKwarg | _ReplaceStmt | _InsertAfter | _AddMethod | _ByRole,
    Field(discriminator="op"),
]


_Ops = Annotated[list[_Op], Field(max_length=50)]
_Codes = Annotated[list[Text], Field(max_length=20)]


class _Mark(_Table):
    has: _Codes = Field(default_factory=list)
    lacks: _Codes = Field(default_factory=list)
    scope: Dotted | Literal[""] = ""
    why: Annotated[str, Field(max_length=200, pattern=_ONE_LINE)] = ""
    named: list[NamePattern] = Field(default_factory=list, max_length=20)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.has or self.lacks or self.scope or self.named):
            raise ValueError("a mark has a scope, `has`, `lacks` or `named`")
        return self

    def mark(self) -> Mark:
        return Mark(tuple(self.has), tuple(self.lacks), self.scope, self.why, tuple(self.named))


class _Sign(_Mark):
    state: Literal["present", "conflicting", "other_form"] = "present"


class _Variant(_Table):
    part: Line | Literal[""] = ""
    needs: list[_Mark] = Field(default_factory=list)
    ops: _Ops = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if not (self.ops or self.needs):
            raise ValueError("a variant without ops needs marks that say in which files there is nothing to do")
        return self


class _Companion(_Variant):
    part: Literal[""] = ""
    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    why: Line
    required: bool = False
    method: str = ""
    knobs: dict[KnobName, Number | Line] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if bool(self.ops) is bool(self.method) and not (self.needs and not self.method):
            raise ValueError("a companion has ops, or the id of another method")
        return self


class _Recipe(_Table):
    conflicts: list[str] = Field(default_factory=list)
    needs: list[_Mark] = Field(default_factory=list)
    detect: list[_Sign] = Field(default_factory=list)
    ops: _Ops = Field(default_factory=list)
    variants: Annotated[list[_Variant], Field(max_length=50)] = Field(default_factory=list)
    companions: Annotated[list[_Companion], Field(max_length=50)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not (self.ops or self.variants or self.detect):
            raise ValueError("recipe.ops: none, and neither variants nor detect")
        return self

    def all_ops(self) -> Iterator[tuple[str, _Op]]:
        """Yield every op with its place in the file."""
        lists: list[tuple[str, _Ops]] = [("recipe.ops", self.ops)]
        lists += [(f"recipe.variants[{n}].ops", each.ops) for n, each in enumerate(self.variants, start=1)]
        lists += [(f"recipe.companions[{n}].ops", each.ops) for n, each in enumerate(self.companions, start=1)]
        yield from ((f"{place}[{n}]", op) for place, found in lists for n, op in enumerate(found, start=1))

    def marks(self) -> Iterator[tuple[str, _Mark]]:
        """Yield every mark with its place in the file."""
        yield from ((f"recipe.needs[{n}]", each) for n, each in enumerate(self.needs, start=1))
        yield from ((f"recipe.detect[{n}]", each) for n, each in enumerate(self.detect, start=1))
        for kind, found in (("variants", self.variants), ("companions", self.companions)):
            for n, each in enumerate(found, start=1):
                yield from ((f"recipe.{kind}[{n}].needs[{m}]", mark) for m, mark in enumerate(each.needs, start=1))

    def made(self) -> Recipe:
        return Recipe(
            ops=tuple(op.made() for op in self.ops),
            conflicts=tuple(self.conflicts),
            needs=tuple(each.mark() for each in self.needs),
            detect=tuple(Sign(each.state, each.mark()) for each in self.detect),
            variants=tuple(
                Variant(tuple(op.made() for op in each.ops), tuple(mark.mark() for mark in each.needs), each.part)
                for each in self.variants
            ),
            companions=tuple(
                Companion(
                    each.name,
                    each.why,
                    each.required,
                    tuple(op.made() for op in each.ops),
                    tuple(mark.mark() for mark in each.needs),
                    each.method,
                    tuple(each.knobs.items()),
                )
                for each in self.companions
            ),
        )


class _Method(_Table):
    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    name: Line
    family: Literal[FAMILIES]  # type: ignore[valid-type]  # a Literal of the tuple's items
    aliases: list[Line] = Field(default_factory=list, max_length=50)
    summary: Annotated[str, Field(min_length=1, max_length=120, pattern=_ONE_LINE)]
    description: Text
    change: Annotated[str, Field(max_length=200, pattern=_ONE_LINE)] = ""
    sources: list[_Source] = Field(default_factory=list)
    published: list[_Published] = Field(default_factory=list)
    outcomes: list[_Outcome] = Field(default_factory=list, max_length=100)
    knobs: dict[KnobName, _Knob] = Field(default_factory=dict)
    recipe: _Recipe | None = None

    @model_validator(mode="after")
    def _knobs_fit(self) -> Self:
        for name, knob in self.knobs.items():
            if name == CURRENT:
                raise ValueError(f"knobs.{name}: {{{CURRENT}}} is the expression that stands there; take another name")
            if misfit := knob.misfit():
                raise ValueError(f"knobs.{name}: {misfit}")
        return self

    @model_validator(mode="after")
    def _recipe_fits(self) -> Self:
        if self.recipe is None:
            if self.knobs:
                raise ValueError(f"knobs.{min(self.knobs)}: no op uses it")
            return self
        used = {name for place, op in self.recipe.all_ops() for name in self._check_op(place, op)}
        for place, mark in self.recipe.marks():
            for code in (*mark.has, *mark.lacks):
                _check_parses(place, ops.NAME_HOLE.sub(r"\1", code))
        if unused := sorted(set(self.knobs) - used):
            raise ValueError(f"knobs.{unused[0]}: no op uses it")
        return self

    def _check_op(self, place: str, op: _Op) -> set[str]:
        """Check the code of an op; return the placeholders it uses."""
        if isinstance(op, _ByRole):
            return set(self.knobs)
        used: set[str] = set()
        fields = op.model_dump(exclude={"op", "scope", "name", "call"})
        holes = set(ops.NAME_HOLE.findall(fields.get("old", fields.get("anchor", ""))))
        for key, code in fields.items():
            used |= self._check_code(f"{place}.{key}", code, holes if key in {"new", "code"} else None)
        if isinstance(op, _AddMethod) and not _is_function(op.code):
            raise ValueError(f"{place}.code: it must be one function")
        return used

    def _check_code(self, place: str, code: str, holes: set[str] | None) -> set[str]:
        """Check that an op's code parses with its placeholders filled; return the knobs it uses.

        `holes` are the `{_x}` that the code may hold; None where it makes its own.
        """
        is_value = place.endswith(".value")
        known = {*self.knobs, *([CURRENT] if is_value else [])}
        found = set() if is_value else set(ops.NAME_HOLE.findall(code))
        if (loose := sorted(found - (found if holes is None else holes))) and not re.search(r"\bf[\"']", code):
            raise ValueError(f"{place}: {{{loose[0]}}} stands in no `old` or `anchor` of its op")
        fillings = {name: name for name in (known | (found if holes is None else holes))}
        filled = ops.filled(code, fillings)
        body = _check_parses(place, filled, is_value=is_value)
        for node in (each for statement in body for each in ast.walk(statement)):
            match node:
                case ast.Set(elts=[ast.Name(id=name)]) if ops.PLACEHOLDER.fullmatch(f"{{{name}}}"):
                    why = "is no declared knob"
                    why = "stands for the old value, which only `value` has" if name == CURRENT else why
                    raise ValueError(f"{place}: {{{name}}} {why}")
        return (set(ops.PLACEHOLDER.findall(code)) & known) - {CURRENT}

    def made(self) -> Method:
        """Return the method as the rest of LoopGraph knows it."""
        return Method(
            id=self.id,
            name=self.name,
            family=self.family,
            summary=self.summary,
            description=" ".join(self.description.split()),
            aliases=tuple(self.aliases),
            sources=tuple(Source(each.kind, each.ref, each.title) for each in self.sources),
            published=tuple(
                PublishedResult(each.claim, each.setting, each.source, each.gain) for each in self.published
            ),
            knobs=tuple(
                Knob(name, each.default, each.description, each.low, each.high, tuple(each.choices))
                for name, each in self.knobs.items()
            ),
            recipe=None if self.recipe is None else self.recipe.made(),
            moves=read_moves(self.change or self.name),
            outcomes=tuple(SharedOutcome(**each.model_dump()) for each in self.outcomes),
            change=self.change,
        )


def _check_parses(place: str, code: str, *, is_value: bool = False) -> list[ast.stmt]:
    try:
        if is_value:
            programs.parse(code, "eval")
            programs.parse(f"({code})", "eval")  # a comment would swallow what follows it on its line
        body = programs.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{place}: the code does not parse ({error})") from error
    if not body:
        raise ValueError(f"{place}: it holds no statement")
    return body


def _is_function(code: str) -> bool:
    body = programs.parse(ops.PLACEHOLDER.sub(r"\1", code)).body
    return len(body) == 1 and isinstance(body[0], ast.FunctionDef | ast.AsyncFunctionDef)


def read_pack(folder: Path) -> Pack:
    """Read and check a pack.

    Raises:
        PackError: A file is missing, too large, a link, or does not follow the format; the message names file and key.
    """
    texts, digest = read_files(folder)
    declared = _parse(_Manifest, folder / MANIFEST, texts.pop(folder / MANIFEST))
    methods = tuple(_method(file, text) for file, text in texts.items())
    _check_together(folder, methods)
    return Pack(declared.name, declared.version, digest, methods)


def read_method(told: Mapping[str, Any]) -> Method:
    """Check one method that is told in the form of a pack's file.

    Raises:
        PackError: It does not follow the format; the message names the key.
    """
    try:
        return _Method.model_validate(dict(told)).made()
    except ValidationError as error:
        first = error.errors()[0]
        key, why = _key(first["loc"]), first["msg"].removeprefix("Value error, ")
        raise PackError(f"{f'{key}: ' if key else ''}{why}; docs/method-packs.md tells the keys") from error
    except RecursionError as error:
        raise PackError("nested too deeply") from error


def read_definition(file: Path) -> dict[str, Any]:
    """Return what a file tells of a method, unchecked.

    Raises:
        PackError: It cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(read_file(file).decode())
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise PackError(f"{file}: {error}") from error


def _method(file: Path, text: str) -> Method:
    parsed = _parse(_Method, file, text)
    if parsed.id != file.stem:
        raise PackError(f"{file}: id is {parsed.id!r}; it must be the file's name, {file.stem!r}")
    return parsed.made()


def _parse(kind: type[_T], file: Path, text: str) -> _T:
    try:
        return kind.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = _key(first["loc"])
        raise PackError(f"{file}: {f'{key}: ' if key else ''}{first['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:  # TOMLDecodeError, or an integer too long to read
        raise PackError(f"{file}: not TOML: {error}") from error
    except RecursionError as error:
        raise PackError(f"{file}: nested too deeply") from error


def _key(place: Iterable[int | str]) -> str:
    """Return a place as `recipe.ops[1].value`, counted from one; a key may be anything, so it is cut and escaped."""
    key = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in place if part not in _BRANCHES)
    key = key.removeprefix(".")
    shown = key if key.isprintable() else ascii(key)
    return shown if len(shown) <= _MAX_KEY else f"{shown[:_MAX_KEY]}…"


def _check_together(folder: Path, methods: Iterable[Method]) -> None:
    """Check what no single file can tell: aliases name one method each, conflicts name methods."""
    ids = {method.id for method in methods}
    owners: dict[str, str] = {}
    for method in methods:
        for name in sorted({name.casefold() for name in (method.id, method.name, *method.aliases)}):
            if (owner := owners.setdefault(name, method.id)) != method.id:
                file = folder / f"{method.id}.toml"
                raise PackError(f"{file}: aliases: {name!r} names {owner} too; drop it from one of them")
    for method in methods:
        recipe = method.recipe
        named = [("conflicts", each) for each in recipe.conflicts] if recipe else []
        named += [("companions", each.method) for each in recipe.companions if each.method] if recipe else []
        for key, other in named:
            if other not in ids:
                raise PackError(f"{folder / method.id}.toml: recipe.{key}: no method {other!r} in this pack")
