"""Unpacks archives in memory: only the files that are wanted, within limits, and nothing outside of the archive."""

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Protocol, cast

from loopgraph_mcp.errors import SourceError

_GZIP, _ZIP = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_END = 22  # bytes of the record that ends a zip, before its comment
_LINK_MODE, _MODE_MASK = 0o120000, 0o170000
# What the standard library raises at archives that are cut, forged or of a later format.
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may hold: members, and bytes once unpacked, all together and of one file."""

    members: int = 20_000
    total_bytes: int = 300 * 2**20
    file_bytes: int = 20 * 2**20


@dataclass(slots=True)
class Unpacked:
    """Files by their path in the archive, and what was left there, each with the reason."""

    files: dict[str, bytes] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


DEFAULT_LIMITS = Limits()


def is_archive(data: bytes) -> bool:
    """Return whether data is a zip, a tar or anything under gzip."""
    return data.startswith((_GZIP, *_ZIP)) or data[257:262] == b"ustar"


def unpack(
    data: bytes, *, name: str, wanted: Callable[[str], bool] = lambda _: True, limits: Limits = DEFAULT_LIMITS
) -> Unpacked:
    """Return an archive's wanted files; a single file under gzip is named as the archive.

    Links, devices and files over the limit are left and told. Paths are relative, with `/`.

    Raises:
        SourceError: It is damaged, holds a path that leads out of it, or is over a limit.
    """
    try:
        if data.startswith(_ZIP):
            return _unzip(data, name, wanted, limits)
        if not data.startswith(_GZIP):
            return _untar(io.BytesIO(data), name, wanted, limits)
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as opened:
            head = opened.read(512)
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as opened:
            if head[257:262] == b"ustar":
                return _untar(opened, name, wanted, limits)
            content = opened.read(limits.file_bytes + 1)
    except _DAMAGED as error:
        raise SourceError(f"{name}: the archive is damaged ({str(error)[:200]}); fetch or pack it again") from error
    if len(content) > limits.file_bytes:
        raise SourceError(f"{name}: unpacks to more than {limits.file_bytes >> 20} MiB; refused")
    return Unpacked({name: content})


class _Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes: ...


class _Bounded:
    """A stream that refuses to yield more than so many bytes."""

    def __init__(self, inner: _Readable, name: str, most: int) -> None:
        self._inner, self._name, self._left = inner, name, most

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes."""
        data = self._inner.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise SourceError(f"{self._name}: unpacks to more than is allowed; refused as a bomb")
        return data


def _untar(opened: _Readable, name: str, wanted: Callable[[str], bool], limits: Limits) -> Unpacked:
    found = Unpacked()
    bounded = cast("IO[bytes]", _Bounded(opened, name, limits.total_bytes))  # a stream of tar is only read from
    with tarfile.open(fileobj=bounded, mode="r|") as archive:
        for count, member in enumerate(archive, start=1):
            if count > limits.members:
                raise SourceError(f"{name}: more than {limits.members:,} files; refused")
            if member.isdir():
                continue
            path = _path(member.name, name)
            if not member.isreg() or member.issparse():
                found.skipped.append(f"{path}: {'a link' if member.issym() or member.islnk() else 'no plain file'}")
            elif wanted(path) and (file := archive.extractfile(member)) is not None:
                _add(found, path, file, limits)
    return found


def _unzip(data: bytes, name: str, wanted: Callable[[str], bool], limits: Limits) -> Unpacked:
    found, left = Unpacked(), limits.total_bytes
    if _zip_members(data) > limits.members:
        raise SourceError(f"{name}: more than {limits.members:,} files; refused")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            path = _path(member.filename, name)
            if member.is_dir():
                continue
            if (member.external_attr >> 16) & _MODE_MASK == _LINK_MODE:
                found.skipped.append(f"{path}: a link")
            elif member.flag_bits & 0x1:
                found.skipped.append(f"{path}: encrypted")
            elif wanted(path):
                try:
                    with archive.open(member) as file:
                        _add(found, path, file, limits)
                except (NotImplementedError, RuntimeError) as error:  # a compression that Python does not know
                    found.skipped.append(f"{path}: {error}")
                left -= len(found.files.get(path, b""))
                if left < 0:
                    raise SourceError(f"{name}: unpacks to more than {limits.total_bytes >> 20} MiB; refused as a bomb")
    return found


def _zip_members(data: bytes) -> int:
    """Return how many members a zip says it has, before anything is made of them: a million would take gigabytes."""
    tail = data[-_ZIP_END - 0xFFFF :]
    start = tail.rfind(b"PK\x05\x06")
    if start < 0 or len(tail) - start < _ZIP_END:
        raise zipfile.BadZipFile("no end of the directory")
    if tail[max(0, start - 20) :].startswith(b"PK\x06\x07"):
        raise zipfile.BadZipFile("a zip64, which is for what is too large here")
    members, size = struct.unpack_from("<HL", tail, start + 10)
    return max(int(members), int(size) // 1024)  # who understates their number has a directory too long for it


def _add(found: Unpacked, path: str, file: IO[bytes], limits: Limits) -> None:
    content = file.read(limits.file_bytes + 1)
    if len(content) > limits.file_bytes:
        found.skipped.append(f"{path}: over {limits.file_bytes >> 20} MiB")
    else:
        found.files[path] = content


def _path(told: str, name: str) -> str:
    """Return a member's path.

    Raises:
        SourceError: It leads out of the archive.
    """
    path = PurePosixPath(told.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in told:
        raise SourceError(f"{name}: holds {told[:100]!a}, which leads out of it; refused")
    return str(path)
