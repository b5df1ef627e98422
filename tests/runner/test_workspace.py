import fnmatch
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.config import bundled
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.runner import patterns
from loopgraph_mcp.runner.workspace import (
    append_result,
    commit_program,
    create_workspace,
    dataset_hash,
    harness_hash,
    head_commit,
    load_workspace,
    reads_variable,
    results_size,
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


def declare(folder: Path, values: dict[str, list[str]]) -> None:
    """Put keys into loopgraph.toml, in the place of those that are there."""
    config = folder / "loopgraph.toml"
    kept = [line for line in config.read_text().splitlines() if line.split(" = ")[0] not in {"protected", *values}]
    config.write_text("\n".join([*kept, *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]))


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
        (
            'metric = "loss"\ncommand = []',
            "command is a list of 0 items; command takes a list of texts of at least 1 item",
        ),
        ('command = "python train.py"', 'command is "python train.py"; command takes a list of texts'),
        ('metric = "loss"', "command is missing; give a list of texts"),
        ('command = ["x"]\nbudget_s = "5 min"', 'budget_s is "5 min"; budget_s takes a number above 0 and of at most'),
        ('command = ["x"]\ndevices_per_run = 1.5', "devices_per_run is 1.5; devices_per_run takes a whole number"),
        ('command = ["x"]\nprotected = ["a", 3]', r"protected\[2\] is 3; protected takes a list of texts"),
        ('command = ["x"]\nprotect = ["a"]', 'no key "protect"; did you mean protected'),
        ('command = ["x"]\n[more]', 'unexpected table or key "more"; the file has one table'),
        ('command = ["x"]\nbudget_s = 0', "budget_s"),
        ('command = ["x"]\nunknown = 1', "unknown"),
        ('command = ["x"]\ndirection = "up"', "direction"),
        ('command = ["x"]\nprotected = ["../outside.py"]', "outside"),
        ('command = ["x"', "loopgraph.toml"),
    ],
)
def test_a_wrong_declaration_names_its_key(workspace: Path, line: str, told: str) -> None:
    (workspace / "loopgraph.toml").write_text(f"[workspace]\n{line}\n")
    with pytest.raises(WorkspaceError, match=told) as refused:
        load_workspace(workspace)
    assert "pydantic" not in str(refused.value)
    assert "Input should" not in str(refused.value)


@pytest.mark.parametrize("path", ["\0", "~nosuchuser/x", "x" * 5_000])
def test_what_can_be_no_path_is_refused(path: str) -> None:
    with pytest.raises(WorkspaceError, match="is not a valid path"):
        load_workspace(Path(path))


@pytest.mark.parametrize("key", ["protected", "dataset"])
@pytest.mark.parametrize("name", ["evla", "eval/*.yaml", "**/*.json", "missing.csv", "no*", "eval/deeper/", "", "a?b"])
def test_a_declared_name_that_matches_nothing_is_refused_with_its_key(workspace: Path, key: str, name: str) -> None:
    (workspace / "eval").mkdir()
    (workspace / "eval" / "score.py").write_text("x")
    declare(workspace, {key: ["eval", name]})
    with pytest.raises(WorkspaceError, match=f"{key}: {re.escape(repr(name))} (matches no file|names no file)"):
        load_workspace(workspace)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("eval", ["eval/data.json", "eval/deep/score.py", "eval/score.py"]),
        ("./eval/", ["eval/data.json", "eval/deep/score.py", "eval/score.py"]),
        ("eval/*.py", ["eval/score.py"]),
        ("eval/**/*.py", ["eval/deep/score.py", "eval/score.py"]),
        ("**/*.json", ["a[1].json", "eval/data.json"]),
        ("e*/d*", ["eval/data.json", "eval/deep/score.py"]),
        ("a[1].json", ["a[1].json"]),
        ("**/*.py", ["eval/deep/score.py", "eval/score.py", "prepare.py"]),
        ("results*", []),
        ("linked", ["linked/data.json", "linked/deep/score.py", "linked/score.py"]),
    ],
)
def test_declared_names_are_files_folders_and_patterns(workspace: Path, name: str, found: list[str]) -> None:
    for each in ("eval/score.py", "eval/deep/score.py", "eval/data.json", "eval/__pycache__/score.pyc", "a[1].json"):
        (workspace / each).parent.mkdir(parents=True, exist_ok=True)
        (workspace / each).write_text("x")
    (workspace / ".venv" / "lib").mkdir(parents=True)
    (workspace / ".venv" / "lib" / "x.py").write_text("x")
    (workspace / ".venv" / "lib" / "x.json").write_text("x")
    (workspace / "results.tsv").write_text("x")
    (workspace / "eval" / "circle").symlink_to(".")
    (workspace / "linked").symlink_to("eval")
    assert patterns.expand(str(workspace), [name], editable="train.py") == found


_PARTS = st.lists(st.sampled_from(["a", "b", "ab", "*", "a*", "**", "?"]), min_size=1, max_size=4)


@given(_PARTS, st.lists(st.sampled_from(["a", "b", "ab", "c"]), min_size=1, max_size=5))
def test_a_pattern_matches_as_trying_every_way_would(pattern: list[str], path: list[str]) -> None:
    def whole(parts: list[str], names: list[str]) -> bool:
        if not parts:
            return True  # what is below a folder that matches
        if parts[0] == "**":
            return whole(parts[1:], names) or bool(names and whole(parts, names[1:]))
        return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and whole(parts[1:], names[1:])

    anywhere = [path[start:] for start in range(len(path))] if len(pattern) == 1 else [path]
    assert patterns.matches("/".join(pattern), "/".join(path)) == any(whole(pattern, names) for names in anywhere)


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not patterns.matches("/".join(["**", "a*"] * 20) + "/end", "/".join(["aaaa"] * 60))


def test_a_file_that_is_made_later_is_declared_with_a_question_mark(workspace: Path) -> None:
    declare(workspace, {"protected": ["prepare.py", "corpus.json?"], "dataset": ["corpus.json?"]})
    where = load_workspace(workspace)
    assert (where.protected, where.dataset) == (("prepare.py", "corpus.json"), ("corpus.json",))
    before = harness_hash(where)
    assert dataset_hash(where) == ""
    (workspace / "corpus.json").write_text("{}")
    assert load_workspace(workspace) == where
    assert harness_hash(where) != before
    assert dataset_hash(where) != ""
    (workspace / "odd?").write_text("x")
    declare(workspace, {"protected": ["odd?"]})
    assert load_workspace(workspace).protected == ("odd?",)


def test_the_editable_file_cannot_be_protected_and_a_neighbour_is_no_data_unless_linked(workspace: Path) -> None:
    declare(workspace, {"protected": ["./train.py"]})
    with pytest.raises(WorkspaceError, match=r"protected: train\.py is the editable file"):
        load_workspace(workspace)
    (workspace.parent / "input").mkdir()
    (workspace.parent / "input" / "x.txt").write_text("1")
    declare(workspace, {"dataset": ["../input"]})
    with pytest.raises(WorkspaceError, match=r"dataset: \.\./input is outside the workspace; add it to `link`"):
        load_workspace(workspace)
    declare(workspace, {"dataset": ["../input"], "link": ["../input/"]})
    before = dataset_hash(load_workspace(workspace))
    (workspace.parent / "input" / "x.txt").write_text("2")
    assert dataset_hash(load_workspace(workspace)) not in {before, ""}


def test_nothing_protected_and_no_data_declared_have_an_empty_hash(workspace: Path) -> None:
    declare(workspace, {"protected": []})
    where = load_workspace(workspace)
    assert (harness_hash(where), dataset_hash(where)) == ("", "")


def test_large_data_is_known_by_size_and_time_and_small_data_by_its_bytes(workspace: Path) -> None:
    for name, size in (("small/x", 10), ("large/x", 17 * 2**20)):
        (workspace / name).parent.mkdir()
        with (workspace / name).open("wb") as file:
            file.truncate(size)
    hashes = {}
    for name in ("small", "large", "small/*", "large/x", "**/x"):
        declare(workspace, {"dataset": [name]})
        hashes[name] = dataset_hash(load_workspace(workspace))
    for name in ("small/x", "large/x"):
        os.utime(workspace / name, (0, 0))
    moved = set()
    for name, before in hashes.items():
        declare(workspace, {"dataset": [name]})
        if dataset_hash(load_workspace(workspace)) != before:
            moved.add(name)
    assert moved == {"large", "large/x", "**/x"}


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
    append_result(where, row, begun=results_size(where))
    assert (workspace / "results.tsv").read_text() == (
        "commit\tval_bpb\tmemory_gb\tstatus\tdescription\nabc1234\t1.000000\t2.0\tkeep\ta b c\n"
    )
    (workspace / "results.tsv").write_text("status\tval_bpb\tnote\nkeep\t3.0\tmine")
    append_result(where, row, begun=results_size(where))
    assert (workspace / "results.tsv").read_text() == "status\tval_bpb\tnote\nkeep\t3.0\tmine\nkeep\t1.000000\t\n"


def test_a_new_workspace_holds_the_bundled_trainer(tmp_path: Path) -> None:
    where, new = create_workspace(tmp_path / "fresh", bundled("trainer"), budget_s=30)
    assert new
    assert where.budget_s == 30
    assert "prepare.py" in where.protected
    names = {path.name for path in where.path.iterdir()}
    trainer = {"train.py", "harness.py", "prepare.py", "verify.py", "climbmix.py", "program.md", "loopgraph.toml"}
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
