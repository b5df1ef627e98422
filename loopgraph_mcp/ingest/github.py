"""GitHub: what names a repository, folder, file or pull request, and their text at one commit."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Annotated, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, Field, ValidationError

from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import NotFoundError, SourceError
from loopgraph_mcp.ingest import archives, local
from loopgraph_mcp.ingest.fetch import Fetched, StatusError, Web

_T = TypeVar("_T", bound=BaseModel)
_NAME = r"(?P<owner>[A-Za-z0-9](?:[A-Za-z0-9-]{0,38}))/(?P<name>[\w.-]{1,100}?)"
_SHORT = re.compile(rf"github:{_NAME}(?:#(?P<pull>\d+)|(?:@(?P<ref>[^:\s]+))?(?::(?P<path>\S.*))?)?")
_SSH = re.compile(rf"git@github\.com:{_NAME}(?:\.git)?")
_PATH = re.compile(rf"/{_NAME}(?:\.git)?(?:/(?P<kind>tree|blob|pull|commit|raw)/(?P<rest>.+?))?/?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REF_PARTS = 4  # a branch may be named a/b/c/d
_BAD_REF = re.compile(r"(?:^|/)\.\.?(?:/|$)|[\x00-\x20\x7f?*\[\\^~:]")


@dataclass(frozen=True, slots=True)
class Ref:
    """What a URL names.

    Args:
        where: Behind /tree/ or /blob/: a branch, tag or commit and a path, which only GitHub can tell apart.
        path: Where it is told apart already.
    """

    owner: str
    name: str
    where: str = ""
    path: str = ""
    pull: int | None = None

    @property
    def repository(self) -> str:
        """The repository as owner/name."""
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files, or a pull request, at one commit.

    Args:
        commit: In full.
        path: The folder or file asked for; empty for all.
        files: Documentation and code by their path.
        licence: Its SPDX name; empty where GitHub knows none.
    """

    repository: str
    commit: str
    path: str
    title: str
    licence: str
    url: str
    files: Mapping[str, bytes]
    skipped: tuple[str, ...] = ()


class _Licence(BaseModel):
    spdx_id: str | None = None


class _Repository(BaseModel):
    full_name: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$", max_length=150)]
    description: str | None = None
    default_branch: str
    license: _Licence | None = None


class _Head(BaseModel):
    sha: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class _Pull(BaseModel):
    number: int
    title: str
    body: str | None = None
    state: str = ""
    merged: bool = False
    head: _Head
    html_url: str = ""


def read_ref(text: str) -> Ref | None:
    """Return what a URL of github.com, or `github:owner/name@ref:path`, names, or None."""
    text = text.strip()
    if re.search(r"(?:^|[/:])\.\.?(?:/|$)", text):  # an API's path is no place for it
        return None
    match = _SHORT.fullmatch(text) or _SSH.fullmatch(text)
    if match is not None:
        told = match.groupdict()
        pull = told.get("pull")
        return Ref(
            told["owner"],
            told["name"],
            told.get("ref") or "",
            (told.get("path") or "").strip("/"),
            None if pull is None else int(pull),
        )
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:
        return None
    host, path = (parts.hostname or "").removeprefix("www."), unquote(parts.path)
    if host == "raw.githubusercontent.com":
        path = re.sub(r"^/([^/]+/[^/]+)/", r"/\1/raw/", path).replace("/raw/refs/heads/", "/raw/")
    elif host != "github.com":
        return None
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    ref = Ref(match["owner"], match["name"])
    kind, rest = match["kind"], match["rest"] or ""
    if kind == "pull":
        number = rest.partition("/")[0]
        return replace(ref, pull=int(number)) if number.isdigit() else None
    return replace(ref, where=rest)


@dataclass(frozen=True, slots=True)
class GitHub:
    """GitHub's API; its token, if there is one, goes to that API alone."""

    web: Web
    base: str
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, web: Web, settings: Settings) -> "GitHub":
        """Return the API as the settings name it."""
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        if settings.github_token is not None:
            headers["Authorization"] = f"Bearer {settings.github_token}"
        return cls(web, settings.github_url, headers)

    async def read(self, ref: Ref) -> Snapshot:
        """Return what is asked for, its commit resolved: once for the repository, its commit and its archive.

        Raises:
            NotFoundError: There is no such repository, commit, path or pull request.
            SourceError: It cannot be fetched or read.
        """
        repository = _parse(_Repository, await self._get(ref, f"/repos/{ref.repository}"))
        licence = (repository.license and repository.license.spdx_id) or ""
        licence = "" if licence == "NOASSERTION" else licence
        if ref.pull is not None:
            return await self._pull(ref, repository.full_name, licence)
        commit, path = await self._resolve(ref, repository)
        url = f"https://github.com/{repository.full_name}/tree/{commit}/{path}".rstrip("/")
        snapshot = Snapshot(repository.full_name, commit, path, repository.description or "", licence, url, files={})
        if PurePosixPath(path).suffix:
            quoted = quote(path)
            file = await self._maybe(
                f"/repos/{ref.repository}/contents/{quoted}?ref={commit}", "application/vnd.github.raw", fixed=True
            )
            if file is not None and file.content_type != "application/json":  # which lists a folder
                return replace(snapshot, files={path: file.body})
        archive = await self._get(ref, f"/repos/{ref.repository}/tarball/{commit}", fixed=True)
        return await asyncio.to_thread(_opened, snapshot, archive.body)

    async def _resolve(self, ref: Ref, repository: _Repository) -> tuple[str, str]:
        """Return the commit and the path: a branch's name may hold slashes, so each cut is tried in turn."""
        parts = (ref.where or repository.default_branch).strip("/").split("/")
        cuts = [len(parts)] if ref.path or not ref.where else range(1, min(len(parts), _REF_PARTS) + 1)
        for cut in cuts:
            name, path = "/".join(parts[:cut]), ref.path or "/".join(parts[cut:])
            if _COMMIT.fullmatch(name):
                return name, path
            if _BAD_REF.search(name):
                continue
            found = await self._maybe(f"/repos/{ref.repository}/commits/{quote(name)}", "application/vnd.github.sha")
            sha = "" if found is None else found.body.decode("ascii", "replace").strip()
            if _COMMIT.fullmatch(sha):
                return sha, path
        raise NotFoundError(f"{ref.repository} has no branch, tag or commit {ref.where[:100]!r}; leave it out for all")

    async def _pull(self, ref: Ref, repository: str, licence: str) -> Snapshot:
        place = f"/repos/{ref.repository}/pulls/{ref.pull}"
        pull = _parse(_Pull, await self._get(ref, place))
        diff = await self._maybe(place, "application/vnd.github.diff")
        state = "merged" if pull.merged else pull.state
        told = f"# {pull.title}\n\nPull request {pull.number} of {repository}, {state}.\n\n{pull.body or ''}\n"
        files = {f"pull-{pull.number}.md": told.encode()}
        if diff is not None:
            files[f"pull-{pull.number}.diff"] = diff.body
        url = f"https://github.com/{repository}/pull/{pull.number}"
        return Snapshot(repository, pull.head.sha, f"pull/{pull.number}", pull.title, licence, url, files)

    async def _get(self, ref: Ref, place: str, *, fixed: bool = False) -> Fetched:
        found = await self._maybe(place, self.headers["Accept"], fixed=fixed)
        if found is None:
            hint = (
                "check its name"
                if "Authorization" in self.headers
                else "check its name; a private one needs GITHUB_TOKEN"
            )
            raise NotFoundError(f"GitHub shows no {ref.repository}{'' if ref.pull is None else f'#{ref.pull}'}; {hint}")
        return found

    async def _maybe(self, place: str, accept: str, *, fixed: bool = False) -> Fetched | None:
        """Return what the API answers, or None where there is nothing.

        Raises:
            SourceError: The number of calls is used up, or the API refused.
        """
        try:
            return await self.web.get(self.base + place, headers={**self.headers, "Accept": accept}, fixed=fixed)
        except StatusError as error:
            if error.status in {400, 409, 422}:  # no such commit; an empty repository
                return None
            raise self._worded(error) from error

    def _worded(self, error: StatusError) -> SourceError:
        """Return what to do about a refusal."""
        headers, has_token = error.headers, "Authorization" in self.headers
        reset = headers.get("x-ratelimit-reset", "")
        if error.status in {403, 429} and (headers.get("x-ratelimit-remaining") == "0" or "retry-after" in headers):
            if reset.isdigit() and len(reset) < 12:
                when = f"at {time.strftime('%H:%M:%S', time.localtime(int(reset)))}"
            else:
                when = f"in {headers.get('retry-after', '60')} s"
            hint = "try again then" if has_token else "set GITHUB_TOKEN for 5,000 calls an hour, or try again then"
            return SourceError(f"GitHub's limit of calls is used up; it opens {when}: {hint}")
        if error.status == 401:
            return SourceError(
                "GitHub refused the token in GITHUB_TOKEN; renew it, or unset it for public repositories"
            )
        if error.status == 451:
            return SourceError("GitHub withholds this repository for legal reasons (451)")
        return error


def _parse(kind: type[_T], fetched: Fetched) -> _T:
    try:
        return kind.model_validate(json.loads(fetched.body))
    except (ValidationError, ValueError, RecursionError) as error:
        raise SourceError(f"{fetched.url}: GitHub's answer is not what it should be; try again later") from error


def _opened(snapshot: Snapshot, archive: bytes) -> Snapshot:
    """Return a snapshot with the files of the archive's one folder that are text and lie under its path."""
    inside = PurePosixPath(snapshot.path)

    def wanted(path: str) -> bool:
        within = PurePosixPath(*PurePosixPath(path).parts[1:])
        return within.is_relative_to(inside) and local.is_worth_reading(within, of_all=not snapshot.path)

    unpacked = archives.unpack(archive, name=snapshot.repository, wanted=wanted)
    files = {"/".join(PurePosixPath(path).parts[1:]): data for path, data in sorted(unpacked.files.items())}
    if not files:
        raise NotFoundError(f"{snapshot.url}: holds no README, docs or Python; name a folder or file that does")
    large = tuple(each for each in unpacked.skipped if wanted(each.rpartition(": ")[0]))
    return replace(snapshot, files=files, skipped=large)
