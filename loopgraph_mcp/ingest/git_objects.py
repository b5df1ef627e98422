"""Reads program texts out of other people's git repositories, without running anything that they hold or configure."""

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loopgraph_mcp.runner import environment

_TIMEOUT_S = 60
_COMMITS_A_CALL = 200
_MAX_PROGRAM_BYTES = 2**20
_MAX_BYTES = 256 * 2**20
# Blobs are read as they are: no filter, hook, pager or external diff, and nothing is fetched for a partial clone (what
# its remote names would be run; git before 2.44 heeds only that no protocol is allowed).
_COMMAND = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-pager", "--no-replace-objects")
_ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Programs:
    """What a repository holds of some commits.

    Args:
        found: The editable file's text by commit.
        repository: Whether there is one at all.
        note: Why a look-up was cut short, or nothing.
    """

    found: Mapping[str, str] = field(default_factory=dict)
    repository: bool = False
    note: str = ""


def is_repository(folder: Path) -> bool:
    """Return whether a folder lies in a git repository."""
    return _git(folder, ("rev-parse", "--git-dir"), "") is not None


def read_programs(
    folder: Path, commits: Iterable[str], editable: str, *, progress: Callable[[str], None] = lambda _: None
) -> Programs:
    """Return the editable file at each commit: of the folder itself, or else of the root of its repository."""
    wanted = sorted({commit for commit in commits if re.fullmatch("[0-9a-f]{5,40}", commit)})
    if not wanted or "\n" in editable:
        return Programs()
    if not is_repository(folder):
        return Programs()
    found: dict[str, str] = {}
    size = 0
    for start in range(0, len(wanted), _COMMITS_A_CALL):
        progress(f"reading {editable} at commit {start + 1} of {len(wanted)}")
        part = wanted[start : start + _COMMITS_A_CALL]
        texts = _texts(folder, part, editable)
        if texts is None:
            return Programs(found, repository=True, note=f"git failed after {len(found)} commits; the rest has no diff")
        found.update(texts)
        size += sum(map(len, texts.values()))
        if size > _MAX_BYTES:
            return Programs(found, repository=True, note=f"only the first {len(found)} commits were read for diffs")
    return Programs(found, repository=True)


def _texts(folder: Path, commits: Sequence[str], editable: str) -> dict[str, str] | None:
    """Return the texts of some commits, or None where git fails."""
    names = [f"{commit}:{path}" for commit in commits for path in (f"./{editable}", editable)]
    listed = _git(folder, ("cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize)"), "\n".join(names))
    if listed is None:
        return None
    blobs: dict[str, str] = {}
    for name, line in zip(names, listed.decode("utf-8", "replace").splitlines(), strict=False):
        match line.split():
            case [oid, "blob", size] if int(size) <= _MAX_PROGRAM_BYTES:
                blobs.setdefault(name.split(":", 1)[0], oid)
    held = _git(folder, ("cat-file", "--batch"), "\n".join(sorted(set(blobs.values())))) if blobs else b""
    if held is None:
        return None
    texts = dict(_contents(held))
    return {commit: texts[oid] for commit, oid in blobs.items() if oid in texts}


def _contents(held: bytes) -> Iterator[tuple[str, str]]:
    """Yield object id and text of each blob in what `cat-file --batch` prints, where it is text."""
    at = 0
    while (end := held.find(b"\n", at)) >= 0:
        match held[at:end].split():
            case [oid, b"blob", size]:
                content = held[end + 1 : end + 1 + int(size)]
                at = end + 2 + int(size)
            case _:
                at = end + 1
                continue
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if "\x00" not in text:
            yield oid.decode(), text


def _git(folder: Path, arguments: Sequence[str], lines: str) -> bytes | None:
    """Return what git prints when it is given some lines, or None where it fails, is missing or takes too long."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            [*_COMMAND, *arguments],
            cwd=folder,
            env={**environment.for_git(os.environ), **_ENVIRONMENT},
            input=(lines + "\n").encode() if lines else b"",
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout
