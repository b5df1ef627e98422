"""Reads a method pack: a folder with pack.toml and one TOML file for each method."""

import ast
import hashlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loopgraph_mcp.errors import PackError
from loopgraph_mcp.models import (
    AddMethod,
    InsertAfter,
    Knob,
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
    Source,
)
from loopgraph_mcp.moves import read_moves

_T = TypeVar("_T", bound=BaseModel)
MANIFEST = "pack.toml"
_MAX_FILE_BYTES = 2**20
_MAX_FILES = 2_000
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
)
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")

# A pack is somebody else's text that ends up in terminals and prompts: nothing in it may move the cursor or hide.
_UNSEEN = r"\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069"
_ONE_LINE = rf"^[^{_UNSEEN}]*$"
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=_ONE_LINE)]
Text = Annotated[str, Field(min_length=1, max_length=4_000, pattern=rf"^([^{_UNSEEN}]|[\n\t])*$")]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Annotated[float, Field(allow_inf_nan=False)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Dotted = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
Place = Dotted | Literal[""]  # the module's own level
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


_Op = Annotated[
    _SetConst | _SetLocal | _SetDefault | _SetKwarg | _ReplaceStmt | _InsertAfter | _AddMethod,
    Field(discriminator="op"),
]


class _Recipe(_Table):
    conflicts: list[str] = Field(default_factory=list)
    ops: Annotated[list[_Op], Field(min_length=1, max_length=50)]


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
        used: set[str] = set()
        for number, op in enumerate(self.recipe.ops if self.recipe else [], start=1):
            for key, code in op.model_dump(exclude={"op", "scope", "name", "call"}).items():
                used |= self._check_code(f"recipe.ops[{number}].{key}", code)
            if isinstance(op, _AddMethod) and not _is_function(op.code):
                raise ValueError(f"recipe.ops[{number}].code: it must be one function")
        if unused := sorted(set(self.knobs) - used):
            raise ValueError(f"knobs.{unused[0]}: no op uses it")
        return self

    def _check_code(self, place: str, code: str) -> set[str]:
        """Check that an op's code parses with its placeholders filled; return the knobs it uses."""
        names = set(_PLACEHOLDER.findall(code))
        known = {*self.knobs, CURRENT} if place.endswith(".value") else set(self.knobs)
        if unknown := sorted(names - known):
            why = "stands for the old value, which only `value` has" if unknown[0] == CURRENT else "is no declared knob"
            raise ValueError(f"{place}: {{{unknown[0]}}} {why}")
        filled = _PLACEHOLDER.sub(r"\1", code)
        try:
            if place.endswith(".value"):
                ast.parse(filled, mode="eval")
                ast.parse(f"({filled})", mode="eval")  # a comment would swallow what follows it on its line
            body = ast.parse(filled).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{place}: the code does not parse ({error})") from error
        if not body:
            raise ValueError(f"{place}: it holds no statement")
        return names - {CURRENT}

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
            recipe=None
            if self.recipe is None
            else Recipe(tuple(op.made() for op in self.recipe.ops), tuple(self.recipe.conflicts)),
            moves=read_moves(self.change or self.name),
            outcomes=tuple(SharedOutcome(**each.model_dump()) for each in self.outcomes),
            change=self.change,
        )


def _is_function(code: str) -> bool:
    body = ast.parse(_PLACEHOLDER.sub(r"\1", code)).body
    return len(body) == 1 and isinstance(body[0], ast.FunctionDef | ast.AsyncFunctionDef)


def read_pack(folder: Path) -> Pack:
    """Read and check a pack.

    Raises:
        PackError: A file is missing, too large, a link, or does not follow the format; the message names file and key.
    """
    manifest = folder / MANIFEST
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix == ".toml" and file.name != MANIFEST)
        if not manifest.is_file():
            raise PackError(f"{folder}: no {MANIFEST}; a pack is a folder with {MANIFEST} and one TOML file per method")
    except OSError as error:
        raise PackError(
            f"{folder}: {error}; a pack is a folder with {MANIFEST} and one TOML file per method"
        ) from error
    if len(files) > _MAX_FILES:
        raise PackError(f"{folder}: {len(files):,} methods; at most {_MAX_FILES:,} in one pack")
    digest = hashlib.sha256()
    texts: dict[Path, str] = {}
    for file in [manifest, *files]:
        data = _read(file)
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(data).digest())
        try:
            texts[file] = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PackError(f"{file}: not UTF-8 ({error})") from error
    declared = _parse(_Manifest, manifest, texts[manifest])
    methods = tuple(_method(file, texts[file]) for file in files)
    _check_together(folder, methods)
    return Pack(declared.name, declared.version, digest.hexdigest(), methods)


def _read(file: Path) -> bytes:
    if file.is_symlink():
        raise PackError(f"{file}: a link; a pack holds plain files")
    if not file.is_file():  # to open a pipe would wait for its other end
        raise PackError(f"{file}: not a plain file")
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PackError(f"{file}: {error}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise PackError(f"{file}: over {_MAX_FILE_BYTES >> 20} MiB")
    return data


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
        for conflict in method.recipe.conflicts if method.recipe else ():
            if conflict not in ids:
                raise PackError(f"{folder / method.id}.toml: recipe.conflicts: no method {conflict!r} in this pack")
