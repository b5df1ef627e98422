"""What a run's copy holds, by what it is known, and that nothing a run writes reaches the workspace unnoticed."""

import json
import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.code.hashes import tree_hash
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import OutcomeKind
from loopgraph_mcp.runner import confinement, contents
from loopgraph_mcp.runner.inputs import changed_links, drop_copies, only_with_the_user, read_made
from loopgraph_mcp.runner.run_copy import CopyPlan, make_copy, plan_copy, snapshot
from loopgraph_mcp.runner.workspace import load_workspace
from loopgraph_mcp.store import experiments

MIB = 2**20
TRAIN = "print('loss: 1')\n"


def declare(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    told = {"command": ["{python}", "train.py"], "metric": "loss", **values}
    lines = [f"{key} = {json.dumps(value)}" for key, value in told.items()]
    (folder / "loopgraph.toml").write_text("\n".join(["[workspace]", *lines, ""]))
    if not (folder / "train.py").exists():
        (folder / "train.py").write_text(TRAIN)
    return folder


def git(folder: Path, *arguments: str) -> None:
    safe = ("-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "protocol.file.allow=always")
    subprocess.run(["git", *safe, *arguments], cwd=folder, check=True, capture_output=True)


def commit_all(folder: Path, ignored: str = "") -> None:
    if ignored:
        (folder / ".gitignore").write_text(ignored)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "--allow-empty", "-qm", "start")


def plan(folder: Path) -> CopyPlan:
    return plan_copy(load_workspace(folder))


def inputs_hash(folder: Path) -> str:
    return plan(folder).inputs_hash


def copy(folder: Path, run: Path) -> Path:
    """Make a run's folder and return where its command would run."""
    make_copy(plan(folder), run, "print('new')\n")
    made = read_made(run)
    assert made is not None
    return run / made.code


def large(path: Path, size: int = 17 * MIB) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"start")
        file.truncate(size)
    return path


def paths_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


# ------------------------------------------------------------------------------------ what is in the copy


def test_a_copy_holds_all_that_a_program_can_read_and_the_program_to_run(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    for name in ("data/x.txt", "sub/module.py", "run.log", "results.tsv", "sub/run.log", "sub/__pycache__/m.pyc"):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text("x")
    (where / "empty").mkdir()
    (where / "tool.sh").write_text("#!/bin/sh\n")
    (where / "tool.sh").chmod(0o755)
    commit_all(where, "data/\n")
    (where / "helper.py").write_text("untracked, but needed")
    code = copy(where, tmp_path / "run")
    there = {"train.py", "loopgraph.toml", "helper.py", "sub/module.py", "sub/run.log", ".gitignore", "data/x.txt"}
    assert paths_of(code) == there | {"tool.sh"}
    assert (code / "empty").is_dir()
    assert os.access(code / "tool.sh", os.X_OK)
    assert (code / "train.py").read_text() == "print('new')\n"
    assert (where / "train.py").read_text() == TRAIN
    assert set(plan(where).inputs) == (there | {"tool.sh", "empty"}) - {"train.py", "loopgraph.toml"}


def test_an_environment_stays_behind_unless_the_command_goes_into_it(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    for folder in (".venv", "own-env"):
        (where / folder / "bin").mkdir(parents=True)
        (where / folder / "pyvenv.cfg").write_text("")
        (where / folder / "bin" / "python").write_text("")
    code = copy(where, tmp_path / "run")
    assert paths_of(code) == {"train.py", "loopgraph.toml"}
    declare(where, command=["own-env/bin/python", "train.py"])
    code = copy(where, tmp_path / "second")
    assert (code / "own-env").is_symlink()
    assert not (code / ".venv").exists()


def test_links_lead_where_they_lead_in_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "x.txt").write_text("5")
    where = declare(tmp_path / "w")
    (where / "versions").mkdir()
    (where / "versions" / "3.txt").write_text("three")
    (where / "data").symlink_to("../big")
    (where / "one.txt").symlink_to(tmp_path / "big" / "x.txt")
    (where / "best.txt").symlink_to(where / "versions" / "3.txt")
    (where / "latest").symlink_to("versions")
    (where / "broken").symlink_to("nowhere")
    (where / "circle").symlink_to("circle")
    (where / "versions" / "up").symlink_to("..")
    (where / "above").symlink_to(tmp_path)
    code = copy(where, tmp_path / "run")
    assert (code / "data" / "x.txt").read_text() == "5"
    assert (code / "data").is_symlink()
    assert not (code / "one.txt").is_symlink()
    for name in ("best.txt", "latest/3.txt", "versions/up/versions/3.txt"):
        (code / name).write_text("changed by the run")
    assert (where / "versions" / "3.txt").read_text() == "three"
    assert [str((code / name).readlink()) for name in ("broken", "circle")] == ["nowhere", "circle"]
    assert (code / "above").exists()
    before = inputs_hash(where)
    (tmp_path / "unrelated").write_text("beside the workspace, in a folder that holds it")
    assert inputs_hash(where) == before
    (tmp_path / "big" / "x.txt").write_text("6")
    assert inputs_hash(where) != before


def test_code_of_submodules_and_nested_repositories_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "lib.py").write_text("V = 3\n")
    commit_all(source)
    where = declare(tmp_path / "w")
    git(where, "init", "-q")
    git(where, "submodule", "add", "-q", str(source), "vendor")
    for nested in ("mine", "ignored"):
        (where / nested).mkdir()
        (where / nested / "own.py").write_text("W = 1\n")
        (where / nested / "cache.bin").write_text("x")
        (where / nested / ".env.example").write_text("KEY=")
        commit_all(where / nested, "cache.bin\n")
    commit_all(where, "ignored/\n")
    code = copy(where, tmp_path / "run")
    wanted = {"vendor/lib.py", "mine/own.py", "ignored/own.py", "mine/cache.bin", "mine/.env.example"}
    assert wanted <= paths_of(code)
    assert not any((code / name).is_symlink() for name in (*wanted, "vendor", "mine", "ignored"))
    before = inputs_hash(where)
    (where / "vendor" / "lib.py").write_text("V = 4\n")
    assert inputs_hash(where) != before


def test_node_modules_are_linked_and_what_build_tools_keep_there_does_not_count(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "node_modules" / "dep").mkdir(parents=True)
    (where / "node_modules" / "dep" / "index.js").write_text("1")
    code = copy(where, tmp_path / "run")
    assert (code / "node_modules").is_symlink()
    before = inputs_hash(where)
    (code / "node_modules" / ".cache").mkdir()
    made = read_made(tmp_path / "run")
    assert made is not None
    assert (inputs_hash(where), changed_links(made)) == (before, [])
    (where / "node_modules" / "dep" / "index.js").write_text("2")
    assert inputs_hash(where) != before
    assert changed_links(made) == ["node_modules/dep/index.js"]


@pytest.mark.parametrize("count", [5_100, 20_500])
def test_a_folder_of_thousands_of_files_is_linked(tmp_path: Path, count: int) -> None:
    where = declare(tmp_path / "w")
    (where / "data" / "train").mkdir(parents=True)
    for number in range(count):
        (where / "data" / "train" / str(number)).touch()
    code = copy(where, tmp_path / "run")
    assert (code / "data").is_symlink()
    assert len(list((code / "data" / "train").iterdir())) == count
    before = inputs_hash(where)
    (where / "data" / "train" / "17").write_text("x")
    assert inputs_hash(where) != before


def test_code_beside_a_large_folder_is_copied(tmp_path: Path) -> None:
    where = declare(tmp_path / "w", editable="data/train.py", command=["sh"])
    (where / "data").mkdir()
    (where / "data" / "train.py").write_text(TRAIN)
    (where / "data" / "load.py").write_text("x = 1\n")
    (where / "tools" / "images").mkdir(parents=True)
    (where / "tools" / "show.py").write_text("y = 1\n")
    (where / "data" / "images").mkdir()
    for number in range(1_100):
        (where / "data" / "images" / str(number)).touch()
        (where / "tools" / "images" / str(number)).touch()
    commit_all(where, "images/\n")
    code = copy(where, tmp_path / "run")
    assert [name for name in ("data", "tools", "data/load.py", "tools/show.py") if (code / name).is_symlink()] == []
    assert all((code / name / "images").is_symlink() for name in ("data", "tools"))
    assert (code / "data" / "train.py").read_text() == "print('new')\n"


def test_new_results_stay_in_the_copy_though_the_old_are_many(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    for number in range(60):
        folder = where / "mlruns" / "0" / f"run{number}"
        folder.mkdir(parents=True)
        for step in range(20):
            (folder / str(step)).touch()
    commit_all(where, "mlruns/\n")
    code = copy(where, tmp_path / "run")
    (code / "mlruns" / "0" / "mine").mkdir()
    assert (code / "mlruns" / "0" / "run7" / "3").exists()
    assert len(list((where / "mlruns" / "0").iterdir())) == 60


def test_large_data_is_linked_and_checkpoints_are_copied(tmp_path: Path) -> None:
    where = declare(tmp_path / "w", dataset=["corpus.bin"])
    large(where / "corpus.bin")
    large(where / "ckpt.pt")
    large(where / "out" / "model.safetensors")
    large(where / "archive" / "shard.bin", 65 * MIB)
    large(where / "huge.bin", 2**40)
    commit_all(where, "*.bin\n*.pt\nout/\n")
    code = copy(where, tmp_path / "run")
    linked = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_symlink()}
    assert linked == {"corpus.bin", "archive", "huge.bin"}
    assert (code / "ckpt.pt").read_bytes() == (where / "ckpt.pt").read_bytes()


def test_a_pointer_of_large_file_storage_is_copied_as_it_is(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (where / "weights.bin").write_text(pointer)
    commit_all(where)
    assert (copy(where, tmp_path / "run") / "weights.bin").read_text() == pointer


def test_keys_stay_behind_unless_git_or_the_declaration_has_them(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    for name in (".env.example", ".env", ".env.local", "server.pem", "id_rsa", "sub/.netrc", "env.py"):
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_text("KEY=1")
    git(where, "init", "-q")
    git(where, "add", ".env.example")
    git(where, "commit", "-qm", "start")
    assert paths_of(copy(where, tmp_path / "run")) == {"train.py", "loopgraph.toml", ".env.example", "env.py"}
    assert set(plan(where).inputs) == {".env.example", "env.py", "sub"}
    declare(where, link=[".env"], dataset=["server.pem"])
    code = copy(where, tmp_path / "second")
    assert (code / ".env").read_text() == (code / "server.pem").read_text() == "KEY=1"
    assert not (code / "id_rsa").exists()


def test_what_is_ignored_is_in_no_copy_and_counts_for_nothing(tmp_path: Path) -> None:
    where = declare(tmp_path / "w", ignore=["wandb", "*.log", "out/*.bin"])
    for name in ("wandb/x/y", "sub/a.log", "out/a.bin", "out/sub/a.bin"):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text("x")
    assert paths_of(copy(where, tmp_path / "run")) == {"train.py", "loopgraph.toml", "out/sub/a.bin"}
    assert set(plan(where).inputs) == {"sub", "out/sub/a.bin"}


def test_a_repository_around_that_ignores_the_workspace_does_not_empty_it(tmp_path: Path) -> None:
    where = declare(tmp_path / "home" / "w")
    (where / "helper.py").write_text("x = 1\n")
    commit_all(tmp_path / "home", "*\n")
    assert "helper.py" in paths_of(copy(where, tmp_path / "run"))


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    os.mkfifo(where / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(where / "s"))
        assert paths_of(copy(where, tmp_path / "run")) == {"train.py", "loopgraph.toml"}


def test_folders_a_thousand_deep_are_no_trouble(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "deep").mkdir()
    descriptor = os.open(where / "deep", os.O_RDONLY)
    for _ in range(1_200):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    try:
        assert (copy(where, tmp_path / "run") / "deep").exists()
    finally:
        subprocess.run(["rm", "-rf", where / "deep"], check=True)  # shutil.rmtree goes no deeper than 1,000


def test_names_that_are_no_text_are_copied(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    name = os.fsdecode(b"caf\xe9.txt")
    try:
        (where / name).write_text("x")
    except OSError:
        pytest.skip("the file system takes no such name")
    code = copy(where, tmp_path / "run")
    assert (code / name).read_text() == "x"
    made = read_made(tmp_path / "run")
    assert made is not None
    assert name in made.inputs


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_as_unreadable_in_the_copy(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "locked").mkdir()
    (where / "file").write_text("x")
    (where / "file").chmod(0)
    (where / "locked").chmod(0)
    (where / "listed").mkdir()
    (where / "listed" / "x").write_text("x")
    (where / "listed").chmod(0o444)
    try:
        code = copy(where, tmp_path / "run")
        with pytest.raises(PermissionError):
            (code / "file").read_text()
        assert (code / "locked").is_symlink()
        assert (code / "listed").is_symlink()
        declare(where, protected=["file"])
        with pytest.raises(WorkspaceError, match="protected"):
            plan(where)
    finally:
        (where / "locked").chmod(0o755)
        (where / "listed").chmod(0o755)


def test_the_store_is_no_part_of_a_workspace_that_holds_it(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    for name in ("lg.db", "lg.db-wal", "lg/runs/exp/code/train.py"):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text("x")
    own = [where / name for name in ("lg.db", "lg.db-wal", "lg")]
    assert set(plan_copy(load_workspace(where), without=own).files) == {"train.py", "loopgraph.toml"}


def test_two_names_that_are_one_where_runs_are_stored_are_named(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "a.txt").write_text("x")
    planned = plan(where)
    twice = {**planned.files, "./a.txt": planned.files["a.txt"]}
    run = tmp_path / "run"
    with pytest.raises(OSError, match=r"upper and lower case.*a\.txt"):
        make_copy(CopyPlan(planned.workspace, "", (), twice, {}, {}, {}), run, "")
    assert not (run / "code").exists()


# ---------------------------------------------------------------------------------- beside the workspace


def test_declared_neighbours_are_reached_by_the_same_relative_paths(tmp_path: Path) -> None:
    where = declare(tmp_path / "a" / "kaggle" / "working")
    for name in ("a/kaggle/input/t.csv", "a/shared.txt", "far/deep/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    declare(where, link=["../input", "../../shared.txt", "../../../far/deep", str(tmp_path / "far")])
    code = copy(where, tmp_path / "run")
    for name in ("../input/t.csv", "../../shared.txt", "../../../far/deep/x.txt"):
        assert (code / name).read_text() == (where / name).read_text()
    assert code.relative_to(tmp_path / "run").parts == ("code", "a", "kaggle", "working")
    before = inputs_hash(where)
    (tmp_path / "a" / "kaggle" / "input" / "t.csv").write_text("other")
    changed = inputs_hash(where)
    assert changed != before
    (tmp_path / "far" / "new").write_text("by its absolute path")
    assert inputs_hash(where) != changed


def test_neighbours_never_meet_the_files_of_loopgraph(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    for name in ("run.log", "supervisor.log", "inputs.json", "code"):
        (tmp_path / name).write_text(f"the user's {name}")
    declare(where, link=["../run.log", "../supervisor.log", "../inputs.json", "../code"])
    code = copy(where, tmp_path / "run")
    assert (code / ".." / "code").read_text() == "the user's code"
    assert read_made(tmp_path / "run") is not None
    assert not (tmp_path / "run" / "run.log").exists()


def test_a_neighbour_inside_a_linked_one_is_not_written_into_it(tmp_path: Path) -> None:
    (tmp_path / "input" / "inner").mkdir(parents=True)
    where = declare(tmp_path / "w", link=["../input/inner", "../input"])
    copy(where, tmp_path / "run")
    assert not (tmp_path / "input" / "inner").is_symlink()


@pytest.mark.parametrize("absolute", [False, True])
def test_a_single_file_of_a_folder_beside_the_workspace_may_be_linked(tmp_path: Path, absolute: bool) -> None:  # noqa: FBT001
    shared = tmp_path / "input" / "deep" / "words.txt"
    shared.parent.mkdir(parents=True)
    shared.write_text("here")
    link = str(shared) if absolute else "../input/deep/words.txt"
    where = declare(tmp_path / "w", link=[link])
    code = copy(where, tmp_path / "run")
    assert (code / link).read_text() == "here"
    assert shared.read_text() == "here"


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("../nowhere", "does not exist"),
        ("..", "the workspace itself"),
        ("../../..", "the workspace itself"),
        ("", "no file"),
    ],
)
def test_a_neighbour_that_cannot_be_placed_is_refused(tmp_path: Path, link: str, said: str) -> None:
    where = declare(tmp_path / "w", link=[link])
    with pytest.raises(WorkspaceError, match=f"link: .*{said}"):
        load_workspace(where)


# ------------------------------------------------------------------------------------------- what it is known by


def test_comments_and_layout_of_a_module_do_not_count_and_docstrings_do(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "m.py").write_text('class A:\n    """Say."""\n    x = 1\n')
    before = inputs_hash(where)
    (where / "m.py").write_text('# new\nclass A:\n\n    """Say."""\n    x = (1)\n')
    assert inputs_hash(where) == before
    (where / "m.py").write_text('class A:\n    """Say it otherwise."""\n    x = 1\n')
    assert inputs_hash(where) != before


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("settings.py", "LR = 0.5\n", "LR = 0.1\n"),
        ("b.h", "#define BLOCK 8\n", "#define BLOCK 64\n"),
        ("prompt.md", "# Be brief\n", "# Think first\n"),
        ("c.yaml", "a:\n  b: 1\nc:\n  d: 2\n", "a:\n  b: 1\n  c:\n    d: 2\n"),
        ("Makefile", "# x\n", "# y\n"),
        ("broken.py", "def f(:  # 1\n", "def f(:  # 2\n"),
        ("t.py", "x = '''a\n b'''\n", "x = '''a\n  b'''\n"),
        ("cell.ipynb", '{"cells": []}', '{"cells":  []}'),
        ("latin.py", "# coding: latin-1\nx = '\u00e9'\n", "# coding: utf-8\nx = '\u00e9'\n"),
    ],
)
def test_another_content_is_another_input(tmp_path: Path, name: str, one: str, other: str) -> None:
    where = declare(tmp_path / "w")
    (where / name).write_text(one)
    before = inputs_hash(where)
    (where / name).write_text(other)
    assert inputs_hash(where) != before
    (where / name).write_text(one)
    assert inputs_hash(where) == before


def test_an_executable_bit_a_name_and_an_empty_folder_count(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "tool").write_text("x")
    seen = [inputs_hash(where)]
    (where / "tool").chmod(0o755)
    seen.append(inputs_hash(where))
    (where / "tool").rename(where / "other")
    seen.append(inputs_hash(where))
    (where / "logs").mkdir()
    seen.append(inputs_hash(where))
    assert len(set(seen)) == 4


def test_by_products_and_the_declaration_do_not_count(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "m.py").write_text("x = 1\n")
    before = inputs_hash(where)
    for name in (
        "results.tsv",
        "run.log",
        "__pycache__/m.pyc",
        ".mypy_cache/x",
        ".train.py.17.tmp",
        ".ipynb_checkpoints/m.py",
    ):
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_text("x")
    (where / "train.py").write_text("print('loss: 2')\n")
    declare(where, budget_s=7)
    assert inputs_hash(where) == before


def test_programs_of_many_modules_are_known_by_their_bytes(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "tables.py").write_text("x = 1\n" * 180_000)
    (where / "m.py").write_text("x = 1\n")
    before = inputs_hash(where)
    (where / "m.py").write_text("x = 1  # one\n")
    assert inputs_hash(where) != before


def test_small_data_is_known_by_its_bytes_though_it_is_only_linked(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "x.txt").write_text("5")
    where = tmp_path / "w"
    where.mkdir()
    (where / "data").symlink_to("../big")
    declare(where, dataset=["data"])
    before = inputs_hash(where)
    os.utime(tmp_path / "big" / "x.txt", (0, 0))
    assert inputs_hash(where) == before
    (tmp_path / "big" / "x.txt").write_text("6")
    assert inputs_hash(where) != before


def test_a_second_plan_of_an_unchanged_workspace_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = declare(tmp_path / "w")
    (where / "table.bin").write_bytes(os.urandom(5 * MIB))
    monkeypatch.setattr(contents, "_SETTLED_NS", 0)
    first = plan(where)
    before = _bytes_read()
    assert plan(where).inputs == first.inputs
    assert _bytes_read() - before < MIB
    (where / "table.bin").write_bytes(os.urandom(5 * MIB))
    assert plan(where).inputs_hash != first.inputs_hash


def _bytes_read() -> int:
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["rchar"])


def test_a_file_rewritten_at_once_with_as_many_bytes_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    seen = set()
    for number in range(200):
        path.write_text(f"{number:03}")
        os.utime(path, ns=(10**18, 10**18))
        seen.add(contents.bytes_hash(str(path)))
    assert len(seen) == 200


_names = st.sampled_from(["a.py", "b.py", "sub/a.py", "data/x.txt", "c.yaml", "sub/p.md"])
_texts = st.sampled_from(
    [
        *(
            "x = 1\n",
            "x = 1  # one\n",
            "x =  1\n",
            "x = 2\n",
            '"""x"""\n',
            "'''x'''\n",
            '"""y"""\n',
            "x = (\n",
            "x = ( \n",
        ),
        *("", "a:\n  b: 1\n", "a:\n    b: 1\n", "x = 1\r\n"),
    ]
)
_folders = st.dictionaries(_names, _texts, max_size=4)


def _up_to_layout(files: Mapping[str, str]) -> dict[str, object]:
    return {name: (name.endswith(".py") and tree_hash(text.encode())) or text for name, text in files.items()}


@settings(max_examples=60, deadline=None)
@given(_folders, _folders)
def test_inputs_are_equal_just_where_all_files_are_up_to_python_layout(
    one: Mapping[str, str], other: Mapping[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as made:
        found = []
        for name, files in (("one", one), ("other", other)):
            where = declare(Path(made) / name)
            for path, text in files.items():
                (where / path).parent.mkdir(exist_ok=True)
                (where / path).write_bytes(text.encode())
            found.append(inputs_hash(where))
        assert (found[0] == found[1]) == (_up_to_layout(one) == _up_to_layout(other))


# ----------------------------------------------------------------------------------------- between plan and copy


def test_what_changes_between_plan_and_copy_is_known_by_what_was_copied(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "m.py").write_text("x = 1\n")
    (where / "gone.txt").write_text("x")
    planned = plan(where)
    (where / "m.py").write_text("x = 2\n")
    (where / "gone.txt").unlink()
    made = make_copy(planned, tmp_path / "run", "")
    assert made.inputs == plan(where).inputs
    assert made.inputs_hash not in {planned.inputs_hash, ""}
    recorded = read_made(tmp_path / "run")
    assert recorded is not None
    assert (recorded.inputs, recorded.inputs_hash) == (made.inputs, made.inputs_hash)


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "x").write_text("x")
    planned = plan(where)
    (where / "x").unlink()
    os.mkfifo(where / "x")
    with pytest.raises(OSError, match="not a regular file"):
        make_copy(planned, tmp_path / "run", "")
    assert not (tmp_path / "run" / "code").exists()


def test_a_snapshot_is_a_workspace_of_its_own(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    (where / "m.py").write_text("x = 1\n")
    snapshot(load_workspace(where), tmp_path / "copy", TRAIN)
    assert inputs_hash(tmp_path / "copy") == inputs_hash(where)
    assert not (tmp_path / "inputs.json").exists()


# ------------------------------------------------------------------------------------ what a run does to it


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and bytes of all that a folder holds but results.tsv."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
        if path.name not in {"results.tsv", "train.py"} and ".git" not in path.parts
    }


KINDS = {
    "tracked": "config.json",
    "untracked": "notes.txt",
    "a checkpoint": "ckpt.pt",
    "an ignored folder": "small/x.txt",
    "a large ignored folder": "archive/x.bin",
    "a checkpoint in an ignored folder": "out/ckpt.pt",
    "a protected file": "eval/score.py",
    "declared data": "corpus.bin",
    "a link to a file": "one.txt",
    "a link to a folder": "far/x.txt",
    "a neighbour": "../input/x.txt",
    "a submodule": "vendor/lib.py",
}
DEEDS = {
    "truncates": "open(NAME, 'wb').close()",
    "overwrites": "open(NAME, 'r+b').write(b'harm')",
    "deletes": "os.remove(NAME)",
    "chmods": "os.chmod(NAME, 0o700)",
    "replaces": "open('tmp', 'w').write('harm'); os.replace('tmp', NAME)",
    "adds beside": "open(os.path.join(os.path.dirname(NAME), 'added'), 'w').write('x')",
    "writes and hides it": "t = os.stat(NAME).st_mtime_ns; open(NAME, 'r+b').write(b'h'); os.utime(NAME, ns=(t, t))",
}


@pytest.fixture
def full(workspace: Path, tmp_path: Path) -> Path:
    """A workspace with a file of each kind."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "lib.py").write_text("V = 3\n")
    commit_all(source)
    commit_all(workspace, "small/\narchive/\nout/\n*.pt\n*.bin\n")
    git(workspace, "submodule", "add", "-q", str(source), "vendor")
    for name in ("config.json", "eval/score.py", "small/x.txt"):
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).write_text("start")
    for name in ("input/x.txt", "outer/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("start")
    (workspace / "one.txt").symlink_to("../outer/x.txt")
    (workspace / "far").symlink_to("../outer")
    commit_all(workspace)
    (workspace / "notes.txt").write_text("start")
    for name in ("ckpt.pt", "out/ckpt.pt", "corpus.bin"):
        large(workspace / name)
    large(workspace / "archive" / "x.bin", 65 * MIB)
    config = workspace / "loopgraph.toml"
    text = config.read_text().replace('protected = ["prepare.py"]', 'protected = ["prepare.py", "eval"]')
    config.write_text(text + 'dataset = ["corpus.bin"]\nlink = ["../input"]\n')
    return workspace


async def test_nothing_a_run_does_reaches_the_users_files_unnoticed(
    graph: LoopGraph, full: Path, tmp_path: Path
) -> None:
    """Each deed on each kind, one run a deed, so that a run in which nothing is linked stays a number."""
    linked = {"archive/x.bin", "corpus.bin", "far/x.txt", "../input/x.txt"}
    outside = [tmp_path / "input", tmp_path / "outer"]
    before = [state_of(folder) for folder in (full, *outside)]
    copied = [name for name in KINDS.values() if name not in linked and not name.startswith("eval/")]
    for deed in DEEDS.values():
        done = await run(graph, f"for NAME in {copied!r}: exec({deed!r})")
        assert done.outcome is OutcomeKind.FINISHED, done.reason
        assert [state_of(folder) for folder in (full, *outside)] == before
        assert state_of(Path(done.run_dir or "") / "code" / full.name) != before[0]


@pytest.mark.parametrize("deed", list(DEEDS))
async def test_a_run_that_changes_what_is_linked_is_void_and_names_it(
    graph: LoopGraph, full: Path, tmp_path: Path, deed: str
) -> None:
    names = ["../input/x.txt", "corpus.bin"] if deed in {"truncates", "chmods"} else ["../input/x.txt"]
    let_write(full)
    done = await run(graph, f"for NAME in {names!r}: exec({DEEDS[deed]!r})")
    assert done.outcome is OutcomeKind.VOID
    assert "YOUR FILES CHANGED" in done.reason
    assert all(name.removesuffix("/x.txt") in done.reason for name in names)
    assert done.metric_value is None


@pytest.mark.skipif(not confinement.is_allowed(), reason="this system refuses mount namespaces")
@pytest.mark.parametrize("deed", list(DEEDS))
async def test_what_is_linked_cannot_be_changed_where_the_system_allows(
    graph: LoopGraph, full: Path, tmp_path: Path, deed: str
) -> None:
    before = [state_of(folder) for folder in (full, tmp_path / "input", tmp_path / "outer")]
    done = await run(graph, f"for NAME in ['../input/x.txt', 'corpus.bin', 'far/x.txt']: exec({DEEDS[deed]!r})")
    assert [state_of(folder) for folder in (full, tmp_path / "input", tmp_path / "outer")] == before
    if done.outcome is not OutcomeKind.FINISHED:  # it may have replaced its link, which is its own
        assert done.outcome is OutcomeKind.INTERRUPTED, done.reason
        assert "read-only: let the program write to another folder" in done.reason


def let_write(folder: Path) -> None:
    """Declare that runs may write what is only linked, as on systems that refuse namespaces."""
    with (folder / "loopgraph.toml").open("a") as config:
        config.write("confine = false\n")


async def run(graph: LoopGraph, code: str) -> Any:
    patch = f'@@ @@\n-MISHAP = ""\n+MISHAP = {code!r}\n'
    return await graph.run_experiment(wait_s=50.0, patch=patch, replicate=True)


@pytest.mark.parametrize(
    "code",
    [
        "open('eval/score.py', 'a').write('#')",
        "os.remove('eval/score.py')",
        "open('eval/json.py', 'w').write('')",
        "os.makedirs('eval/deep'); open('eval/deep/x', 'w').close()",
        "os.rename('eval', 'other')",
    ],
)
async def test_a_protected_folder_is_protected_with_all_it_holds(graph: LoopGraph, full: Path, code: str) -> None:
    done = await run(graph, code)
    assert done.outcome is OutcomeKind.VOID
    assert "changed a protected file (eval/" in done.reason


async def test_a_file_that_the_copy_lacks_is_named_with_what_to_declare(graph: LoopGraph, full: Path) -> None:
    config = full / "loopgraph.toml"
    config.write_text(config.read_text().replace('link = ["../input"]', ""))
    done = await run(graph, "open('../input/x.txt')")
    assert done.outcome is OutcomeKind.INTERRUPTED  # no fault of the program
    assert "exists in your folder, not in the run's copy" in done.reason
    assert "`link`" in done.reason


async def test_what_a_run_without_its_supervisor_did_is_said(graph: LoopGraph, full: Path) -> None:
    let_write(full)
    started = await graph.run_experiment(
        wait_s=0,
        patch='@@ @@\n-SLEEP_S = 0.05\n-STEPS = 3\n-MISHAP = ""\n+SLEEP_S = 0.05\n+STEPS = 3\n'
        "+MISHAP = \"open('../input/x.txt', 'w').close(); time.sleep(600)\"\n",
    )
    for _ in range(300):
        if (full.parent / "input" / "x.txt").read_text() == "":
            break
        await graph.get_experiment(started.experiment_id, wait_s=0.1)
    row = await experiments.get_experiment(graph.db, started.experiment_id)
    assert row is not None
    assert row.supervisor is not None
    os.kill(row.supervisor.pid, signal.SIGKILL)
    for _ in range(300):
        ended = await graph.get_experiment(started.experiment_id, wait_s=0.1)
        if ended.outcome is not None:
            break
    assert ended.outcome is OutcomeKind.INTERRUPTED
    assert "YOUR FILES CHANGED since it began: ../input/x.txt" in ended.reason


async def test_large_copies_that_the_run_left_alone_take_no_room_afterwards(graph: LoopGraph, full: Path) -> None:
    done = await run(graph, "open('out/ckpt.pt', 'wb').write(b'mine')")
    code = Path(done.run_dir or "") / "code" / full.name
    assert (code / "ckpt.pt").is_symlink() or _shares_blocks(code / "ckpt.pt")
    assert not (code / "out" / "ckpt.pt").is_symlink()
    assert (code / "out" / "ckpt.pt").read_bytes() == b"mine"


def _shares_blocks(path: Path) -> bool:
    """A file system that shares blocks has nothing to give back."""
    made = read_made(path.parent.parent.parent)
    return made is not None and path.name not in made.copied


def test_a_copy_that_the_run_changed_is_left_to_it(tmp_path: Path) -> None:
    where = declare(tmp_path / "w")
    large(where / "a.bin")
    code = copy(where, tmp_path / "run")
    (code / "a.bin").write_bytes(b"mine")
    made = read_made(tmp_path / "run")
    assert made is not None
    drop_copies(tmp_path / "run", made)
    assert (code / "a.bin").read_bytes() == b"mine"
    assert stat.S_ISREG((code / "a.bin").lstat().st_mode)


def test_an_ignored_file_of_a_linked_folder_may_change(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    where = declare(tmp_path / "w", link=["../input"], ignore=["*.cache"])
    code = copy(where, tmp_path / "run")
    made = read_made(tmp_path / "run")
    assert made is not None
    (code / "../input/tokens.cache").write_text("x")
    assert changed_links(made) == []
    (code / "../input/tokens.bin").write_text("x")
    assert changed_links(made) == ["../input/tokens.bin"]
    (tmp_path / "input" / "tokens.bin").unlink()
    (tmp_path / "input" / "tokens.cache").unlink()
    (tmp_path / "input").rmdir()
    assert changed_links(made) == ["../input"]


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("FileNotFoundError: [Errno 2] No such file or directory: '../input/t.csv'", ["../input/t.csv"]),
        ("cat: data/x.txt: No such file or directory", ["data/x.txt"]),
        ("sh: 1: cannot open data/x.txt: No such file", ["data/x.txt"]),
        ("ModuleNotFoundError: No module named 'tools.show'", ["tools/show.py"]),
        ("Error: Cannot find module 'dep'", ["node_modules/dep"]),
        ("ls: cannot access \u2018data/x.txt\u2019: No such file or directory", ["data/x.txt"]),
        ("Error: ENOENT: no such file or directory, open 'CODE/data/x.txt'", ["data/x.txt"]),
        ("No such file or directory: 'never-there.txt'", []),
        ("No such file or directory: 'train.py'", []),
        ("loaded data/x.txt", []),
        ("error: .git/HEAD: No such file or directory", []),
        ("No such file or directory: '" + "x" * 10_000 + "'", []),
        ("No such file: '\0'" + "'" * 1_000, []),
    ],
)
def test_a_file_that_only_the_user_has_is_found_in_the_log(tmp_path: Path, log: str, found: list[str]) -> None:
    where, code = tmp_path / "w", tmp_path / "run" / "code"
    for name in ("../input/t.csv", "data/x.txt", "tools/show.py", "node_modules/dep/index.js", ".git/HEAD", "train.py"):
        (where / name).resolve().parent.mkdir(parents=True, exist_ok=True)
        (where / name).resolve().write_text("x")
    code.mkdir(parents=True)
    (code / "train.py").write_text("x")
    assert only_with_the_user(log.replace("CODE", str(code)), where, code) == found
