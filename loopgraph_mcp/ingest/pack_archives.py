"""Packs from elsewhere: unpacked within limits, checked, pinned by their content's hash, and installed by version."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loopgraph_mcp.errors import PackError
from loopgraph_mcp.ingest import archives
from loopgraph_mcp.ingest.pack_texts import MANIFEST
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Pack

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,40}")
_LIMITS = archives.Limits(members=5_000, total_bytes=50 * 2**20, file_bytes=2**20)


@dataclass(frozen=True, slots=True)
class Checked:
    """A pack that follows the format, with the folder that holds its files for now."""

    pack: Pack
    folder: Path


def looks_like_one(path: Path) -> bool:
    """Return whether a folder is a pack."""
    return (path / MANIFEST).is_file()


@contextmanager
def opened(archive: bytes, *, name: str) -> Iterator[Checked]:
    """Unpack and check an archive's pack, in a folder that is gone afterwards.

    Raises:
        PackError: It holds none, or one that does not follow the format.
        SourceError: The archive is damaged, over a limit, or holds a path that leads out of it.
    """
    unpacked = archives.unpack(archive, name=name, wanted=lambda path: path.endswith(".toml"), limits=_LIMITS)
    files = _files_beside_manifest(unpacked.files, name)
    if bad := [each for each in unpacked.skipped if each.partition(": ")[0].endswith(".toml")]:
        raise PackError(f"{name}: {bad[0]}; a pack holds plain files of at most 1 MiB")
    with tempfile.TemporaryDirectory() as folder:
        for path, data in files.items():
            (Path(folder) / path).write_bytes(data)
        try:
            yield Checked(read_pack(Path(folder)), Path(folder))
        except PackError as error:
            raise PackError(str(error).replace(f"{folder}/", f"{name}: ").replace(folder, name)) from error


def check_pin(pack: Pack, sha256: str | None) -> None:
    """Refuse a pack whose content is not what was pinned.

    Raises:
        PackError: Its hash is another one.
    """
    if sha256 is not None and sha256.lower().removeprefix("sha256:") != pack.content_hash:
        raise PackError(
            f"pack {pack.name} {pack.version}: its content's sha256 is {pack.content_hash}, not {sha256}; "
            "ask its author which is right, and install nothing until then"
        )


def install(checked: Checked, packs_dir: Path) -> Path:
    """Copy a pack's files to the folder of its version, whole or not at all; return that folder.

    Raises:
        PackError: Its version is no name for a folder, or the disk refuses.
    """
    pack = checked.pack
    if _VERSION.fullmatch(pack.version) is None:
        raise PackError(f"pack {pack.name}: version {pack.version!r}; use one such as 0.1.0")
    target = packs_dir / pack.name / pack.version
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            if read_pack(target).content_hash == pack.content_hash:
                return target
            shutil.rmtree(target)  # an installation that was changed or cut short
        with tempfile.TemporaryDirectory(dir=target.parent) as made:
            for file in sorted(checked.folder.glob("*.toml")):
                (Path(made) / file.name).write_bytes(file.read_bytes())
            Path(made).chmod(0o755)
            shutil.copytree(made, target)
    except OSError as error:
        raise PackError(f"{target}: {error.strerror}; free some space, or set LOOPGRAPH_HOME") from error
    return target


def _files_beside_manifest(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """Return the TOML files of the one folder that holds pack.toml, by their names."""
    manifests = [PurePosixPath(path) for path in files if PurePosixPath(path).name == MANIFEST]
    if len(manifests) != 1:
        found = "no" if not manifests else f"{len(manifests)} times"
        raise PackError(f"{name}: holds {MANIFEST} {found}; an archive holds one pack")
    folder = manifests[0].parent
    return {PurePosixPath(path).name: data for path, data in files.items() if PurePosixPath(path).parent == folder}
