"""The command line as people and programs use it: real processes."""

import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from loopgraph_mcp.cli import clients
from loopgraph_mcp.config import bundled, read_settings
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.ingest.packs import read_pack

SLOW = "@@ @@\n-SLEEP_S = 0.05\n-STEPS = 3\n+SLEEP_S = 0.2\n+STEPS = 300\n"
LOOPGRAPH = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()"]


def loopgraph(
    environment: dict[str, str], cwd: Path, *arguments: str, status: int = 0, stdin: str | None = None
) -> str:
    done = subprocess.run(
        [*LOOPGRAPH, *arguments],
        env={**environment, "COLUMNS": "200", "HOME": str(cwd.parent)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        input=stdin,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def as_json(environment: dict[str, str], cwd: Path, *arguments: str, status: int = 0) -> Any:
    done = subprocess.run(
        [*LOOPGRAPH, *arguments, "--json"],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_loop_at_a_terminal(environment: dict[str, str], workspace: Path) -> None:
    (workspace / "train.py").write_text("MATRIX_LR = 0.04\n" + (workspace / "train.py").read_text())
    assert "no experiments here yet" in loopgraph(environment, workspace, "results")
    assert "baseline" in loopgraph(environment, workspace, "run", "-d", "start")
    assert "muon-lr" in loopgraph(environment, workspace, "search", "muon", "rate")
    edit = as_json(environment, workspace, "edit", "muon-lr", "--set", "rate=0.01")
    assert "+MATRIX_LR = 0.01" in edit["diff"]
    assert "+MATRIX_LR" in loopgraph(environment, workspace, "edit", "muon-lr", "--set", "rate=0.01")
    run = as_json(environment, workspace, "run", "--edit", edit["edit_id"], "-d", "muon")
    assert run["outcome"] == "finished"
    listed = as_json(environment, workspace, "results")
    assert [each["description"] for each in listed] == ["start", "muon"]
    table = loopgraph(environment, workspace, "results")
    assert table.index("start") < table.index("muon")
    assert "baseline" in loopgraph(environment, workspace, "status", "--once")
    traced = loopgraph(environment, workspace, "trace", run["experiment_id"])
    assert "arxiv:2502.16982" in traced


def test_a_patch_from_stdin_is_run_and_a_failure_ends_with_its_log(
    environment: dict[str, str], workspace: Path
) -> None:
    patch = '@@ @@\n-MISHAP = ""\n+MISHAP = "raise ValueError(\'on purpose\')"\n'
    shown = loopgraph(environment, workspace, "run", "--patch", "-", status=1, stdin=patch)
    assert "crashed" in shown
    assert "ValueError: on purpose" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["edit", "swigluu"], "did you mean swiglu"),
        (["edit", "gqa"], "a number of key and value heads"),
        (["run", "--edit", "edit_x"], "`loopgraph edit …` makes one"),
        (["search", "x", "-w", "/nowhere"], "not a folder"),
        (["init", "/"], "not empty"),
        (["trace", "exp_x"], "trace takes the id of an experiment"),
    ],
)
def test_errors_are_one_line_that_names_the_next_step(
    environment: dict[str, str], workspace: Path, arguments: list[str], told: str
) -> None:
    shown = loopgraph(environment, workspace, *arguments, status=1)
    assert told in " ".join(shown.split())
    assert "Traceback" not in shown


def test_wrong_usage_shows_how(environment: dict[str, str], workspace: Path) -> None:
    assert "KNOB=VALUE" in loopgraph(environment, workspace, "edit", "gqa", "--set", "nonsense", status=2)
    assert "claude-desktop" in loopgraph(environment, workspace, "config", "emacs", status=2)
    assert "Usage" in loopgraph(environment, workspace, "--help")
    assert "0.1.0" in loopgraph(environment, workspace, "--version")


def test_ctrl_c_cancels_the_run_and_detach_leaves_it(environment: dict[str, str], workspace: Path) -> None:
    (workspace / "slow.patch").write_text(SLOW)
    process = subprocess.Popen(
        [*LOOPGRAPH, "run", "--patch", "slow.patch"],
        env=environment,
        cwd=workspace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        wait_for(environment, workspace, "running")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert wait_for(environment, workspace, "done")["outcome"] == "cancelled"
    started = as_json(environment, workspace, "run", "--patch", "slow.patch", "--detach")
    assert wait_for(environment, workspace, "running")["experiment_id"] == started["experiment_id"]
    assert "cancelled" in loopgraph(environment, workspace, "cancel", started["experiment_id"])


def wait_for(environment: dict[str, str], workspace: Path, state: str) -> dict[str, Any]:
    for _ in range(60):
        listed = as_json(environment, workspace, "status")
        if listed and listed[0]["state"] == state:
            newest: dict[str, Any] = listed[0]
            return newest
        time.sleep(0.1)
    raise AssertionError(f"never {state}: {listed}")


def test_a_new_workspace_and_an_existing_loop_are_initialised(environment: dict[str, str], tmp_path: Path) -> None:
    shown = loopgraph(environment, tmp_path, "init", "fresh", "--budget", "20", "--no-prepare")
    assert "created from the bundled trainer" in shown
    assert "budget_s = 20" in (tmp_path / "fresh" / "loopgraph.toml").read_text()
    loop = tmp_path / "loop"
    loop.mkdir()
    (loop / "train.py").write_text("print('val_bpb: 1')\n")
    (loop / "prepare.py").write_text("TIME_BUDGET = 60\n")
    assert "existing" in loopgraph(environment, loop, "init")


def test_every_client_gets_an_entry_that_starts_the_server(environment: dict[str, str], workspace: Path) -> None:
    for client in clients.CLIENTS.values():
        printed = subprocess.run(
            [*LOOPGRAPH, "config", client.id],
            env=environment,
            cwd=workspace,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        parsed = tomllib.loads(printed) if client.id == "codex" else json.loads(printed)
        entry = parsed[client.key]["loopgraph"]
        assert entry["env"]["LOOPGRAPH_WORKSPACE"] == str(workspace)
        done = subprocess.run(
            [entry["command"], *entry["args"], "--version"], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("loopgraph-mcp")


def test_an_entry_is_written_beside_what_stands_there(environment: dict[str, str], workspace: Path) -> None:
    file = workspace / ".cursor" / "mcp.json"
    file.parent.mkdir()
    file.write_text('{"mcpServers": {"other": {"command": "x"}}, "kept": "é"}')
    assert "written" in loopgraph(environment, workspace, "config", "cursor", "--write")
    settings = json.loads(file.read_text())
    assert settings["kept"] == "é"
    assert set(settings["mcpServers"]) == {"other", "loopgraph"}
    assert "unchanged" in loopgraph(environment, workspace, "config", "cursor", "--write")
    file.write_text("{broken")
    assert "not JSON" in loopgraph(environment, workspace, "config", "cursor", "--write", status=1)
    assert file.read_text() == "{broken"
    for client in ("claude-desktop", "claude-code", "vscode", "codex"):
        assert "written" in loopgraph(environment, workspace, "config", client, "--write")
    doctor = {
        check["name"]: check for check in as_json({**environment, "HOME": str(workspace.parent)}, workspace, "doctor")
    }
    assert doctor["clients"]["level"] == "ok"
    assert "Codex" in doctor["clients"]["found"]


URL = "http://127.0.0.1:8848/mcp"


@pytest.mark.parametrize(
    ("client", "token"), [("claude-code", "${LOOP"), ("cursor", "${env:LOOP"), ("vscode", "${env:LOOP")]
)
def test_an_entry_of_a_server_elsewhere_holds_no_token(tmp_path: Path, client: str, token: str) -> None:
    made = clients.remote_entry(clients.CLIENTS[client], URL)
    assert made["url"] == URL
    assert made["headers"]["Authorization"].startswith(f"Bearer {token}")
    assert clients.write(clients.CLIENTS[client], made, tmp_path / "mcp.json")


def test_codex_calls_a_server_elsewhere_and_claude_desktop_cannot(tmp_path: Path) -> None:
    codex = clients.CLIENTS["codex"]
    made = clients.remote_entry(codex, URL)
    assert clients.write(codex, made, tmp_path / "config.toml")
    written = tomllib.loads((tmp_path / "config.toml").read_text())["mcp_servers"]["loopgraph"]
    assert (written["url"], written["bearer_token_env_var"]) == (URL, "LOOPGRAPH_TOKEN")
    assert "--bearer-token-env-var LOOPGRAPH_TOKEN" in (clients.as_command(codex, made) or "")
    with pytest.raises(ConfigError, match="--url"):
        clients.remote_entry(clients.CLIENTS["claude-desktop"], URL)


@pytest.mark.parametrize(
    ("file", "text", "there"),
    [
        (".claude.json", '{"projects": {"/x": {"mcpServers": {"loopgraph": {"command": "x"}}}}}', True),
        (".claude.json", '{"projects": {"/home/me/loopgraph": {"mcpServers": {}}}}', False),
        (".claude/plugins/installed_plugins.json", '{"plugins": {"loopgraph@lab": []}}', True),
    ],
)
def test_an_entry_that_the_client_keeps_itself_is_found(tmp_path: Path, file: str, text: str, *, there: bool) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert clients.mentions(clients.CLIENTS["claude-code"], tmp_path, tmp_path / "elsewhere") is there


@pytest.mark.parametrize(("typed", "offered"), [("config cl", "claude-code"), ("edit gq", "gqa"), ("tok", "token")])
def test_the_shell_completes(environment: dict[str, str], typed: str, offered: str) -> None:
    words = f"loopgraph {typed}"
    asked = {"_LOOPGRAPH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "import sys; sys.argv = ['loopgraph']; from loopgraph_mcp.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **asked}, capture_output=True, text=True, check=False
    )
    assert offered in done.stdout.split()


def test_codex_keeps_what_it_has_and_another_entry_is_not_replaced(tmp_path: Path) -> None:
    codex = clients.CLIENTS["codex"]
    made = clients.entry(codex, tmp_path, {"LOOPGRAPH_HOME": "/some/where"})
    assert made["env"]["LOOPGRAPH_HOME"] == "/some/where"
    file = tmp_path / "config.toml"
    file.write_text('model = "x"\n')
    assert clients.write(codex, made, file)
    assert not clients.write(codex, made, file)
    settings = tomllib.loads(file.read_text())
    assert settings["model"] == "x"
    assert settings["mcp_servers"]["loopgraph"]["command"] == made["command"]
    other = {**made, "command": "elsewhere"}
    with pytest.raises(ConfigError, match="remove it"):
        clients.write(codex, other, file)
    file.write_text("= broken")
    with pytest.raises(ConfigError, match="not TOML"):
        clients.write(codex, made, file)


def test_doctor_names_what_is_missing(environment: dict[str, str], workspace: Path, tmp_path: Path) -> None:
    found = {check["name"]: check for check in as_json(environment, workspace, "doctor")}
    assert found["ResearchFS"]["level"] == "ok"
    assert f"{len(read_pack(bundled('methodpacks')).methods)} methods" in found["ResearchFS"]["found"]
    assert found["workspace"]["level"] == "ok"
    assert found["completion"]["next_step"] == "loopgraph --install-completion"
    assert "no valid token" in found["tokens"]["found"]
    broken = {**environment, "LOOPGRAPH_DEVICE": "tpu", "LOOPGRAPH_WORKSPACE": str(tmp_path)}
    shown = loopgraph(broken, workspace, "doctor", status=1)
    assert "FAIL" in shown
    assert "LOOPGRAPH_DEVICE" in shown
    assert "loopgraph init" in shown


def test_doctor_shows_which_gpus_a_run_gets(environment: dict[str, str], workspace: Path, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\nfor n in 0 1 2; do echo "$n, NVIDIA H100, GPU-$n$n$n$n"; done\n')
    script.chmod(0o755)
    pinned = {
        **environment,
        "PATH": f"{script.parent}:{environment['PATH']}",
        "LOOPGRAPH_DEVICE": "",
        "CUDA_VISIBLE_DEVICES": "2,GPU-1111",
    }
    found = {check["name"]: check["found"] for check in as_json(pinned, workspace, "doctor")}
    assert found["device"] == "cuda: NVIDIA H100 x2 (cuda-2+GPU-1111); a run gets CUDA_VISIBLE_DEVICES=2,GPU-1111"
    with (workspace / "loopgraph.toml").open("a") as file:
        file.write("devices_per_run = 2\n")
    found = {check["name"]: check["found"] for check in as_json(pinned, workspace, "doctor")}
    assert found["device"] == "cuda: NVIDIA H100 x2 (cuda-2+GPU-1111); a run gets CUDA_VISIBLE_DEVICES=2,GPU-1111"
    few = {**pinned, "CUDA_VISIBLE_DEVICES": "2"}
    assert "devices_per_run is 2, but a run can get only GPU 2" in " ".join(
        loopgraph(few, workspace, "doctor", status=1).split()
    )


def test_settings_come_from_the_environment_and_say_what_is_wrong(tmp_path: Path) -> None:
    settings = read_settings({"LOOPGRAPH_HOME": "home", "LOOPGRAPH_DB": "", "LOOPGRAPH_LOG_LEVEL": "debug"}, tmp_path)
    assert settings.db_path == tmp_path / "home" / "loopgraph.db"
    assert settings.runs_dir == tmp_path / "home" / "runs"
    assert settings.log_level == "DEBUG"
    with pytest.raises(ConfigError, match="LOOPGRAPH_LOG_LEVEL"):
        read_settings({"LOOPGRAPH_LOG_LEVEL": "loud"}, tmp_path)
    with pytest.raises(ConfigError, match="a folder"):
        read_settings({"LOOPGRAPH_DB": str(tmp_path)}, tmp_path)


@pytest.mark.parametrize(("module", "heavy"), [("server", "torch numpy typer"), ("cli", "torch numpy mcp")])
def test_nothing_heavy_is_imported_before_it_is_needed(environment: dict[str, str], module: str, heavy: str) -> None:
    code = f"import sys, loopgraph_mcp.{module}; print([name for name in {heavy.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_store_that_cannot_be_opened_is_one_line(environment: dict[str, str], workspace: Path) -> None:
    file = workspace / "no.db"
    file.write_bytes(b"not a database" * 500)
    broken = {**environment, "LOOPGRAPH_DB": str(file)}
    shown = loopgraph(broken, workspace, "search", status=1)
    assert "no.db" in shown
    assert "LOOPGRAPH_DB" in shown
    done = subprocess.run(
        [sys.executable, "-m", "loopgraph_mcp"],
        env=broken,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )
    assert done.returncode != 0
    assert "no.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
