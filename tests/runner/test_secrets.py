"""Keys in the server's environment reach no run, no log, no row, no answer and no module of a workspace."""

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.agents.client import Server
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli import clients
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import OutcomeKind
from loopgraph_mcp.runner.environment import for_supervisor, for_training, is_secret
from loopgraph_mcp.runner.workspace import commit_program, head_commit, load_workspace, write_program
from tests.conftest import ROOT

PLANTED = "planted-4711"
SECRETS = {
    **dict.fromkeys(
        (
            *("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GITHUB_TOKEN", "GH_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
            *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "LOOPGRAPH_TOKEN", "SLURM_JWT"),
            *(
                "TORCH_HUB_TOKEN",
                "NCCL_PASSWORD",
                "XDG_SESSION_COOKIE",
                "PGPASSWORD",
                "NEVER_HEARD_OF",
                "SSH_AUTH_SOCK",
            ),
        ),
        PLANTED,
    ),
    "DATABASE_URL": f"postgres://me:{PLANTED}@db/x",
    "https_proxy": f"http://me:{PLANTED}@proxy:3128",
    "HTTP_PROXY": f"me:{PLANTED}@proxy:3128",
    "UV_INDEX_URL": f"https://{PLANTED}@pypi.example.org/simple",
    "HF_ENDPOINT": f"https://mirror.example.org/?token={PLANTED}",
    "CUDA_CACHE_PATH": f"https://mirror.example.org/x?sig=1&api_key={PLANTED}",
}
PASSED = {
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "1",
    "NCCL_DEBUG": "INFO",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HOME": "/data/hf",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "LOOPGRAPH_PROFILE": "smoke",
    "https_proxy": "http://proxy:3128",
    "XLA_FLAGS": "--xla_gpu_autotune_level=2",
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
    "OMP_NUM_THREADS": "4",
    "UV_INDEX_URL": "https://pypi.example.org/simple",
    "XDG_CACHE_HOME": "/data/cache",
}


def test_a_run_gets_what_it_needs_and_no_secret() -> None:
    assert for_training({**SECRETS, "PYTHONPATH": "/x", "COVERAGE_FILE": "/x"}) == {}
    assert for_training({**PASSED, "EDITOR": "vi"}) == PASSED
    assert for_supervisor({"PYTHONPATH": ":.:/x:here", "LOOPGRAPH_OAUTH_ISSUER": "x"}) == {"PYTHONPATH": "/x"}


def test_what_a_workspace_declares_is_passed_on_and_a_secret_only_where_it_is_named() -> None:
    given = {"MODEL_SIZE": "tiny", "WANDB_API_KEY": "x", "MIRROR": "https://me:x@mirror", "REST": "x"}
    names = ["MODEL_SIZE", "WANDB_API_KEY", "MIRROR", "ABSENT"]
    assert for_training(given, declared=names) == {"MODEL_SIZE": "tiny"}
    assert for_training(given, named=names) == {name: given[name] for name in names[:3]}


@given(st.dictionaries(st.sampled_from([*SECRETS, *PASSED, "EDITOR", "A_B"]), st.text(st.characters(codec="ascii"))))
def test_nothing_passes_that_is_on_no_list_or_holds_a_secret(environment: dict[str, str]) -> None:
    passed = for_supervisor(environment)
    assert all(environment[name] == value for name, value in passed.items())
    assert passed.keys() <= PASSED.keys() | {"HTTP_PROXY", "HF_ENDPOINT", "CUDA_CACHE_PATH"}
    assert not any(is_secret(name, value) for name, value in passed.items())


LOOKS_AROUND = """
import os
from pathlib import Path

def look(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\\0", b"\\n").decode()
    except OSError as error:
        return f"{type(error).__name__}"

def main():
    print("mine:", sorted(os.environ.items()))
    print("my supervisor's:", look(os.getppid()))
    if os.getuid() != 0:  # the superuser reads everything
        print("others':", [look(pid) for pid in os.listdir("/proc") if pid.isdigit()])
    print("val_bpb: 1.0")

main()
"""


def test_a_run_that_looks_around_finds_no_secret_of_the_server(environment: dict[str, str], workspace: Path) -> None:
    (workspace / "train.py").write_text(LOOKS_AROUND)
    done = subprocess.run(
        [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "run", "--json"],
        env={**environment, **SECRETS, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["outcome"] == "finished"
    log = (Path(answer["run_dir"]) / "run.log").read_text()
    assert "LOOPGRAPH_EXPERIMENT" in log  # it did print its own environment
    assert PLANTED not in done.stdout + done.stderr
    files = [file for file in workspace.parent.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert [file for file in files if PLANTED.encode() in file.read_bytes()] == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hides a process's memory")
@pytest.mark.parametrize("hide", ["hide_memory()", "None"])
def test_a_process_that_hides_its_memory_shows_its_environment_to_none_of_its_user(hide: str) -> None:
    become = "import ctypes, os\nif os.getuid() == 0: os.setuid(65534)\nctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
    hidden = hide != "None"
    program = f"from loopgraph_mcp.runner.kernel import hide_memory\n{become}print({hide}, flush=True); input()"
    environment = {**os.environ, "PLANTED": PLANTED}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == f"{hidden or None}\n"
        look = f"{become}print(open('/proc/{process.pid}/environ').read())"
        seen = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
        process.stdin.close()
    assert (PLANTED in seen.stdout, "PermissionError" in seen.stderr) == (not hidden, hidden)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hides a process's memory")
@pytest.mark.parametrize(
    "start",
    [
        "sys.argv[1:] = ['--version']; runpy.run_module('loopgraph_mcp', run_name='__main__')",
        "sys.argv[1:] = ['--version']; from loopgraph_mcp.cli.main import main; main()",
        "sys.argv[1:] = ['exp_none']; runpy.run_module('loopgraph_mcp.api.supervisor', run_name='__main__')",
    ],
)
def test_every_program_hides_its_memory(environment: dict[str, str], workspace: Path, start: str) -> None:
    tell = "atexit.register(lambda: print('dumpable', ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import atexit, ctypes, runpy, sys\n{tell}\n{start}"],
        env=environment,
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("dumpable 0\n"), done.stderr


async def test_what_pass_env_names_reaches_the_training(
    graph: LoopGraph, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (workspace / "loopgraph.toml").open("a") as file:
        file.write('pass_env = ["WANDB_API_KEY", "PYTHONPATH"]\n')
    monkeypatch.setenv("WANDB_API_KEY", PLANTED)
    monkeypatch.setenv("HF_TOKEN", "another")
    (workspace / "train.py").write_text(LOOKS_AROUND)
    answer = await graph.run_experiment(wait_s=50)
    log = (Path(answer.run_dir or "") / "run.log").read_text()
    assert f"('WANDB_API_KEY', '{PLANTED}')" in log
    assert "another" not in log


async def test_a_secret_among_the_declared_variables_is_stored_as_its_hash(
    graph: LoopGraph, settings: Settings, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (workspace / "loopgraph.toml").open("a") as file:
        file.write('context_env = ["WANDB_API_KEY"]\n')
    monkeypatch.setenv("WANDB_API_KEY", PLANTED)
    first = await graph.run_experiment(wait_s=50)
    assert first.outcome is OutcomeKind.FINISHED
    monkeypatch.setenv("WANDB_API_KEY", f"{PLANTED} no more")
    assert (await graph.run_experiment(wait_s=50)).experiment_id != first.experiment_id
    with sqlite3.connect(settings.db_path) as conn:
        assert PLANTED not in "\n".join(conn.iterdump())
    conn.close()
    made = clients.entry(clients.CLIENTS["cursor"], workspace, dict(os.environ), context_env=("WANDB_API_KEY",))
    assert PLANTED not in json.dumps(made)


TELLS = "import os\nopen({path!r}, 'a').write(__name__ + str(sorted(os.environ)))\nraise SystemExit(3)\n"


@pytest.fixture
def hostile(workspace: Path, tmp_path: Path) -> Path:
    """A workspace that holds modules by the names that LoopGraph and a trainer import; the file that they write."""
    told = tmp_path / "told"
    for name in ("torch", "tokenizers", "mcp", "psutil", "platformdirs", "typing_extensions", "loopgraph_mcp"):
        (workspace / f"{name}.py").write_text(TELLS.format(path=str(told)))
    return told


def test_doctor_runs_no_module_of_a_workspace(environment: dict[str, str], workspace: Path, hostile: Path) -> None:
    script = "import sys; sys.path.pop(0)\nfrom loopgraph_mcp.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, "doctor", "--json"],
        env={**environment, **SECRETS, "PYTHONPATH": os.pathsep.join(["", ".", *sys.path])},
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert {check["name"] for check in json.loads(done.stdout)} >= {"trainer"}
    assert not hostile.exists()


def test_doctor_asks_a_workspaces_python_without_secrets(
    environment: dict[str, str], workspace: Path, tmp_path: Path
) -> None:
    python = workspace / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n(pwd; env) > {tmp_path}/seen\n")
    python.chmod(0o755)
    subprocess.run(
        [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "doctor"],
        env={**environment, **SECRETS},
        cwd=workspace,
        check=False,
        capture_output=True,
    )
    seen = (tmp_path / "seen").read_text()
    assert "PATH=" in seen
    assert PLANTED not in seen
    assert str(workspace) not in seen.splitlines()[0]


async def test_an_agents_server_imports_nothing_of_the_workspace(
    environment: dict[str, str], workspace: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    async with Server(environment) as server:
        assert "search_methods" in {tool.name for tool in await server.tools()}
    assert not hostile.exists()  # noqa: ASYNC240 - a stat is no wait


def test_a_server_started_as_a_module_in_a_workspace_imports_nothing_of_it(
    environment: dict[str, str], workspace: Path, hostile: Path
) -> None:
    (workspace / "loopgraph_mcp.py").unlink()  # Python itself would take that one
    root = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "loopgraph_mcp", "--version"],
        env={**environment, "PYTHONPATH": root},
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("loopgraph-mcp "), done.stderr
    assert not hostile.exists()


async def test_a_supervisor_imports_nothing_of_a_runs_folder(graph: LoopGraph, workspace: Path, hostile: Path) -> None:
    program = (workspace / "train.py").read_text()
    # what a run leaves in the folder above its own, where its supervisor was started, is imported by none
    leave = "import shutil; [shutil.copy(each, '..') for each in ('mcp.py', 'psutil.py', 'loopgraph_mcp.py')]\n"
    (workspace / "train.py").write_text(leave + program)
    with (workspace / "loopgraph.toml").open("a") as file:
        file.write("pattern = 'val_bpb: +([0-9.]+)'\n")
    assert (await graph.run_experiment(wait_s=50)).outcome is OutcomeKind.FINISHED
    assert not hostile.exists()  # noqa: ASYNC240 - a stat is no wait


def test_git_commits_without_hooks_signatures_and_secrets(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    spy = tmp_path / "spy"
    spy.write_text(f'#!/bin/sh\n(echo "$0 $@"; env) >> {told}\ncat\n')
    spy.chmod(0o755)
    (workspace / ".gitattributes").write_text("*.py filter=spy diff=spy\n")
    for command in (
        "init -q",
        "config user.name Test",
        "config user.email test@localhost",
        f"config gpg.program {spy}",
        "add -A",
        "commit -qm start",
        *(f"config {key} {value}" for key, value in (
            ("commit.gpgsign", "true"), ("core.editor", spy), ("core.fsmonitor", spy), ("core.pager", spy),
            ("diff.external", spy), ("diff.spy.textconv", spy), ("diff.spy.command", spy),
            ("filter.spy.clean", spy), ("filter.spy.smudge", spy), ("credential.helper", spy),
        )),
    ):  # fmt: skip
        subprocess.run(["git", *command.split()], cwd=workspace, check=True)
    hooks = workspace / ".git" / "hooks"
    for name in ("pre-commit", "commit-msg", "post-commit", "prepare-commit-msg", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\necho hook {name} >> {told}\nexit 1\n")
        (hooks / name).chmod(0o755)
    for name, value in {**SECRETS, "GIT_DIR": str(tmp_path), "GIT_EXTERNAL_DIFF": str(spy)}.items():
        monkeypatch.setenv(name, value)
    where = load_workspace(workspace)
    text = where.read_program()
    told.unlink(missing_ok=True)
    assert write_program(where, text + "# kept\n", expected=text)
    commit = commit_program(where, "kept")
    assert commit is not None
    assert commit == head_commit(workspace)
    filtered = told.read_text()
    assert PLANTED not in filtered
    ran = {line.strip() for line in filtered.splitlines() if line.startswith(("hook", str(spy)))}
    assert ran == {str(spy)}  # the filter alone, which gets no argument: it makes what is committed, and finds no key


def test_a_pass_env_that_is_no_list_of_names_is_refused(workspace: Path) -> None:
    config = workspace / "loopgraph.toml"
    config.write_text(textwrap.dedent(config.read_text()) + 'pass_env = "HF_TOKEN"\n')
    with pytest.raises(Exception, match="pass_env"):
        load_workspace(workspace)
