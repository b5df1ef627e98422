"""What `loopgraph init` understands of code that is there already, and where a declaration is wrong."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loopgraph_mcp.api import outline as mapping
from loopgraph_mcp.api.propose import Proposal, propose
from loopgraph_mcp.cli.main import app
from loopgraph_mcp.code import outline as codemap
from loopgraph_mcp.config import read_settings
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Direction
from loopgraph_mcp.runner.workspace import load_workspace


def folder(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def proposed(root: Path, files: dict[str, str]) -> Proposal:
    made = propose(folder(root, files))
    assert made is not None
    return made


KNOWN = {
    "nanochat": {"nanochat/gpt.py": "", "scripts/base_train.py": "", "README.md": ""},
    "nanoGPT": {"model.py": "", "train.py": "exec(open('configurator.py').read())\n"},
    "modded-nanogpt": {"train_gpt.py": "", "run.sh": "torchrun --standalone --nproc_per_node=8 train_gpt.py\n"},
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_checkout_that_many_have_is_known(name: str, tmp_path: Path) -> None:
    made = proposed(tmp_path, KNOWN[name])
    assert (made.known_as, made.direction) == (name, Direction.LOWER)
    (tmp_path / "loopgraph.toml").write_text(made.declaration(60))
    assert load_workspace(tmp_path).command == made.command


def test_a_command_is_read_in_the_readme_and_a_metric_in_the_log_of_a_run(tmp_path: Path) -> None:
    files = {
        "README.md": "# Fit\n\n```\npython download_data.py\n$ uv run train_fit.py --fast\n```\n",
        "download_data.py": "print('rows: 3')\n",
        "train_fit.py": 'print(f"loss: {x}")\n',
        "run.log": "step 1 loss: 3.2\nval_accuracy: 0.81\n",
    }
    made = proposed(tmp_path, files)
    assert made.command == ("uv", "run", "train_fit.py", "--fast")
    assert (made.metric, made.direction) == ("val_accuracy", Direction.HIGHER)
    assert made.read_in == ("README.md", "run.log")


def test_other_languages_are_declared_too(tmp_path: Path) -> None:
    script = {
        "package.json": json.dumps({"scripts": {"bench": "node bench.js"}}),
        "bench.js": "console.log(`latency_ms: ${t}`)\n",
    }
    made = proposed(tmp_path / "js", script)
    assert (made.command, made.metric, made.direction) == (("node", "bench.js"), "latency_ms", Direction.LOWER)
    compiled = {"Makefile": "all:\n\tg++ solve.cpp -o solve\n", "solve.cpp": 'printf("error: %f\\n", x);\n'}
    made = proposed(tmp_path / "cpp", compiled)
    assert (made.editable, made.command[-1], made.metric) == ("solve.cpp", "make -s && ./solve", "error")


def test_what_prints_no_metric_is_refused_in_words(tmp_path: Path) -> None:
    assert propose(folder(tmp_path, {"notes.txt": "x", "broken.json": "{"})) is None
    answer = CliRunner().invoke(app, ["init", str(tmp_path), "--yes"])
    assert answer.exit_code != 0
    assert not (tmp_path / "loopgraph.toml").exists()


def test_init_writes_what_it_shows_once_the_user_agrees(tmp_path: Path) -> None:
    folder(tmp_path, {"fit.py": 'RATE = 0.5\nprint(f"val_rmse: {1 / RATE}")\n'})
    environment = {"LOOPGRAPH_HOME": str(tmp_path.parent / "home")}
    asked = CliRunner().invoke(app, ["init", str(tmp_path)], env=environment)
    assert asked.exit_code == 1
    assert 'metric = "val_rmse"' in asked.output
    assert not (tmp_path / "loopgraph.toml").exists()
    agreed = CliRunner().invoke(app, ["init", str(tmp_path), "--yes"], env=environment)
    assert agreed.exit_code == 0, agreed.output
    assert load_workspace(tmp_path).editable == "fit.py"


def test_a_declaration_s_wrong_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "loopgraph.toml").write_text('[workspace]\ncommand = ["true"]\nbudget_s = "long"\n')
    with pytest.raises(WorkspaceError, match=r"loopgraph\.toml:3: budget_s"):
        load_workspace(tmp_path)


def test_the_workspace_is_found_from_a_folder_inside_it(tmp_path: Path) -> None:
    inside = folder(tmp_path, {"loopgraph.toml": "", "src/deep/x.txt": ""}) / "src" / "deep"
    assert read_settings({}, inside).workspace == tmp_path.resolve()
    assert read_settings({}, tmp_path.parent).workspace == tmp_path.parent.resolve()


def test_the_constants_of_another_language_are_its_knobs(tmp_path: Path) -> None:
    text = 'const RATE = 0.5;\nlet name = "adam";\n#define N 32\n'
    text += "static constexpr double kBeta = 0.9f;\nf(x);\nrate: 3e-4\n"
    found = {entry.name: entry.text for entry in codemap.map_plain(text).entries}
    assert found == {"RATE": "0.5", "name": '"adam"', "N": "32", "kBeta": "0.9f", "rate": "3e-4"}
    (tmp_path / "tune.js").write_text(text)
    assert "RATE=0.5:1" in mapping._map_path(tmp_path / "tune.js", (), "", 750).text
