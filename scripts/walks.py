"""Counts the files and functions of the package that four calls walk through: what is to be read to change one of them.

A search and an edit are warm: asked for a second time, with a run in the store. A run is followed until its supervisor
would start, and the supervisor from there to its end, in this process. What counts is what the event loop runs between
the verb and its answer; with what it hands to threads (SQL, files, syntax trees) as a second figure.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import loopgraph_mcp
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.supervisor import supervise
from loopgraph_mcp.config import Settings, bundled
from loopgraph_mcp.runner import processes
from loopgraph_mcp.runner.workspace import create_workspace

PACKAGE = Path(loopgraph_mcp.__file__).parent
MOST_FILES = {"search": 10, "edit": 11, "run": 10, "supervisor": 8}
PRINTS = "print('---'); print('val_bpb: 1.5'); print('training_seconds: 0.1')"


@dataclass
class Walk:
    """The functions that ran, by file, in the order in which they were reached: on the loop's thread, and on others."""

    loop: dict[str, list[str]] = field(default_factory=dict)
    threads: dict[str, list[str]] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """All files, on whichever thread."""
        return {*self.loop, *self.threads}


_now: Walk | None = None  # the walk that is being followed


def follow(frame: FrameType, event: str, _: Any) -> None:
    """Note a function of the package that begins; a profile function, for `sys.setprofile`."""
    if event != "call" or _now is None:
        return
    code = frame.f_code
    if code.co_filename.startswith(str(PACKAGE)) and code.co_name != "<module>":
        walked = _now.loop if threading.current_thread() is threading.main_thread() else _now.threads
        functions = walked.setdefault(os.path.relpath(code.co_filename, PACKAGE), [])
        name = code.co_qualname.partition(".<locals>")[0]  # what is inside a function is read with it
        if name not in functions:
            functions.append(name)


@contextmanager
def walk() -> Iterator[Walk]:
    """Give what runs in the body."""
    global _now  # noqa: PLW0603 - threads that exist already see it too
    _now = found = Walk()
    try:
        yield found
    finally:
        _now = None


async def walk_all(home: Path) -> dict[str, Walk]:
    """Make the four calls in a new store and a workspace whose training takes a blink; return their walks."""
    folder = home / "workspace"
    create_workspace(folder, bundled("trainer"), budget_s=30)
    declared = (folder / "loopgraph.toml").read_text(encoding="utf-8")
    lines = [line for line in declared.splitlines() if not line.startswith(("command", "verify"))]
    at = lines.index("[workspace]") + 1
    lines.insert(at, f"command = {json.dumps([sys.executable, '-c', PRINTS])}")
    (folder / "loopgraph.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = Settings(home=home, db_path=home / "loopgraph.db", workspace=folder, device="cpu")
    walks = dict[str, Walk]()
    started = list[tuple[str, int]]()
    processes.start_supervisor = lambda identity, lock, *_: started.append((identity, os.dup(lock)))
    async with LoopGraph.open(settings) as graph:
        await graph.search_methods("attention")
        await graph.run_experiment(description="baseline", wait_s=0)
        await supervise(settings, *started.pop())
        hits = (await graph.search_methods("attention")).hits
        first, second = [hit.method_id for hit in hits if hit.has_edit][:2]
        edit = await graph.get_code_edit(first)
        await graph.run_experiment(edit_id=edit.edit_id, wait_s=0)
        await supervise(settings, *started.pop())
        await graph.get_code_edit(second)
        await graph.search_methods("attention heads")
        with walk() as walks["search"]:
            await graph.search_methods("attention heads")
        with walk() as walks["edit"]:
            edit = await graph.get_code_edit(second)
        with walk() as walks["run"]:
            await graph.run_experiment(edit_id=edit.edit_id, wait_s=0)
        with walk() as walks["supervisor"]:
            await supervise(settings, *started.pop())
        done = await graph.list_experiments(limit=1)
        if done[0].metric_value is None:
            raise SystemExit(f"the run failed: {done[0].reason}")
    return walks


def show(walks: Mapping[str, Walk], *, files: bool) -> None:
    """Print a line a walk, and its files with their functions if asked to."""
    for name, found in walks.items():
        functions = sum(len(each) for each in found.loop.values())
        met = "" if len(found.loop) <= MOST_FILES[name] else "  MISSED"
        print(
            f"{name}: {len(found.loop)} files (at most {MOST_FILES[name]}), {functions} functions; "
            f"with threads {len(found.files)} files{met}"
        )
        for path, names in found.loop.items() if files else ():
            print(f"    {path}: {', '.join(names)}")
        for path, names in found.threads.items() if files else ():
            print(f"    on a thread: {path}: {', '.join(names)}")


def main() -> None:
    """Walk and print."""
    parser = argparse.ArgumentParser(prog="scripts/walks", description=__doc__)
    parser.add_argument("--files", action="store_true", help="also print each file with its functions")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    sys.setprofile(follow)
    threading.setprofile(follow)
    with tempfile.TemporaryDirectory() as folder:
        walks = asyncio.run(walk_all(Path(folder)))
    sys.setprofile(None)
    if options.json:
        print(json.dumps({name: asdict(found) for name, found in walks.items()}, indent=2))
    else:
        show(walks, files=options.files)


if __name__ == "__main__":
    main()
