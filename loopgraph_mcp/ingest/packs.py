"""Reads a method pack: a folder with pack.toml and one TOML file for each method."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loopgraph_mcp.code import ops, programs
from loopgraph_mcp.errors import PackError
from loopgraph_mcp.ingest.pack_texts import MANIFEST, read_file, read_files
from loopgraph_mcp.models import (
    ONE_LINE,
    AddMethod,
    Knob,
    Line,
    Mark,
    Method,
    Number,
    Pack,
    PublishedResult,
    Recipe,
    RecipeOp,
    SharedOutcome,
    Source,
    Text,
)
from loopgraph_mcp.ranking.descriptions import read_moves

_T = TypeVar("_T", bound=BaseModel)
_MAX_KEY = 100
_OPS = ("set_const", "set_local", "set_default", "set_kwarg", "replace_stmt", "insert_after", "add_method")
_BRANCHES = {
    *_OPS,
    "int",
    "float",
    "str",
    "constrained-int",
    "constrained-float",
    "constrained-str",
}  # pydantic's words
_FOREIGN = {"foreign": True}  # what the schema's checks of somebody else's text look for
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

_ID = r"^[a-z0-9]+(-[a-z0-9]+)*$"
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


def _all_ops(recipe: Recipe) -> Iterator[tuple[str, RecipeOp]]:
    """Yield every op with its place in the file."""
    lists = [("recipe.ops", recipe.ops)]
    lists += [(f"recipe.variants[{n}].ops", each.ops) for n, each in enumerate(recipe.variants, start=1)]
    lists += [(f"recipe.companions[{n}].ops", each.ops) for n, each in enumerate(recipe.companions, start=1)]
    yield from ((f"{place}[{n}]", op) for place, found in lists for n, op in enumerate(found, start=1))


def _all_marks(recipe: Recipe) -> Iterator[tuple[str, Mark]]:
    """Yield every mark with its place in the file."""
    lists = [("recipe.needs", recipe.needs), ("recipe.detect", tuple(each.mark for each in recipe.detect))]
    lists += [(f"recipe.variants[{n}].needs", each.needs) for n, each in enumerate(recipe.variants, start=1)]
    lists += [(f"recipe.companions[{n}].needs", each.needs) for n, each in enumerate(recipe.companions, start=1)]
    yield from ((f"{place}[{n}]", mark) for place, found in lists for n, mark in enumerate(found, start=1))


def _check_parts(recipe: Recipe) -> None:
    """Check that each part of a recipe says something."""
    if not (recipe.ops or recipe.variants):
        raise ValueError("recipe.ops: none, and no variants")
    for n, variant in enumerate(recipe.variants, start=1):
        if not (variant.ops or variant.needs):
            place = f"recipe.variants[{n}]"
            raise ValueError(
                f"{place}: a variant without ops needs marks that say in which files there is nothing to do"
            )
    for n, each in enumerate(recipe.companions, start=1):
        if bool(each.ops) is bool(each.method) and not (each.needs and not each.method):
            raise ValueError(f"recipe.companions[{n}]: a companion has ops, or the id of another method")
    for place, mark in _all_marks(recipe):
        if not (mark.has or mark.lacks or mark.scope):
            raise ValueError(f"{place}: a mark has a scope, `has` or `lacks`")


class _Method(_Table):
    id: Annotated[str, Field(pattern=_ID, max_length=60)]
    name: Line
    family: Literal[FAMILIES]  # type: ignore[valid-type]  # a Literal of the tuple's items
    aliases: list[Line] = Field(default_factory=list, max_length=50)
    summary: Annotated[str, Field(min_length=1, max_length=120, pattern=ONE_LINE)]
    description: Text
    change: Annotated[str, Field(max_length=200, pattern=ONE_LINE)] = ""
    sources: list[_Source] = Field(default_factory=list)
    published: list[_Published] = Field(default_factory=list)
    outcomes: list[_Outcome] = Field(default_factory=list, max_length=100)
    knobs: dict[KnobName, _Knob] = Field(default_factory=dict)
    recipe: Recipe | None = None

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
        _check_parts(self.recipe)
        used = {name for place, op in _all_ops(self.recipe) for name in self._check_op(place, op)}
        for place, mark in _all_marks(self.recipe):
            for code in (*mark.has, *mark.lacks):
                _check_parses(place, ops.NAME_HOLE.sub(r"\1", code))
        if unused := sorted(set(self.knobs) - used):
            raise ValueError(f"knobs.{unused[0]}: no op uses it")
        return self

    def _check_op(self, place: str, op: RecipeOp) -> set[str]:
        """Check the code of an op; return the placeholders it uses."""
        used: set[str] = set()
        fields = {key: code for key, code in asdict(op).items() if key not in {"op", "scope", "name", "call"}}
        holes = set(ops.NAME_HOLE.findall(fields.get("old", fields.get("anchor", ""))))
        for key, code in fields.items():
            used |= self._check_code(f"{place}.{key}", code, holes if key in {"new", "code"} else None)
        if isinstance(op, AddMethod) and not _is_function(op.code):
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
            recipe=self.recipe,
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
        return _Method.model_validate(dict(told), extra="forbid", context=_FOREIGN).made()
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
        return kind.model_validate(tomllib.loads(text), extra="forbid", context=_FOREIGN)
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
