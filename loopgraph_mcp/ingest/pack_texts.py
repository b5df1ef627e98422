"""Reads a pack's files and hashes them, without a look at what they say."""

import hashlib
from pathlib import Path

from loopgraph_mcp.errors import PackError
from loopgraph_mcp.runner.plain_files import read_plain

MANIFEST = "pack.toml"
_MAX_FILE_BYTES = 2**20
_MAX_FILES = 2_000


def content_hash(folder: Path) -> str:
    """Return what a pack that is read from a folder is known by, without checking it.

    Raises:
        PackError: A file is missing, too large, a link or not UTF-8.
    """
    return read_files(folder)[1]


def read_files(folder: Path) -> tuple[dict[Path, str], str]:
    """Return the text of each of a pack's files, the manifest first, and the hash of them all.

    Raises:
        PackError: A file is missing, too large, a link or not UTF-8.
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
        data = read_file(file)
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(data).digest())
        try:
            texts[file] = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PackError(f"{file}: not UTF-8 ({error})") from error
    return texts, digest.hexdigest()


def read_file(file: Path) -> bytes:
    """Return a plain file's content.

    Raises:
        PackError: It is a link, no plain file, too large, or cannot be read.
    """
    if file.is_symlink():
        raise PackError(f"{file}: a link; a pack holds plain files")
    if not file.is_file():  # to open a pipe would wait for its other end
        raise PackError(f"{file}: not a plain file")
    try:
        return read_plain(file, _MAX_FILE_BYTES)
    except OSError as error:
        raise PackError(f"{file}: {error}") from error
