"""The user's own files: which of a folder are worth reading, as which kind, and which are left with the reason."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from loopgraph_mcp.errors import SourceError
from loopgraph_mcp.ingest import archives
from loopgraph_mcp.ingest.parsers.model import Format
from loopgraph_mcp.runner.plain_files import NotPlainError, read_plain

KINDS: dict[str, Format] = {
    ".pdf": "pdf",
    ".tex": "latex",
    ".ltx": "latex",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".rst": "markdown",
    ".txt": "markdown",
    ".py": "code",
}
_TEX_PARTS = frozenset({".tex", ".ltx", ".bib", ".bbl", ".sty", ".cls", ".def"})
_JUNK = frozenset(
    {"__pycache__", "build", "checkpoints", "coverage", "dist", "env", "htmlcov", "lib64", "mlruns", "node_modules"}
    | {"site-packages", "target", "third_party", "vendor", "venv", "wandb"}
)
_MOST_BYTES = {"pdf": 100 * 2**20, "latex": 20 * 2**20, "html": 20 * 2**20, "markdown": 2 * 2**20, "code": 2**20}
_MOST_FILES = 1_000
_MOST_LOOKED_AT = 100_000
_MAIN = b"\\documentclass"


@dataclass(frozen=True, slots=True)
class Piece:
    """One document among the user's files.

    Args:
        kind: How it is parsed.
        place: Its path in `root`, the folder that was asked for or that holds the file; `.` for that folder itself.
        files: Where it lies; for LaTeX all the files of a project.
    """

    kind: Format
    place: str
    files: tuple[Path, ...]
    root: Path

    def load(self) -> bytes | Mapping[str, bytes]:
        """Read it; LaTeX as its files by their path.

        Raises:
            SourceError: It cannot be read or is too large.
        """
        if self.kind != "latex":
            return read_bytes(self.files[0], _MOST_BYTES[self.kind])
        if len(self.files) == 1 and archives.is_archive(data := read_bytes(self.files[0], _MOST_BYTES["pdf"])):
            return archives.unpack(data, name=self.place, wanted=lambda path: PurePath(path).suffix in _TEX_PARTS).files
        return {file.relative_to(self.root).as_posix(): read_bytes(file, _MOST_BYTES["latex"]) for file in self.files}


@dataclass(frozen=True, slots=True)
class Found:
    """The documents of a file or folder, and what was left, with the reason."""

    pieces: tuple[Piece, ...]
    skipped: tuple[str, ...] = ()


def find(path: Path) -> Found:
    """Return the documents that a file or folder holds, in the order of their paths.

    Raises:
        SourceError: There is none that can be read.
    """
    if path.is_dir():
        found = _find_in(path)
    elif path.name.endswith((".tar.gz", ".tgz", ".tar")):
        found = Found((Piece("latex", path.name, (path,), path.parent),))
    elif (kind := KINDS.get(path.suffix.lower())) is not None:
        found = Found((Piece(kind, path.name, (path,), path.parent),))
    else:
        raise SourceError(f"{path}: give a file that ends in {', '.join(KINDS)} or .tar.gz, or a folder of them")
    if not found.pieces:
        left = f" ({len(found.skipped)} left out: {'; '.join(found.skipped[:3])})" if found.skipped else ""
        raise SourceError(f"{path}: holds no {', '.join(KINDS)} that can be read{left}")
    return found


def is_worth_reading(path: PurePosixPath, *, of_all: bool) -> bool:
    """Return whether a repository's file tells of what it does: documentation and Python; of all, no tests either."""
    parts, name = [part.casefold() for part in path.parts[:-1]], path.name.casefold()
    if any(part.startswith(".") or part in _JUNK for part in parts) or name.startswith("."):
        return False
    if of_all and any(part in {"test", "tests", "testing"} for part in parts):
        return False
    if name.startswith("readme"):
        return path.suffix.lower() in {"", *KINDS}
    if path.suffix == ".py":
        return True
    return KINDS.get(path.suffix.lower()) == "markdown" and (not of_all or not parts or parts[0] in {"doc", "docs"})


def read_bytes(path: Path, most: int) -> bytes:
    """Return a plain file's bytes.

    Raises:
        SourceError: It is none, is too large, or cannot be read.
    """
    try:
        return read_plain(path, most)
    except NotPlainError as error:
        raise SourceError(f"{path}: {error}") from error
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def _find_in(folder: Path) -> Found:
    pieces, skipped, projects = list[Piece](), list[str](), dict[Path, None]()
    for file in _walk(folder, skipped):
        place = file.relative_to(folder).as_posix()
        kind = KINDS.get(file.suffix.lower())
        if len(pieces) >= _MOST_FILES:
            skipped.append(f"{place} and what follows: more than {_MOST_FILES:,} documents; name a smaller folder")
            break
        if kind == "latex":
            root = next((each for each in projects if file.is_relative_to(each)), None)
            if root is None and _is_main(file):
                root = file.parent
            projects[root or file] = None
        elif kind is not None and file.stat().st_size > _MOST_BYTES[kind]:
            skipped.append(f"{place}: over {_MOST_BYTES[kind] >> 20} MiB")
        elif kind is not None and file.stat().st_size:
            pieces.append(Piece(kind, place, (file,), folder))
    for root in projects:
        if root.is_dir():
            files = tuple(each for each in _walk(root, []) if each.suffix.lower() in _TEX_PARTS)
        else:  # a file that stands alone, unless a project around it was found after it
            files = () if any(root.is_relative_to(other) for other in projects if other != root) else (root,)
        if files:
            pieces.append(Piece("latex", root.relative_to(folder).as_posix(), files, folder))
    return Found(tuple(sorted(pieces, key=lambda piece: piece.place)), tuple(skipped))


def _walk(folder: Path, skipped: list[str]) -> Iterator[Path]:
    """Yield a folder's plain files in order, without what is hidden, linked or made by tools."""
    looked_at = 0
    for parent, folders, names in os.walk(folder):
        kept = sorted(name for name in folders if not name.startswith(".") and name not in _JUNK)
        skipped += [f"{name}/: hidden, or made by tools" for name in sorted({*folders} - {*kept})]
        links = [name for name in kept if (Path(parent) / name).is_symlink()]
        skipped += [f"{name}/: a link" for name in links]
        folders[:] = [name for name in kept if name not in links]
        for name in sorted(names):
            looked_at += 1
            if looked_at > _MOST_LOOKED_AT:
                skipped.append(f"{parent}: more than {_MOST_LOOKED_AT:,} files; name a smaller folder")
                return
            file = Path(parent) / name
            if file.is_symlink():
                skipped.append(f"{name}: a link")
            elif not name.startswith(".") and file.is_file():
                yield file


def _is_main(file: Path) -> bool:
    try:
        return _MAIN in read_bytes(file, _MOST_BYTES["latex"])[:20_000]
    except SourceError:
        return False
