"""Kills, stops and starves what makes runs, at random, and checks that no run is lost, doubled or misjudged.

Every part works on folders of its own with a small trainer, through a real server over HTTP, with several runs queued.
What cannot be done on this machine is skipped by name. Exit status 1 where anything broke.
"""

import argparse
import http.client
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fault_checks import (
    Accepted,
    Place,
    answers_differ,
    broken,
    experiment_of,
    is_supervisor,
    left_behind,
    metric_of_log,
    processes,
    rows,
    tree_hash,
    unfinished,
)
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
KINDS = ("kills", "stops", "clocks", "disk", "readonly")
NAMESPACE = "LOOPGRAPH_FAULTS_NAMESPACE"
VERSION = "2026-07-28"
PATIENCE_S = 120.0  # for what happens in seconds on an idle machine
QUEUED = 4
KILLS_IN_A_BATCH = 10
# libfaketime refuses the sleeps of Python 3.11 and later where it leaves the monotonic clock alone.
SLEEPS = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"
CLOCK_STEPS_S = (1, -1, 3_600, -3_600)
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
FAKETIME = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")

TRAINER = """
import os, select, subprocess, sys
import prepare

LEARNING_RATE = 0.5
SLEEP_S = 0.1
STEPS = 3
WORKER = 0

def main():
    if WORKER:  # in a session of its own, in another folder, with no open file of the run
        code = "import os, time; os.chdir('/'); time.sleep(600)"
        quiet = subprocess.DEVNULL
        subprocess.Popen([sys.executable, "-c", code, os.getcwd()], start_new_session=True, stdout=quiet, stderr=quiet)
    for step in range(STEPS):
        print(f"step {step:05d} | loss: {3 - step:.6f}", flush=True)
        select.select([], [], [], SLEEP_S)
    print("---")
    print(f"val_bpb:          {prepare.evaluate(LEARNING_RATE):.6f}")
    print("training_seconds: 0.1")
    print("peak_vram_mb:     2048.0")
    print("num_steps:        3")

main()
"""
PREPARE = "def evaluate(rate):\n    return 2.0 - rate / 10\n"
CONFIG = """[workspace]
editable = "train.py"
protected = ["prepare.py"]
command = ["{{python}}", "train.py"]
budget_s = 1
timeout_s = {timeout_s:g}
silence_s = {silence_s:g}
on_win = "{on_win}"
context_env = {context_env}
"""


class Refused(Exception):  # noqa: N818 - an answer, not a fault of this program
    """The server answered that it would not."""


class Gone(Exception):  # noqa: N818 - likewise
    """There was no answer."""


@dataclass
class Part:
    """What one part of the suite did and found."""

    kind: str
    done: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)
    leftovers_s: list[float] = field(default_factory=list)
    broke: list[str] = field(default_factory=list)
    skipped: str = ""
    took_s: float = 0.0


class Stage:
    """A workspace, a store and a server, and what the client knows of its runs."""

    def __init__(
        self,
        part: Part,
        dice: random.Random,
        *,
        on_win: str = "apply",
        timeout_s: float = 60,
        silence_s: float = 30,
        environment: dict[str, str] | None = None,
        before: Sequence[str] = (),
        queued: int = QUEUED,
    ) -> None:
        self.part, self.dice, self._before = part, dice, tuple(before)
        self.queued = queued
        self.place = Place(Path(tempfile.mkdtemp(prefix=f"loopgraph-faults-{part.kind}-")).resolve())
        for folder in (self.place.workspace, self.place.store, self.place.home):
            folder.mkdir()
        self._config = CONFIG.format(
            timeout_s=timeout_s, silence_s=silence_s, on_win=on_win, context_env=json.dumps(sorted(environment or {}))
        )
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LOOPGRAPH_")},
            "PYTHONPATH": str(ROOT),
            "LOOPGRAPH_HOME": str(self.place.home),
            "LOOPGRAPH_DB": str(self.place.db),
            "LOOPGRAPH_WORKSPACE": str(self.place.workspace),
            "LOOPGRAPH_DEVICE": "cpu",
            **(environment or {}),
        }
        self.accepted: dict[str, Accepted] = {}
        self.server: subprocess.Popen[str] | None = None
        self._port = 0
        self._number = 0
        self.began = time.time()

    def fill_workspace(self) -> None:
        """Write the user's files, and remember them."""
        folder = self.place.workspace
        texts = {"train.py": TRAINER.lstrip(), "prepare.py": PREPARE, "loopgraph.toml": self._config}
        for name, text in texts.items():
            (folder / name).write_text(text)
        (folder / "notes").mkdir()
        (folder / "notes" / "ideas.md").write_text("mine\n")
        (folder / "weights.bin").write_bytes(self.dice.randbytes(2**21))
        (folder / "latest").symlink_to("weights.bin")
        if 'on_win = "commit"' in self._config:
            for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "start"]):
                who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
                subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)  # noqa: S603, S607
            for name, value in (("user.name", "Somebody"), ("user.email", "somebody@example.org")):
                subprocess.run(["git", "config", name, value], cwd=folder, check=True)  # noqa: S603, S607
        self.start_text = texts["train.py"]
        self.files = tree_hash(folder)

    # ------------------------------------------------------------------------------------------ server

    def serve(self) -> None:
        """Start a server and wait until it serves."""
        command = [*self._before, sys.executable, "-m", "loopgraph_mcp", "--http", "127.0.0.1:0", "--no-auth"]
        self._log = (self.place.root / "server.log").open("a")
        self.server = subprocess.Popen(  # noqa: S603 - our own module
            command, env=self.environment, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd="/"
        )
        assert self.server.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in self.server.stdout:
            if found := re.search(r":(\d+)/mcp", line):
                self._port = int(found[1])
                return
        self.end_server(signal.SIGKILL)
        said = (self.place.root / "server.log").read_text()[-600:]
        raise Gone(f"the server did not start: {said}")

    def end_server(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """End the server and wait for that."""
        if self.server is None:
            return
        self.server.send_signal(signum)
        try:
            self.server.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.part.broke.append("the server did not end")
            self.server.kill()
            self.server.wait()
        if self.server.stdout is not None:
            self.server.stdout.close()
        self._log.close()
        self.server = None

    def call(self, tool: str, arguments: dict[str, Any], *, timeout_s: float = 60) -> dict[str, Any]:
        """Call a tool and return its structured answer.

        Raises:
            Refused: The tool said no.
            Gone: The server did not answer.
        """
        meta = {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientInfo": {"name": "faults", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params = {"name": tool, "arguments": arguments, "_meta": meta}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        head = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": "tools/call",
            "Mcp-Name": tool,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)
        try:
            connection.request("POST", "/mcp", body, head)
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise Gone(repr(error)) from error
        finally:
            connection.close()
        found = re.search(r"^(?:data: )?(\{.*\})$", text, re.MULTILINE)
        answer = json.loads(found[1]) if found else {}
        result = answer.get("result") or {}
        if "error" in answer or result.get("isError") or "structuredContent" not in result:
            raise Refused(text[:600])
        return dict(result["structuredContent"])

    # -------------------------------------------------------------------------------------------- runs

    def submit(self, *, touched: str = "") -> None:
        """Ask for a run of a program that nobody ran yet; a client that got no answer asks again with the same key."""
        self._number += 1
        present = (self.place.workspace / "train.py").read_text()
        rate = re.search(r"^LEARNING_RATE = .*$", present, re.MULTILINE)
        worker = re.search(r"^WORKER = .*$", present, re.MULTILINE)
        assert rate is not None and worker is not None  # noqa: S101, PT018 - it is what we wrote
        value = round(float(rate[0].split()[-1]) + self.dice.choice((0.4, 0.2, -0.2, -0.4)) + self._number / 1e4, 6)
        patch = (
            f"@@ @@\n-{rate[0]}\n+LEARNING_RATE = {value}\n SLEEP_S = 0.1\n STEPS = 3\n"
            f"-{worker[0]}\n+WORKER = {self.dice.randint(0, 1)}  # {self._number}\n"
        )
        self._ask({"patch": patch}, touched)

    def baseline(self) -> None:
        """Run the file as it is and wait for that: what comes later is compared with it."""
        self._ask({}, "")
        self.until_idle("the baseline")

    def _ask(self, what: dict[str, str], touched: str) -> None:
        name = f"try {self._number}"
        asked = {**what, "description": name, "idempotency_key": name, "wait_s": 0}
        for attempt in range(2):
            try:
                answer = self.call("run_experiment", asked)
            except Refused as refused:
                self.part.done["refused"] += 1
                self.part.refusals[_words(str(refused))] += 1
                if "Traceback" in str(refused):
                    self.part.broke.append(f"refused with a traceback: {refused}")
                return
            except Gone:
                if attempt or self.server is None or self.server.poll() is not None:
                    return
                continue
            run = Accepted(answer["experiment_id"], name, touched or ("asked again" if attempt else ""))
            self.accepted.setdefault(run.id, run)
            self.part.done["accepted"] += 1
            return

    def keep_queued(self, *, touched: str = "") -> None:
        """Ask for runs until several are on their way."""
        for _ in range(self.queued - len(unfinished(self.place) if self.place.db.exists() else [])):
            self.submit(touched=touched)

    def touch(self, experiment_id: str, why: str, *, child: bool = False) -> None:
        """Note what was done to a run."""
        run = self.accepted.get(experiment_id)
        if run is not None:
            run.touched = f"{run.touched}, {why}".lstrip(", ")
            run.child_hit = run.child_hit or child

    def supervisors(self) -> list[psutil.Process]:
        """Return the live supervisors."""
        return [each for each in processes(self.place, self.accepted) if is_supervisor(each)]

    def trainings(self) -> list[psutil.Process]:
        """Return the live trainings and what they started."""
        mine = -1 if self.server is None else self.server.pid
        found = [each for each in processes(self.place, self.accepted) if each.pid != mine and not is_supervisor(each)]
        return [each for each in found if experiment_of(self.place, each) and _runs_program(each)]

    def strike(self, found: Sequence[psutil.Process], signum: signal.Signals, why: str) -> None:
        """Send a signal to processes of runs."""
        for process in found:
            with suppress(psutil.Error):
                experiment_id = experiment_of(self.place, process)
                process.send_signal(signum)
                self.touch(experiment_id, f"{signum.name} {why}", child=not is_supervisor(process))

    def until_idle(self, what: str = "") -> float:
        """Wait until no run is on its way, without asking the server; return how long that took."""
        began = time.monotonic()
        while left := unfinished(self.place):
            if time.monotonic() - began > PATIENCE_S:
                self.part.broke.append(
                    f"{what}: after {PATIENCE_S:g} s {len(left)} runs are still on their way: {left}"
                )
                break
            time.sleep(0.05)
        return time.monotonic() - began

    def finish(self) -> None:
        """Wait for all runs, check everything, end the server and clear up; keep the folders where something broke."""
        known = len(self.part.broke)
        try:
            self.until_idle("at the end")
            began = time.monotonic()
            while left := [each for each in processes(self.place, self.accepted) if not self._is_server(each)]:
                if time.monotonic() - began > PATIENCE_S:
                    break
                time.sleep(0.05)
            self.part.leftovers_s.append(time.monotonic() - began)
            for each in left:
                with suppress(psutil.Error):
                    self.part.broke.append(
                        f"left: pid {each.pid} of {experiment_of(self.place, each)} {each.cmdline()}"
                    )
                    each.kill()
            self.end_server()
            self.serve()  # a server that starts clears away what killed ones left
            _until(lambda: not left_behind(self.place))
            self.part.broke += broken(self.place, self.accepted, self.start_text, self.files)
            self._compare_answers()
        except Exception:  # noqa: BLE001 - a check that fails is a finding
            self.part.broke.append(traceback.format_exc())
        self.end_server()
        if len(self.part.broke) > known:
            kept = self.place.root.with_name(f"{self.place.root.name}-kept")
            shutil.copytree(self.place.root, kept, symlinks=True)  # what is mounted there goes with this process
            self.part.broke.append(f"see {kept}")
        shutil.rmtree(self.place.root, ignore_errors=True)

    def _is_server(self, process: psutil.Process) -> bool:
        return self.server is not None and process.pid == self.server.pid

    def _compare_answers(self) -> None:
        for row in rows(self.place, "SELECT note FROM conclusion WHERE step = 'apply'"):
            self.part.outcomes["edits in the file" if "changed meanwhile" not in row["note"] else "edits too late"] += 1
        told = {each["id"]: each for each in rows(self.place, _OUTCOMES)}
        for run in self.accepted.values():
            if run.id not in told:
                continue
            row = told[run.id]
            self.part.outcomes[row["kind"]] += 1
            try:
                answer = self.call("get_experiment", {"experiment_id": run.id, "wait_s": 0})
            except (Gone, Refused) as error:
                self.part.broke.append(f"get_experiment({run.id}): {error}")
                continue
            self.part.outcomes["of them from the log"] += "from its log" in row["reason"]
            if differs := answers_differ(dict(row), answer):
                self.part.broke.append(differs)


_OUTCOMES = (
    "SELECT experiment.id, kind, metric_value, reason FROM experiment "
    "JOIN outcome ON outcome.experiment_id = experiment.id"
)


def _words(refusal: str) -> str:
    """Return the words of a refusal, without what differs each time."""
    found = re.search(r'"text":\s*"((?:[^"\\]|\\.)*)"', refusal)
    return re.sub(r"exp_\w+|/\S*loopgraph-faults-[^/\s]+", "…", found[1] if found else refusal)[:200]


def _runs_program(process: psutil.Process, *named: str) -> bool:
    """Return whether a process is a training or its worker, no shell or helper on the way there."""
    with suppress(psutil.Error):
        return any(word in process.cmdline() for word in named or ("train.py", "-c"))
    return False


# -------------------------------------------------------------------------------------------------- kills


def kills(part: Part, dice: random.Random, options: argparse.Namespace) -> None:
    """Kill server, supervisors, trainings or all of them at random moments."""
    left = options.kills
    while left > 0:
        batch = min(left, KILLS_IN_A_BATCH)
        stage = Stage(part, dice, on_win=dice.choice(("apply", "commit")), queued=options.queued)
        stage.fill_workspace()
        stage.serve()
        stage.baseline()
        for _ in range(batch):
            stage.keep_queued()
            _at_a_moment(stage)
            _kill(stage)
        left -= batch
        if stage.server is None:
            stage.serve()
        stage.finish()


def _at_a_moment(stage: Stage) -> None:
    """Wait for a random moment; every second time for one in which a run's outcome is being dealt with."""
    dice = stage.dice
    if dice.random() < 0.5:
        time.sleep(dice.uniform(0, 1.2))
        return
    known = {run for run in stage.accepted if metric_of_log(stage.place, run) is not None}
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if any(metric_of_log(stage.place, run) is not None for run in stage.accepted.keys() - known):
            break
        time.sleep(0.01)
    time.sleep(dice.uniform(0, 0.5))


def _kill(stage: Stage) -> None:
    dice, part = stage.dice, stage.part
    signum = signal.SIGTERM if dice.random() < 0.2 else signal.SIGKILL
    target = dice.choice(("server", "supervisor", "training", "supervisor, training", "server, supervisor", "all"))
    if target == "all":
        signum = signal.SIGKILL
    part.done[f"{signum.name} {target}"] += 1
    if target == "all" or "server" in target:
        stage.end_server(signum)
    running = stage.trainings()
    chosen = {experiment_of(stage.place, each) for each in running} if dice.random() < 0.7 else set()
    watching = stage.supervisors()
    near = [each for each in watching if experiment_of(stage.place, each) in chosen] or watching
    if target == "all":
        stage.strike([*watching, *running], signum, "all")
        stage.strike([*stage.supervisors(), *stage.trainings()], signum, "all")  # what started meanwhile
    if "supervisor" in target and near:
        stage.strike([dice.choice(near)], signum, "supervisor")
    if "training" in target:
        stage.strike([each for each in running if _runs_program(each, "train.py")], signum, "training")
    if stage.server is None and (target == "all" or dice.random() < 0.8):
        began = time.monotonic()
        stage.serve()
        if target == "all":
            stage.until_idle("after a kill of all")
            part.recovery_s.append(time.monotonic() - began)
    elif stage.server is None:
        time.sleep(dice.uniform(0, 1))
        stage.serve()


# -------------------------------------------------------------------------------------------------- stops


def stops(part: Part, dice: random.Random, options: argparse.Namespace) -> None:
    """Stop supervisors and server for longer than a run may take, while the training goes on and ends."""
    stop_s, limit_s = (4, 3) if options.short else (60, 20)
    stage = Stage(part, dice, queued=options.queued)
    stage.fill_workspace()
    config = stage.place.workspace / "loopgraph.toml"
    usual = config.read_text()
    stage.serve()
    stage.baseline()
    for number in range(1 if options.short else 3):
        config.write_text(re.sub(r"(timeout_s|silence_s) = \d+", rf"\1 = {limit_s}", usual))
        known = set(stage.accepted)
        stage.submit()
        first = stage.accepted.keys() - known
        config.write_text(usual)
        _until(stage.trainings)
        stopped = stage.supervisors()
        for process in stopped:
            process.suspend()
        began = time.monotonic()
        stage.keep_queued()
        others = [each for each in stage.supervisors() if each not in stopped]
        stopped += others
        if stage.server is not None and number != 1:
            stopped.append(psutil.Process(stage.server.pid))
        for process in stopped:
            process.suspend()
        part.done[f"SIGSTOP {stop_s} s"] += len(stopped)
        _until_ended(stage, first)
        time.sleep(max(0.0, began + stop_s - time.monotonic()))
        for process in stopped:
            process.resume()
        stage.until_idle("after a stop")
    stage.finish()


def _until_ended(stage: Stage, runs: Iterable[str]) -> None:
    _until(lambda: any(metric_of_log(stage.place, each) is not None for each in runs))


def _until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------- clocks


def clocks(part: Part, dice: random.Random, options: argparse.Namespace) -> None:
    """Step the clock of server, supervisors and trainings both ways, with queued runs and killed supervisors."""
    library = next((path for pattern in FAKETIME for path in Path("/").glob(pattern[1:])), None)
    if library is None:
        part.skipped = "libfaketime is not installed (apt install libfaketime)"
        return
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock"
        _set_clock(clock, 0)
        (Path(folder) / "sitecustomize.py").write_text(SLEEPS)
        environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a step of the clock moves no monotonic one
            "NO_FAKE_STAT": "1",
        }
        stage = Stage(part, dice, environment=environment, queued=options.queued)
        stage.environment["PYTHONPATH"] = os.pathsep.join([folder, str(ROOT)])
        stage.fill_workspace()
        stage.serve()
        stage.baseline()
        for step in CLOCK_STEPS_S[-1:] if options.short else [*CLOCK_STEPS_S, *CLOCK_STEPS_S]:
            stage.keep_queued()
            time.sleep(dice.uniform(0, 1))
            _set_clock(clock, step)
            part.done[f"clock {step:+d} s"] += 1
            if options.short or dice.random() < 0.5:
                _at_a_moment(stage)
                stage.strike(stage.supervisors()[-1:], signal.SIGKILL, "supervisor")
            stage.keep_queued()
            stage.until_idle("after a step of the clock")
            _set_clock(clock, 0)
        stage.finish()
    for path in Path("/dev/shm").glob("*faketime_*"):  # noqa: S108 - what libfaketime leaves of killed processes
        pid = path.name.rpartition("_")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            path.unlink(missing_ok=True)


def _set_clock(file: Path, offset_s: int) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_text(f"{offset_s:+d}\n")
    new.replace(file)  # never an empty file to whoever reads it now


# --------------------------------------------------------------------------------------------------- disk


def disk(part: Part, dice: random.Random, options: argparse.Namespace) -> None:
    """Let the disk of the store, of the runs and of the workspace fill up at random moments, each in turn."""
    if NAMESPACE not in os.environ:
        part.skipped = "no mount namespace can be had here (unshare -m, unshare -Urm)"
        return
    stage = Stage(part, dice, queued=options.queued)
    sizes = {stage.place.workspace: 32, stage.place.store: 64, stage.place.runs: 128}  # the runs are in the store's
    for folder, mib in sizes.items():
        folder.mkdir(exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={mib}m", "faults", str(folder))
    try:
        stage.fill_workspace()
        stage.serve()
        stage.baseline()
        for _ in range(1 if options.short else 5):
            for name, disk_of in (
                ("store", stage.place.store),
                ("runs", stage.place.runs),
                ("workspace", stage.place.workspace),
            ):
                stage.keep_queued(touched=f"the disk of the {name} was full")
                time.sleep(dice.uniform(0, 0.8 if options.short else 1.5))
                _fill(disk_of)
                part.done[f"full: {name}"] += 1
                stage.submit(touched=f"the disk of the {name} was full")
                time.sleep(dice.uniform(0.2, 0.8 if options.short else 2.0))
                _perhaps_kill(stage)
                _mount("-o", f"remount,size={sizes[disk_of]}m", str(disk_of))
                stage.keep_queued(touched=f"the disk of the {name} was full")
        stage.until_idle("once there is space")
        stage.submit()  # makes good what could not be written
        stage.finish()
    finally:
        stage.end_server()
        for folder in reversed(sizes):
            subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)  # noqa: S603, S607
        if stage.place.root.exists():
            shutil.rmtree(stage.place.root, ignore_errors=True)


def _perhaps_kill(stage: Stage) -> None:
    """Kill a supervisor every third time: what it could not write yet must not be lost."""
    if stage.dice.random() < 1 / 3:
        stage.part.done["SIGKILL supervisor"] += 1
        running = {experiment_of(stage.place, each) for each in stage.trainings()}
        watching = stage.supervisors()
        near = [each for each in watching if experiment_of(stage.place, each) in running] or watching
        stage.strike(near[:1], signal.SIGKILL, "supervisor")
        time.sleep(stage.dice.uniform(0, 1))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)  # noqa: S603, S607 - a tmpfs of our own


def _fill(folder: Path) -> None:
    """Make a tmpfs as small as what is in it."""
    for _ in range(100):
        seen = os.statvfs(folder)
        used = (seen.f_blocks - seen.f_bfree) * seen.f_frsize
        with suppress(subprocess.CalledProcessError):  # it grew meanwhile
            _mount("-o", f"remount,size={used // 1024}k", str(folder))
            return
    raise OSError(f"{folder} could not be filled")


# ----------------------------------------------------------------------------------------------- readonly


def readonly(part: Part, dice: random.Random, options: argparse.Namespace) -> None:
    """Take away the right to write to workspace, runs and locks at random moments, each in turn."""
    before: Sequence[str] = ()
    if os.geteuid() == 0:  # no permission binds who may override them all
        before = WITHOUT_RIGHTS
        if shutil.which("setpriv") is None or not _binds(before):
            part.skipped = "permissions do not bind root here, and setpriv cannot take its rights away"
            return
    stage = Stage(part, dice, before=before, queued=options.queued)
    stage.fill_workspace()
    stage.serve()
    stage.baseline()
    folders = {"workspace": stage.place.workspace, "runs": stage.place.runs, "locks": stage.place.home / "locks"}
    for _ in range(1 if options.short else 5):
        for name, folder in folders.items():
            why = f"{name} could not be written"
            stage.keep_queued(touched=why)
            time.sleep(dice.uniform(0, 0.8 if options.short else 1.5))
            locked = _take_right(folder)
            part.done[f"read-only: {name}"] += 1
            stage.submit(touched=why)
            time.sleep(dice.uniform(0.2, 0.8 if options.short else 2.0))
            _perhaps_kill(stage)
            for path, mode in locked.items():
                with suppress(FileNotFoundError):
                    path.chmod(mode)
            stage.keep_queued(touched=why)
    stage.until_idle("once all can be written")
    stage.submit()
    stage.finish()


def _binds(before: Sequence[str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        wrote = subprocess.run([*before, "touch", f"{folder}/x"], check=False, capture_output=True)  # noqa: S603
        Path(folder).chmod(0o755)
        return wrote.returncode != 0


def _take_right(folder: Path) -> dict[Path, int]:
    """Make a folder and the files right in it read-only; return their modes."""
    found = {}
    for path in [folder, *folder.iterdir()]:
        if path == folder or (path.is_file() and not path.is_symlink()):
            found[path] = path.stat().st_mode & 0o7777
            path.chmod(found[path] & ~0o222)
    return found


# --------------------------------------------------------------------------------------------------- main

PARTS: dict[str, Callable[[Part, random.Random, argparse.Namespace], None]] = {
    "kills": kills,
    "stops": stops,
    "clocks": clocks,
    "disk": disk,
    "readonly": readonly,
}


def _enter_namespace() -> None:
    """Start again where mounts are this program's own, if that is allowed."""
    if sys.platform != "linux" or NAMESPACE in os.environ or shutil.which("unshare") is None:
        return
    for flags in (["-m", "--propagation", "private"], ["-U", "-r", "-m"]):
        command = ["unshare", *flags]
        probe = [*command, "mount", "-t", "tmpfs", "faults", "/mnt"]
        if subprocess.run(probe, check=False, capture_output=True).returncode == 0:  # noqa: S603
            os.environ[NAMESPACE] = "1"
            os.execvp("unshare", [*command, sys.executable, *sys.argv])  # noqa: S606, S607


def run_part(kind: str, options: argparse.Namespace) -> Part:
    """Run one part of the suite with dice of its own."""
    part, began = Part(kind), time.monotonic()
    try:
        PARTS[kind](part, random.Random(f"{options.seed} {kind}"), options)
    except Exception:  # noqa: BLE001 - the other parts are still worth running
        part.broke.append(traceback.format_exc())
    part.took_s = time.monotonic() - began
    slow = [f"recovery after a kill of all took {each:.1f} s" for each in part.recovery_s if each > options.within]
    slow += [f"processes were left for {each:.1f} s" for each in part.leftovers_s if each > options.within]
    part.broke += slow
    return part


def as_json(part: Part) -> dict[str, Any]:
    """Return a part as JSON has it."""
    return {
        "kind": part.kind,
        "done": dict(part.done),
        "outcomes": dict(part.outcomes),
        "refusals": dict(part.refusals),
        "recovery_s": [round(each, 2) for each in part.recovery_s],
        "leftovers_s": [round(each, 2) for each in part.leftovers_s],
        "skipped": part.skipped,
        "broke": part.broke,
        "took_s": round(part.took_s, 1),
    }


def show(parts: Sequence[Part]) -> None:
    """Print what was done and what broke."""
    table = Table(title="Faults", show_lines=True)
    for name in ("part", "done", "outcomes", "recovery s (median, most)", "processes gone s", "broke"):
        table.add_column(name)
    for part in parts:
        recovery = part.recovery_s
        table.add_row(
            f"{part.kind}\n{part.took_s:.0f} s",
            (part.skipped and f"skipped: {part.skipped}") or _counted(part.done),
            _counted(part.outcomes),
            f"{statistics.median(recovery):.1f}, {max(recovery):.1f}" if recovery else "",
            f"{max(part.leftovers_s):.1f}" if part.leftovers_s else "",
            str(len(part.broke)),
        )
    console = Console()
    console.print(table)
    for part in parts:
        for words, count in part.refusals.most_common():
            console.print(f"{part.kind}: refused {count} times: {words}", markup=False, highlight=False, soft_wrap=True)
    for part in parts:
        for each in part.broke:
            console.print(f"{part.kind}: {each}", markup=False, highlight=False, soft_wrap=True)


def _counted(counter: Counter[str]) -> str:
    return "\n".join(f"{count} {name}" for name, count in sorted(counter.items()))


def main() -> None:
    """Run the parts asked for and say what broke."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many kills (%(default)d)")
    parser.add_argument("--seed", type=int, default=0, help="of the dice (%(default)d)")
    parser.add_argument("--only", action="append", choices=KINDS, help="only this part; may be given several times")
    parser.add_argument("--within", type=float, default=5.0, help="seconds for recovery and leftovers (%(default)g)")
    parser.add_argument("--short", action="store_true", help="few kills, short stops: what the tests run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    _enter_namespace()
    if options.short:
        options.kills = min(options.kills, 4)
    options.queued = 3 if options.short else QUEUED
    parts = [run_part(kind, options) for kind in options.only or KINDS]
    if options.json:
        print(json.dumps([as_json(part) for part in parts], indent=2))
    else:
        show(parts)
    sys.exit(any(part.broke for part in parts))


if __name__ == "__main__":
    main()
