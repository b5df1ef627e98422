"""What README and docs say is what the code does."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from loopgraph_mcp.cli import clients
from loopgraph_mcp.cli.main import app
from loopgraph_mcp.config import PACKAGE_DIR, read_skill
from loopgraph_mcp.models import OutcomeKind
from loopgraph_mcp.runner.workspace import load_workspace
from loopgraph_mcp.server import app as server_app
from loopgraph_mcp.server.prompts import loop_prompts
from loopgraph_mcp.server.tools import loop_tools

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# Words that make a reader parse a sentence twice, and the plain ones: say, show, report, fix, again, predict, recently.
UNPLAIN = re.compile(
    r"\b(tell|tells|told|stands|mend(?:s|ed)?|anew|foret(?:ell|old)\w*|of late|lately|one's|kin|taught|teach(?:es)?)\b",
    re.IGNORECASE,
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_declaration_in_the_readme_is_a_workspace(tmp_path: Path) -> None:
    (declaration,) = blocks(README, "toml")
    (tmp_path / "loopgraph.toml").write_text(declaration)
    (tmp_path / "prepare.py").touch()
    assert load_workspace(tmp_path).budget_s == 300


def shown_commands() -> list[tuple[str, list[str]]]:
    """Return each command line that a page shows, with its page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in "\n".join(blocks(text, "console") + blocks(text, "text")).splitlines():
            for part in re.split(r"&&|\||>", re.sub(r"\s#.*", "", line.removeprefix("$ "))):
                words = part.split()
                if words and words != ["loopgraph"] and re.match(r"loopgraph|scripts/", words[0]):
                    found.append((page.name, words))
    return found


@pytest.mark.parametrize(("page", "words"), shown_commands(), ids=lambda each: each if isinstance(each, str) else "")
def test_every_command_on_a_page_is_taken_as_it_stands(page: str, words: list[str]) -> None:
    program, *given = words
    if program == "loopgraph-mcp":
        known = (PACKAGE_DIR / "server" / "app.py").read_text()
        assert all(f'"{each}"' in known for each in given if each.startswith("--"))
    elif program.startswith("scripts/"):
        assert (ROOT / program).stat().st_mode & 0o111
    else:
        command = typer.main.get_command(app)
        while isinstance(command, TyperGroup):
            command, (program, *given) = command.commands[given[0]], given
        with command.make_context(program, given):
            pass


@pytest.mark.parametrize(("page", "heading"), [("quickstart.md", "## Claude Code"), ("http.md", "## Tokens")])
def test_the_commands_of_a_page_run_one_after_the_other(
    environment: dict[str, str], tmp_path: Path, page: str, heading: str
) -> None:
    text = (ROOT / "docs" / page).read_text().partition(heading)[2].partition("## The first words")[0]
    lines = [line.removeprefix("$ ") for block in blocks(text, "console") for line in block.splitlines()]
    script = "\n".join(line for line in lines if re.match(r"loopgraph |mkdir ", line))
    assert script.count("loopgraph ") > 3
    program = tmp_path / "bin" / "loopgraph"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom loopgraph_mcp.cli.main import main\nmain()\n")
    program.chmod(0o755)
    variables = {**environment, "HOME": str(tmp_path), "PATH": f"{program.parent}:{environment['PATH']}"}
    subprocess.run(["bash", "-euc", script], env=variables, cwd=tmp_path, check=True, capture_output=True)


def test_every_tool_and_client_is_in_the_readme_and_every_setting_on_its_page() -> None:
    for tool in loop_tools():
        assert f"`{tool.name}`" in README
    for client in clients.CLIENTS.values():
        assert f"loopgraph config {client.id}" in README
    settings = set(re.findall(r'(?<!\.)get\("([A-Z_]+)"\)', (PACKAGE_DIR / "config.py").read_text()))
    assert settings
    page = (ROOT / "docs" / "settings.md").read_text()
    for name in settings:
        assert f"`LOOPGRAPH_{name}`" in page


def test_the_readme_is_short_and_has_a_picture() -> None:
    assert len(README.splitlines()) < 150
    assert "![" in README


def test_every_outcome_is_explained() -> None:
    page = (ROOT / "docs" / "runs.md").read_text()
    for kind in OutcomeKind:
        assert f"`{kind.value}`" in page


def test_every_module_on_a_page_exists() -> None:
    rooms = "|".join(path.parent.name for path in PACKAGE_DIR.glob("*/__init__.py"))
    for page in [*PAGES, *sorted((ROOT / "docs").glob("*.svg"))]:
        for name in re.findall(rf"\b(?:{rooms})/\w+(?:/\w+)*\.\w+", page.read_text(encoding="utf-8")):
            assert (PACKAGE_DIR / name).exists() or (ROOT / "tests" / name).exists(), f"{page.name}: {name}"
        for name in re.findall(r"\bloopgraph_mcp/[\w/]+\.\w+", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_room_is_in_its_layer_and_in_the_design() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    rooms = {path.parent.name for path in PACKAGE_DIR.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE_DIR.glob("*.py")} - {"__init__"}
    assert set(re.findall(r"\w+", " ".join(layers))) == rooms | modules
    assert modules == {"__main__", "auth", "config", "errors", "logs", "models", "text"}
    design = (ROOT / "docs" / "design.md").read_text()
    for name in rooms | modules:
        assert f"`{name}`" in design, name


def test_the_page_of_methods_is_what_its_script_writes() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "methods_table.py")]
    written = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == written
    counts = re.search(r"^(\d+) methods in `methodpacks/`, (\d+) of them with a recipe", written, re.MULTILINE)
    assert counts is not None
    assert f"{counts[1]} methods, {counts[2]} of them with a recipe" in README


def test_the_trainers_page_names_its_options_settings_and_files() -> None:
    page = (ROOT / "docs" / "trainer.md").read_text()
    sources = {path.name: path.read_text() for path in (ROOT / "trainer").glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)`", page)) >= set(sources)
    for option in re.findall(r'add_argument\(\s*"(--[\w-]+)"', sources["harness.py"]):
        assert option in page
    settings = set(re.findall(r'"(LOOPGRAPH_\w+)"', sources["prepare.py"]))
    assert settings
    assert settings <= set(re.findall(r"`(LOOPGRAPH_\w+)`", page))


def test_every_page_is_in_the_index() -> None:
    docs = ROOT / "docs"
    listed = re.findall(r"^[a-z-]+$", "\n".join(blocks((docs / "index.md").read_text(), "{toctree}")), re.MULTILINE)
    assert sorted(listed) == sorted({page.stem for page in docs.glob("*.md")} - {"index"})


def test_the_page_of_tools_describes_them_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import tools_page  # noqa: PLC0415 - a script, found only by its folder

    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    answers = re.compile(r"\n\n```text\n.*?\n```", re.DOTALL)
    assert answers.sub("", page) == tools_page.page({}), "python scripts/tools_page.py > docs/tools.md"
    for described in page.split("\n## ")[1:]:
        assert answers.search("\n\n" + described.partition("\n\n")[2]), described[:40]


def for_people() -> dict[str, str]:
    """Return the texts that people read, by where they are."""
    found = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    return found | commands_help()


def commands_help() -> dict[str, str]:
    """Return the help text of every command, by the words that call it."""
    found, waiting = dict[str, str](), [("loopgraph", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        shown = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"COLUMNS": "200"})
        found[name] = shown.output
        if isinstance(command, TyperGroup):
            waiting += [(f"{name} {each}", below) for each, below in command.commands.items()]
    served = subprocess.run(
        [sys.executable, "-m", "loopgraph_mcp", "--help"], capture_output=True, text=True, check=True
    )
    return found | {"loopgraph-mcp": served.stdout}


def for_models() -> dict[str, str]:
    """Return the fixed texts that models read: schemas, instructions, prompts, the skill."""
    found = {tool.name: f"{tool.title} {tool.description} {json.dumps(tool.parameters)}" for tool in loop_tools()}
    found |= {prompt.name: prompt.model_dump_json() for prompt in loop_prompts()}
    return found | {"instructions": server_app.INSTRUCTIONS, "skill": read_skill()}


def test_the_language_is_plain() -> None:
    texts = for_people() | for_models()
    assert len(texts) > 60
    unplain = {where: found for where, text in texts.items() if (found := UNPLAIN.findall(text))}
    assert not unplain


def test_commands_name_no_tools_and_tools_no_commands() -> None:
    tools = re.compile("|".join(tool.name for tool in loop_tools() if "_" in tool.name))
    assert not {where: found for where, text in commands_help().items() if (found := tools.findall(text))}
    commands = re.compile(r"\bloopgraph (?:-|" + "|".join(typer.main.get_command(app).commands) + r")\b")
    assert not {where: found for where, text in for_models().items() if (found := commands.findall(text))}


def test_troubleshooting_quotes_what_the_code_says() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    said = "\n".join(path.read_text() for path in PACKAGE_DIR.rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", said)  # a message that goes on in the next line
    quoted = re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)))
    assert len(quoted) > 10
    for words in quoted:
        assert words in said, words
