"""The user's folder: what loopgraph.toml declares or detection finds, the copy a run works in, results.tsv, git."""

import ast
import glob
import json
import os
import posixpath
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loopgraph_mcp.code import programs
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Direction
from loopgraph_mcp.runner import contents, environment, patterns, schemas
from loopgraph_mcp.runner.plain_files import read_plain
from loopgraph_mcp.runner.printed import check_pattern
from loopgraph_mcp.text import compile_later, plain_line

CONFIG_NAME = "loopgraph.toml"
_IMPORTED = compile_later(
    r"^[ \t]*from ([A-Za-z_][\w.]*) import ", re.MULTILINE
)  # no \s: it would run over all blank lines
_MAX_HEAD = 2**18  # characters of a program in which its imports are looked for
_MAX_SIBLING_BYTES = 2**18
DECLARING = (CONFIG_NAME, "train.py", "prepare.py", "uv.lock")  # files that define a workspace
RESULTS_NAME = "results.tsv"
RESULTS_HEADER = ("commit", "val_bpb", "memory_gb", "status", "description")
_MAX_READ_BYTES = 2**20  # of a file that is looked through for a variable's name
_FEW_FILES = 1_000  # of declared data that is known by its bytes, and looked through for every search
_LOOK_AGAIN_S = 60  # seconds until large folders are listed again
_MAX_DECLARATION_BYTES = 2**14  # some keys take the parser a time that grows with their square
_GIT_TIMEOUT_S = 20  # a large repository on a slow disk takes seconds
_MAX_HEADER = 64 * 2**10  # bytes; a longer first line is not a header
_MAX_SINCE = 2**20  # of results.tsv behind the place where a line was begun
# No hook, signature, monitor, pager or helper that the folder's or the user's settings name is run, and no maintenance
# is left behind. Filters are: what they make of a file is what git compares and commits.
_GIT = (
    "git", "--no-pager", "--no-replace-objects",
    *(word for setting in (
        "core.fsmonitor=false", "core.hooksPath=/dev/null", "commit.gpgSign=false", "tag.gpgSign=false",
        "log.showSignature=false", "credential.helper=", "diff.external=", "core.editor=false",
        "core.askPass=false", "core.sshCommand=false", "gc.auto=0", "maintenance.auto=false",
    ) for word in ("-c", setting)),
)  # fmt: skip
_ONLY_READS = {"GIT_OPTIONAL_LOCKS": "0"}
_WRITTEN_S = 60.0  # an editor may set a file's rights or its name some seconds after it wrote it
MAX_BUDGET_S = 7 * 86_400  # a week; a larger number is a mistake
_MAX_SHOWN_PATH = 80  # characters of a path that an error quotes
_MAX_CELL = 1_000  # characters of a cell of results.tsv
_TRAINER_FILES = ("train.py", "harness.py", "prepare.py", "verify.py", "climbmix.py", "program.md", CONFIG_NAME)


class _Declared(BaseModel):
    """The table [workspace] of loopgraph.toml."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)  # built when a folder is first read

    editable: str = "train.py"
    protected: list[str] = Field(default_factory=list)
    dataset: list[str] = Field(default_factory=list)
    command: list[str] = Field(min_length=1)
    link: list[str] = Field(default_factory=list)
    ignore: list[str] = Field(default_factory=list)
    metric: str = "val_bpb"
    pattern: str | None = None
    take: Literal["last", "best", "first"] = "last"
    direction: Literal["lower", "higher"] = "lower"
    budget_s: float = Field(default=300, gt=0, le=MAX_BUDGET_S)
    timeout_s: float | None = Field(default=None, gt=0)
    silence_s: float = Field(default=300, gt=0)
    context_env: list[str] = Field(default_factory=list)
    pass_env: list[str] = Field(default_factory=list)
    device: str | None = Field(default=None, min_length=1, max_length=100)
    devices_per_run: int | None = Field(default=None, ge=1, le=64)
    on_win: Literal["apply", "commit", "leave"] = "apply"
    apply_tentative: bool | None = None
    trust_reports: bool = False
    verify: list[str] = Field(default_factory=list)
    suspicious_factor: float | None = Field(default=None, gt=1)
    smoke: bool = False
    confine: bool = True


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)

    workspace: _Declared


@dataclass(frozen=True, slots=True)
class Workspace:
    """A folder with a training loop to improve.

    Args:
        path: The folder.
        editable: The file that edits change, relative to it.
        protected: Files, folders and patterns of files that a run must not change: evaluation, data loading.
        dataset: Files, folders and patterns of files that are the data, or name it, such as a manifest.
        command: What runs the training; `{python}` is the workspace's interpreter.
        metric: Name of the metric in the printed summary.
        direction: Which way it improves.
        budget_s: Training seconds, passed on as LOOPGRAPH_BUDGET_S.
        timeout_s: Seconds after which a run is ended, start-up and evaluation included.
        silence_s: Seconds without output after which a run counts as hung.
        on_win: Whether a win is written to the editable file, committed as well, or left to the caller.
        link: Files and folders outside of the workspace, relative to it, that the run's copy links to.
        ignore: Files and folders, or patterns of them, that no run reads: they are not in the run's copy.
        pattern: Regular expression whose first group is the metric, where its name is not enough to find it.
        take: Which of several values of the metric in one log counts.
        context_env: Environment variables whose values make two outcomes incomparable where they differ.
        pass_env: Environment variables that a run gets though they hold secrets or are on no list.
        device: What outcomes count as made on, where the command runs elsewhere than here; None for this machine's.
        devices_per_run: GPUs that one run gets; None for all that CUDA_VISIBLE_DEVICES lists, else for one.
        apply_tentative: Whether a gain within the noise is written to the editable file too.
        trust_reports: Whether a metric that an agent reports without its log counts as evidence.
        verify: What measures a run again before it is kept, from the state that it left; empty for nothing.
        smoke: Whether an edit is tried for one step at a tiny size first, which runs the program's definitions.
        suspicious_factor: How many times better than the best so far a value may be; None for the metric's default.
        confine: Whether a run sees read-only what is only linked, the store and other runs, where the system allows.
    """

    path: Path
    editable: str
    protected: tuple[str, ...]
    dataset: tuple[str, ...]
    command: tuple[str, ...]
    metric: str
    direction: Direction
    budget_s: float
    timeout_s: float
    silence_s: float
    on_win: Literal["apply", "commit", "leave"]
    link: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    pattern: str | None = None
    take: Literal["last", "best", "first"] = "last"
    context_env: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    device: str | None = None
    devices_per_run: int | None = None
    apply_tentative: bool = True
    trust_reports: bool = False
    verify: tuple[str, ...] = ()
    suspicious_factor: float | None = None
    smoke: bool = False
    confine: bool = True

    @property
    def editable_path(self) -> Path:
        """The file that edits change."""
        return self.path / self.editable

    def read_program(self) -> str:
        """Return the editable file's text, newlines as they are.

        Raises:
            WorkspaceError: It is no plain file, is too large, or cannot be read as UTF-8.
        """
        try:
            return read_plain(self.editable_path).decode("utf-8")
        except FileNotFoundError as error:
            raise WorkspaceError(
                f"{self.editable_path}: not found; name the file to improve as `editable` in {CONFIG_NAME}"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise WorkspaceError(f"{self.editable_path}: cannot be read as UTF-8 text ({error})") from error

    def read_siblings(self, program: str) -> dict[str, str]:
        """Return the texts of the modules that the editable file imports names from, and of the script that is run.

        They are looked for beside the file and in the folder; what cannot be read is left out.
        """
        found = dict[str, str]()
        for name in dict.fromkeys([*_IMPORTED.findall(program[:_MAX_HEAD]), *self._scripts()]):
            relative = Path(*name.split(".")).with_suffix(".py")
            for folder in dict.fromkeys([self.editable_path.parent, self.path]):
                file = folder / relative
                try:
                    if file.is_file() and file != self.editable_path and file.stat().st_size <= _MAX_SIBLING_BYTES:
                        found[name] = read_plain(file).decode("utf-8")
                        break
                except (OSError, UnicodeDecodeError):
                    continue
        return found

    def _scripts(self) -> list[str]:
        """Return the Python scripts that the command names, as modules."""
        paths = [each for each in self.command if each.endswith(".py") and not Path(each).is_absolute()]
        modules = [after for each, after in pairwise(self.command) if each == "-m"]
        return [*(".".join(Path(each).with_suffix("").parts) for each in paths), *modules]


def load_workspace(path: Path) -> Workspace:
    """Return the workspace in a folder: as loopgraph.toml declares it, or detected without one.

    Raises:
        WorkspaceError: There is none, or its declaration cannot be used.
    """
    path = resolved(path)
    if not path.is_dir():
        raise WorkspaceError(f"{path}: not a folder; name the folder that holds train.py")
    config = path / CONFIG_NAME
    try:
        text = read_plain(config, _MAX_DECLARATION_BYTES).decode("utf-8")
    except FileNotFoundError:
        return _detect(path)
    except (OSError, UnicodeDecodeError) as error:
        raise WorkspaceError(f"{config}: cannot be read as UTF-8 text ({error})") from error
    try:
        declared = _Config.model_validate(tomllib.loads(text)).workspace
    except ValidationError as error:
        raise WorkspaceError(f"{config}{_line_of(error, text)}: {_misdeclared(error)}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError, as is a number of 5,000 digits
        raise WorkspaceError(f"{config}: {error}") from error
    if not declared.metric.strip():
        raise WorkspaceError(f"{config}: workspace.metric: empty; set it to the name that the program prints")
    if declared.pattern is not None and (wrong := check_pattern(declared.pattern)):
        raise WorkspaceError(f"{config}: workspace.pattern: {wrong}")
    if not resolved(path / declared.editable).is_relative_to(path):
        raise WorkspaceError(f"{config}: editable: {declared.editable} is outside the workspace")
    return Workspace(
        path=path,
        editable=declared.editable,
        protected=_checked_names(path, "protected", declared),
        dataset=_checked_names(path, "dataset", declared),
        command=tuple(declared.command),
        metric=declared.metric,
        direction=Direction(declared.direction),
        budget_s=declared.budget_s,
        timeout_s=declared.timeout_s or default_timeout_s(declared.budget_s),
        silence_s=declared.silence_s,
        on_win=declared.on_win,
        link=_checked_links(path, declared.link),
        ignore=tuple(declared.ignore),
        pattern=declared.pattern,
        take=declared.take,
        context_env=tuple(declared.context_env),
        pass_env=tuple(declared.pass_env),
        device=declared.device,
        devices_per_run=declared.devices_per_run,
        apply_tentative=declared.on_win == "apply" if declared.apply_tentative is None else declared.apply_tentative,
        trust_reports=declared.trust_reports,
        verify=tuple(declared.verify),
        suspicious_factor=declared.suspicious_factor,
        smoke=declared.smoke,
        confine=declared.confine,
    )


def resolved(path: Path) -> Path:
    """Return where a path that somebody gave leads.

    Raises:
        WorkspaceError: It can be no path: it is too long, holds a null character, or names an unknown user's home.
    """
    try:
        found = path.expanduser().resolve()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.stat()
    except (OSError, RuntimeError, ValueError) as error:
        shown = str(path)
        shown = ascii(shown[:_MAX_SHOWN_PATH]) + ("…" if len(shown) > _MAX_SHOWN_PATH else "")
        raise WorkspaceError(f"{shown}: is not a valid path ({str(error)[:80]}); name an existing folder") from error
    return found


def _line_of(error: ValidationError, text: str) -> str:
    """Return the line of a declaration that is wrong, as the end of its file's name."""
    place = [str(each) for each in error.errors(include_url=False)[0]["loc"]]
    for number, line in enumerate(text.splitlines(), start=1):
        if len(place) > 1 and re.match(rf"\s*{re.escape(place[1])}\s*=", line):
            return f":{number}"
    return ""


def _misdeclared(error: ValidationError) -> str:
    """Return what is wrong with a declaration: the key, its value, and what it takes."""
    first = error.errors(include_url=False)[0]
    table, *place = first["loc"]
    if table != "workspace":
        return f"unexpected table or key {schemas.shown(table)}; the file has one table, [workspace]"
    if not place:
        wrong = "is missing" if first["type"] == "missing" else "is no table"
        return f"[workspace] {wrong}; begin the file with a line [workspace], then command = […]"
    known = _Declared.model_json_schema()["properties"]
    key = str(place[0])
    if key not in known:
        return schemas.unknown(key, list(known), "key")
    if first["type"] == "missing":
        return f'{key} is missing; give {schemas.wanted(known[key])}, such as ["{{python}}", "train.py"]'
    inside = f"[{place[1] + 1}]" if len(place) > 1 and isinstance(place[1], int) else ""
    takes = schemas.wanted(known[key])
    return f"{key}{inside} is {schemas.shown(first['input'])}; {key} takes {takes}"


def _checked_names(path: Path, key: Literal["protected", "dataset"], declared: _Declared) -> tuple[str, ...]:
    """Return the names under `protected` or `dataset`, each of which must name something.

    A `?` behind a name that holds no other wildcard says that it need not be there yet; it is taken off.
    """
    found = list[str]()
    for written in declared.protected if key == "protected" else declared.dataset:
        name = _plain(path, key, written)
        optional = name.endswith("?") and not patterns.is_pattern(name[:-1]) and not (path / name).exists()
        name = name.removesuffix("?") if optional else name
        if key == "protected" and name == declared.editable:
            raise WorkspaceError(f"{path / CONFIG_NAME}: {key}: {name} is the editable file; remove it here")
        beside = [] if key == "protected" else [posixpath.normpath(each) for each in declared.link]
        is_outside = name.startswith(("../", "/")) or name == ".."
        if is_outside and not any(name == each or name.startswith(f"{each}/") for each in beside):
            more = "" if key == "protected" else "; add it to `link` too, so that runs find it"
            raise WorkspaceError(f"{path / CONFIG_NAME}: {key}: {name} is outside the workspace{more}")
        if not optional and next(patterns.expand_one(str(path), name), None) is None:
            raise WorkspaceError(
                f"{path / CONFIG_NAME}: {key}: {written!r} matches no file in {path}; correct the name, create the "
                f'file first, or, for a file that is created later, write "{name}?"'
            )
        found.append(name)
    return tuple(found)


def _checked_links(path: Path, links: Sequence[str]) -> tuple[str, ...]:
    """Return the names under `link`, each of which must be there."""
    found = list[str]()
    for written in links:
        name = _plain(path, "link", os.path.expanduser(written))  # noqa: PTH111 - a name, relative or not
        target = Path(os.path.normpath(path / name))
        if not target.exists():
            raise WorkspaceError(
                f"{path / CONFIG_NAME}: link: {written!r} does not exist ({target}); correct the name, or remove it"
            )
        if path.is_relative_to(target):
            raise WorkspaceError(
                f"{path / CONFIG_NAME}: link: {written!r} contains the workspace itself; name only what a run "
                "needs from it"
            )
        found.append(name if name.startswith("/") else os.path.relpath(target, path))
    return tuple(found)


def _plain(path: Path, key: str, name: str) -> str:
    """Return a name without `./`, doubled slashes and a slash at its end."""
    if not name.strip() or "\0" in name:
        raise WorkspaceError(f"{path / CONFIG_NAME}: {key}: {name!r} names no file; remove it")
    return posixpath.normpath(name)


def create_workspace(directory: Path, trainer: Path, *, budget_s: float | None) -> tuple[Workspace, bool]:
    """Make a workspace of a folder; return it, and whether it is new and not an existing training loop.

    An existing one is declared in a loopgraph.toml of its own, so that its user can see and change what was found.

    Raises:
        WorkspaceError: The folder holds something else, or the budget cannot be used.
    """
    directory = resolved(directory)
    if budget_s is not None and not 0 < budget_s <= MAX_BUDGET_S:
        raise WorkspaceError(f"a budget of {budget_s:g} s; use seconds above 0 and at most a week")
    if (directory / CONFIG_NAME).exists() or (directory / "train.py").exists():
        where = load_workspace(directory)
        if not (directory / CONFIG_NAME).exists():
            (directory / CONFIG_NAME).write_text(_declaration(where, budget_s or where.budget_s), encoding="utf-8")
        return load_workspace(directory), False
    if directory.is_dir() and any(directory.iterdir()):
        raise WorkspaceError(
            f"{directory}: not empty, and no script in it prints a metric by name; write a {CONFIG_NAME} there that "
            "names the file to improve (editable), what runs it (command) and its metric, or name a new folder"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name in _TRAINER_FILES:
        shutil.copy2(trainer / name, directory / name)
    (directory / ".gitignore").write_text(
        "corpus.json\nmetrics.jsonl\nresults.tsv\nrun.log\nstate.pt\n__pycache__/\n", encoding="utf-8"
    )
    if budget_s is not None:
        config = directory / CONFIG_NAME
        text = re.sub(r"(?m)^budget_s = \S+", f"budget_s = {budget_s:g}", config.read_text(encoding="utf-8"))
        config.write_text(text, encoding="utf-8")
    return load_workspace(directory), True


def _declaration(where: Workspace, budget_s: float) -> str:
    """Return the loopgraph.toml that declares a detected workspace; JSON lists of strings are TOML as well."""
    return (
        "[workspace]\n"
        f"editable = {json.dumps(where.editable)}\n"
        f"protected = {json.dumps(where.protected)}\n"
        f"command = {json.dumps(where.command)}\n"
        f"metric = {json.dumps(where.metric)}\n"
        f"direction = {json.dumps(where.direction.value)}\n"
        f"budget_s = {budget_s:g}\n"
        f"timeout_s = {default_timeout_s(budget_s):g}\n"
        f'on_win = "{where.on_win}"  # apply, commit or leave\n'
    )


def prepare_command(path: Path) -> list[str]:
    """Return the command that prepares the bundled trainer's data."""
    return [python_of(path), "prepare.py"]


def default_timeout_s(budget_s: float) -> float:
    """Return how long a run may take in all: twice its budget, and five minutes to start and evaluate."""
    return 2 * budget_s + 300


def _detect(path: Path) -> Workspace:
    """Recognise a karpathy/autoresearch checkout: train.py beside prepare.py."""
    if not ((path / "train.py").is_file() and (path / "prepare.py").is_file()):
        raise WorkspaceError(
            f"{path}: no {CONFIG_NAME}, and no train.py beside a prepare.py; run `loopgraph init {path}` "
            f"for a new workspace, or write a {CONFIG_NAME} that names the run command"
        )
    budget_s = _constant(path / "prepare.py", "TIME_BUDGET", 300.0)
    uses_uv = (path / "uv.lock").is_file() and shutil.which("uv") is not None
    return Workspace(
        path=path,
        editable="train.py",
        protected=("prepare.py",),
        dataset=(),
        command=("uv", "run", "train.py") if uses_uv else ("{python}", "train.py"),
        metric="val_bpb",
        direction=Direction.LOWER,
        budget_s=budget_s,
        timeout_s=default_timeout_s(budget_s),
        silence_s=300,
        on_win="apply",
    )


def _constant(file: Path, name: str, default: float) -> float:
    """Return a module-level number of a Python file without running it."""
    try:
        tree = programs.parse(read_plain(file).decode("utf-8-sig"))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return default
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=ast.Constant(value=int() | float() as value)):
                if found == name and value > 0:
                    return float(value)
    return default


def python_of(workspace: Path) -> str:
    """Return the interpreter that runs the training: the workspace's own environment, or ours."""
    own = workspace / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def run_command(workspace: Workspace) -> list[str]:
    """Return the command line with `{python}` filled in."""
    return _filled_in(workspace, workspace.command)


def verify_command(workspace: Workspace) -> list[str]:
    """Return the command line that measures a run again, likewise; empty where none is declared."""
    return _filled_in(workspace, workspace.verify)


def _filled_in(workspace: Workspace, command: Sequence[str]) -> list[str]:
    python = python_of(workspace.path)
    return [part.replace("{python}", python) for part in command]


# ------------------------------------------------------------------------------------------- hashes


def harness_hash(workspace: Workspace) -> str:
    """Return the hash of the protected files; empty where nothing is protected, which proves nothing."""
    return _hash(protected_hashes(workspace, workspace.path))


def dataset_hash(workspace: Workspace) -> str:
    """Return the hash of the declared data; empty where none is declared, which proves nothing.

    An entry of at most 16 MiB is known by its bytes, a larger one by sizes and times.
    """
    found = dict[str, str]()
    for name in workspace.dataset:
        found.update(data_ids(workspace, name))
    return _hash(found)


def protected_hashes(workspace: Workspace, root: Path) -> dict[str, str]:
    """Return the sha256 of each protected file under a root, a workspace or a run's copy; empty where unreadable."""
    found = {}
    for name in patterns.expand(str(root), workspace.protected, editable=workspace.editable):
        try:
            found[name] = contents.bytes_hash(str(root / name))
        except OSError:
            found[name] = ""
    return found


def changed_protected(workspace: Workspace, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the protected files that differ: changed, gone, or new in a folder that is protected.

    A new file that a pattern of no folder matches (`**/*.json`) is what a program may write, and does not count.
    """
    folders = [patterns.fixed_folder(str(workspace.path), name) for name in workspace.protected]
    inside = tuple(f"{folder}/" for folder in folders if folder)
    new = {name for name in after.keys() - before.keys() if name.startswith(inside)}
    return sorted(new | {name for name, known in before.items() if after.get(name) != known})


def data_ids(workspace: Workspace, name: str) -> dict[str, str]:
    """Return what each file of an entry of `dataset` is known by; a large folder is known as one."""
    root = workspace.path
    few, size = dict[str, os.stat_result](), 0
    for file in patterns.expand_one(str(root), name):
        try:
            few[file] = os.stat(root / file)  # noqa: PTH116 - one kind of path for all that is looked at here
        except OSError:
            continue
        size += few[file].st_size
        if (workspace.path / name).is_dir() and (size > contents.SMALL_BYTES or len(few) > _FEW_FILES):
            return {posixpath.normpath(name): contents.listing(str(root / name)).id}
        if len(few) >= contents.MAX_LISTED:
            break
    few.pop(workspace.editable, None)
    try:
        if size <= contents.SMALL_BYTES:
            return {file: contents.bytes_hash(str(root / file)) for file in few}
    except OSError:  # unreadable, so it is known as large ones are
        pass
    return {file: contents.file_id(seen) for file, seen in few.items()}


def declared_stamps(workspace: Workspace) -> tuple[str, ...]:
    """Return what changes when a protected file or the declared data does, without reading a file."""
    data = [_declared_stamp(workspace.path, name, most=_FEW_FILES) for name in workspace.dataset]
    return (*(_declared_stamp(workspace.path, name) for name in workspace.protected), *data)


def _declared_stamp(root: Path, name: str, *, most: int = contents.MAX_LISTED) -> str:
    path = str(root / name)
    try:
        seen = os.stat(path)  # noqa: PTH116 - for every search, and half as dear as Path.stat
        if not stat.S_ISDIR(seen.st_mode):
            return contents.file_stamp(seen)
        listed = contents.listing(path, most=most)
        # What is too large to be looked through for every search is looked at again each minute.
        return f"{listed.stamp} {time.monotonic() // _LOOK_AGAIN_S}" if listed.partial else listed.stamp
    except OSError:
        if not patterns.is_pattern(name):
            return ""
    stamps = list[str]()
    for file in patterns.expand(str(root), [name]):
        try:
            stamps.append(f"{file} {contents.file_stamp(os.stat(root / file))}")  # noqa: PTH116
        except OSError:
            continue
    return "\n".join(stamps)


def _hash(hashes: Mapping[str, str]) -> str:
    return contents.hash_of(hashes) if hashes else ""


# ---------------------------------------------------------------------------------- the user's files


def write_program(workspace: Workspace, text: str, *, expected: str) -> bool:
    """Replace the editable file in one step, if it still holds the expected text; return whether it did.

    Whoever calls holds the workspace's lock: between look and step another process could write.
    """
    path = workspace.editable_path
    if read_plain(path) != expected.encode("utf-8"):
        return False
    for stray in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # of a process that was killed
        stray.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())  # else a power cut after the rename could leave an empty file
        shutil.copymode(path, temporary)
        temporary.replace(path.resolve())
    finally:
        temporary.unlink(missing_ok=True)
    return True


def commit_program(workspace: Workspace, message: str) -> str | None:
    """Commit the editable file alone; return the commit's hash, or None where git refuses."""
    if git(workspace.path, "commit", "--quiet", "--no-verify", "--message", message, "--", workspace.editable) is None:
        return None
    return head_commit(workspace.path)


def head_commit(path: Path) -> str | None:
    """Return the seven characters of the checked-out commit, or None outside of a git checkout."""
    head = git(path, "rev-parse", "--short=7", "HEAD")
    return head.strip()[:7] if head else None


def program_at(workspace: Workspace, commit: str) -> str | None:
    """Return the editable file's text at a commit, or None where git does not hold it."""
    if re.fullmatch(r"HEAD|[0-9a-fA-F]{4,64}", commit) is None:
        return None
    return git(workspace.path, "show", "--no-ext-diff", "--no-textconv", f"{commit}:./{workspace.editable}")


def is_cloned(path: Path) -> bool:
    """Return whether a folder's loopgraph.toml came with a repository of somebody else: git knows it, and a remote."""
    tracked = git(path, "ls-files", "--error-unmatch", "--", CONFIG_NAME)
    return tracked is not None and bool((git(path, "remote") or "").strip())


def is_unpacked(path: Path) -> bool:
    """Return whether a folder's loopgraph.toml looks unpacked or copied: its time of change is not when it came here.

    Archives bring the times of their files along. Who writes a file leaves both times alike.
    """
    try:
        seen = (path / CONFIG_NAME).stat()
    except OSError:
        return False
    return abs(seen.st_ctime - seen.st_mtime) > _WRITTEN_S


def commit_of(workspace: Workspace, program: str) -> str | None:
    """Return the seven characters of the checked-out commit where it holds just this program and all else as it is."""
    if program_at(workspace, head_commit(workspace.path) or "") != program:
        return None
    changed = git(workspace.path, "status", "--porcelain", "--untracked-files=no", "--", ".")
    others = [line for line in (changed or "").splitlines() if line[3:] != workspace.editable]
    return None if changed is None or others else head_commit(workspace.path)


def files_unlike(workspace: Workspace, commit: str, names: Collection[str]) -> list[str]:
    """Return the files beside the editable one that are not as a commit holds them.

    Args:
        workspace: The workspace.
        commit: A commit that git holds.
        names: What a run sees; of files that git does not know, only these count.
    """
    known = git(workspace.path, "diff", "--name-only", "--relative", "-z", commit, "--", ".")
    others = git(workspace.path, "ls-files", "--others", "--exclude-standard", "-z", "--", ".")
    if known is None or others is None:
        return [str(workspace.path)]
    found = {*known.split("\0"), *(name for name in others.split("\0") if name in names)}
    return sorted(found - {"", workspace.editable, CONFIG_NAME, RESULTS_NAME})


def results_size(workspace: Workspace) -> int:
    """Return how long results.tsv is in bytes; 0 if there is none."""
    try:
        return (workspace.path / RESULTS_NAME).stat().st_size
    except FileNotFoundError:
        return 0


def append_result(workspace: Workspace, row: dict[str, str], *, begun: int) -> None:
    """Append one line to results.tsv in the columns its header names; start it with upstream's header.

    Called again after a kill, it completes the line that was cut, or leaves the one that is there.

    Args:
        workspace: The folder.
        row: Cells by column.
        begun: How long the file was when this line was first begun.

    Raises:
        OSError: The file cannot be written, or is none; the store still holds the outcome.
    """
    path = workspace.path / RESULTS_NAME
    # Not blocking: a pipe would wait for its reader, and a device for ever.
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    with os.fdopen(descriptor, "a+b", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file; move it away")
        size = file.seek(0, os.SEEK_END)
        if not size:
            with suppress(OSError):  # readable by everybody who may read the program
                os.fchmod(descriptor, workspace.editable_path.stat().st_mode & 0o666)
        begun = min(begun, size)
        header = _read_header(file, begun) or _header(workspace)
        row = {plain_line(name, limit=_MAX_CELL): value for name, value in row.items()}
        cells = [plain_line(row.get(name, ""), limit=_MAX_CELL) for name in header]
        line = ("\t".join(cells) + "\n").encode("utf-8", "replace")
        whole = _lead(file, begun, header) + line
        file.seek(begun)
        since = file.read(_MAX_SINCE) or b""
        if line in since.splitlines(keepends=True):
            return
        missing = whole[len(since) :] if whole.startswith(since) else _lead(file, size, header) + line
        while missing:  # a disk that fills up takes a part, and then fails
            missing = missing[file.write(missing) or 0 :]


def _read_header(file: IO[bytes], end: int) -> tuple[str, ...]:
    file.seek(0)
    first = file.read(min(end, _MAX_HEADER)) or b""
    return tuple(first.split(b"\n", 1)[0].decode("utf-8", "replace").strip().split("\t")) if first.strip() else ()


def _lead(file: IO[bytes], end: int, header: Sequence[str]) -> bytes:
    """Return what comes before a line that is appended at a place: the header, the end of a line, or nothing."""
    if end == 0:
        return ("\t".join(header) + "\n").encode()
    file.seek(end - 1)
    return b"" if file.read(1) == b"\n" else b"\n"


def _header(workspace: Workspace) -> tuple[str, ...]:
    metric = plain_line(workspace.metric, limit=_MAX_CELL)
    return tuple(metric if name == "val_bpb" else name for name in RESULTS_HEADER)


def git(path: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where it fails or is missing."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments and file names, no shell
            [*_GIT, *arguments],
            cwd=path,
            env={**environment.for_git(os.environ), **({} if arguments[0] == "commit" else _ONLY_READS)},
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
            umask=~path.stat().st_mode & 0o077,  # what git writes is as open as the folder, not as the store
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "surrogateescape")


def reads_variable(workspace: Workspace, name: str) -> bool:
    """Return whether the editable or a protected file mentions an environment variable."""
    for file in (workspace.editable, *patterns.expand(str(workspace.path), workspace.protected)):
        try:
            with os.fdopen(contents.open_file(str(workspace.path / file)), "rb") as opened:
                if name.encode() in opened.read(_MAX_READ_BYTES):
                    return True
        except OSError:
            continue
    return False
