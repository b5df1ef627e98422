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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER = json.loads((ROOT / "scripts" / "packaging" / "server.json").read_text())
MANIFEST = json.loads((ROOT / "scripts" / "packaging" / "manifest.json").read_text())
PLUGIN = json.loads((PACKAGE_DIR / "plugin" / ".claude-plugin" / "plugin.json").read_text())


def test_the_version_is_the_same_everywhere() -> None:
    versions = {PROJECT["version"], SERVER["version"], SERVER["packages"][0]["version"], MANIFEST["version"]}
    assert versions | {PLUGIN["version"]} == {__version__}
    assert f"## {__version__} (" in (ROOT / "CHANGELOG.md").read_text()


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
    (link,) = [each for each in re.findall(r"\]\((https://[^)]+)\)", README) if urlsplit(each).netloc == host]
    query = parse_qs(urlsplit(link).query)
    (told,) = query["config"]
    entry = json.loads(base64.b64decode(told) if host == "cursor.com" else told)
    assert query["name"] == ["loopgraph"]
    plugin = json.loads((PACKAGE_DIR / "plugin" / ".mcp.json").read_text())["mcpServers"]["loopgraph"]
    assert (entry["command"], entry["args"]) == (plugin["command"], plugin["args"]) == ("uvx", [PROJECT["name"]])


def test_the_marketplace_leads_to_the_plugin() -> None:
    (listed,) = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text())["plugins"]
    assert (ROOT / listed["source"] / ".claude-plugin" / "plugin.json").is_file()
    assert listed["name"] == PLUGIN["name"]
    skill = (ROOT / listed["source"] / "skills" / "loopgraph" / "SKILL.md").read_text()
    head = skill.split("---")[1]
    assert "name: loopgraph" in head
    assert len(head) < 1_024
