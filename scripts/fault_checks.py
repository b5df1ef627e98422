"""What must hold after any fault: read from the files themselves, with none of the package's code."""

import hashlib
import json
import os
import re
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SAYS_NOTHING = {"cancelled", "interrupted", "no_metric"}
OWN_FILES = {"train.py", "results.tsv"}


@dataclass(frozen=True)
class Place:
    """The folders of one user: the workspace, the store with its runs, and the home with its locks."""

    root: Path

    @property
    def workspace(self) -> Path:
        """The user's folder."""
        return self.root / "workspace"

    @property
    def store(self) -> Path:
        """The folder of the store and the runs."""
        return self.root / "store"

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.store / "runs"

    @property
    def home(self) -> Path:
        """LOOPGRAPH_HOME."""
        return self.root / "home"

    @property
    def db(self) -> Path:
        """The store."""
        return self.store / "loopgraph.db"


@dataclass
class Accepted:
    """A run whose id the client was given.

    Args:
        touched: Why it need not finish: a signal was sent to it, or the disk was full; empty where it must.
        child_hit: Whether its training itself got a signal.
    """

    id: str
    description: str
    touched: str = ""
    child_hit: bool = False


def rows(place: Place, sql: str, *values: Any) -> list[sqlite3.Row]:
    """Return rows of the store as another program would read them."""
    with closing(sqlite3.connect(f"file:{place.db}?mode=ro", uri=True, timeout=20)) as conn:
        conn.row_factory = sqlite3.Row
        return conn.execute(sql, values).fetchall()


def unfinished(place: Place) -> list[str]:
    """Return the experiments that are queued or running."""
    return [str(row["id"]) for row in rows(place, "SELECT id FROM experiment WHERE state <> 'done'")]


def tree_hash(folder: Path) -> dict[str, str]:
    """Return what each of the user's files holds, those that a keep may change left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name in OWN_FILES or name.split("/")[0] in {".git", "__pycache__"}:
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "a folder"
    return found


def metric_of_log(place: Place, experiment_id: str) -> float | None:
    """Return what a run's log states after its last `---`, if all of the summary is there."""
    try:
        text = (place.runs / experiment_id / "run.log").read_text(errors="replace")
    except OSError:
        return None
    head, mark, summary = text.rpartition("\n---\n")
    found = re.search(r"^val_bpb:\s+(\S+)$", summary, re.MULTILINE)
    whole = re.search(r"^num_steps:\s+\d+\n", summary, re.MULTILINE)
    return float(found[1]) if head and mark and found and whole else None


def processes(place: Place, known: Collection[str] = ()) -> Iterator[psutil.Process]:
    """Find the processes of a place: by what they were started with, where they are, what they inherited.

    Args:
        place: Where.
        known: Ids of experiments, for processes whose folder and environment cannot be read.
    """
    marks = (str(place.root), *known)
    for process in psutil.process_iter():
        said = _said(process)
        if process.pid != os.getpid() and any(mark in said for mark in marks):
            yield process


def experiment_of(place: Place, process: psutil.Process) -> str:
    """Return the experiment that a process belongs to, by its folder, its arguments or its environment."""
    found = re.search(r"exp_\w+", _said(process).replace(str(place.root), ""))
    return found[0] if found else ""


def _said(process: psutil.Process) -> str:
    """Return a process's folder, arguments and environment in one text, as far as they can be read."""
    found = list[str]()
    for ask in (process.cwd, process.cmdline, process.environ):
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(str(ask()))
    return " ".join(found)


def is_supervisor(process: psutil.Process) -> bool:
    """Return whether a process is a supervisor."""
    try:
        return "loopgraph_mcp.api.supervisor" in process.cmdline()
    except psutil.Error:
        return False


def broken(place: Place, accepted: Mapping[str, Accepted], start: str, files: Mapping[str, str]) -> list[str]:
    """Return what does not hold once all is over; empty where everything does.

    Args:
        place: Where.
        accepted: The runs that a client was given ids of.
        start: What train.py held at first.
        files: What the user's other files held.
    """
    found = list[str]()
    check = rows(place, "PRAGMA integrity_check")[0][0]
    if check != "ok":
        found.append(f"integrity_check: {check}")
    experiments = {
        row["id"]: row
        for row in rows(
            place,
            "SELECT experiment.id, state, description, kind, metric_value, reason, program_hash, run_dir, edit_id "
            "FROM experiment LEFT JOIN outcome ON outcome.experiment_id = experiment.id",
        )
    }
    for run in accepted.values():
        row = experiments.get(run.id)
        found += [f"{run.id} was accepted and is in no row"] if row is None else _of_run(place, run, row)
    found += _of_decisions(place, experiments)
    found += _of_results(place, experiments)
    found += _of_program(place, start)
    now = tree_hash(place.workspace)
    if now != files:
        changed = {name for name in now.keys() | files.keys() if now.get(name) != files.get(name)}
        found.append(f"the user's files changed: {sorted(changed)}")
    found += left_behind(place)
    return found


def _of_run(place: Place, run: Accepted, row: sqlite3.Row) -> list[str]:
    found, printed = [], metric_of_log(place, run.id)
    said = f"{run.id} ({run.touched or 'nothing was done to it'}): {row['kind']} {row['metric_value']} {row['reason']}"
    if row["state"] != "done" or row["kind"] is None:
        return [f"{said}: state {row['state']}, without an outcome"]
    if row["kind"] == "finished":
        if printed is None or f"{printed:.6f}" != f"{row['metric_value']:.6f}":
            found.append(f"{said}: its log says {printed}")
    elif printed is not None and not run.child_hit:
        found.append(f"{said}: its log says {printed} and is whole")
    elif not run.touched:
        found.append(f"{said}: it should have finished")
    if row["kind"] not in SAYS_NOTHING | {"finished"}:
        found.append(f"{said}: no fault is the program's own")
    return found


def _of_decisions(place: Place, experiments: Mapping[str, sqlite3.Row]) -> list[str]:
    count = Counter(
        row["experiment_id"] for row in rows(place, "SELECT experiment_id FROM decision WHERE made_by = 'loopgraph'")
    )
    steps = rows(place, "SELECT experiment_id, step, state, note FROM conclusion WHERE state <> 'done'")
    found = [f"{row['experiment_id']}: step {row['step']} is {row['state']}: {row['note']}" for row in steps]
    for name, row in experiments.items():
        wanted = 0 if row["kind"] is None or row["kind"] in SAYS_NOTHING else 1
        if count[name] != wanted:
            found.append(f"{name}: {row['kind']} with {count[name]} decisions")
    return found


def _of_results(place: Place, experiments: Mapping[str, sqlite3.Row]) -> list[str]:
    path = place.workspace / "results.tsv"
    lines = path.read_text().splitlines() if path.exists() else []
    wanted = {row["description"]: row for row in experiments.values() if row["kind"] not in SAYS_NOTHING | {None}}
    found = []
    if lines and (not lines[0].startswith("commit\t") or sum(line.startswith("commit\t") for line in lines) != 1):
        found.append(f"results.tsv: the header is not there once: {lines[:2]}")
    cells = [line.split("\t") for line in lines[1:]]
    if torn := [line for line in cells if len(line) != 5]:
        found.append(f"results.tsv: torn lines {torn[:3]}")
    named = Counter(line[-1].split(" (")[0] for line in cells)
    found += [
        f"results.tsv: {named[name]} rows of {name!r}, which {'ran' if name in wanted else 'did not'}"
        for name in wanted.keys() | named.keys()
        if named[name] != (name in wanted)
    ]
    for line in cells:
        row = wanted.get(line[-1].split(" (")[0])
        if row is not None and row["kind"] == "finished" and line[1] != f"{row['metric_value']:.6f}":
            found.append(f"results.tsv says {line[1]} of {row['id']}, the store {row['metric_value']}")
    return found


def _of_program(place: Place, start: str) -> list[str]:
    """Follow the edits that are said to be in the user's file from the first program to the present one."""
    present = (place.workspace / "train.py").read_text()
    kept = rows(
        place,
        "SELECT conclusion.experiment_id AS id, base.text AS base, new.text AS new, conclusion.note, commit_hash "
        "FROM conclusion JOIN experiment ON experiment.id = conclusion.experiment_id "
        "JOIN edit ON edit.id = experiment.edit_id JOIN program AS base ON base.hash = edit.base_hash "
        "JOIN program AS new ON new.hash = edit.new_hash WHERE step = 'apply' AND conclusion.state = 'done'",
    )
    applied = [row for row in kept if "changed meanwhile" not in row["note"]]
    text, left = start, list(applied)
    while step := next((row for row in left if row["base"] == text), None):
        left.remove(step)
        text = step["new"]
    found = []
    if left:
        found.append(f"{len(left)} edits are said to be applied and cannot have been: {[row['id'] for row in left]}")
    if text != present:
        found.append("train.py is neither what it was nor what the kept edits make of it")
    if (place.workspace / ".git").exists():
        committed = [row for row in applied if row["commit_hash"] is not None]
        count = int(_git(place, "rev-list", "--count", "HEAD")) - 1
        if count != len(committed):
            found.append(f"{count} commits were made, {len(committed)} are known")
        if committed and _git(place, "show", "HEAD:./train.py") != present:
            found.append("what is committed is not what train.py holds")
    return found


def _git(place: Place, *arguments: str) -> str:
    command = ["git", "-C", str(place.workspace), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def left_behind(place: Place) -> list[str]:
    """Return what nobody will come for: temporary files, folders without a row, lock files of runs that are over.

    An empty lock file of a run that was never queued may belong to somebody who is about to hold it, and is left.
    """
    known = {str(row["id"]) for row in rows(place, "SELECT id FROM experiment")}
    strays = [path for path in place.root.rglob("*.tmp") if "code" not in path.parts]
    found = [f"a temporary file is left: {path.relative_to(place.root)}" for path in strays]
    folders = place.runs.iterdir() if place.runs.exists() else ()
    found += [f"a run's folder without a row: {path.name}" for path in folders if path.name not in known]
    locks = (place.home / "locks").glob("exp_*.lock")
    found += [f"a lock file is left: {path.name}" for path in locks if path.stem in known]
    return found


def answers_differ(row: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Return how a server's answer differs from the store's row; empty where it does not."""
    told = (answer.get("state"), answer.get("outcome"), answer.get("metric_value"))
    stored = ("done", row["kind"], row["metric_value"])
    return "" if told == stored else f"{row['id']}: the server says {json.dumps(told)}, the store {json.dumps(stored)}"
