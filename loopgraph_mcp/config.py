"""Settings, read once at the entry point from the environment and passed down from there."""

import ipaddress
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from platformdirs import user_data_path

from loopgraph_mcp.errors import ConfigError

PACKAGE_DIR = Path(__file__).parent
BUNDLED_DIR = PACKAGE_DIR / "_bundled"
ARXIV_URL = "https://export.arxiv.org"
GITHUB_URL = "https://api.github.com"
DEFAULT_HOME = user_data_path("loopgraph", appauthor=False)


def bundled(name: str) -> Path:
    """Return the folder `trainer` or `methodpacks`: inside the wheel, or beside the package in a checkout."""
    installed = BUNDLED_DIR / name
    return installed if installed.is_dir() else PACKAGE_DIR.parent / name


SKILL = PACKAGE_DIR / "plugin" / "skills" / "loopgraph" / "SKILL.md"


def read_skill() -> str:
    """Return the skill's text without its front matter."""
    _, _, text = SKILL.read_text(encoding="utf-8").removeprefix("---\n").partition("---\n")
    return text.strip()


_HTTP_HOST, _HTTP_PORT = "127.0.0.1", 8848
_GPU = re.compile(r"\d{1,4}|(?:GPU|MIG)-[\w./-]{1,120}", re.ASCII)
LogFormat = Literal["text", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
_LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)


@dataclass(frozen=True, slots=True)
class OAuth:
    """An authorization server whose access tokens are taken.

    Args:
        issuer: Its URL, as its tokens' `iss` has it.
        audience: What its tokens for this server have as `aud`: the server's own URL.
        jwks: Where its keys are; by default, where its metadata says.
    """

    issuer: str
    audience: str
    jwks: str | None = None


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How to serve over HTTP.

    Args:
        hosts: Names that clients may call this server by, beside those of loopback and `host`.
        origins: Web origins that may call it, beside those of loopback.
        auth: Whether a bearer token is asked for.
    """

    host: str = _HTTP_HOST
    port: int = _HTTP_PORT
    tls_cert: Path | None = None
    tls_key: Path | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    auth: bool = True

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, `[::1]:PORT`, `HOST`, `:PORT` or `PORT`.

    Raises:
        ConfigError: It is none of these.
    """
    found = re.fullmatch(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*))(?::(?P<port>\d{1,5}))?", text.strip())
    if found is None:
        raise ConfigError(f"--http {text!r}: write HOST:PORT, such as 127.0.0.1:8848 or [::1]:8848")
    host, port = found["six"] or found["host"], found["port"]
    if host.isdigit() and port is None:
        host, port = "", host
    number = _HTTP_PORT if port is None else int(port)
    if number > 65_535:
        raise ConfigError(f"--http {text!r}: the port is above 65535")
    return host or _HTTP_HOST, number


@dataclass(frozen=True, slots=True)
class Settings:
    """Where LoopGraph keeps its memory and what it works on.

    Args:
        home: Folder of locks, and of the database and the runs unless `db_path` lies elsewhere.
        db_path: The SQLite file.
        workspace: Folder to work on when a call names none.
        workspace_is_given: Whether the user named that folder; else the server was only started in it.
        device: What a run gets (`cpu`, `mps`, `cuda:1`, `cuda:2,3`, `all`) when not the first one found.
        visible_gpus: Indices or UUIDs of the GPUs that may be used (CUDA_VISIBLE_DEVICES); None for all.
        packs: Folder of method packs to load at start.
        day_one: Whether the bundled prior from published histories is used.
        log_level: Level of the log on stderr.
        arxiv_url: Where arXiv's API and files are asked for.
        github_url: Where GitHub's API is asked.
        github_token: Sent to that API and nowhere else.
        log_format: Whether that is lines for people or JSON for programs.
        oauth: Who issues the tokens that are taken over HTTP beside LoopGraph's own.
    """

    home: Path
    db_path: Path
    workspace: Path
    device: str | None = None
    visible_gpus: tuple[str, ...] | None = None
    packs: Path = field(default_factory=lambda: bundled("methodpacks"))
    day_one: bool = True
    log_level: LogLevel = "WARNING"
    arxiv_url: str = ARXIV_URL
    github_url: str = GITHUB_URL
    github_token: str | None = field(default=None, repr=False)
    log_format: LogFormat = "text"
    oauth: OAuth | None = None
    workspace_is_given: bool = True

    @property
    def runs_dir(self) -> Path:
        """The folder that holds one folder per experiment."""
        return self.db_path.parent / "runs"

    @property
    def locks_dir(self) -> Path:
        """The folder of device locks, shared by all databases of this user."""
        return self.home / "locks"

    @property
    def fetched_dir(self) -> Path:
        """The cache of what was fetched, shared by all databases of this user."""
        return self.home / "fetched"

    @property
    def packs_dir(self) -> Path:
        """The folder that holds one folder per version of each pack that was ingested."""
        return self.home / "packs"

    @property
    def own_paths(self) -> tuple[Path, ...]:
        """What LoopGraph writes: no part of a workspace that it lies in."""
        database = [self.db_path.with_name(self.db_path.name + end) for end in ("", "-wal", "-shm", "-journal")]
        return (self.home, *database, self.runs_dir, self.locks_dir, self.fetched_dir, self.packs_dir)


def read_settings(environment: Mapping[str, str], cwd: Path) -> Settings:
    """Build settings from LOOPGRAPH_* variables; an empty variable counts as unset.

    Raises:
        ConfigError: A variable holds a value that cannot be used.
    """

    def get(name: str) -> str | None:
        return environment.get(f"LOOPGRAPH_{name}") or None

    def path(value: str) -> Path:
        try:
            return (cwd / Path(value).expanduser()).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{value[:80]!a}: is not a valid path ({str(error)[:80]}); name another") from error

    home = path(value) if (value := get("HOME")) else DEFAULT_HOME
    wanted = (get("LOG_LEVEL") or "WARNING").upper()
    level = next((known for known in _LOG_LEVELS if known == wanted), None)
    if level is None:
        raise ConfigError(f"LOOPGRAPH_LOG_LEVEL is {wanted!r}; use one of {', '.join(_LOG_LEVELS)}")
    day_one = (get("DAY_ONE") or "on").lower()
    if day_one not in {"on", "off"}:
        raise ConfigError(f"LOOPGRAPH_DAY_ONE is {day_one!r}; use on or off")
    log_format = next((known for known in get_args(LogFormat) if known == (get("LOG_FORMAT") or "text").lower()), None)
    if log_format is None:
        raise ConfigError("LOOPGRAPH_LOG_FORMAT: use text or json")
    db_path = path(value) if (value := get("DB")) else home / "loopgraph.db"
    if db_path.is_dir():
        raise ConfigError(f"LOOPGRAPH_DB is {db_path}, a folder; name a file in it")
    return Settings(
        home=home,
        db_path=db_path,
        workspace=path(value) if (value := get("WORKSPACE")) else _workspace_around(cwd.resolve()),
        device=get("DEVICE"),
        visible_gpus=visible_gpus(environment.get("CUDA_VISIBLE_DEVICES")),
        packs=path(value) if (value := get("PACKS")) else bundled("methodpacks"),
        day_one=day_one == "on",
        log_level=level,
        arxiv_url=_url("LOOPGRAPH_ARXIV_URL", get("ARXIV_URL") or ARXIV_URL),
        github_url=_url("LOOPGRAPH_GITHUB_URL", get("GITHUB_URL") or GITHUB_URL),
        github_token=environment.get("GITHUB_TOKEN") or environment.get("GH_TOKEN") or None,
        log_format=log_format,
        oauth=_oauth(get("OAUTH_ISSUER"), get("OAUTH_AUDIENCE"), get("OAUTH_JWKS")),
        workspace_is_given=get("WORKSPACE") is not None,
    )


def _workspace_around(folder: Path) -> Path:
    """Return the folder that declares a workspace, this one or one above it; this one where none does."""
    for each in (folder, *folder.parents):
        if (each / "loopgraph.toml").is_file():
            return each
    return folder


def _url(variable: str, value: str) -> str:
    """Return a base URL without its last slash; on this machine it may do without https."""
    parts = urlsplit(value)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _is_here(parts.hostname))):
        raise ConfigError(f"{variable} is {value!r}; use https://…, or http://127.0.0.1:PORT for your own mirror")
    return value.rstrip("/")


def _is_here(host: str) -> bool:
    return host in {"127.0.0.1", "::1", "localhost"}


def _oauth(issuer: str | None, audience: str | None, jwks: str | None) -> OAuth | None:
    if issuer is None and audience is None and jwks is None:
        return None
    if issuer is None or audience is None:
        raise ConfigError("OAuth needs both LOOPGRAPH_OAUTH_ISSUER and LOOPGRAPH_OAUTH_AUDIENCE (this server's URL)")
    for url in (issuer, audience, jwks):
        if url is not None:
            _url("LOOPGRAPH_OAUTH_*", url)
    return OAuth(issuer, audience, jwks)


def visible_gpus(listed: str | None) -> tuple[str, ...] | None:
    """Read CUDA_VISIBLE_DEVICES as CUDA does: ids up to the first thing that is no index and no UUID; None if unset."""
    if listed is None:
        return None
    parts = [part.strip() for part in listed.split(",")]
    return tuple(itertools.takewhile(_GPU.fullmatch, parts))
