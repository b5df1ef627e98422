"""Stores that cannot be written: a disk that is full for a while, a file or folder that can only be read."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli import doctor
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import UnwritableError
from loopgraph_mcp.store import retrievals
from loopgraph_mcp.store.database import Database, migration_files

# A limit on a file's size makes the kernel refuse what a full disk refuses, to root as well.
WITHOUT_SPACE = """
import asyncio, os, resource, sys
from pathlib import Path
from loopgraph_mcp.config import read_settings
from loopgraph_mcp.errors import UnwritableError
from loopgraph_mcp.api.loopgraph import LoopGraph

def space(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    async with LoopGraph.open(read_settings(os.environ, Path.cwd())) as graph:
        done = await graph.record_outcome(method_id="gqa", metric_value=1.5, description="before")
        space(0)
        found = [await graph.search_methods("fewer kv heads") for _ in range(3)]
        assert all(each.hits and "not recorded" in each.note for each in found), found
        await graph.add_cost("search", subject_id=found[0].retrieval_id, tokens=7)
        assert (await graph.get_experiment(done.experiment_id, wait_s=0)).metric_value == 1.5
        assert len(await graph.list_experiments()) == 1
        await graph.best_result()
        await graph.trace(done.experiment_id)
        try:
            await graph.record_outcome(method_id="gqa", metric_value=1.4, description="full")
        except UnwritableError as error:
            assert "nothing was written" in str(error), error
        else:
            raise AssertionError
        space(resource.RLIM_INFINITY)
        later = await graph.search_methods("fewer kv heads")
        assert "not recorded" not in later.note, later.note
        print(*(each.retrieval_id for each in [*found, later]))

asyncio.run(main())
"""


def call(code: str, environment: dict[str, str], *before: str) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_on_a_full_disk_all_is_read_and_what_was_shown_is_recorded_once_there_is_space(
    environment: dict[str, str], settings: Settings
) -> None:
    done = call(WITHOUT_SPACE, environment)
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(settings.db_path)) as conn:
        assert [row[0] for row in conn.execute("SELECT id FROM retrieval ORDER BY row")] == done.stdout.split()
        assert conn.execute("SELECT count(*) FROM cost WHERE tokens = 7").fetchone() == (1,)
        assert conn.execute("SELECT count(*) FROM retrieval_item").fetchone()[0] >= 4
        assert conn.execute("SELECT count(*) FROM outcome").fetchone() == (1,)


def test_a_first_search_in_a_new_workspace_on_a_full_disk_is_recorded_with_its_context(
    environment: dict[str, str], settings: Settings
) -> None:
    code = """
import asyncio, os, resource
from pathlib import Path
from loopgraph_mcp.config import read_settings
from loopgraph_mcp.api.loopgraph import LoopGraph

async def main():
    async with LoopGraph.open(read_settings(os.environ, Path.cwd())) as graph:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        answer = await graph.search_methods("kv heads")
        assert answer.hits and "not recorded" in answer.note
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

asyncio.run(main())
"""
    done = call(code, environment)
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(settings.db_path)) as conn:  # written as the store was closed
        rows = conn.execute(
            "SELECT workspace.path FROM retrieval JOIN context ON context.id = context_id "
            "JOIN workspace ON workspace.id = workspace_id"
        ).fetchall()
    assert rows == [(str(settings.workspace),)]


async def test_what_waits_is_bounded_and_the_oldest_is_dropped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Database.open(settings.db_path) as db:
        await db.change("PRAGMA max_page_count = 1")  # the page cap answers as a full disk does
        for number in range(1_200):
            await retrievals.add_cost(db, "word " * 2_000, subject_id=None, tokens=number, cost_usd=None, now=1.0)
        assert "full" in db.unrecorded
        with pytest.raises(UnwritableError, match="nothing was written"):
            await db.change("INSERT INTO cost (source, created_at) VALUES (hex(zeroblob(9000)), 1.0)")
        await db._writes.run(lambda conn: conn.execute("PRAGMA max_page_count = 1000000"))
        await db.change("INSERT INTO cost (source, tokens, created_at) VALUES ('last', -0, 1.0)")
        assert db.unrecorded == ""
        rows = list(await db.reader.execute_fetchall("SELECT tokens, source FROM cost ORDER BY row"))
    kept = [row["tokens"] for row in rows[:-1]]
    assert kept[-1_000:] == list(range(200, 1_200))
    assert len(kept) < 1_200
    assert rows[-1]["source"] == "last"


# The kernel's own read-only file system: a private one over the store's folder, for this process alone.
READ_ONLY = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def read_only(folder: Path) -> list[str]:
    bind = f'mount --bind "{folder}" "{folder}" && mount -o remount,bind,ro "{folder}" && exec "$@"'
    return [*READ_ONLY, bind, "sh"]


@pytest.fixture
def mounts(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here: a read-only file system cannot be made")
    done = subprocess.run([*read_only(probe), "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a private mount is not permitted here: {done.stderr.strip()}")


COMMANDS = (
    ["search", "fewer kv heads"],
    ["results"],
    ["status", "--once"],
    ["trace", "gqa"],
    ["method", "show", "gqa"],
)


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("left", ["closed", "killed", "of an earlier version"])
async def test_a_store_on_a_read_only_file_system_is_read(
    left: str, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    async with LoopGraph.open(settings) as graph:
        await graph.record_outcome(method_id="gqa", metric_value=1.25, description="an earlier run")
        if left == "killed":  # as a killed server leaves it: with a log, and here without the log's index
            shutil.copytree(settings.home, tmp_path / "killed", ignore=shutil.ignore_patterns("*-shm"))
    home = tmp_path / "killed" if left == "killed" else settings.home
    if left == "of an earlier version":
        make_earlier(settings.db_path)
    environment |= {"LOOPGRAPH_HOME": str(home), "LOOPGRAPH_DB": str(home / "loopgraph.db")}
    for command in COMMANDS[:3] if left == "of an earlier version" else COMMANDS:
        arguments = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", *command]
        done = subprocess.run(
            [*read_only(home), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if command[0] == "search":
            assert "not recorded" in done.stdout
        if command[0] in {"results", "status"} and left != "of an earlier version":
            assert "1.25" in done.stdout
    arguments = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "method", "retire", "gqa"]
    done = subprocess.run([*read_only(home), *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def make_earlier(path: Path) -> None:
    """Put a store of the first schema in another's place."""
    path.unlink()
    with closing(sqlite3.connect(path)) as conn:
        for number, file in migration_files():
            if number <= 5:
                conn.executescript(file.read_text(encoding="utf-8"))
        conn.execute("PRAGMA user_version = 5")
        conn.execute("INSERT INTO pack VALUES ('base', '1', 'h', 1.0)")
        conn.execute(
            "INSERT INTO method (id, pack_name, family, name, aliases, summary, description, identifiers, card) "
            "VALUES ('gqa', 'base', 'attention', 'Grouped-query attention', '', 'Fewer kv heads.', '', '', "
            '\'{"id": "gqa", "name": "Grouped-query attention", "family": "attention", '
            '"summary": "Fewer kv heads.", "description": ""}\')'
        )
        conn.commit()


@pytest.mark.usefixtures("mounts")
async def test_doctor_says_of_a_store_that_it_can_only_be_read(settings: Settings, environment: dict[str, str]) -> None:
    async with LoopGraph.open(settings):
        pass
    code = """
import asyncio, os
from pathlib import Path
from loopgraph_mcp.cli import doctor
from loopgraph_mcp.config import read_settings
check = asyncio.run(doctor.store(read_settings(os.environ, Path.cwd())))
print(check.level, check.found)
"""
    done = call(code, environment, *read_only(settings.home))
    assert done.stdout.startswith("note"), done.stderr
    assert "read-only" in done.stdout


async def test_a_file_without_write_permission_is_read(settings: Settings) -> None:
    async with LoopGraph.open(settings) as graph:
        await graph.record_outcome(method_id="gqa", metric_value=1.25, description="an earlier run")
    settings.db_path.chmod(0o400)
    async with LoopGraph.open(settings) as graph:  # to root it can be written all the same
        assert (await graph.search_methods("kv heads")).hits
        assert len(await graph.list_experiments()) == 1
    assert (await doctor.store(replace(settings))).level is not doctor.Level.FAIL


# A run that fills its own disk and then ends as if nothing more could be said.
FILLS_ITS_DISK = """
import asyncio, os, subprocess, sys
from pathlib import Path
from loopgraph_mcp.config import read_settings
from loopgraph_mcp.api.loopgraph import LoopGraph

FILL = '''
MISHAP = ""

def fill():
    with open("state.pt", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
'''

async def main():
    settings = read_settings(os.environ, Path.cwd())
    settings.runs_dir.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "runs", str(settings.runs_dir)], check=True)
    program = settings.workspace / "train.py"
    text = program.read_text().replace('MISHAP = ""', FILL).replace("exec(MISHAP)", "fill(); sys.exit(1)")
    program.write_text(text)
    async with LoopGraph.open(settings) as graph:
        found = await graph.run_experiment(wait_s=50)
        print(found.outcome.value, found.reason)

asyncio.run(main())
"""
IN_A_NAMESPACE = ("unshare", "-m", "--propagation", "private") if os.geteuid() == 0 else ("unshare", "-U", "-r", "-m")


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*IN_A_NAMESPACE, "mount", "-t", "tmpfs", "x", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_a_run_whose_disk_was_full_says_nothing_of_its_idea(environment: dict[str, str], tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("nothing can be mounted here")
    done = call(FILLS_ITS_DISK, environment, *IN_A_NAMESPACE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("interrupted the disk with the run's folder was full")
