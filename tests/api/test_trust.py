"""Whose word a command is: asked about once where somebody else may have written it, never in an ordinary first run."""

import dataclasses
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from loopgraph_mcp.api import trust
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import AccessError
from loopgraph_mcp.runner.workspace import CONFIG_NAME, load_workspace

CLI = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()"]


def without_workspace(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "LOOPGRAPH_WORKSPACE"}


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def cloned(workspace: Path, tmp_path: Path) -> Path:
    """A clone of a repository that holds a loopgraph.toml of its own."""
    git(workspace, "init", "-q")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "theirs")
    git(tmp_path, "clone", "-q", str(workspace), "cloned")
    return tmp_path / "cloned"


def cli(environment: dict[str, str], folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*CLI, *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def at_terminal(environment: dict[str, str], folder: Path, typed: str, *arguments: str) -> tuple[int, str]:
    """Run a command at a terminal where somebody types; return its status and what the terminal showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*CLI, *arguments], env=environment, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs
    ) as run:
        os.close(theirs)
        os.write(ours, typed.encode())
        shown = b""
        while True:
            try:
                part = os.read(ours, 4_096)
            except OSError:
                break
            if not part:
                break
            shown += part
    os.close(ours)
    return run.returncode, shown.decode("utf-8", "replace")


def test_a_cloned_command_is_asked_about_and_a_yes_is_kept_until_it_changes(
    environment: dict[str, str], cloned: Path, settings: Settings
) -> None:
    mine = without_workspace(environment)
    refused = cli(mine, cloned, "run", "-d", "baseline")
    assert refused.returncode == 1
    assert "{python} train.py" in refused.stderr
    assert "loopgraph trust" in refused.stderr
    status, shown = at_terminal(mine, cloned, "n\n", "run", "-d", "baseline")
    assert status == 1
    assert "{python} train.py" in shown
    assert not (settings.home / trust.FILE_NAME).exists()
    status, shown = at_terminal(mine, cloned, "y\n", "run", "-d", "baseline")
    assert status == 0, shown
    assert (settings.home / trust.FILE_NAME).stat().st_mode & 0o077 == 0
    assert cli(mine, cloned, "run", "--replicate").returncode == 0  # not asked again
    with (cloned / CONFIG_NAME).open("a") as file:
        file.write('on_win = "leave"\n')
    assert cli(mine, cloned, "run", "--replicate").returncode == 1
    assert cli(mine, cloned, "run", "--replicate", "--trust").returncode == 0
    assert cli(mine, cloned, "run", "--replicate").returncode == 0


def test_an_ordinary_first_run_asks_nothing(environment: dict[str, str], workspace: Path, tmp_path: Path) -> None:
    mine = without_workspace(environment)
    assert cli(mine, workspace, "run", "-d", "written by hand").returncode == 0
    detected = tmp_path / "detected"
    detected.mkdir()
    for name in ("train.py", "prepare.py"):
        (detected / name).write_text((workspace / name).read_text())
    made = cli(mine, tmp_path, "init", str(detected))
    assert made.returncode == 0, made.stderr
    status, shown = at_terminal(mine, detected, "", "run", "-d", "baseline")
    assert status == 0, shown
    assert "y/N" not in shown


def test_what_an_archive_brought_is_asked_about_and_the_refusal_names_what_to_type(
    environment: dict[str, str], workspace: Path, tmp_path: Path, settings: Settings
) -> None:
    mine = without_workspace(environment)
    old = workspace.stat().st_mtime - 86_400
    os.utime(workspace / CONFIG_NAME, (old, old))
    folder = tmp_path / "it's unpacked"
    folder.mkdir()
    subprocess.run(f"tar -C {workspace} -c . | tar -x", shell=True, cwd=folder, check=True)
    refused = cli(mine, folder, "run", "-d", "baseline")
    assert refused.returncode == 1
    typed = refused.stderr.strip().partition("run once: ")[2]
    assert f"LOOPGRAPH_HOME={settings.home}" in typed
    script = tmp_path / "bin" / "loopgraph"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from loopgraph_mcp.cli.main import main; main()' \"$@\"\n")
    script.chmod(0o755)
    shell = {name: value for name, value in mine.items() if not name.startswith("LOOPGRAPH_")}
    shell["PATH"] = f"{script.parent}:{shell['PATH']}"
    subprocess.run(typed, shell=True, env=shell, cwd="/", check=True, capture_output=True)
    assert cli(mine, folder, "run", "-d", "baseline").returncode == 0


async def run_over_mcp(environment: dict[str, str], cwd: Path, **arguments: Any) -> tuple[bool, str]:
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "loopgraph_mcp"], env=environment, cwd=cwd)
    async with Client(parameters) as client:
        result = await client.call_tool("run_experiment", {"wait_s": 30, **arguments})
    return bool(result.is_error), getattr(result.content[0], "text", "")


async def test_an_agent_runs_where_its_user_said_and_nowhere_else(
    environment: dict[str, str], cloned: Path, workspace: Path, tmp_path: Path
) -> None:
    refused, said = await run_over_mcp(environment, tmp_path, workspace=str(cloned))
    assert refused
    assert "`{python} train.py`" in said
    assert f"loopgraph trust {cloned}" in said
    refused, said = await run_over_mcp(without_workspace(environment), cloned)  # started in the clone by a client
    assert refused
    assert "loopgraph trust" in said
    refused, said = await run_over_mcp(environment, tmp_path)  # the user's own setting
    assert not refused, said
    refused, said = await run_over_mcp({**environment, "LOOPGRAPH_WORKSPACE": str(cloned)}, tmp_path)
    assert not refused, said
    assert cli(environment, tmp_path, "trust", str(cloned)).returncode == 0
    refused, said = await run_over_mcp(environment, tmp_path, workspace=str(cloned))
    assert not refused, said
    detected = tmp_path / "detected"
    detected.mkdir()
    for name in ("train.py", "prepare.py"):
        (detected / name).write_text((workspace / name).read_text())
    refused, said = await run_over_mcp(environment, tmp_path, workspace=str(detected))
    assert refused  # train.py is somebody's as well


def test_a_command_is_quoted_as_one_plain_line(settings: Settings, workspace: Path) -> None:
    (workspace / CONFIG_NAME).write_text('[workspace]\ncommand = ["sh", "-c", "x\\u001b[31m\\nNext: y"]\n')
    where = load_workspace(workspace)
    away = dataclasses.replace(settings, workspace=settings.home)
    with pytest.raises(AccessError) as told:
        trust.check(away, where, by_agent=True)
    assert "`sh -c x Next: y`" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1}', "[" * 100_000, "\xff"])
def test_a_damaged_list_of_trusted_folders_trusts_nothing_and_is_written_again(
    settings: Settings, workspace: Path, content: str
) -> None:
    where, away = load_workspace(workspace), dataclasses.replace(settings, workspace=settings.home)
    settings.home.mkdir(parents=True, exist_ok=True)
    (settings.home / trust.FILE_NAME).write_text(content, encoding="latin-1")
    assert not trust.is_trusted(away, where, by_agent=True)
    trust.accept(away, where)
    assert trust.is_trusted(away, where, by_agent=True)
