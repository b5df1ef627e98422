"""What was fetched before, on disk: bodies by their hash, and of each URL its last answer."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from loopgraph_mcp.errors import SourceError

MAX_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer that was kept.

    Args:
        url: Where it came from in the end.
        sha256: Of the body as it was sent.
        encoding: The body's Content-Encoding.
    """

    url: str
    sha256: str
    etag: str = ""
    last_modified: str = ""
    content_type: str = ""
    encoding: str = ""


class Part:
    """A body that is being written, so that one cut short goes on where it ended.

    `etag` is that of the bytes which are there already; without one they cannot be gone on with.
    """

    def __init__(self, file: BinaryIO, note: Path) -> None:
        self._file, self._note = file, note
        self.etag = ""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self.etag = note.read_text(encoding="utf-8")
        self.size = self._file.seek(0, os.SEEK_END) if self.etag else 0
        self._file.truncate(self.size)

    def restart(self, etag: str) -> None:
        """Begin anew with a body of this ETag; a weak one, which does not vouch for bytes, counts as none."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self.etag = 0, "" if etag.startswith("W/") else etag
        self._note.write_text(self.etag, encoding="utf-8")

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self._file.write(data)
        self.size += len(data)

    def read(self) -> bytes:
        """Return all that was written."""
        self._file.seek(0)
        return self._file.read()


class Cache:
    """A folder of bodies and answers, safe with other processes: files are put in place whole.

    Only this user may read it, since a token may have opened what is in it.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def find(self, key: str) -> tuple[Entry, bytes] | None:
        """Return an answer with its body, unless either is missing or damaged."""
        try:
            entry = Entry(**json.loads(self._entry(key).read_text(encoding="utf-8")))
            body = self._body(entry.sha256).read_bytes()
        except (OSError, ValueError, TypeError):
            return None
        return (entry, body) if hashlib.sha256(body).hexdigest() == entry.sha256 else None

    def keep(self, key: str, url: str, body: bytes, headers: Mapping[str, str]) -> Entry:
        """Keep an answer, and make room for it."""
        entry = Entry(
            url,
            hashlib.sha256(body).hexdigest(),
            headers.get("etag", ""),
            headers.get("last-modified", ""),
            headers.get("content-type", ""),
            headers.get("content-encoding", ""),
        )
        try:
            _put(self._body(entry.sha256), body)
            _put(self._entry(key), json.dumps(asdict(entry)).encode())
            self._make_room()
        except OSError as error:
            raise SourceError(f"{self._folder}: {error.strerror}; free some space, or set LOOPGRAPH_HOME") from error
        return entry

    @contextmanager
    def part(self, key: str) -> Iterator[Part]:
        """Open the unfinished body of a key; where another process writes it, one of our own that is thrown away."""
        stem = self._folder / "parts" / _name(key)
        try:
            _private(stem.parent)
            with stem.with_suffix(".part").open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield Part(file, stem.with_suffix(".etag"))
        except BlockingIOError:
            with tempfile.TemporaryDirectory(dir=stem.parent) as folder, (Path(folder) / "part").open("w+b") as file:
                yield Part(file, Path(folder) / "etag")

    def forget_part(self, key: str) -> None:
        """Remove what an unfinished body left."""
        for suffix in (".part", ".etag"):
            (self._folder / "parts" / _name(key)).with_suffix(suffix).unlink(missing_ok=True)

    def _entry(self, key: str) -> Path:
        return self._folder / "answers" / f"{_name(key)}.json"

    def _body(self, sha256: str) -> Path:
        return self._folder / "bodies" / sha256

    def _make_room(self) -> None:
        """Remove the bodies written longest ago while there are too many bytes."""
        bodies = sorted(
            (found.stat().st_mtime, found.stat().st_size, found.path) for found in os.scandir(self._folder / "bodies")
        )
        excess = sum(size for _, size, _ in bodies) - self._max_bytes
        for _, size, path in bodies[:-1]:
            if excess <= 0:
                break
            Path(path).unlink(missing_ok=True)
            excess -= size


def _name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _private(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # each needs its own: the mode is not for parents
    folder.mkdir(exist_ok=True, mode=0o700)


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    _private(path.parent)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
