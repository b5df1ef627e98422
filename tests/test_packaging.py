"""What is published says one thing: versions, names, settings and commands agree. scripts/release --check tries it."""

import base64
import json
import re
import tomllib
from urllib.parse import parse_qs, urlsplit

import pytest

from loopgraph_mcp import __version__
from loopgraph_mcp.config import PACKAGE_DIR
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
LINKS = (ROOT / "docs" / "packaging.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER = json.loads((ROOT / "scripts" / "packaging" / "server.json").read_text())
MANIFEST = json.loads((ROOT / "scripts" / "packaging" / "manifest.json").read_text())
PLUGIN = json.loads((PACKAGE_DIR / "plugin" / ".claude-plugin" / "plugin.json").read_text())


def test_the_version_is_the_same_everywhere() -> None:
    versions = {PROJECT["version"], SERVER["version"], SERVER["packages"][0]["version"], MANIFEST["version"]}
    assert versions | {PLUGIN["version"]} == {__version__}
    assert f"## {__version__} (" in (ROOT / "CHANGELOG.md").read_text()


def test_the_locks_hold_a_hash_of_each_package_that_the_server_needs_in_the_version_of_the_constraints() -> None:
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        pinned[_plain(name)] = version
    for lock in ("requirements.lock", "build.lock"):
        for part in re.split(r"\n(?=[\w])", (ROOT / "scripts" / "packaging" / lock).read_text())[1:]:
            name, version = re.match(r"([\w.-]+)==([\w.]+)", part).groups()  # type: ignore[union-attr]
            assert "--hash=sha256:" in part, name
            assert pinned.get(_plain(name), version) == version, name
    locked = (ROOT / "scripts" / "packaging" / "requirements.lock").read_text()
    for needed in PROJECT["dependencies"]:
        assert re.search(rf"(?m)^{re.escape(_plain(re.split(r'[<>=[]', needed)[0]))}==", locked), needed


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(("package", "floor"), [("pyjwt", (2, 12)), ("starlette", (0, 49, 1)), ("h11", (0, 16))])
def test_no_version_with_a_known_hole_is_allowed(package: str, floor: tuple[int, ...]) -> None:
    (needed,) = [each for each in PROJECT["dependencies"] if re.match(rf"{package}\b", each)]
    least = re.search(r">=([\d.]+)", needed)
    assert least is not None
    assert tuple(int(part) for part in least[1].split(".")) >= floor


def test_the_image_installs_by_hash_on_a_base_with_a_digest_and_runs_as_nobody() -> None:
    lines = (ROOT / "scripts" / "packaging" / "Dockerfile").read_text().splitlines()
    stages = set[str]()
    for line in lines:
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            assert base in stages or re.search(r":3\.\d+\.\d+-[\w-]+@sha256:[0-9a-f]{64}$", base), line
            stages.add(name)
            user = "root"
        elif line.startswith("USER "):
            user = line.split()[1]
    assert user == "10001"
    installs = [line for line in lines if "pip install" in line]
    assert sum("--require-hashes" in line for line in installs) == 2
    for line in installs:
        assert any(each in line for each in ("--require-hashes", "--no-deps", "--constraint", "torch==")), line


def test_the_registry_can_take_the_server() -> None:
    assert f"mcp-name: {SERVER['name']}" in README
    assert len(SERVER["description"]) <= 100
    (package,) = SERVER["packages"]
    assert package["identifier"] == PROJECT["name"]
    assert PROJECT["name"] in PROJECT["scripts"]  # what uvx runs


def test_every_setting_that_is_asked_for_is_read() -> None:
    asked = {each["name"] for each in SERVER["packages"][0]["environmentVariables"]}
    asked |= set(MANIFEST["server"]["mcp_config"]["env"])
    read = (PACKAGE_DIR / "config.py").read_text()
    for name in asked:
        assert f'"{name.removeprefix("LOOPGRAPH_")}"' in read, name
    used = set(re.findall(r"user_config\.(\w+)", json.dumps(MANIFEST["server"])))
    assert used == set(MANIFEST["user_config"])


@pytest.mark.parametrize("host", ["cursor.com", "vscode.dev"])
def test_the_links_hold_an_entry_that_starts_the_published_server(host: str) -> None:
    (link,) = [each for each in re.findall(r"\]\((https://[^)]+)\)", LINKS) if urlsplit(each).netloc == host]
    query = parse_qs(urlsplit(link).query)
    (told,) = query["config"]
    entry = json.loads(base64.b64decode(told) if host == "cursor.com" else told)
    assert query["name"] == ["loopgraph"]
    plugin = json.loads((PACKAGE_DIR / "plugin" / ".mcp.json").read_text())["mcpServers"]["loopgraph"]
    assert (entry["command"], entry["args"]) == ("uvx", [PROJECT["name"]])
    assert (plugin["command"], plugin["args"]) == ("uvx", [f"{PROJECT['name']}=={__version__}"])


def test_the_marketplace_leads_to_the_plugin() -> None:
    (listed,) = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text())["plugins"]
    assert (ROOT / listed["source"] / ".claude-plugin" / "plugin.json").is_file()
    assert listed["name"] == PLUGIN["name"]
    skill = (ROOT / listed["source"] / "skills" / "loopgraph" / "SKILL.md").read_text()
    head = skill.split("---")[1]
    assert "name: loopgraph" in head
    assert len(head) < 1_024
