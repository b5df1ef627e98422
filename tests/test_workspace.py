import subprocess
from pathlib import Path

import pytest

from loopgraph_mcp.config import bundled
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.workspace import (
    append_result,
    commit_program,
    create_workspace,
    dataset_hash,
    harness_hash,
    head_commit,
    load_workspace,
    reads_variable,
    write_program,
)


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def a_repository(folder: Path) -> None:
    git(folder, "init", "-q")
    git(folder, "config", "user.name", "Test")
    git(folder, "config", "user.email", "test@localhost")
    (folder / ".gitignore").write_text("ignored/\nresults.tsv\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")


def test_an_autoresearch_checkout_is_detected_with_its_budget(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('val_bpb: 1')\n")
    (tmp_path / "prepare.py").write_text("MAX_SEQ_LEN = 2048\nTIME_BUDGET = 120  # seconds\n")
    where = load_workspace(tmp_path)
    assert (where.editable, where.protected, where.budget_s) == ("train.py", ("prepare.py",), 120.0)
    assert where.command == ("{python}", "train.py")
    assert not reads_variable(where, "LOOPGRAPH_BUDGET_S")


def test_a_folder_without_a_loop_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="loopgraph init"):
        load_workspace(tmp_path)
    with pytest.raises(WorkspaceError, match="not a folder"):
        load_workspace(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('metric = "loss"\ncommand = []', "command"),
        ('command = ["x"]\nbudget_s = 0', "budget_s"),
        ('command = ["x"]\nunknown = 1', "unknown"),
        ('command = ["x"]\ndirection = "up"', "direction"),
        ('command = ["x"]\nprotected = ["../outside.py"]', "outside"),
        ('command = ["x"', "loopgraph.toml"),
    ],
)
def test_a_wrong_declaration_names_its_key(workspace: Path, line: str, told: str) -> None:
    (workspace / "loopgraph.toml").write_text(f"[workspace]\n{line}\n")
    with pytest.raises(WorkspaceError, match=told):
        load_workspace(workspace)


def test_any_command_that_prints_its_metric_can_be_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "search.sh").write_text("echo accuracy: 3\n")
    (tmp_path / "loopgraph.toml").write_text(
        '[workspace]\neditable = "search.sh"\ncommand = ["sh", "search.sh"]\n'
        'metric = "accuracy"\ndirection = "higher"\n'
    )
    where = load_workspace(tmp_path)
    assert (where.metric, where.direction, where.timeout_s) == ("accuracy", "higher", 900)


def test_the_harness_hash_changes_with_a_protected_file_only(workspace: Path) -> None:
    where = load_workspace(workspace)
    before = harness_hash(where)
    (workspace / "train.py").write_text("changed")
    assert harness_hash(where) == before
    (workspace / "prepare.py").write_text("changed")
    assert harness_hash(where) != before
    assert dataset_hash(where) == dataset_hash(where)


def test_a_file_that_changed_meanwhile_is_not_overwritten(workspace: Path) -> None:
    where = load_workspace(workspace)
    program = where.read_program()
    (workspace / "train.py").chmod(0o755)
    assert write_program(where, "new\r\n", expected=program)
    assert (workspace / "train.py").read_bytes() == b"new\r\n"
    assert (workspace / "train.py").stat().st_mode & 0o777 == 0o755
    assert not write_program(where, "newer", expected=program)
    assert (workspace / "train.py").read_bytes() == b"new\r\n"
    assert sorted(path.name for path in workspace.iterdir()) == ["loopgraph.toml", "prepare.py", "train.py"]


def test_a_commit_takes_the_program_alone(workspace: Path) -> None:
    a_repository(workspace)
    where = load_workspace(workspace)
    (workspace / "prepare.py").write_text("staged by the user")
    git(workspace, "add", "prepare.py")
    (workspace / "train.py").write_text("won")
    commit = commit_program(where, "higher rate")
    assert commit == head_commit(workspace)
    assert git(workspace, "show", "--name-only", "--format=%s", "HEAD").split("\n")[:3] == [
        "higher rate",
        "",
        "train.py",
    ]
    assert "prepare.py" in git(workspace, "diff", "--cached", "--name-only")


def test_results_keep_the_columns_people_have(workspace: Path) -> None:
    where = load_workspace(workspace)
    row = {"commit": "abc1234", "val_bpb": "1.000000", "memory_gb": "2.0", "status": "keep", "description": "a\tb\nc"}
    append_result(where, row)
    assert (workspace / "results.tsv").read_text() == (
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\nabc1234\t1.000000\t2.0\tkeep\ta b c\n"
    )
    (workspace / "results.tsv").write_text("status\tval_bpb\tnote\nkeep\t3.0\tmine")
    append_result(where, row)
    assert (workspace / "results.tsv").read_text() == "status\tval_bpb\tnote\nkeep\t3.0\tmine\nkeep\t1.000000\t\n"


def test_a_new_workspace_holds_the_bundled_trainer(tmp_path: Path) -> None:
    where, new = create_workspace(tmp_path / "fresh", bundled("trainer"), budget_s=30)
    assert new
    assert where.budget_s == 30
    assert "prepare.py" in where.protected
    names = {path.name for path in where.path.iterdir()}
    trainer = {"train.py", "harness.py", "prepare.py", "climbmix.py", "program.md", "loopgraph.toml"}
    assert trainer | {".gitignore"} == names
    again, new = create_workspace(where.path, bundled("trainer"), budget_s=None)
    assert not new
    assert again == where


def test_an_existing_loop_is_declared_and_a_foreign_folder_left_alone(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "train.py").write_text("pass\n")
    (loop / "prepare.py").write_text("TIME_BUDGET = 60\n")
    where, new = create_workspace(loop, bundled("trainer"), budget_s=None)
    assert not new
    assert "budget_s = 60" in (loop / "loopgraph.toml").read_text()
    assert load_workspace(loop) == where
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(WorkspaceError, match="not empty"):
        create_workspace(foreign, bundled("trainer"), budget_s=None)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
