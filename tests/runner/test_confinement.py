"""What a run sees read-only, where the system allows, and that a run where it does not is compared as before."""

import asyncio
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.models import OutcomeKind
from loopgraph_mcp.runner import confinement
from loopgraph_mcp.runner.confinement import Own, View, views_of
from loopgraph_mcp.runner.inputs import Made, Stamp
from loopgraph_mcp.runner.processes import start_training

needs_namespaces = pytest.mark.skipif(not confinement.is_allowed(), reason="this system refuses mount namespaces")
_DROP_FROM_BOUNDS, _SYS_ADMIN = 24, 21  # linux/prctl.h, linux/capability.h

# In a process of its own, so that it can be another user's: what a run may write, as words of its log.
AS_USER = """
import json, os, sys
from pathlib import Path
from loopgraph_mcp.runner import confinement, processes
told = json.loads(sys.argv[1])
if told["user"]:
    os.setgroups([]), os.setgid(told["user"]), os.setuid(told["user"])
os.chdir("/")
if not confinement.is_allowed():
    print("not allowed")
    sys.exit()
views = [confinement.View(path, is_writable) for path, is_writable in told["views"]]
log = Path(told["code"], "log")
command = ["/bin/sh", "-c", told["script"]]
child = processes.start_training(command, Path(told["code"]), {"PATH": "/usr/bin:/bin"}, log, views)
child.wait()
print(log.read_text())
print("mounts left:", told["code"] in Path("/proc/mounts").read_text())
"""


def made(linked: Mapping[str, Path], ignore: tuple[str, ...] = ()) -> Made:
    return Made("code", 0, "", {}, {path: Stamp(str(to), "seen") for path, to in linked.items()}, {}, ignore, ())


@pytest.fixture
def own(tmp_path: Path) -> Own:
    """LoopGraph's folder with a store, another run, and the run that is looked at."""
    home = tmp_path / "home"
    for run in ("this", "other"):
        (home / "runs" / run / "code").mkdir(parents=True)
        (home / "runs" / run / "outcome.json").touch()
    (home / "loopgraph.db").touch()
    return Own(home, home / "loopgraph.db", home / "runs" / "this", ("outcome.json",))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("cache", "wandb", "deep"):
        (folder / name).mkdir(parents=True)
    (folder / "x.bin").write_text("theirs")
    return folder


@pytest.mark.parametrize(
    ("ignore", "views"),
    [
        ((), {"": False}),
        (("*.log", "wandb"), {"": False, "wandb": True}),
        (("data/cache",), {"": False, "cache": True}),
        (("other/cache", "elsewhere/*.txt"), {"": False}),
        (("data/not-there-yet",), {}),
        (("data/*.lock",), {}),
        (("data/deep/*.lock",), {}),
        (("**/*.lock",), {}),
        (("d*/x",), {}),
    ],
)
def test_what_ignore_names_in_linked_data_may_be_written(
    own: Own, data: Path, tmp_path: Path, ignore: tuple[str, ...], views: dict[str, bool]
) -> None:
    found = views_of(own, made({"data": data}, ignore), tmp_path / "workspace", {})
    seen = {os.path.relpath(each.path, data): each.is_writable for each in found if each.path.startswith(str(data))}
    assert seen == {name or ".": can for name, can in views.items()}


def test_folders_that_programs_need_stay_writable_wherever_they_are(own: Own, data: Path, tmp_path: Path) -> None:
    workspace, cache = own.home / "workspace", own.home / "cache"
    for folder in (workspace, cache):
        folder.mkdir()
    linked = {"up": tmp_path, "/dev": Path("/dev"), "system": Path("/"), "data": data}
    views = views_of(own, made(linked), workspace, {"HF_HOME": str(cache), "HOME": str(tmp_path), "X": "/a\0b"})
    assert [each.path for each in views if each.path in {"/", "/dev", "/proc"}] == []
    can = {each.path: each.is_writable for each in views}
    assert can.get(str(tmp_path)) is not False  # it is the home folder of the user
    assert can[str(own.home)] is False
    assert can[str(data)] is False
    assert can[str(workspace)]
    assert can[str(cache)]
    assert can[str(own.run_dir)]
    assert can[str(own.run_dir / "outcome.json")] is False
    assert str(own.db_path) not in can  # its folder is read-only


def test_a_store_outside_of_its_folder_is_read_only_by_itself(own: Own, tmp_path: Path) -> None:
    store = tmp_path / "elsewhere" / "mine.db"
    store.parent.mkdir()
    store.touch()
    views = views_of(Own(own.home, store, own.run_dir), made({}), tmp_path / "workspace", {})
    assert View(str(store), is_writable=False) in views
    assert View(str(store.parent), is_writable=False) not in views


@needs_namespaces
@pytest.mark.parametrize("user", [0, 65534])
def test_a_training_writes_its_own_folder_and_none_of_these(user: int) -> None:
    if user and os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder).resolve()
        for name in ("data", "home/runs/this/code", "home/runs/other"):
            (base / name).mkdir(parents=True)
        for path in [base, *base.rglob("*")]:
            path.chmod(0o777)
        code = base / "home" / "runs" / "this" / "code"
        (code / "linked").symlink_to(base / "data")
        script = f"""
            for file in linked/x {base}/data/x ../../other/x ../../../x {base}/home/x \\
                        mine ../mine {base}/mine /dev/shm/mine-$$ /dev/null; do
                (echo written > $file) 2>/dev/null && echo "wrote $file" || echo "refused $file"
            done
            rm -f /dev/shm/mine-$$; echo user $(id -u)
        """
        views = [(base / "home", False), (base / "data", False), (code.parent, True)]
        told = {
            "user": user, "code": str(code), "script": script, "views": [(str(path), can) for path, can in views]
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", AS_USER, json.dumps(told)], capture_output=True, text=True, check=True
        )
        if done.stdout.startswith("not allowed"):
            pytest.skip("this system refuses user namespaces")
        words = done.stdout.split()
        wrote = [words[at + 1] for at, word in enumerate(words) if word == "wrote"]
        assert [each.split("-")[0] for each in wrote] == [
            "mine", "../mine", f"{base}/mine", "/dev/shm/mine", "/dev/null",
        ]  # fmt: skip
        assert f"user {user or os.geteuid()}" in done.stdout
        assert "mounts left: False" in done.stdout
        assert not list((base / "data").iterdir())


def test_a_training_starts_all_the_same_where_it_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    views = [View(str(tmp_path / "gone"), is_writable=False)]  # gone since it was looked at: the kernel refuses
    child = start_training(["/bin/sh", "-c", "echo began; pwd"], tmp_path, {}, log, views)
    assert child.wait() == 0
    assert log.read_text() == f"began\n{tmp_path}\n"


@pytest.mark.parametrize("command", ["no-such-program", "/etc/passwd"])
def test_a_command_that_does_not_start_is_said_in_either_case(tmp_path: Path, command: str) -> None:
    for views in ([], [View(str(tmp_path), is_writable=False)]):
        with pytest.raises(OSError, match=command):
            start_training([command], Path("/"), {}, tmp_path / "log", views)


@needs_namespaces
async def test_a_run_cannot_write_the_store_or_other_runs(graph: LoopGraph, tmp_path: Path) -> None:
    first = await graph.run_experiment(wait_s=50.0)
    deed = (
        f"for NAME in [{first.run_dir + '/run.log'!r}, {str(graph.settings.db_path)!r}, "
        f"{str(graph.settings.home / 'trusted.json')!r}, '../outcome.json', '../../../x']:\n"
        "    try: open(NAME, 'a').write('harm'); print('WROTE', NAME)\n"
        "    except OSError as error: print(error)\n"
    )
    before = log_of(first.run_dir)
    done = await graph.run_experiment(wait_s=50.0, patch=f'@@ @@\n-MISHAP = ""\n+MISHAP = {deed!r}\n')
    assert done.outcome is OutcomeKind.FINISHED, done.reason
    assert "WROTE" not in log_of(done.run_dir)
    assert log_of(done.run_dir).count("Read-only file system") == 5
    assert log_of(first.run_dir) == before


def log_of(run_dir: str | None) -> str:
    return Path(run_dir or "", "run.log").read_text()


def without_namespaces() -> Callable[[], None]:
    """Return what a process of root's calls to be refused namespaces, as in an ordinary container."""
    prctl = ctypes.CDLL(None).prctl

    def drop() -> None:
        prctl(_DROP_FROM_BOUNDS, ctypes.c_ulong(_SYS_ADMIN), 0, 0, 0)

    return drop


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a right away")
def test_where_namespaces_are_refused_a_run_works_and_links_are_compared(
    environment: dict[str, str], workspace: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("theirs")
    with (workspace / "loopgraph.toml").open("a") as config:
        config.write('link = ["../data"]\n')
    train = workspace / "train.py"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", *arguments],
            env=environment, cwd=workspace, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            preexec_fn=without_namespaces(),
        )  # fmt: skip
        return done.stdout + done.stderr

    assert "finished" in run("run", "-d", "baseline")
    found = {each["name"]: each for each in json.loads(run("doctor", "--json"))}
    assert found["confinement"]["level"] == "note"
    assert "CAP_SYS_ADMIN" in found["confinement"]["next_step"]
    train.write_text(train.read_text().replace('MISHAP = ""', "MISHAP = \"open('../data/x', 'w').close()\""))
    assert "YOUR FILES CHANGED" in run("run", "-d", "harms")
    assert (data / "x").read_text() == ""


@pytest.mark.parametrize("name", ["run.log", "outcome.json", "inputs.json", "supervisor.log"])
@pytest.mark.parametrize("deed", ["os.mkfifo(NAME)", "os.symlink('/dev/zero', NAME)", "os.mkdir(NAME)"])
async def test_a_record_that_a_run_replaces_holds_up_nobody(
    graph: LoopGraph, workspace: Path, name: str, deed: str
) -> None:
    with (workspace / "loopgraph.toml").open("a") as config:
        config.write("confine = false\n")
    code = f"NAME = '../{name}'; os.remove(NAME); {deed}"
    async with asyncio.timeout(60):  # to open a pipe waits for good, to read /dev/zero takes all memory
        done = await graph.run_experiment(wait_s=50.0, patch=f'@@ @@\n-MISHAP = ""\n+MISHAP = {code!r}\n')
    assert done.outcome is not None
    assert (done.outcome is OutcomeKind.FINISHED) == (name != "run.log")
