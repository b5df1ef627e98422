"""The configuration entry of each MCP client, and the file it is written to."""

import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.runner.environment import without_secrets

NAME = "loopgraph"
_TOOL_TIMEOUT_S = 120  # Codex gives up on a call after 60 s by default; a wait takes up to 50 s
_TOKEN_VARIABLE = "LOOPGRAPH_TOKEN"  # noqa: S105 - the name of a variable, not a secret
# How an entry refers to a variable of the client's environment: no token is written to a file.
_TOKEN_IN = {
    "claude-code": f"${{{_TOKEN_VARIABLE}}}",
    "cursor": f"${{env:{_TOKEN_VARIABLE}}}",
    "vscode": f"${{env:{_TOKEN_VARIABLE}}}",
}
# An entry in JSON or TOML, or Claude Code's plugin; not a folder of that name in a client's list of projects.
_ENTRY = re.compile(rf'"{NAME}"\s*:|"{NAME}@|mcp_servers\.{NAME}\b')


@dataclass(frozen=True, slots=True)
class Client:
    """One MCP client: where its entry is written, and under which key of that file.

    Args:
        elsewhere: Files under the user's home in which the client itself keeps entries.
    """

    id: str
    title: str
    path: Callable[[Path, Path], Path]  # (home, folder) -> file
    key: str
    extra: Mapping[str, Any]
    elsewhere: tuple[str, ...] = ()


_APPLICATIONS = "Library/Application Support" if platform.system() == "Darwin" else ".config"


def _claude_desktop(home: Path, _: Path) -> Path:
    return home / _APPLICATIONS / "Claude" / "claude_desktop_config.json"


CLIENTS = {
    client.id: client
    for client in (
        Client("claude-desktop", "Claude Desktop", _claude_desktop, "mcpServers", {}),
        Client(
            "claude-code",
            "Claude Code",
            lambda _, folder: folder / ".mcp.json",
            "mcpServers",
            {"type": "stdio"},
            (".claude.json", ".claude/plugins/installed_plugins.json"),
        ),
        Client(
            "cursor",
            "Cursor",
            lambda _, folder: folder / ".cursor" / "mcp.json",
            "mcpServers",
            {},
            (".cursor/mcp.json",),
        ),
        Client(
            "vscode",
            "VS Code",
            lambda _, folder: folder / ".vscode" / "mcp.json",
            "servers",
            {"type": "stdio"},
            (f"{_APPLICATIONS}/Code/User/mcp.json",),
        ),
        Client("codex", "Codex", lambda home, _: home / ".codex" / "config.toml", "mcp_servers", {}),
    )
}


def server_command() -> list[str]:
    """Return the command that starts the server: the script beside this interpreter, or the module."""
    script = Path(sys.executable).parent / "loopgraph-mcp"
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "loopgraph_mcp"]


def entry(
    client: Client, workspace: Path, environment: Mapping[str, str], *, context_env: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a client's entry, with the settings and variables that its runs depend on.

    Args:
        client: The client.
        workspace: The folder to work on.
        environment: The variables of this process.
        context_env: The workspace's declared variables; without them the client's runs would be in another
            context.
    """
    command, *arguments = server_command()
    names = ("LOOPGRAPH_DB", "LOOPGRAPH_HOME", "LOOPGRAPH_DEVICE", *context_env)
    passed = {name: environment[name] for name in names if environment.get(name)}
    passed = without_secrets(passed)  # a client's file may be committed to git
    return {
        **client.extra,
        "command": command,
        "args": arguments,
        "env": {"LOOPGRAPH_WORKSPACE": str(workspace), **passed},
    }


def remote_entry(client: Client, url: str) -> dict[str, Any]:
    """Return the entry of a running server; the client reads the token from its environment.

    Raises:
        ConfigError: The client's file cannot hold such an entry.
    """
    if client.id == "codex":
        return {"url": url, "bearer_token_env_var": _TOKEN_VARIABLE}
    if client.id not in _TOKEN_IN:
        raise ConfigError(
            f"{client.title}: its file cannot name a server by URL and token; leave out --url, or use another client"
        )
    kind = {"type": "http"} if client.extra else {}
    return {**kind, "url": url, "headers": {"Authorization": f"Bearer {_TOKEN_IN[client.id]}"}}


def as_text(client: Client, made: Mapping[str, Any]) -> str:
    """Return an entry as text for the client's file."""
    if client.id == "codex":
        return _merged_toml("", made, Path())
    return json.dumps({client.key: {NAME: made}}, indent=2) + "\n"


def as_command(client: Client, made: Mapping[str, Any]) -> str | None:
    """Return the client's own command that adds the entry, where it has one."""
    variables = {"claude-code": "-e", "codex": "--env"}
    if client.id not in variables:
        return None
    program = ["claude" if client.id == "claude-code" else "codex", "mcp", "add"]
    if client.id == "codex" and "url" in made:
        return shlex.join([*program, NAME, "--url", made["url"], "--bearer-token-env-var", _TOKEN_VARIABLE])
    if "url" in made:
        header = f"Authorization: {made['headers']['Authorization']}"
        return shlex.join([*program, "--transport", "http", NAME, made["url"], "--header", header])
    flags = [part for name, value in made["env"].items() for part in (variables[client.id], f"{name}={value}")]
    return shlex.join([*program, NAME, *flags, "--", made["command"], *made["args"]])


def write(client: Client, made: Mapping[str, Any], file: Path) -> bool:
    """Add an entry to a client's file and keep everything else; return whether anything changed.

    Raises:
        ConfigError: The file does not parse, or another entry has the name.
    """
    text = _read(file)
    new = _merged_toml(text, made, file) if client.id == "codex" else _merged_json(text, client, made, file)
    if new == text:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(new, encoding="utf-8")
        if file.exists():
            shutil.copymode(file, temporary)
        temporary.replace(file.resolve())
    finally:
        temporary.unlink(missing_ok=True)
    return True


def mentions(client: Client, home: Path, folder: Path) -> bool:
    """Return whether a client has an entry for LoopGraph: in its file here, or in one of its own."""
    for file in (client.path(home, folder), *(home / each for each in client.elsewhere)):
        try:
            if _ENTRY.search(file.read_text(encoding="utf-8", errors="replace")):
                return True
        except OSError:
            continue
    return False


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error


def _merged_json(text: str, client: Client, made: Mapping[str, Any], file: Path) -> str:
    try:
        settings = json.loads(text) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}: not JSON ({error}); fix it, or add the printed entry by hand") from error
    if not isinstance(settings, dict) or not isinstance(settings.setdefault(client.key, {}), dict):
        raise ConfigError(f"{file}: {client.key!r} is not a table of servers; add the printed entry by hand")
    if settings[client.key].get(NAME) == made:
        return text
    settings[client.key][NAME] = dict(made)
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _merged_toml(text: str, made: Mapping[str, Any], file: Path) -> str:
    try:
        settings = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"{file}: not TOML ({error}); fix it, or add the printed entry by hand") from error
    servers = settings.setdefault("mcp_servers", tomlkit.table(is_super_table=True))
    wanted = {**made, "tool_timeout_sec": _TOOL_TIMEOUT_S}
    if not isinstance(servers, dict) or servers.get(NAME, wanted) != wanted:
        raise ConfigError(f"{file}: has a different [mcp_servers.{NAME}]; remove it, then run this again")
    if NAME not in servers:
        servers[NAME] = wanted
    return tomlkit.dumps(settings)
